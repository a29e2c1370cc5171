"""Unmixing: each head sees mostly the part of the map into which its own input was put.

Early in training it keeps the members apart; then it fades out, as at inference there are no masks.

Glossary: M members, B positions of the batch, [h, w, F] an encoder's output, [h', w', F'] the last
features of the core network.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from mixmo_jax.errors import unknown


def unmix_strength(progress: Num[Array, ""] | float, until: float = 1 / 3) -> Float[Array, ""]:
    """The strength of the unmixing: it falls linearly from 1 to 0.

    Args:
      progress: The fraction of the training run that is done.
      until: The fraction at which the strength reaches 0, more than 0; `math.inf` for never: then
        it stays 1.

    Returns:
      [] float32.

    References:
      MixShare, arXiv 2205.10139, section 3.
    """
    return jnp.maximum(0.0, 1 - jnp.asarray(progress, float) / until)


def unmix_features(
    features: Float[Array, "B H W K"],
    masks: Float[Array, "M B #h #w #F"],
    strength: Float[Array, ""],
    *,
    normalize: bool = False,
    resize: str = "area",
) -> Float[Array, "M B K"]:
    """Averages the features over the map, for each member where its input is.

    The weights of a member's positions are `1 - strength * (1 - mask)`, the mask averaged over the
    channels and brought to the size of the features. Strength 0 is the average over the map,
    bit for bit.

    Args:
      features: [B, h', w', F'] float.
      masks: They broadcast against [M, B, h, w, F] and sum to 1 over M.
      strength: [] float from 0 to 1.
      normalize: Whether to divide by the mean of the weights, so that a small mask does not make
        the features small.
      resize: How the mask is brought to their size: "area" takes averages over areas, "nearest"
        the values in the middles of the areas.

    Returns:
      [M, B, F'] float.

    Raises:
      InputError: if there is no such way to bring masks to a size.

    References:
      MixShare, arXiv 2205.10139, section 3.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    masks = resize_maps(masks.mean(-1), features.shape[1:3], resize)[..., None]  # [M, B, h', w', 1]
    weights = 1 - strength.astype(features.dtype) * (1 - masks.astype(features.dtype))
    pooled = (weights * features[None]).mean((2, 3))  # [M, B, F']
    if normalize:
        mean = weights.mean((2, 3))  # [M, B, 1]
        pooled /= jnp.where(mean > 0, mean, 1)  # of an empty mask nothing is seen
    # Weights of 1 may be summed in another order.
    return jnp.where(strength > 0, pooled, features.mean((1, 2))[None])


def resize_maps(
    maps: Float[Array, "M B #h #w"], shape: tuple[int, int], method: str = "area"
) -> Float[Array, "M B height width"]:
    """Brings maps to another shape, which need not divide theirs.

    Args:
      maps: [M, B, h, w] float; an axis along which nothing varies may be 1.
      shape: (height, width).
      method: "area" or "nearest", see `unmix_features`.

    Returns:
      [M, B, height, width].

    Raises:
      InputError: if there is no such method.
    """
    if method not in _RESIZE:
        raise unknown("method", method, _RESIZE)
    weights_of = _RESIZE[method]
    rows, columns = (
        jnp.asarray(weights_of(old, new), maps.dtype)
        for old, new in zip(maps.shape[2:], shape, strict=True)
    )
    return jnp.einsum("yh,mbhw,xw->mbyx", rows, maps, columns, precision="highest")


def _area_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: which part of a new cell each of the old cells covers."""
    edges = np.arange(new + 1) * old / new
    cells = np.arange(old)
    starts = np.maximum(edges[:-1, None], cells)
    ends = np.minimum(edges[1:, None], cells + 1)
    return np.maximum(ends - starts, 0) * new / old


def _nearest_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: 1 for the old cell in which the middle of the new one lies."""
    middles = ((np.arange(new) + 0.5) * old / new).astype(int)
    return np.eye(old)[middles]


_RESIZE = {"area": _area_weights, "nearest": _nearest_weights}
