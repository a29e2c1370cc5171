"""Datasets: one file each, and the registry of their loaders.

from mixmo_jax.datasets import DATASETS, Split

def load_mine(config):  # the fields of config.dataset
    return {"train": Split(images, labels), "test": Split(…)}, ["cat", "dog"]

DATASETS["mine"] = load_mine
"""

from collections.abc import Callable

import ml_collections
import numpy as np

from mixmo_jax.datasets import digits
from mixmo_jax.datasets.cifar import CIFAR10, CIFAR100
from mixmo_jax.datasets.dataset import Dataset, Split, stratified_split
from mixmo_jax.datasets.image_folder import IMAGE_FOLDER
from mixmo_jax.datasets.tiny_imagenet import TINY_IMAGENET
from mixmo_jax.errors import InputError, invalid, shown

__all__ = ["DATASETS", "Dataset", "Split", "load"]

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
}


def load(config: ml_collections.ConfigDict) -> Dataset:
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
    loaded, class_names = DATASETS[config.name](config)
    _check_names(config.name, loaded, class_names)
    splits = {}
    for name, split in loaded.items():
        _check(f"{config.name}: {name}", split, len(class_names))
        splits[name] = Split(split.images, np.asarray(split.labels, np.int32))
    splits = _split_off(config, _limit(config, splits))
    train, validation = splits["train"], splits.get("validation")
    _check_classes(config, train, len(class_names))
    statistics = _statistics(config, train)
    return Dataset(train, splits["test"], validation, tuple(class_names), **statistics)


def _check_names(name, splits, class_names):
    if "train" not in splits or not splits.keys() <= {"train", "test", "validation"}:
        allowed = "train and perhaps test and validation"
        raise InputError(f"{name}: splits {', '.join(splits)}: expected {allowed}")
    if not all(isinstance(class_name, str) for class_name in class_names):
        raise InputError(f"{name}: class names {shown(class_names)}: expected texts")


def _check(name, split, num_classes):
    """Raises `InputError` unless a split is what every loader promises."""
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        expected = "uint8 [N, H, W, C] with C = 1 or 3"
        raise InputError(f"{name}: images are {images.dtype}{images.shape}, expected {expected}")
    if labels.shape != (len(images),) or not len(labels):
        raise InputError(f"{name}: {len(images)} images, but labels {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name}: labels are {labels.dtype}, expected integers")
    if labels.min() < 0 or labels.max() >= num_classes:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"{name}: a label {outside}, but {num_classes} classes")


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


def _check_classes(config, train, num_classes):
    missing = set(range(num_classes)) - set(np.unique(train.labels).tolist())
    if missing:
        raise InputError(f"{config.name}: train: no image of {len(missing)} of the classes")


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
            raise invalid(f"dataset.{field}", numbers, f"{channels} values, one per channel")
    if min(statistics["std"]) <= 0:
        raise InputError(f"dataset.name={config.name!r}: a channel of the training images is flat")
    return {field: tuple(float(n) for n in numbers) for field, numbers in statistics.items()}
