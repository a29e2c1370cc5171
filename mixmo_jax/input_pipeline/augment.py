"""Standard augmentation, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

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
    height, width, channels = images.shape[2:]

    def augment(
        image: UInt8[Array, "H W C"], offset: Int[Array, "2"], flip: Bool[Array, ""]
    ) -> UInt8[Array, "H W C"]:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (*offset, 0), (height, width, channels))
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(jax.vmap(augment))(images, view.offset, view.flip)


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
