"""Standard augmentation, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mixmo_jax.input_pipeline.plan import View


def crop_and_flip(
    images: UInt8[Array, "M B H W C"], view: View, padding: int
) -> UInt8[Array, "M B H W C"]:
    """Crops each image out of its zero-padded self and flips it from left to right, or not.

    Args:
      images: [M, B, H, W, C] uint8.
      view: The crops and flips; its `index` is not used.
      padding: The number of black pixels added at every side.

    Returns:
      [M, B, H, W, C] uint8.
    """
    height, width = images.shape[2:4]
    rows = jnp.arange(height, dtype=jnp.int32)[None, None]
    rows = rows + view.offset[..., :1] - padding  # [M, B, H], of the image
    columns = jnp.arange(width, dtype=jnp.int32)[None, None]
    columns = jnp.where(view.flip[..., None], width - 1 - columns, columns)
    columns = columns + view.offset[..., 1:] - padding  # [M, B, W]
    # Products with one-hot rows are exact for uint8 in any precision, and black outside of the
    # image. Of slices, a TPU would cut out one after the other.
    pick_rows = jax.nn.one_hot(rows, height, dtype=jnp.float32)
    pick_columns = jax.nn.one_hot(columns, width, dtype=jnp.float32)
    crops = images.astype(jnp.float32)
    crops = jnp.einsum("mbhi,mbijc->mbhjc", pick_rows, crops)
    crops = jnp.einsum("mbwj,mbhjc->mbhwc", pick_columns, crops)
    return crops.astype(images.dtype)


def normalize(
    images: UInt8[Array, "*shape C"] | Float[Array, "*shape C"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "*shape C"]:
    """Scales to [0, 1] and standardizes each channel.

    Args:
      images: [..., C] uint8, or float from 0 to 255.
      mean: The mean of each channel, on the scale 0 to 1.
      std: The standard deviation of each channel, on the same scale.

    Returns:
      [..., C] float32 (float64 if JAX has it enabled).
    """
    dtype, channels = jnp.result_type(float), (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.array(values, dtype).reshape(channels) for values in (mean, std))
    return (images.astype(dtype) / 255 - mean) / std
