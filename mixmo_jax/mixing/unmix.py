"""Unmixing: each head mostly sees the area of its own input.

It separates the members early in training. Then it fades out, because inference has no masks.

Shapes: M members, B batch size, [h, w, F] output of an encoder, [h', w', F'] last features of the
core.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from mixmo_jax.errors import unknown


def unmix_strength(progress: Num[Array, ""] | float, until: float = 1 / 3) -> Float[Array, ""]:
    """Returns the strength of the unmixing, [] float32. It falls linearly from 1 to 0.

    Args:
      progress: Fraction of the run that is done.
      until: Fraction of the run at which the strength reaches 0; `math.inf` for constant 1.

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
    """Averages the features over the spatial dimensions, weighted by each member's mask.

    A position has the weight `1 - strength * (1 - mask)`, with the mask averaged over channels and
    resized to the features. Strength 0 is plain average pooling, bit for bit.

    Args:
      features: [B, h', w', F'] float.
      masks: Masks that broadcast against [M, B, h, w, F] and sum to 1 over M.
      strength: [] float in [0, 1].
      normalize: Whether to divide by the mean weight, so that small masks keep the scale.
      resize: Method of resizing masks: "area" averages, "nearest" takes the value at the center.

    Returns:
      [M, B, F'] float.

    Raises:
      InputError: if there is no such resizing method.

    References:
      MixShare, arXiv 2205.10139, section 3.
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    masks = resize_maps(masks.mean(-1), features.shape[1:3], resize)[..., None]  # [M, B, h', w', 1]
    weights = 1 - strength.astype(features.dtype) * (1 - masks.astype(features.dtype))
    pooled = (weights * features[None]).mean((2, 3))  # [M, B, F']
    if normalize:
        mean = weights.mean((2, 3))  # [M, B, 1]
        pooled /= jnp.where(mean > 0, mean, 1)  # 0 for an empty mask
    # Weights of 1 might be summed in another order.
    return jnp.where(strength > 0, pooled, features.mean((1, 2))[None])


def resize_maps(
    maps: Float[Array, "M B #h #w"], shape: tuple[int, int], method: str = "area"
) -> Float[Array, "M B height width"]:
    """Resizes maps to any shape.

    Args:
      maps: [M, B, h, w] float; h and w may be 1 for constant maps.
      shape: (height, width), which need not divide (h, w).
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
    """[new, old]: fraction of each new cell covered by each old cell."""
    edges = np.arange(new + 1) * old / new
    cells = np.arange(old)
    starts = np.maximum(edges[:-1, None], cells)
    ends = np.minimum(edges[1:, None], cells + 1)
    return np.maximum(ends - starts, 0) * new / old


def _nearest_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: 1 for the old cell that contains the center of the new cell."""
    middles = ((np.arange(new) + 0.5) * old / new).astype(int)
    return np.eye(old)[middles]


_RESIZE = {"area": _area_weights, "nearest": _nearest_weights}
