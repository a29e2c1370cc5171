"""Mixing of pixels before the encoders ("mixed sample data augmentation", MSDA): mixup and CutMix.

Shapes: M members, B batch size, [H, W, C] image, K classes, [h, w, F] output of an encoder. The
axes of masks have full length, or length 1 where the mask is constant: "#h" in the annotations.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mixmo_jax.mixing.masks import get_msda_fn


def msda_masks(
    ratios: Float[Array, "M B"],
    mask_keys: Key[Array, "M B"],
    mixed: Bool[Array, "M B"],
    *,
    method: str,
    shape: tuple[int, int],
) -> Float[Array, "M B #H #W 1"]:
    """Draws the weight of each image against its partner at every pixel.

    Args:
      ratios: [M, B] float, ratio of the image.
      mask_keys: [M, B] typed keys.
      mixed: [M, B] bool, whether the image is mixed.
      method: One of `masks.msda_methods()`.
      shape: (H, W) of the images.

    Returns:
      Float32 in [0, 1] that broadcasts against [M, B, H, W, 1]; 1 where the image is not mixed.

    Raises:
      InputError: if there is no such method.

    References:
      mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899.
    """
    mask_fn = get_msda_fn(method)

    def draw(key: Key[Array, ""], ratio: Float[Array, ""]) -> Float[Array, "#H #W 1"]:
        return mask_fn(key, jnp.stack([ratio, 1 - ratio]), (*shape, 1))[0]

    masks = jax.vmap(jax.vmap(draw))(mask_keys, ratios)  # [M, B, H, W, 1]
    return jnp.where(mixed[..., None, None, None], masks, 1.0)


def visible_ratio(
    msda_masks: Float[Array, "M B #H #W 1"], masks: Float[Array, "M B #h #w #F"]
) -> Float[Array, "M B"]:
    """Computes the ratio of the image within the area that a member's MixMo mask shows.

    Args:
      msda_masks: [M, B, H, W, 1]; H and W may be 1.
      masks: [M, B, h, w, F]; h, w and F may be 1, and h and w divide H and W.

    Returns:
      [M, B] float. An empty MixMo mask counts as a full one, so that the result is finite.

    References:
      The MixMo authors' program.
    """
    m, b, height, width, _ = msda_masks.shape
    # Along an axis where one of the masks is constant, only the mean of the other matters.
    rows, columns = max(height // masks.shape[2], 1), max(width // masks.shape[3], 1)
    blocks = (m, b, height // rows, rows, width // columns, columns)
    # [M, B, H, W, 1] → [M, B, h, rows, w, columns] → [M, B, h, w, 1]
    pooled = msda_masks.reshape(blocks).mean((3, 5))[..., None]
    shown = jnp.where(masks.sum((2, 3, 4), keepdims=True) > 0, masks, 1.0)
    return (pooled * shown).sum((2, 3, 4)) / shown.sum((2, 3, 4))


def mix_pixels(
    images: Float[Array, "M B H W C"],
    targets: Float[Array, "M B K"],
    partners: Float[Array, "M B H W C"],
    partner_targets: Float[Array, "M B K"],
    msda_masks: Float[Array, "M B #H #W 1"],
    masks: Float[Array, "M B #h #w #F"],
) -> tuple[Float[Array, "M B H W C"], Float[Array, "M B K"]]:
    """Mixes images and targets with those of their partners.

    The target weight of an image is its ratio within the area that the MixMo mask shows. For M > 1,
    an image with a ratio below 1/2 swaps its place in the mask with its partner. A plain network
    (M = 1) does not swap.

    Args:
      images: [M, B, H, W, C] float, normalized.
      targets: [M, B, K] float, one-hot.
      partners: [M, B, H, W, C] float, normalized.
      partner_targets: [M, B, K] float, one-hot.
      msda_masks: [M, B, H, W, 1], weight of the image at every pixel; H and W may be 1.
      masks: [M, B, h, w, F], the MixMo masks; h, w and F may be 1.

    Returns:
      The mixed images [M, B, H, W, C] and their targets [M, B, K].

    References:
      The MixMo authors' program.
    """
    ratio = visible_ratio(msda_masks, masks)  # [M, B]
    if len(images) > 1:
        swap = ratio < 0.5
        ratio = jnp.where(swap, 1 - ratio, ratio)
        msda_masks = jnp.where(swap[..., None, None, None], 1 - msda_masks, msda_masks)
    ratio = ratio[..., None]  # [M, B, 1]
    return (
        msda_masks * images + (1 - msda_masks) * partners,
        ratio * targets + (1 - ratio) * partner_targets,
    )
