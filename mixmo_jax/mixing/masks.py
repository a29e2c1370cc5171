"""Masks: constants and boxes, for features and for pixels alike."""

import jax
import jax.numpy as jnp


def box_mask(
    ratio: jax.Array, centre: jax.Array, shape: tuple[int, int], dtype=jnp.float32
) -> jax.Array:
    """CutMix boxes: 1 inside a box that would cover about `ratio` of the map, 0 outside.

    The half sides are `floor(side * sqrt(ratio)) // 2`, the centre is a cell of the map, and the
    box is clipped at the edges; so it covers less than `ratio` on average. The mask's mean, not
    `ratio`, is what was mixed.

    Args:
      ratio: [...] float, 0 to 1.
      centre: [..., 2] float in [0, 1), the centre (y, x) in units of the map's sides.
      shape: (h, w) of the map.
      dtype: of the mask.

    Returns:
      [..., h, w].

    References:
      CutMix, arXiv 1905.04899; the box's rounding is that of the MixMo authors' program.
    """

    def inside(axis: int) -> jax.Array:
        side = shape[axis]
        half = (jnp.floor(side * jnp.sqrt(ratio)).astype(jnp.int32) // 2)[..., None]
        middle = jnp.floor(side * centre[..., axis]).astype(jnp.int32)[..., None]
        cells = jnp.arange(side)
        return (middle - half <= cells) & (cells < middle + half)

    return (inside(0)[..., :, None] & inside(1)[..., None, :]).astype(dtype)


def linear_masks(ratios: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Constant masks: [M, B] ratios that sum to 1 over M → [M, B, h, w]."""
    return jnp.broadcast_to(ratios[..., None, None], (*ratios.shape, *shape))


def cutmix_masks(ratios: jax.Array, centre: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Role 0 gets a box; the others share the rest of the map in proportion to their ratios.

    Args:
      ratios: [M, B] float, sum to 1 over M; M >= 2.
      centre: [B, 2] float in [0, 1), the centres of the boxes.
      shape: (h, w) of the map.

    Returns:
      [M, B, h, w] float, sum to 1 over M.
    """
    box = box_mask(ratios[0], centre, shape, ratios.dtype)
    rest = ratios[1:].sum(0)
    equal = jnp.full_like(ratios[1:], 1 / (len(ratios) - 1))
    # Where the box takes the whole ratio, nothing says how the others share the rest.
    shares = jnp.where(rest > 0, ratios[1:] / jnp.where(rest > 0, rest, 1), equal)
    return jnp.concatenate([box[None], (1 - box) * shares[..., None, None]])
