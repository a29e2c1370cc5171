"""Networks.

`NETWORKS` is the registry that `model.name` refers to. To add one, write a function with the
arguments of `wide_resnet` and add a line here, or one to the dictionary from a file of your own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from mixmo_jax.errors import InputError, unknown
from mixmo_jax.models.multi_input import MixMoNet
from mixmo_jax.models.preact_resnet import preact_resnet
from mixmo_jax.models.wide_resnet import wide_resnet

NETWORKS: dict[str, Callable[..., MixMoNet]] = {
    "wide_resnet": wide_resnet,
    "preact_resnet": preact_resnet,
}


def create_model(
    config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None
) -> MixMoNet:
    """Builds the network of `config.model`.

    Args:
      config: The fields `name`, `depth`, `width`, `num_members`, `dtype`.
      num_classes: K.
      axis_name: The mapped axis over which BatchNorm synchronizes its statistics in training.

    Raises:
      InputError: if there is no such network of this depth.
    """
    if config.name not in NETWORKS:
        raise unknown("network", config.name, NETWORKS, where="mixmo_jax.models.NETWORKS")
    dtype = _auto_dtype() if config.dtype == "auto" else config.dtype
    try:
        return NETWORKS[config.name](
            depth=config.depth,
            width=config.width,
            num_members=config.num_members,
            num_classes=num_classes,
            dtype=jnp.dtype(dtype),
            axis_name=axis_name,
        )
    except InputError as error:
        raise InputError(f"model.{error}") from None


def _auto_dtype() -> str:
    """The dtype of `model.dtype=auto`: bfloat16 on TPUs, and on GPUs that compute in it.

    NVIDIA's GPUs do from a compute capability of 8.0 on (Ampere).
    """
    device = jax.local_devices()[0]
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]  # of AMD's no number
    wide = device.platform == "cpu" or (major.isdigit() and int(major) < 8)
    return "float32" if wide else "bfloat16"


def variable_shapes(model: MixMoNet, image_shape: tuple[int, int, int]) -> dict:
    """Returns the tree of a network's variables, each only as shape and dtype.

    Args:
      model: The network.
      image_shape: (H, W, C) of an image.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
