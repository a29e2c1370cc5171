"""Mask functions: how much each role of a sample shows at every position and channel.

Glossary: M roles (one for each member), (h, w) the map, F channels.

A mask function is `mask_fn(key, ratios, shape) → masks` for one sample: `key` is a typed random
key, `ratios` are [M] float, M >= 2, and sum to 1, and `shape` is (h, w, F), of an encoder's output
or, with F = 1, of an image. The masks broadcast against [M, h, w, F]: each of their last three
axes is full, or 1 where nothing varies along it. They are in [0, 1], sum to 1 over M everywhere,
and have the dtype of the ratios. The function is mapped over the batch by `jax.vmap`, so its shapes
are static. The ratio that counts afterwards is the mean of the mask, not the ratio it was drawn
for.

Here are the masks of linear MixMo and of Cut-MixMo; `blocks.py` has the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, Shaped

MaskFn = Callable[
    [Key[Array, ""], Float[Array, "M"], tuple[int, int, int]], Float[Array, "M #h #w #F"]
]


def linear_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M 1 1 1"]:
    """Constant masks, the ratios themselves; as in mixup. See the module for the arguments.

    References:
      mixup, arXiv 1710.09412.
    """
    del key, shape  # nothing is random, and nothing varies over the map
    return ratios[:, None, None, None]


def cutmix_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int, int]
) -> Float[Array, "M h w 1"]:
    """A rectangle for role 0; the other roles divide the rest in proportion to their ratios.

    See the module for the arguments, and `box_mask` for the rectangle. E[ratio] of role 0 is below
    its ratio, as boxes are rounded and clipped: 0.306 for two roles with alpha = 2 on 32x32.

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
    """A CutMix box: 1 inside a rectangle that would cover about `ratio` of the map, 0 outside.

    The half sides are `floor(side * sqrt(ratio)) // 2`, the center is a cell of the map, and the
    box is clipped at the edges; so it covers less than `ratio` on average.

    Args:
      ratio: [] float, 0 to 1.
      center: [2] float in [0, 1), the center (y, x) in units of the map's sides.
      shape: (h, w) of the map.
      dtype: The dtype of the mask.

    Returns:
      [h, w].

    References:
      CutMix, arXiv 1905.04899; the rounding is that of the MixMo authors' program.
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
    """Gives a mask to role 0 and its complement to the others, in proportion to their ratios.

    Args:
      mask: [h, w, F] float in [0, 1]; F is 1 for a mask that all channels share.
      ratios: [M] float, sum to 1; M >= 2.

    Returns:
      [M, h, w, F] float, sum to 1 over M.
    """
    rest = ratios[1:].sum()
    equal = jnp.full_like(ratios[1:], 1 / (len(ratios) - 1))
    # Where role 0 has the whole ratio, nothing says how the others divide the rest.
    parts = jnp.where(rest > 0, ratios[1:] / jnp.where(rest > 0, rest, 1), equal)
    return jnp.concatenate([mask[None], (1 - mask)[None] * parts[:, None, None, None]])
