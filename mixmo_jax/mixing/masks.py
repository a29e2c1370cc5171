"""Mask functions: how much each role of a sample shows at every position.

Glossary: M roles (one for each member), (h, w) the map.

A mask function is `mask_fn(key, ratios, shape) → masks` for one sample: `key` is a typed random
key, `ratios` are [M] float and sum to 1, `shape` is (h, w), and the masks are [M, h, w] in [0, 1]
with a sum of 1 over M at every position. It is mapped over the batch by `jax.vmap`, so its shapes
are static. The ratio that counts afterwards is the mean of the mask, not the ratio it was drawn
for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, Shaped

MaskFn = Callable[[Key[Array, ""], Float[Array, "M"], tuple[int, int]], Float[Array, "M h w"]]


def linear_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int]
) -> Float[Array, "M h w"]:
    """Constant masks, the ratios themselves; as in mixup. See the module for the arguments.

    References:
      mixup, arXiv 1710.09412.
    """
    del key  # nothing is random
    return jnp.broadcast_to(ratios[:, None, None], (*ratios.shape, *shape))


def cutmix_mask(
    key: Key[Array, ""], ratios: Float[Array, "M"], shape: tuple[int, int]
) -> Float[Array, "M h w"]:
    """A rectangle for role 0; the other roles divide the rest in proportion to their ratios.

    See the module for the arguments, and `box_mask` for the rectangle.

    References:
      CutMix, arXiv 1905.04899; MixMo, arXiv 2103.06132, section 3.2.
    """
    center = jax.random.uniform(key, (2,), ratios.dtype)
    return fill_complement(box_mask(ratios[0], center, shape, ratios.dtype), ratios)


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


def fill_complement(mask: Float[Array, "h w"], ratios: Float[Array, "M"]) -> Float[Array, "M h w"]:
    """Gives a mask to role 0 and its complement to the others, in proportion to their ratios.

    Args:
      mask: [h, w] float in [0, 1].
      ratios: [M] float, sum to 1; M >= 2.

    Returns:
      [M, h, w] float, sum to 1 over M.
    """
    rest = ratios[1:].sum()
    equal = jnp.full_like(ratios[1:], 1 / (len(ratios) - 1))
    # Where role 0 has the whole ratio, nothing says how the others divide the rest.
    parts = jnp.where(rest > 0, ratios[1:] / jnp.where(rest > 0, rest, 1), equal)
    return jnp.concatenate([mask[None], (1 - mask)[None] * parts[:, None, None]])
