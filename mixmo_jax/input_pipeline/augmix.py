"""AugMix on the device: chains of operations on uint8 images, mixed with the images themselves.

An operation moves pixels by an affine map, or replaces every value of a channel by a table. Hence
one warp and one look-up do for all of them, and images in a batch may have different operations.
Each computes what Pillow does.

Glossary: M members, B positions of the batch, W chains, D slots of a chain, [H, W, C] an image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mixmo_jax.input_pipeline.plan import AUGMIX_OPERATIONS, AugMixPlan

IDENTITY = len(AUGMIX_OPERATIONS)  # the operation of a slot that a chain does not use


def augmix(images: UInt8[Array, "M B H W C"], plan: AugMixPlan) -> Float[Array, "M B H W C"]:
    """Mixes each image with a mixture of chains of operations on it.

    Args:
      images: [M, B, H, W, C] uint8.
      plan: The operations and how their results are mixed.

    Returns:
      [M, B, H, W, C] float32 (float64 if JAX has it enabled), from 0 to 255.

    References:
      AugMix, arXiv 1912.02781.
    """
    dtype = plan.ratios.dtype
    width, depth = plan.ops.shape[2:]
    used = jnp.arange(depth) < plan.depth[..., None]  # [M, B, W, D]
    ops = jnp.where(used, plan.ops, IDENTITY)
    chains = jnp.repeat(images[:, :, None], width, axis=2)  # [M, B, W, H, W, C]
    apply_to_all = jax.vmap(jax.vmap(jax.vmap(apply_operation)))
    for slot in range(depth):
        chains = apply_to_all(chains, ops[..., slot], plan.levels[..., slot])
    weights = plan.weights[..., None, None, None]
    mixture = (weights * chains.astype(dtype)).sum(2)  # [M, B, H, W, C]
    ratios = plan.ratios[..., None, None, None]
    return ratios * images.astype(dtype) + (1 - ratios) * mixture


def apply_operation(
    image: UInt8[Array, "H W C"], op: Int[Array, ""], level: Float[Array, ""]
) -> UInt8[Array, "H W C"]:
    """Applies an operation of `AUGMIX_OPERATIONS` to an image, or none.

    Args:
      image: [H, W, C] uint8.
      op: The index of the operation, or `IDENTITY`.
      level: The strength, from -10 to 10. Its sign is a direction.

    Returns:
      [H, W, C] uint8.
    """
    tables = jax.vmap(point_table, (None, None, 0))(op, level, histograms(image))  # [C, 256]
    image = warp(image, *affine_map(op, level, image.shape[:2]))
    channels = jnp.arange(image.shape[2]) * 256
    index = image.astype(jnp.int32) + channels.astype(jnp.int32)[None, None]
    return tables.ravel().at[index].get(mode="promise_in_bounds")


def affine_map(
    op: Int[Array, ""], level: Float[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """Returns how an operation moves pixels.

    Args:
      op: The index of the operation; one that moves none has the identity.
      level: The strength, -10 to 10: 30 degrees, a shear of 0.3, a third of the side at 10.
      shape: (H, W).

    Returns:
      A matrix and a shift that take a point (x, y) of the result to its source. The corner of the
      image is (0, 0), the center of its first pixel (0.5, 0.5).
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
    """Moves pixels by an affine map, with bilinear interpolation as Pillow's.

    A pixel whose source is outside of the image is black. Values are rounded down.

    Args:
      image: [H, W, C] uint8.
      matrix: The map from points (x, y) of the result to their sources, see `affine_map`.
      shift: What is added to it.

    Returns:
      [H, W, C] uint8.
    """
    height, width, channels = image.shape
    x = jnp.arange(width, dtype=matrix.dtype)[None, :] + 0.5  # [1, W]
    y = jnp.arange(height, dtype=matrix.dtype)[:, None] + 0.5  # [H, 1]
    (xx, xy), (yx, yy) = matrix
    x, y = xx * x + xy * y + shift[0], yx * x + yy * y + shift[1]  # [H, W]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right_part, lower_part = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    # The four neighbors of a point are the four bytes of a word, so that one gather takes them.
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


def histograms(image: UInt8[Array, "H W C"]) -> Int[Array, "C 256"]:
    """Counts the values of each channel.

    It is a product of matrices, which is faster than adding ones at random places: with h and l
    the four high and the four low bits of a value, n[h, l] is a sum over pixels.
    """
    values = image.reshape(-1, image.shape[2]).T  # [C, H W]
    bits = jnp.arange(16, dtype=jnp.uint8)[None, None]
    high = ((values >> 4)[..., None] == bits).astype(jnp.float32)  # [C, H W, 16]
    low = ((values & 15)[..., None] == bits).astype(jnp.float32)
    counts = jnp.einsum("cph,cpl->chl", high, low)
    return counts.reshape(-1, 256).astype(jnp.int32)


def point_table(
    op: Int[Array, ""], level: Float[Array, ""], counts: Int[Array, "256"]
) -> UInt8[Array, "256"]:
    """Returns by what an operation replaces each value of a channel.

    Args:
      op: The index of the operation; one that changes no values has the identity.
      level: The strength, -10 to 10, of which the absolute value counts.
      counts: [256] int32, the number of pixels with each value.

    Returns:
      [256] uint8.
    """
    values, level = jnp.arange(256, dtype=jnp.int32), jnp.abs(level)
    dropped = 4 + jnp.trunc(level * 0.4).astype(jnp.int32)  # bits
    mask = ~((1 << jnp.minimum(dropped, 7)) - 1)
    threshold = 256 - jnp.trunc(level * 25.6).astype(jnp.int32)
    tables = {
        "autocontrast": autocontrast_table(counts),
        "equalize": equalize_table(counts),
        "posterize": values & mask,
        "solarize": jnp.where(values < threshold, values, 255 - values),
    }
    table = values
    for name, other in tables.items():
        table = jnp.where(op == AUGMIX_OPERATIONS.index(name), other, table)
    return table.astype(jnp.uint8)


def equalize_table(counts: Int[Array, "256"]) -> Int[Array, "256"]:
    """The table that spreads the values of a channel evenly."""
    values = jnp.arange(256, dtype=jnp.int32)
    last = counts[jnp.max(jnp.where(counts > 0, values, 0))]
    step = (counts.sum() - last) // 255
    below = jnp.cumsum(counts) - counts
    spread = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, 255), values)


def autocontrast_table(counts: Int[Array, "256"]) -> Int[Array, "256"]:
    """The table that stretches the values of a channel to the range from 0 to 255."""
    values = jnp.arange(256, dtype=jnp.int32)
    low = jnp.min(jnp.where(counts > 0, values, 255))
    high = jnp.max(jnp.where(counts > 0, values, 0))
    span = jnp.maximum(high - low, 1)
    stretched = jnp.clip(values - low, 0, span) * 255 // span
    return jnp.where(high > low, stretched - _falls_short(low, span, stretched), values)


def _falls_short(low, span, stretched):
    """Whether Pillow's stretched values are 1 less: 1 or 0 for each, int32.

    Pillow computes `int(value * scale - low * scale)` in double precision, `scale = 255 / span`,
    which may end just below an integer. That depends on `low`, `span` and the integer alone.
    """
    starts, factors, bits = _shortfalls()
    factor = jnp.asarray(factors)[span]
    # An exact result k * 255 / factor has the bit k of its (low, span), from 0 to factor.
    exact = stretched * factor % 255 == 0
    index = jnp.asarray(starts)[span] + low * (factor + 1) + stretched * factor // 255
    bit = jnp.asarray(bits)[index >> 3].astype(jnp.int32) >> (index & 7) & 1
    return jnp.where(exact, bit, 0)


@functools.cache
def _shortfalls() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the bits of each span begin, how many steps it has, and the bits in bytes."""
    factors = np.gcd(np.arange(256), 255).astype(np.int32)
    bits = []
    for span in range(1, 256):
        low, k = np.arange(256 - span)[:, None], np.arange(factors[span] + 1)
        scale = 255 / span
        stretched = (low + k * span // factors[span]) * scale - low * scale
        bits.append(stretched.astype(int) < k * 255 // factors[span])
    starts = np.cumsum([0, 0, *(b.size for b in bits[:-1])]).astype(np.int32)
    return (
        starts,
        factors,
        np.packbits(np.concatenate([b.ravel() for b in bits]), bitorder="little"),
    )
