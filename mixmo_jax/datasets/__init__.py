"""Data sources: one file each."""

import pathlib

import ml_collections
import numpy as np

from mixmo_jax.datasets import archives, cache, digits
from mixmo_jax.datasets.cifar import CIFAR10, CIFAR100
from mixmo_jax.datasets.dataset import Dataset, Split, stratified_split
from mixmo_jax.datasets.image_folder import IMAGE_FOLDER
from mixmo_jax.datasets.tiny_imagenet import TINY_IMAGENET
from mixmo_jax.errors import InputError, invalid

__all__ = ["Dataset", "Split", "load"]

_SOURCES = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "tiny_imagenet": TINY_IMAGENET,
    "image_folder": IMAGE_FOLDER,
}


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Loads the data set of `config.dataset`.

    Images read from files are decoded once, cached beside them, and memory-mapped.

    Args:
      config: the fields of `config.dataset`; empty `mean` or `std` are measured on the training
        images.

    Raises:
      InputError: if the data is not there, or is damaged, or does not fit the config.
    """
    if config.name == "digits":
        splits, class_names = digits.load()
    elif config.name in _SOURCES:
        splits, class_names = _load_files(config)
    else:
        raise invalid("dataset.name", config.name, f"one of digits, {', '.join(_SOURCES)}")
    for name, split in splits.items():
        _check(f"{config.name}: {name}", split, len(class_names))
    taken = {}
    if "test" not in splits:
        taken["test"] = config.test_fraction
    if config.validation_fraction:
        if "validation" in splits:
            allowed = "0, as the data have a validation split of their own"
            raise invalid("dataset.validation_fraction", config.validation_fraction, allowed)
        taken["validation"] = config.validation_fraction
    for name, fraction in taken.items():
        parts = stratified_split(splits["train"], fraction, config.split_seed)
        splits["train"], splits[name] = parts
        if not len(splits[name]):
            raise InputError(f"{config.name}: {name}: no class has a training image to spare")
    train, validation = splits["train"], splits.get("validation")
    _check_classes(config, train, len(class_names))
    statistics = _statistics(config, train)
    return Dataset(train, splits["test"], validation, tuple(class_names), **statistics)


def _load_files(config):
    """Splits and class names of a source that is made of files."""
    source = _SOURCES[config.name]
    path = source.locate(config.data_dir)
    options = {name: config[name] for name in source.options}
    folder = (
        pathlib.Path(config.cache_dir).expanduser()
        if config.cache_dir
        else (path if path.is_dir() else path.parent) / ".mixmo_jax"
    )

    def build(arrays: cache.Arrays) -> None:
        source.verify(path)
        source.build(path, config, arrays)

    # Beside the source, the cache may move along with it.
    where = str(path.absolute()) if config.cache_dir else path.name
    arrays, meta = cache.load(
        folder,
        f"{config.name}-{cache.key(where, options)}",
        {"path": where, "fingerprint": archives.fingerprint(path), **options},
        build,
    )
    names = sorted({name.partition("_")[0] for name in arrays})
    splits = {k: Split(arrays[f"{k}_images"], np.array(arrays[f"{k}_labels"])) for k in names}
    return splits, meta["class_names"]


def _check(name, split, num_classes):
    """Holds a split against what every source promises."""
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise InputError(f"{name}: images are {images.dtype}{images.shape}, expected [N, H, W, C]")
    if labels.shape != (len(images),) or not len(labels):
        raise InputError(f"{name}: {len(images)} images, but labels {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"{name}: a label {outside}, but {num_classes} classes")


def _check_classes(config, train, num_classes):
    missing = set(range(num_classes)) - set(np.unique(train.labels).tolist())
    if missing:
        raise InputError(f"{config.name}: train: no image of {len(missing)} of the classes")


def _statistics(config, train):
    """Mean and standard deviation of each channel, given or measured."""
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
