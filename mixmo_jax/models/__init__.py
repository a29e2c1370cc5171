"""Networks: M encoders, a core, M heads.

`NETWORKS` is the registry: `model.name` names its entries. To add a network, write a function with
the arguments of `wide_resnet` and register it: `NETWORKS["mine"] = mine`. Fields that your config
adds to `config.model` are passed as keyword arguments.
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
      config: The fields of `config.model`. All but `name` are arguments of the network's function.
      num_classes: K.
      axis_name: The mapped axis over which BatchNorm synchronizes its statistics in training.

    Raises:
      InputError: if there is no such network, or it refuses a field such as the depth.
    """
    if config.name not in NETWORKS:
        raise unknown("network", config.name, NETWORKS, where="mixmo_jax.models.NETWORKS")
    fields = {name: value for name, value in config.items() if name != "name"}
    fields["dtype"] = jnp.dtype(_auto_dtype() if config.dtype == "auto" else config.dtype)
    try:
        return NETWORKS[config.name](**fields, num_classes=num_classes, axis_name=axis_name)
    except InputError as error:
        raise InputError(f"model.{error}") from None


def _auto_dtype() -> str:
    """Returns bfloat16 on TPU and on GPUs that compute in it (NVIDIA: from Ampere, 8.0)."""
    device = jax.local_devices()[0]
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]  # AMD: no number
    wide = device.platform == "cpu" or (major.isdigit() and int(major) < 8)
    return "float32" if wide else "bfloat16"


def variable_shapes(model: MixMoNet, image_shape: tuple[int, int, int]) -> dict:
    """Returns the shapes and dtypes of a network's variables, for images of (H, W, C)."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
