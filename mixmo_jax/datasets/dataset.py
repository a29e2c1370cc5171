"""The form that every dataset is brought into."""

import hashlib

import flax.struct
import jax
import numpy as np


class Rows:
    """A selection of the rows of an array, which are not copied.

    Indexed like an array along its first axis, by integers, slices or arrays of integers.

    Attributes:
      shape: The shape of the selection.
      ndim: The number of its axes.
      dtype: The dtype of the array.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        """Selects rows.

        Args:
          array: An array [N, …].
          rows: The indices [n] int of the selected rows, in their order.
        """
        self._array, self._rows = array, rows
        self.shape = (len(rows), *array.shape[1:])
        self.ndim = array.ndim
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> np.ndarray:
        return self._array[self._rows[index]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._array[self._rows], dtype)


@flax.struct.dataclass
class Split:
    """Images and labels, in memory on the host or on devices, or memory-mapped.

    Attributes:
      images: The images [N, H, W, C] uint8.
      labels: The labels [N] int32.
    """

    images: np.ndarray | Rows | jax.Array
    labels: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """The size of the images in bytes."""
        return int(np.prod(self.images.shape))

    def digest(self) -> str:
        """Returns a hexadecimal digest of all labels and of up to 1,000 of the images."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int)
        digest = hashlib.sha256(np.asarray(self.labels, np.int32).tobytes())
        digest.update(np.ascontiguousarray(self.images[rows]).tobytes())
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> "Split":
        """Returns the images and labels of the given indices [n] int; images are not copied."""
        return Split(Rows(self.images, rows), self.labels[rows])


def stratified_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Splits off a fraction of every class; the same images for the same seed.

    Args:
      split: The split to take images from.
      fraction: The fraction to take, more than 0 and less than 1. At least one image of each class
        stays and, of a class with two or more, at least one is taken.
      seed: The seed of the choice.

    Returns:
      The images that stay and those that are taken, each in the order of `split`.
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
    """The splits of a dataset, its class names, and the statistics for normalization.

    Attributes:
      train: The images for training.
      test: The images for the final scores.
      validation: The images for the selection of a model, if any; never those of `test`.
      class_names: The names of the K classes, in the order of the labels.
      mean: The mean of each channel, on a scale of 0 to 1.
      std: The standard deviation of each channel, on the same scale.
    """

    train: Split
    test: Split
    validation: Split | None
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    mean: tuple[float, ...] = flax.struct.field(pytree_node=False)
    std: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of an image."""
        return self.train.images.shape[1:]

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def num_images(self) -> dict[str, int]:
        """The number of images of each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.class_names)
