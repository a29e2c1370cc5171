"""Networks."""

import jax
import jax.numpy as jnp
import ml_collections

from mixmo_jax.errors import InputError
from mixmo_jax.models.mixmo import MixMoNet
from mixmo_jax.models.preact_resnet import preact_resnet
from mixmo_jax.models.wide_resnet import wide_resnet

_BUILDERS = {"wide_resnet": wide_resnet, "preact_resnet": preact_resnet}


def create_model(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> MixMoNet:
    """Builds the network of `config.model`.

    Args:
      config: the fields `name`, `depth`, `width`, `num_members`, `dtype`.
      num_classes: K.
      axis_name: of the mapped axis over which BatchNorm synchronises its statistics in training.

    Raises:
      InputError: if there is no such network of this depth.
    """
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        return _BUILDERS[config.name](
            depth=config.depth,
            width=config.width,
            num_members=config.num_members,
            num_classes=num_classes,
            dtype=jnp.dtype(dtype),
            axis_name=axis_name,
        )
    except InputError as error:
        raise InputError(f"model.{error}") from None
