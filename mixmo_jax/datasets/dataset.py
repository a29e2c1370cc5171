"""`Dataset` and its splits, and how images and labels become one."""

import hashlib
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import ml_collections
import numpy as np

from mixmo_jax.errors import InputError, invalid


class Rows:
    """A selection of rows of an array [N, …], indexed like an array along the first axis.

    The rows are not copied.

    Args:
      array: An array [N, …].
      rows: The indices [n] int of the rows, in their order.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
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
      images: [N, H, W, C] uint8.
      labels: [N] int32.
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
        """Returns a hexadecimal digest of all labels and of up to 1,000 images."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 1000)).astype(int)
        digest = hashlib.sha256(np.asarray(self.labels, np.int32).tobytes())
        digest.update(np.ascontiguousarray(self.images[rows]).tobytes())
        return digest.hexdigest()

    def subset(self, rows: np.ndarray) -> "Split":
        """Returns the images and labels at the indices [n] int; images are not copied."""
        return Split(Rows(self.images, rows), self.labels[rows])


@flax.struct.dataclass
class Dataset:
    """The splits of a dataset, its class names, and the statistics for normalization.

    Attributes:
      train: The images for training.
      test: The images for the final scores.
      validation: The images that select a model, if any; disjoint from `test`.
      class_names: The names of the K classes, in the order of the labels.
      mean: The mean of each channel, on the scale 0 to 1.
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
        """The splits that exist, by name."""
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


def stratified_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Splits off a fraction of every class; the same images for the same seed.

    Args:
      split: The images to split.
      fraction: The fraction to split off, more than 0 and less than 1. At least one image of each
        class remains and, of a class with two or more, at least one is split off.
      seed: The seed of the choice.

    Returns:
      The remaining images and the images split off, each in the order of `split`.
    """
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        members = rng.permutation(np.flatnonzero(split.labels == label))
        count = np.clip(round(fraction * len(members)), min(1, len(members) - 1), len(members) - 1)
        taken[members[:count]] = True
    return split.subset(np.flatnonzero(~taken)), split.subset(np.flatnonzero(taken))


def create_dataset(
    config: ml_collections.ConfigDict,
    splits: Mapping[str, Split],
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Creates a dataset from images and labels.

    Args:
      config: The fields of `config.dataset`: the number of training images, the fractions split
        off for test and validation, mean and std; empty ones are measured on the training images.
      splits: "train" and perhaps "test" and "validation", with images [N, H, W, C] uint8, C = 1 or
        3, and labels [N] int.
      class_names: The names of the K classes; "0", "1", … by default.

    Returns:
      The dataset, with the images as they are and labels [N] int32.

    Raises:
      InputError: if the splits are not as described, or do not fit the config.
    """
    if "train" not in splits or not splits.keys() <= {"train", "test", "validation"}:
        allowed = "train and perhaps test and validation"
        raise InputError(f"{config.name}: splits {', '.join(splits)}: expected {allowed}")
    for name, split in splits.items():
        _check_split(f"{config.name}: {name}", split, splits["train"].images.shape[1:])
    splits = {k: Split(v.images, np.asarray(v.labels, np.int32)) for k, v in splits.items()}
    train = splits["train"]
    if config.num_train_images > len(train):
        allowed = f"at most the {len(train):,} there are"
        raise invalid("dataset.num_train_images", config.num_train_images, allowed)
    if config.num_train_images:
        train = splits["train"] = train.subset(np.arange(config.num_train_images))
    if class_names is None:
        class_names = range(len(np.unique(train.labels)))
    _check_labels(config.name, splits, len(class_names))

    fractions = {} if "test" in splits else {"test": config.test_fraction}
    if config.validation_fraction:
        if "validation" in splits:
            allowed = "0, as the data have a validation split of their own"
            raise invalid("dataset.validation_fraction", config.validation_fraction, allowed)
        fractions["validation"] = config.validation_fraction
    for name, fraction in fractions.items():
        train, splits[name] = stratified_split(train, fraction, config.split_seed)
        if not len(splits[name]):
            raise InputError(f"{config.name}: {name}: no class has a training image to spare")

    mean, std = config.mean, config.std
    if not (mean and std):
        measured_mean, measured_std = _measure(train.images)
        mean, std = mean or measured_mean, std or measured_std
    for field, values in {"mean": mean, "std": std}.items():
        if len(values) != train.images.shape[-1]:
            allowed = f"{train.images.shape[-1]} values, one per channel, or () to measure them"
            raise invalid(f"dataset.{field}", values, allowed)
    if min(std) <= 0:
        raise InputError(f"dataset.name={config.name!r}: a channel of the training images is flat")
    return Dataset(
        train=train,
        test=splits["test"],
        validation=splits.get("validation"),
        class_names=tuple(map(str, class_names)),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


def _check_split(name, split, image_shape):
    """Raises `InputError` unless images and labels are as `create_dataset` describes."""
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        expected = "uint8 [N, H, W, C] with C = 1 or 3"
        raise InputError(f"{name}: images are {images.dtype}{images.shape}, expected {expected}")
    if images.shape[1:] != image_shape:
        shapes = f"{images.shape[1:]}, those of train {image_shape}"
        raise InputError(f"{name}: images have the shape {shapes}")
    if labels.shape != (len(images),) or not len(labels):
        raise InputError(f"{name}: {len(images)} images, but labels {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels are {labels.dtype}, expected integers")


def _check_labels(name, splits, num_classes):
    """Raises `InputError` unless labels are 0 to K - 1, and all K occur in the training split."""
    for split_name, split in splits.items():
        for label in (split.labels.min(), split.labels.max()):
            if not 0 <= label < num_classes:
                expected = f"{num_classes} classes: expected 0 to {num_classes - 1}"
                raise InputError(f"{name}: {split_name}: a label {label}, but {expected}")
    if missing := num_classes - len(np.unique(splits["train"].labels)):
        raise InputError(f"{name}: train: no image of {missing} of the classes")


def _measure(images):
    """Measures the mean and standard deviation of each channel, [C] each, on the scale 0 to 1."""
    counts = np.zeros((images.shape[-1], 256))
    for start in range(0, len(images), 4096):  # in parts: images may be memory-mapped
        part = images[start : start + 4096]
        counts += [
            np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(part, -1, 0)
        ]
    values, total = np.arange(256) / 255, counts.sum(1)
    mean = (counts * values).sum(1) / total
    return mean, np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / total)
