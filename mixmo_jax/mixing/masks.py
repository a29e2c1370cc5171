"""Mask functions: the share of each role at every position and channel of a sample.

Shapes: M roles (one per member), [h, w] spatial dimensions, F channels.

A mask function is `mask_fn(key, ratios, shape) -> masks` for one sample. `key` is a typed random
key. `ratios` is [M] float, M >= 2, and sums to 1. `shape` is (h, w, F) of an encoder's output, or
(H, W, 1) of an image. The masks broadcast against [M, h, w, F]: each of the last three axes has
full length, or length 1 if the mask is constant along it. Masks lie in [0, 1], sum to 1 over M, and
have the dtype of `ratios`. The function runs under `jax.vmap` over the batch, so its shapes are
static. The ratio used afterwards is the mean of the mask, not the ratio it was drawn for.

`MASKS` is the registry: `mixmo.block` and `msda.method` name its entries. To add a mask, write such
a function and register it: `MASKS["mine"] = mine_mask`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from mixmo_jax.errors import InputError, unknown

MaskFn = Callable[
    [Key[Array, ""], Float[Array, "M"], tuple[int, int, int]], Float[Array, "M #h #w #F"]
]


def linear_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M 1 1 1"]:
    """Constant masks, equal to the ratios, as in mixup.

    References:
      mixup, arXiv 1710.09412.
    """
    del key, shape  # neither random nor spatial
    return ratios[:, None, None, None]


def cutmix_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w 1"]:
    """A rectangular patch for role 0; the other roles share the rest in proportion to their ratios.

    E[ratio] of role 0 is below λ_0, because patches are rounded and clipped, see `box_mask`: 0.306
    for two roles with alpha = 2 on 32x32.

    References:
      CutMix, arXiv 1905.04899; MixMo, arXiv 2103.06132, section 3.2.
    """
    center = jax.random.uniform(key, (2,), ratios.dtype)
    box = box_mask(ratios[0], center, shape[:2], ratios.dtype)
    return fill_complement(box[..., None], ratios)


def box_mask(
    ratio: Float[Array, ""],
    center: Float[Array, "2"],
    shape: tuple[int, int],
    dtype: DTypeLike = jnp.float32,
) -> Shaped[Array, "h w"]:
    """A CutMix patch: 1 inside a rectangle, 0 outside.

    The half sides are `floor(side * sqrt(ratio)) // 2`. The patch is clipped at the edges and
    covers less than `ratio` on average.

    Args:
      ratio: [] float in [0, 1].
      center: [2] float in [0, 1), center (y, x) relative to the sides.
      shape: (h, w).
      dtype: The dtype of the mask.

    Returns:
      [h, w].

    References:
      CutMix, arXiv 1905.04899, with the rounding of the MixMo authors' program.
    """

    def inside(axis: int) -> Bool[Array, "side"]:
        side = shape[axis]
        half = jnp.floor(side * jnp.sqrt(ratio)).astype(jnp.int32) // 2
        middle = jnp.floor(side * center[axis]).astype(jnp.int32)
        cells = jnp.arange(side, dtype=jnp.int32)
        return (middle - half <= cells) & (cells < middle + half)

    return (inside(0)[:, None] & inside(1)[None, :]).astype(dtype)


def fill_complement(
    mask: Float[Array, "h w F"], ratios: Float[Array, "M"]
) -> Float[Array, "M h w F"]:
    """Assigns a mask to role 0 and its complement to the others, in proportion to their ratios.

    Args:
      mask: [h, w, F] float in [0, 1]; F = 1 for a mask that all channels share.
      ratios: [M] float, sum to 1, M >= 2.

    Returns:
      [M, h, w, F] float, sum to 1 over M.
    """
    rest = ratios[1:].sum()
    equal = jnp.full_like(ratios[1:], 1 / (len(ratios) - 1))
    # If λ_0 = 1, the other roles share the rest equally.
    parts = jnp.where(rest > 0, ratios[1:] / jnp.where(rest > 0, rest, 1), equal)
    return jnp.concatenate([mask[None], (1 - mask)[None] * parts[:, None, None, None]])


# Ranges of CowMix: standard deviation of the blur, in positions, and area of the blobs.
_COW_SIGMAS = (4.0, 16.0)
_COW_FRACTIONS = (0.2, 0.8)
# Side of a PatchUp block.
_PATCHUP_SIDE = 7


def rows_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h 1 1"]:
    """Cuts the rows into M bands; E[ratio] = λ, see `cut`.

    References:
      MixMo, arXiv 2103.06132, on horizontal mixing.
    """
    return _one_hot(cut(key, ratios, shape[0]), ratios)[:, :, None, None]


def columns_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M 1 w 1"]:
    """Cuts the columns into M bands; E[ratio] = λ, see `cut`.

    References:
      MixMo, arXiv 2103.06132, on vertical mixing.
    """
    return _one_hot(cut(key, ratios, shape[1]), ratios)[:, None, :, None]


def channels_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M 1 1 F"]:
    """Cuts the channels into M consecutive pieces; E[ratio] = λ, see `cut`.

    References:
      MixMo, arXiv 2103.06132, on mixing by channels.
    """
    return _one_hot(cut(key, ratios, shape[2]), ratios)[:, None, None, :]


def random_channels_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M 1 1 F"]:
    """Cuts the channels into M random pieces; E[ratio] = λ, see `cut`.

    References:
      MixMo, arXiv 2103.06132, on mixing by channels.
    """
    cut_key, order_key = jax.random.split(key)
    roles = jax.random.permutation(order_key, cut(cut_key, ratios, shape[2]))  # [F]
    return _one_hot(roles, ratios)[:, None, None, :]


def noise_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w F"]:
    """Draws one role for every position of every channel; E[ratio] = λ.

    References:
      MixMo, arXiv 2103.06132, on mixing by noise.
    """
    return _one_hot(_piece(jax.random.uniform(key, shape), _ends(ratios)), ratios)


def cow_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w 1"]:
    """Blobs for role 0; the other roles share the rest in proportion to their ratios.

    The blobs do not depend on λ_0. Their width is log-uniform in [4, 16] and their area about
    uniform in [0.2, 0.8]. E[ratio] is 1/2 for role 0 and λ_i / (2 (1 - λ_0)) for role i, see
    `blob_mask`.

    References:
      CowMix, arXiv 2003.12022; MixMo, arXiv 2103.06132.
    """
    noise_key, sigma_key, fraction_key = jax.random.split(key, 3)
    low, high = (math.log(sigma) for sigma in _COW_SIGMAS)
    blobs = blob_mask(
        jax.random.normal(noise_key, shape[:2]),
        jnp.exp(jax.random.uniform(sigma_key, minval=low, maxval=high)),
        jax.random.uniform(fraction_key, minval=_COW_FRACTIONS[0], maxval=_COW_FRACTIONS[1]),
    )
    return fill_complement(blobs[..., None].astype(ratios.dtype), ratios)


def patchup_hard_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w F"]:
    """Blocks for role 0, drawn per channel; the other roles share the rest.

    E[ratio] is the coverage c for role 0, see `block_mask`, and (1 - c) λ_i / (1 - λ_0) for role i.

    References:
      PatchUp, arXiv 2006.07794; MixMo, arXiv 2103.06132.
    """
    return fill_complement(block_mask(key, ratios[0], shape).astype(ratios.dtype), ratios)


def patchup_soft_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w F"]:
    """Blocks for role 0, drawn per channel, and linear mixing outside.

    E[ratio] is c + (1 - c) λ_0 for role 0, with the coverage c of `block_mask`, and (1 - c) λ_i for
    role i.

    References:
      PatchUp, arXiv 2006.07794; MixMo, arXiv 2103.06132.
    """
    mask = jnp.where(block_mask(key, ratios[0], shape), 1.0, ratios[0])
    return fill_complement(mask.astype(ratios.dtype), ratios)


def patchup_2d_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w 1"]:
    """Same as `patchup_hard_mask`, with the same blocks in all channels.

    References:
      PatchUp, arXiv 2006.07794; MixMo, arXiv 2103.06132.
    """
    return patchup_hard_mask(key, ratios, (*shape[:2], 1))


def cut(key: Key[Array, ""], ratios: Float[Array, "M"], side: int) -> Int[Array, "side"]:
    """Cuts an axis into M consecutive pieces, one per role, of length about side * ratio.

    Piece i ends at floor(side * (λ_0 + … + λ_i) + u), with one u ~ U[0, 1) for all pieces. Since
    E[floor(x + u)] = x, E[ratio] = λ for every role. A ratio of 0 gives an empty piece.

    Args:
      key: A typed random key.
      ratios: [M] float, sum to 1.
      side: Length of the axis.

    Returns:
      [side] int32, the role of each index.
    """
    ends = jnp.floor(side * _ends(ratios) + jax.random.uniform(key))
    return _piece(jnp.arange(side, dtype=ends.dtype), ends)


def blob_mask(
    noise: Float[Array, "h w"], sigma: Float[Array, ""], fraction: Float[Array, ""]
) -> Bool[Array, "h w"]:
    """Thresholds blurred noise into blobs of width about `sigma`.

    The separable Gaussian kernel is cut at the edges and normalized to a sum of squares of 1, so
    that the variance is 1 everywhere. The threshold is the quantile `fraction` of a normal
    distribution with the mean and standard deviation of the blurred noise.

    Args:
      noise: [h, w] float32, standard normal.
      sigma: [] float32, standard deviation of the blur, in positions.
      fraction: [] float32, approximate fraction of the area inside the blobs.

    Returns:
      [h, w] bool, True inside the blobs.

    References:
      CowMix, arXiv 2003.12022, section 3.
    """
    along_h, along_w = (_gaussian(side, sigma) for side in noise.shape)
    blurred = jnp.linalg.multi_dot([along_h, noise, along_w.T], precision="highest")
    quantile = math.sqrt(2) * jax.lax.erf_inv(2 * fraction - 1)
    return blurred - blurred.mean() <= quantile * blurred.std()


def block_mask(
    key: Key[Array, ""], ratio: Float[Array, ""], shape: tuple[int, int, int]
) -> Bool[Array, "h w F"]:
    """Square blocks at random positions, drawn per channel.

    A block has the side b = min(7, h, w) and lies fully inside. Each of the (h - b + 1) (w - b + 1)
    possible positions has a block with probability

        γ = ratio * h * w / (b² (h - b + 1) (w - b + 1)),

    so that the expected sum of all block areas is `ratio` of the total. Blocks overlap, so the
    coverage is smaller: c is the mean of 1 - (1 - γ)ⁿ, where n is the number of block positions
    that cover a position.

    Args:
      key: A typed random key.
      ratio: [] float in [0, 1].
      shape: (h, w, F).

    Returns:
      [h, w, F] bool, True inside the blocks.

    References:
      PatchUp, arXiv 2006.07794, section 2; DropBlock, arXiv 1810.12890, on γ.
    """
    height, width, features = shape
    side = min(_PATCHUP_SIDE, height, width)
    places = height - side + 1, width - side + 1
    gamma = ratio.astype(jnp.float32) * (height * width / (side**2 * math.prod(places)))
    corners = jax.random.bernoulli(key, gamma, (*places, features)).astype(jnp.float32)
    # [h - b + 1, w - b + 1, F] → [h, w, F]: dilation by b x b, along one axis after the other.
    margin = (side - 1, side - 1)
    for window in ((side, 1, 1), (1, side, 1)):
        padding = [margin if length > 1 else (0, 0) for length in window]
        corners = jax.lax.reduce_window(corners, -jnp.inf, jax.lax.max, window, (1, 1, 1), padding)
    return corners > 0


def _ends(ratios: Float[Array, "M"]) -> Float[Array, "M-1"]:
    """Returns the ends of the roles' parts of [0, 1], without the last, which is 1."""
    sums = jnp.cumsum(ratios.astype(jnp.float32))  # half precision would shift ends on long axes
    return sums[:-1] / sums[-1]  # exact also for a last ratio of 0


def _piece(places: Num[Array, "*places"], ends: Num[Array, "ends"]) -> Int[Array, "*places"]:
    """Returns the piece that contains each place: the number of ends at or before it."""
    return (places[..., None] >= ends.reshape(*[1] * places.ndim, -1)).sum(-1, dtype=jnp.int32)


def _one_hot(roles: Int[Array, "*places"], ratios: Float[Array, "M"]) -> Float[Array, "M *places"]:
    """Returns the binary masks of the roles."""
    return jax.nn.one_hot(roles, len(ratios), axis=0, dtype=ratios.dtype)


def _gaussian(side: int, sigma: Float[Array, ""]) -> Float[Array, "side side"]:
    """Returns the matrix that blurs along an axis and keeps the variance of noise."""
    places = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-(((places[:, None] - places[None, :]) / sigma) ** 2) / 2)
    return weights / jnp.linalg.norm(weights, axis=1, keepdims=True)


MASKS: dict[str, MaskFn] = {
    "linear": linear_mask,
    "cutmix": cutmix_mask,
    "rows": rows_mask,
    "columns": columns_mask,
    "channels": channels_mask,
    "random_channels": random_channels_mask,
    "noise": noise_mask,
    "cow": cow_mask,
    "patchup_hard": patchup_hard_mask,
    "patchup_soft": patchup_soft_mask,
    "patchup_2d": patchup_2d_mask,
}

# The mixing of pixels has its own name for the constant mask.
MSDA_ALIASES = {"mixup": "linear"}

# Channel masks cannot mix pixels: an image has one mask for all channels.
CHANNEL_MASKS = {"channels", "random_channels"}


def msda_methods() -> list[str]:
    """Returns the values of `msda.method` besides "none"."""
    left_out = {*MSDA_ALIASES.values(), *CHANNEL_MASKS}
    return [*MSDA_ALIASES, *(name for name in MASKS if name not in left_out)]


def get_mask_fn(name: str) -> MaskFn:
    """Returns the mask function of a name.

    Raises:
      InputError: if no mask function is registered under the name.
    """
    if name not in MASKS:
        raise unknown("mask function", name, MASKS, where="mixmo_jax.mixing.MASKS")
    return MASKS[name]


def get_msda_fn(name: str) -> MaskFn:
    """Returns the mask function of a name for the mixing of pixels, which may be "mixup".

    Raises:
      InputError: if no mask function is registered under the name, or if it cuts only channels.
    """
    if name in CHANNEL_MASKS:
        raise InputError(
            f"{name}: it cuts only channels, which the mixing of pixels does not; expected one of "
            + ", ".join(msda_methods())
        )
    return get_mask_fn(MSDA_ALIASES.get(name, name))
