"""Datasets: one file each, and the registry of their loaders.

from mixmo_jax.datasets import DATASETS, Split

def load_mine(config):  # the fields of config.dataset
    return {"train": Split(images, labels), "test": Split(…)}, ["cat", "dog"]

DATASETS["mine"] = load_mine
"""

from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from mixmo_jax.datasets import arrays, digits
from mixmo_jax.datasets.cifar import CIFAR10, CIFAR100
from mixmo_jax.datasets.dataset import Dataset, Split, stratified_split
from mixmo_jax.datasets.image_folder import IMAGE_FOLDER
from mixmo_jax.datasets.tiny_imagenet import TINY_IMAGENET
from mixmo_jax.errors import InputError, format_value, invalid

__all__ = ["DATASETS", "Dataset", "Split", "from_splits", "load_dataset"]

Loader = Callable[[ml_collections.ConfigDict], tuple[dict[str, Split], list[str]]]

# From name to loader. A loader takes the fields of `config.dataset` and returns the splits "train"
# and perhaps "test" and "validation", with images [N, H, W, C] uint8 (C = 1 or 3) and labels [N]
# int, and the K class names. Without "test", a part of the training images becomes the test split.
DATASETS: dict[str, Loader] = {
    "digits": digits.load,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "tiny_imagenet": TINY_IMAGENET,
    "image_folder": IMAGE_FOLDER,
    "arrays": arrays.load,
}


def load_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Loads the dataset `config.dataset.name`.

    Images that are read from files are decoded once, cached, and memory-mapped.

    Args:
      config: The fields of `config.dataset`; an empty `mean` or `std` is measured on the training
        images.

    Returns:
      The dataset, with images [N, H, W, C] uint8 and labels [N] int32 on the host.

    Raises:
      InputError: if there is no such dataset, if its files are missing or damaged, or if it does
        not fit the config.
    """
    if config.name not in DATASETS:
        raise invalid("dataset.name", config.name, f"one of {', '.join(DATASETS)}")
    return from_splits(config, *DATASETS[config.name](config))


def from_splits(
    config: ml_collections.ConfigDict,
    splits: Mapping[str, Split],
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Makes a dataset of images and labels that are there already.

    Args:
      config: The fields of `config.dataset`; `name` stands in the errors, and those on what is used
        or set apart and on `mean` and `std` apply.
      splits: What a loader returns, see `DATASETS`.
      class_names: The names of the K classes; by default their numbers, as many as "train" has.

    Returns:
      The dataset, with images [N, H, W, C] uint8 as they are given and labels [N] int32.

    Raises:
      InputError: if the splits are not what a loader must return, or do not fit the config.
    """
    if "train" not in splits or not splits.keys() <= {"train", "test", "validation"}:
        allowed = "train and perhaps test and validation"
        raise InputError(f"{config.name}: splits {', '.join(splits)}: expected {allowed}")
    for name, split in splits.items():
        _check_arrays(f"{config.name}: {name}", split)
    for name, split in splits.items():
        image_shape, expected = split.images.shape[1:], splits["train"].images.shape[1:]
        if image_shape != expected:
            reason = f"images have the shape {image_shape}, those of train {expected}"
            raise InputError(f"{config.name}: {name}: {reason}")
    splits = _limit(config, splits)
    if class_names is None:
        class_names = [str(number) for number in range(len(np.unique(splits["train"].labels)))]
    _check_classes(config.name, splits, class_names)
    splits = {
        name: Split(split.images, np.asarray(split.labels, np.int32))
        for name, split in splits.items()
    }
    splits = _split_off(config, splits)
    train, validation = splits["train"], splits.get("validation")
    statistics = _statistics(config, train)
    return Dataset(train, splits["test"], validation, tuple(class_names), **statistics)


def _check_arrays(name, split):
    """Raises `InputError` unless a split has the arrays that every loader promises."""
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        expected = "uint8 [N, H, W, C] with C = 1 or 3"
        raise InputError(f"{name}: images are {images.dtype}{images.shape}, expected {expected}")
    if labels.shape != (len(images),) or not len(labels):
        raise InputError(f"{name}: {len(images)} images, but labels {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels are {labels.dtype}, expected integers")


def _check_classes(name, splits, class_names):
    """Raises `InputError` unless the names of the classes fit the labels."""
    num_classes = len(class_names)
    if not all(isinstance(class_name, str) for class_name in class_names):
        raise InputError(f"{name}: class names {format_value(class_names)}: expected texts")
    for split_name, split in splits.items():
        least, most = split.labels.min(), split.labels.max()
        if least < 0 or most >= num_classes:
            outside = least if least < 0 else most
            expected = f"but {num_classes} classes: expected 0 to {num_classes - 1}"
            raise InputError(f"{name}: {split_name}: a label {outside}, {expected}")
    missing = num_classes - len(np.unique(splits["train"].labels))
    if missing:
        raise InputError(f"{name}: train: no image of {missing} of the classes")


def _limit(config, splits):
    """Returns the splits with as many training images as the config asks for."""
    count, train = config.num_train_images, splits["train"]
    if count > len(train):
        raise invalid("dataset.num_train_images", count, f"at most the {len(train):,} there are")
    return {**splits, "train": train.subset(np.arange(count))} if count else splits


def _split_off(config, splits):
    """Returns the splits with the test and validation images that come from the training split."""
    fractions = {} if "test" in splits else {"test": config.test_fraction}
    if config.validation_fraction:
        if "validation" in splits:
            allowed = "0, as the data have a validation split of their own"
            raise invalid("dataset.validation_fraction", config.validation_fraction, allowed)
        fractions["validation"] = config.validation_fraction
    for name, fraction in fractions.items():
        train, taken = stratified_split(splits["train"], fraction, config.split_seed)
        if not len(taken):
            raise InputError(f"{config.name}: {name}: no class has a training image to spare")
        splits = {**splits, "train": train, name: taken}
    return splits


def _statistics(config, train):
    """Returns the mean and standard deviation of each channel, given or measured."""
    channels = train.images.shape[-1]
    counts = np.zeros((channels, 256))
    if not (config.mean and config.std):
        for start in range(0, len(train), 4096):
            chunk = train.images[start : start + 4096]
            counts += [np.bincount(chunk[..., c].ravel(), minlength=256) for c in range(channels)]
    values, total = np.arange(256) / 255, np.maximum(counts.sum(1), 1)
    mean = (counts * values).sum(1) / total
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / total)
    statistics = {"mean": config.mean or mean, "std": config.std or std}
    for field, numbers in statistics.items():
        if len(numbers) != channels:
            allowed = f"{channels} values, one per channel, or () to measure them"
            raise invalid(f"dataset.{field}", numbers, allowed)
    if min(statistics["std"]) <= 0:
        raise InputError(f"dataset.name={config.name!r}: a channel of the training images is flat")
    return {field: tuple(float(n) for n in numbers) for field, numbers in statistics.items()}
