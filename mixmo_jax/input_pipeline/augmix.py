"""AugMix on the device: chains of operations on uint8 images, mixed with the original images.

An operation is an affine warp, or a lookup table for the values of each channel. One warp and one
lookup therefore serve every operation, and each image of a batch may have its own. Results are
within one gray level of Pillow's.

Shapes: M members, B batch size, J chains of D operations, [H, W, C] image.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from mixmo_jax.input_pipeline.plan import AUGMIX_OPERATIONS, AugMixPlan

IDENTITY = len(AUGMIX_OPERATIONS)  # the operation of an unused slot


def augmix(images: UInt8[Array, "M B H W C"], plan: AugMixPlan) -> Float[Array, "M B H W C"]:
    """Mixes each image with a weighted mean of its chains.

    Args:
      images: [M, B, H, W, C] uint8.
      plan: The operations and the weights of the mixture.

    Returns:
      [M, B, H, W, C] float32 (float64 under x64), from 0 to 255.

    References:
      AugMix, arXiv 1912.02781.
    """
    num_chains, num_slots = plan.ops.shape[2:]
    used = jnp.arange(num_slots)[None, None, None] < plan.depth[..., None]
    ops = jnp.where(used, plan.ops, IDENTITY)  # [M, B, J, D]
    slots = [jnp.moveaxis(x.reshape(-1, num_slots), 1, 0) for x in (ops, plan.levels)]
    copies = jnp.repeat(images[:, :, None], num_chains, axis=2)  # [M, B, J, H, W, C]
    chains, _ = jax.lax.scan(
        lambda chains, slot: (apply_operations(chains, *slot), None),
        copies.reshape(-1, *images.shape[2:]),  # [M B J, H, W, C]
        slots,
    )
    dtype = plan.ratios.dtype
    weights, ratios = plan.weights[..., None, None, None], plan.ratios[..., None, None, None]
    mixture = (weights * chains.reshape(copies.shape).astype(dtype)).sum(2)  # [M, B, H, W, C]
    return ratios * images.astype(dtype) + (1 - ratios) * mixture


def apply_operations(
    images: UInt8[Array, "N H W C"], ops: Int[Array, "N"], levels: Float[Array, "N"]
) -> UInt8[Array, "N H W C"]:
    """Applies one operation to each image.

    Args:
      images: [N, H, W, C] uint8.
      ops: [N] int32, indices into `AUGMIX_OPERATIONS`, or `IDENTITY`.
      levels: [N] float32, strength from -10 to 10. The sign is a direction.

    Returns:
      [N, H, W, C] uint8.
    """
    tables = jax.vmap(point_tables)(ops, levels, histograms(images))  # [N, C, 256]
    maps = jax.vmap(functools.partial(affine_map, shape=images.shape[1:3]))(ops, levels)
    return jax.vmap(look_up)(tables, jax.vmap(warp)(images, *maps))


def affine_map(
    op: Int[Array, ""], level: Float[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """Returns the affine transformation of an operation; the identity for lookup operations.

    Args:
      op: Index of the operation.
      level: Strength from -10 to 10. At 10: 30 degrees, a shear of 0.3, a third of the side.
      shape: (H, W).

    Returns:
      A matrix and a shift from a point (x, y) of the result to its source. The corner of the image
      is (0, 0), the center of the first pixel (0.5, 0.5).
    """
    height, width = shape

    def of(name, value):
        return jnp.where(op == AUGMIX_OPERATIONS.index(name), value, 0)

    angle = jnp.deg2rad(of("rotate", jnp.trunc(level * 3)))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear_x, shear_y = of("shear_x", level * 0.03), of("shear_y", level * 0.03)
    matrix = jnp.array([[cos, shear_x - sin], [shear_y + sin, cos]])
    center_x, center_y = width / 2, height / 2
    shift_x = of("translate_x", jnp.trunc(level * (width / 30)))
    shift_y = of("translate_y", jnp.trunc(level * (height / 30)))
    shift_x += center_x - cos * center_x + sin * center_y
    shift_y += center_y - sin * center_x - cos * center_y
    return matrix, jnp.array([shift_x, shift_y])


def warp(
    image: UInt8[Array, "H W C"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]
) -> UInt8[Array, "H W C"]:
    """Warps an image with bilinear interpolation, as Pillow does.

    A pixel with its source outside the image is black. Values are rounded down. See `affine_map`
    for `matrix` and `shift`.
    """
    height, width, channels = image.shape
    x = jnp.arange(width, dtype=matrix.dtype)[None, :] + 0.5  # [1, W]
    y = jnp.arange(height, dtype=matrix.dtype)[:, None] + 0.5  # [H, 1]
    (xx, xy), (yx, yy) = matrix
    x, y = xx * x + xy * y + shift[0], yx * x + yy * y + shift[1]  # [H, W]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_part, lower_part = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    # The four neighbors of a point are packed into one word, so that one gather reads them.
    edge = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    corners = [edge[:-1, :-1], edge[:-1, 1:], edge[1:, :-1], edge[1:, 1:]]
    words = jax.lax.bitcast_convert_type(jnp.stack(corners, axis=-1), jnp.uint32)
    row = jnp.clip(top.astype(jnp.int32) + 1, 0, height)
    column = jnp.clip(left.astype(jnp.int32) + 1, 0, width)
    words = (
        words.reshape(-1, channels).at[row * (width + 1) + column].get(mode="promise_in_bounds")
    )  # [H, W, C]
    corners = jax.lax.bitcast_convert_type(words, jnp.uint8).astype(x.dtype)
    upper = corners[..., 0] + (corners[..., 1] - corners[..., 0]) * right_part
    lower = corners[..., 2] + (corners[..., 3] - corners[..., 2]) * right_part
    result = (upper + (lower - upper) * lower_part).astype(jnp.uint8)
    return jnp.where(inside[..., None], result, jnp.uint8(0))


def look_up(tables: UInt8[Array, "C 256"], image: UInt8[Array, "H W C"]) -> UInt8[Array, "H W C"]:
    """Replaces the values of each channel by the channel's lookup table."""
    starts = jnp.arange(len(tables), dtype=jnp.int32)[None, None] * 256
    return tables.ravel().at[image.astype(jnp.int32) + starts].get(mode="promise_in_bounds")


def histograms(images: UInt8[Array, "N H W C"]) -> Int[Array, "N C 256"]:
    """Counts the values of each channel of each image."""
    return jax.lax.platform_dependent(images, cpu=scatter_histograms, default=dot_histograms)


def scatter_histograms(images: UInt8[Array, "N H W C"]) -> Int[Array, "N C 256"]:
    """Counts by scatter-add, which is fast on CPU."""
    shape = (len(images), images.shape[3], 256)
    starts = jnp.arange(shape[0] * shape[1], dtype=jnp.int32).reshape(-1, 1, 1, shape[1]) * 256
    index = (images.astype(jnp.int32) + starts).ravel()
    counts = jnp.zeros(shape, jnp.int32).ravel()
    return counts.at[index].add(1, mode="promise_in_bounds").reshape(shape)


def dot_histograms(images: UInt8[Array, "N H W C"]) -> Int[Array, "N C 256"]:
    """Counts by matrix products, which are fast on accelerators.

    With h the four high bits of a value and l the four low bits, count[h, l] is a sum over pixels.
    """
    bits = jnp.arange(16, dtype=jnp.uint8)[None, None, None, None]
    high, low = (
        (part[..., None] == bits).astype(jnp.bfloat16)  # [N, H, W, C, 16]
        for part in (images >> 4, images & 15)
    )
    counts = jnp.einsum("nyxch,nyxcl->nchl", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def point_tables(
    op: Int[Array, ""], level: Float[Array, ""], counts: Int[Array, "C 256"]
) -> UInt8[Array, "C 256"]:
    """Returns the lookup tables of an operation, [C, 256] uint8; the identity for warps.

    Args:
      op: Index of the operation.
      level: Strength from -10 to 10; only its absolute value matters.
      counts: [C, 256] int32, histogram of each channel.
    """
    values, level = jnp.arange(256, dtype=jnp.int32), jnp.abs(level)
    dropped = jnp.minimum(4 + jnp.trunc(level * 0.4), 7).astype(jnp.int32)  # bits
    threshold = 256 - jnp.trunc(level * 25.6).astype(jnp.int32)
    tables = {
        "autocontrast": jax.vmap(autocontrast_table)(counts),
        "equalize": jax.vmap(equalize_table)(counts),
        "posterize": values >> dropped << dropped,
        "solarize": jnp.where(values < threshold, values, 255 - values),
    }
    chosen = [op == AUGMIX_OPERATIONS.index(name) for name in tables]
    chosen = jnp.stack([*chosen, ~jnp.stack(chosen).any()])
    stack = jnp.stack([jnp.broadcast_to(t, counts.shape) for t in (*tables.values(), values)])
    # A product: with a select, XLA would compute the table again for every pixel on CPU.
    dtype = jnp.float32
    return jnp.einsum("o,ocv->cv", chosen.astype(dtype), stack.astype(dtype)).astype(jnp.uint8)


def equalize_table(counts: Int[Array, "256"]) -> Int[Array, "256"]:
    """Histogram equalization, as in Pillow."""
    values = jnp.arange(256, dtype=jnp.int32)
    last = counts[jnp.max(jnp.where(counts > 0, values, 0))]
    step = (counts.sum() - last) // 255
    below = jnp.cumsum(counts) - counts
    spread = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, 255), values)


def autocontrast_table(counts: Int[Array, "256"]) -> Int[Array, "256"]:
    """Stretches the values of a channel to 0 … 255, within one gray level of Pillow."""
    values = jnp.arange(256, dtype=jnp.int32)
    low = jnp.min(jnp.where(counts > 0, values, 255))
    high = jnp.max(jnp.where(counts > 0, values, 0))
    span = jnp.maximum(high - low, 1)
    stretched = jnp.clip(values - low, 0, span) * 255 // span
    return jnp.where(high > low, stretched, values)
