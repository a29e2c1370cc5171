"""Checks of a training run before its first step: batch, devices, network and data fit together."""

import jax
import ml_collections

from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import InputError, invalid
from mixmo_jax.models import create_model


def check_network(config: ml_collections.ConfigDict) -> None:
    """Checks what needs no dataset, which may take long to load.

    Raises:
      InputError: if the batch does not fit the devices, or the network's description is not valid.
    """
    create_model(config.model, num_classes=1)
    count = jax.device_count()
    if config.batch_size % count:
        raise invalid("batch_size", config.batch_size, f"a multiple of the {count} devices")


def check_sizes(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    *,
    steps_per_epoch: int,
    warmup_steps: int,
    stride: int,
) -> None:
    """Checks that batch, images and numbers of steps fit together.

    Args:
      config: The checked config.
      dataset: The dataset.
      steps_per_epoch: The number of steps of an epoch.
      warmup_steps: The number of steps over which the learning rate rises.
      stride: That of the encoders.

    Raises:
      InputError: if an epoch has no step, a number of steps does not fit int32, or the stride does
        not divide the sides of the images.
    """
    if not steps_per_epoch:
        most = len(dataset.train) * config.batch_repetitions
        raise invalid("batch_size", config.batch_size, f"at most {most} with this dataset")
    for field, steps in {
        "num_epochs": config.num_epochs * steps_per_epoch,
        "optimizer.warmup_steps": warmup_steps,
    }.items():
        if steps >= 2**31:  # they are counted in int32
            raise InputError(f"{field}: {steps:,} steps, expected fewer than 2**31")
    height, width, _ = dataset.image_shape
    if height % stride or width % stride:
        allowed = f"multiples of the encoders' stride {stride}"
        where = "dataset.image_size sets the size of image_folder"
        raise InputError(f"images: {height}x{width} pixels, expected {allowed}; {where}")
