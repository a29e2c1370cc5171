"""Augmentation and normalization, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from mixmo_jax.input_pipeline.augmix import augmix
from mixmo_jax.input_pipeline.plan import View


def augment(
    images: UInt8[Array, "M B H W C"], view: View, crop_padding: int
) -> UInt8[Array, "M B H W C"] | Float[Array, "M B H W C"]:
    """Crops and flips images, then applies AugMix if the view has a plan for it.

    Args:
      images: [M, B, H, W, C] uint8.
      view: The augmentation of each image; its `index` is not used.
      crop_padding: Number of black pixels added at every edge before the crop.

    Returns:
      [M, B, H, W, C] uint8; with AugMix float from 0 to 255.
    """
    images = crop_and_flip(images, view, crop_padding)
    return images if view.augmix is None else augmix(images, view.augmix)


def crop_and_flip(
    images: UInt8[Array, "M B H W C"], view: View, padding: int
) -> UInt8[Array, "M B H W C"]:
    """Crops images after zero padding, and flips some of them horizontally."""
    height, width = images.shape[2:4]
    rows = jnp.arange(height, dtype=jnp.int32)[None, None]
    rows = rows + view.offset[..., :1] - padding  # [M, B, H]
    columns = jnp.arange(width, dtype=jnp.int32)[None, None]
    columns = jnp.where(view.flip[..., None], width - 1 - columns, columns)
    columns = columns + view.offset[..., 1:] - padding  # [M, B, W]
    return jax.lax.platform_dependent(images, rows, columns, tpu=pick_by_product, default=pick)


def pick(
    images: UInt8[Array, "M B H W C"], rows: Int[Array, "M B h"], columns: Int[Array, "M B w"]
) -> UInt8[Array, "M B h w C"]:
    """Picks rows and columns of each image; indices outside the image give black pixels."""
    height, width = images.shape[2:4]
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[
        ..., None, :
    ]
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    picked = jnp.take_along_axis(images, rows[..., None, None], 2, mode="promise_in_bounds")
    picked = jnp.take_along_axis(picked, columns[..., None, :, None], 3, mode="promise_in_bounds")
    return jnp.where(inside[..., None], picked, jnp.uint8(0))


def pick_by_product(
    images: UInt8[Array, "M B H W C"], rows: Int[Array, "M B h"], columns: Int[Array, "M B w"]
) -> UInt8[Array, "M B h w C"]:
    """Same as `pick`, as products with one-hot vectors; a TPU would loop over the images.

    The products are exact for uint8 in any precision. The channels stay off the last axis, which a
    TPU pads to 128.
    """
    height, width, channels = images.shape[2:]
    count = columns.shape[-1]
    # Indices into the flat axis [W * C]. The one-hot vector of a negative index is 0.
    start = jnp.where((columns >= 0) & (columns < width), columns * channels, -channels)
    flat = start[..., None, :] + jnp.arange(channels, dtype=jnp.int32)[None, None, :, None]
    flat = flat.reshape(*flat.shape[:2], channels * count)  # [M, B, C * w]
    of_rows = jax.nn.one_hot(rows, height, dtype=jnp.float32)  # [M, B, h, H]
    of_columns = jax.nn.one_hot(flat, width * channels, dtype=jnp.float32)  # [M, B, C * w, W * C]
    picked = images.reshape(*images.shape[:3], width * channels).astype(jnp.float32)
    picked = jnp.einsum("mbhi,mbik->mbhk", of_rows, picked)
    picked = jnp.einsum("mbnk,mbhk->mbhn", of_columns, picked)
    picked = picked.reshape(*picked.shape[:3], channels, count).astype(images.dtype)
    return picked.swapaxes(3, 4)  # [M, B, h, C, w] → [M, B, h, w, C]


def normalize(
    images: UInt8[Array, "*shape C"] | Float[Array, "*shape C"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "*shape C"]:
    """Scales images to [0, 1] and standardizes each channel.

    Args:
      images: [..., C] uint8, or float from 0 to 255.
      mean: Mean of each channel, in [0, 1].
      std: Standard deviation of each channel, on the same scale.

    Returns:
      [..., C] float32 (float64 under x64).
    """
    dtype, channels = jnp.result_type(float), (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.array(values, dtype).reshape(channels) for values in (mean, std))
    return (images.astype(dtype) / 255 - mean) / std
