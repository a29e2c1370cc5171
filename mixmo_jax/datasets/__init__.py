"""Data sources: one file each."""

import ml_collections
import numpy as np

from mixmo_jax.datasets import digits
from mixmo_jax.datasets.dataset import Dataset, Split
from mixmo_jax.errors import InputError, invalid

__all__ = ["Dataset", "Split", "load"]

_SOURCES = {"digits": digits.load}


def load(config: ml_collections.ConfigDict) -> Dataset:
    """Loads the data set of `config.dataset` into the host's memory.

    Args:
      config: the fields `name`, `mean`, `std`; empty `mean` or `std` are measured on the
        training images.

    Raises:
      InputError: if the source is not known, or the mean does not fit the images.
    """
    if config.name not in _SOURCES:
        raise invalid("dataset.name", config.name, f"one of {', '.join(_SOURCES)}")
    train, test, class_names = _SOURCES[config.name]()
    channels = train.images.shape[-1]
    statistics = {}
    for field, measure in (("mean", np.mean), ("std", np.std)):
        values = config[field]
        if not values:
            values = measure(train.images / np.float64(255), axis=(0, 1, 2))
        if len(values) != channels:
            raise invalid(f"dataset.{field}", values, f"{channels} values, one per channel")
        statistics[field] = tuple(float(value) for value in values)
    if min(statistics["std"]) <= 0:
        raise InputError(f"dataset.name={config.name!r}: a channel of the training images is flat")
    return Dataset(train, test, class_names, **statistics)
