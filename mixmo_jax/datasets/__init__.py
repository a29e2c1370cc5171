"""Datasets: a file for each source, and the registry of their loaders.

from mixmo_jax.datasets import DATASETS, Split

def load_mine(config):  # the fields of config.dataset
    return {"train": Split(images, labels), "test": Split(…)}, ["cat", "dog"]

DATASETS["mine"] = load_mine
"""

from collections.abc import Callable

import ml_collections

from mixmo_jax.datasets import cifar, digits, image_folder, tfds, tiny_imagenet
from mixmo_jax.datasets.dataset import Dataset, Split, create_dataset
from mixmo_jax.errors import InputError, invalid

__all__ = ["DATASETS", "Dataset", "Split", "create_dataset", "load_dataset"]

Loader = Callable[[ml_collections.ConfigDict], tuple[dict[str, Split], list[str]]]


def _load_arrays(config: ml_collections.ConfigDict) -> None:
    """Stands in for images that `mixmo_jax.fit` was given, which are not kept."""
    reason = "its images are handed over in Python and not kept; call mixmo_jax.fit with them"
    raise InputError(f"dataset.name={config.name!r}: {reason}")


# From name to loader. A loader takes the fields of `config.dataset` and returns the splits "train"
# and perhaps "test" and "validation", with images [N, H, W, C] uint8 (C = 1 or 3) and labels [N]
# int, and the K class names. Without "test", a part of the training images becomes the test split.
# A name may go on after a colon, as in "tfds:NAME"; the loader reads the rest.
DATASETS: dict[str, Loader] = {
    "digits": digits.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
    "tiny_imagenet": tiny_imagenet.load,
    "image_folder": image_folder.load,
    "tfds": tfds.load,
    "arrays": _load_arrays,
}


def load_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Loads the dataset `config.dataset.name`.

    Images of files are decoded once, cached, and memory-mapped.

    Args:
      config: The fields of `config.dataset`.

    Returns:
      The dataset, with images [N, H, W, C] uint8 and labels [N] int32 on the host.

    Raises:
      InputError: if there is no such dataset, if its files are missing or damaged, or if it does
        not fit the config.
    """
    name = config.name.partition(":")[0]
    if name not in DATASETS:
        raise invalid("dataset.name", config.name, f"one of {', '.join(DATASETS)}")
    return create_dataset(config, *DATASETS[name](config))
