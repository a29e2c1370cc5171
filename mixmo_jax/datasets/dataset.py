"""The form every data source is brought into."""

import hashlib

import flax.struct
import jax
import numpy as np


class Rows:
    """Some rows of an array, in the order of their numbers, without a copy of them.

    Indexed like an array along its first axis, by integers, slices or arrays of integers.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> np.ndarray:
        return self._array[self._rows[index]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._array[self._rows], dtype)


@flax.struct.dataclass
class Split:
    """Images and labels, in memory on the host or on devices, or mapped to a file."""

    images: np.ndarray | Rows | jax.Array  # [N, H, W, C] uint8
    labels: np.ndarray | jax.Array  # [N] int32

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of the images."""
        return int(np.prod(self.images.shape))

    def digest(self) -> str:
        """Returns a text that tells splits apart: of all labels and up to 1,000 of the images."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int)
        digest = hashlib.sha256(np.asarray(self.labels, np.int32).tobytes())
        digest.update(np.ascontiguousarray(self.images[rows]).tobytes())
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> "Split":
        """Returns some of the images: [n] int → n images. They are not copied."""
        return Split(Rows(self.images, rows), self.labels[rows])

    def in_memory(self) -> "Split":
        """Returns the split with its images as one array in memory."""
        return Split(np.ascontiguousarray(self.images), self.labels)


def stratified_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Takes a fraction of every class out of a split; the same for the same seed.

    Args:
      split: of N images.
      fraction: more than 0, less than 1. At least one image of a class stays, and one is taken.
      seed: of the choice.

    Returns:
      What stays and what is taken, each in the order of `split`.
    """
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        members = rng.permutation(np.flatnonzero(split.labels == label))
        count = np.clip(round(fraction * len(members)), min(1, len(members) - 1), len(members) - 1)
        taken[members[:count]] = True
    return split.subset(np.flatnonzero(~taken)), split.subset(np.flatnonzero(taken))


@flax.struct.dataclass
class Dataset:
    """Splits and what is needed to feed and to read a network."""

    train: Split
    test: Split
    validation: Split | None  # for the selection of a model; never the test set
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    mean: tuple[float, ...] = flax.struct.field(pytree_node=False)  # per channel, scale 0 to 1
    std: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.images.shape[1:]

    @property
    def num_images(self) -> dict[str, int]:
        """Images of each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(split) for name, split in splits.items() if split is not None}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
