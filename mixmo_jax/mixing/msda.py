"""Mixing of pixels before the encoders ("mixed sample data augmentation"): mixup and CutMix."""

import jax
import jax.numpy as jnp

from mixmo_jax.mixing import masks as masks_lib
from mixmo_jax.sampling import PixelPlan


def pixel_masks(plan: PixelPlan, method: str, shape: tuple[int, int]) -> jax.Array:
    """The share of the image, against its partner's, at every pixel.

    Args:
      plan: the pixel part of a batch's plan.
      method: "mixup" (a constant) or "cutmix" (a box).
      shape: (H, W) of the images.

    Returns:
      [M, B, H, W, 1] float32 in [0, 1]; 1 where the image is not mixed.

    References:
      mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899.
    """
    if method == "mixup":
        masks = masks_lib.linear_masks(plan.ratios, shape)
    else:
        masks = masks_lib.box_mask(plan.ratios, plan.centres, shape)
    return jnp.where(plan.mixed[..., None, None], masks, 1.0)[..., None]


def visible_share(pixel_masks: jax.Array, masks: jax.Array) -> jax.Array:
    """The image's share of what a member's MixMo mask shows of the mixed image.

    Args:
      pixel_masks: [M, B, H, W, 1].
      masks: [M, B, h, w, 1]; h and w divide H and W (an encoder's stride).

    Returns:
      [M, B] float. An empty MixMo mask (of a member without weight) counts as a full one.

    References:
      The MixMo authors' program.
    """
    m, b, h, w, _ = masks.shape
    rows, columns = pixel_masks.shape[2] // h, pixel_masks.shape[3] // w
    pooled = pixel_masks.reshape(m, b, h, rows, w, columns).mean((3, 5))[..., None]
    shown = jnp.where(masks.sum((2, 3, 4), keepdims=True) > 0, masks, 1.0)
    return (pooled * shown).sum((2, 3, 4)) / shown.sum((2, 3, 4))


def mix_pixels(
    images: jax.Array,
    targets: jax.Array,
    partners: jax.Array,
    partner_targets: jax.Array,
    pixel_masks: jax.Array,
    masks: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mixes images with their partners, and their targets by what the MixMo masks show.

    With several members, an image that would keep less than half of the target swaps its place
    in the mask with its partner. A plain network (M = 1) does not swap.

    Args:
      images: [M, B, H, W, C] float, normalised.
      targets: [M, B, K] float, one-hot.
      partners: [M, B, H, W, C], likewise.
      partner_targets: [M, B, K], likewise.
      pixel_masks: [M, B, H, W, 1], the share of the image.
      masks: [M, B, h, w, 1], the MixMo masks.

    Returns:
      The mixed images [M, B, H, W, C] and targets [M, B, K].
    """
    share = visible_share(pixel_masks, masks)
    if len(images) > 1:
        swap = share < 0.5
        share = jnp.where(swap, 1 - share, share)
        pixel_masks = jnp.where(swap[..., None, None, None], 1 - pixel_masks, pixel_masks)
    share = share[..., None]
    return (
        pixel_masks * images + (1 - pixel_masks) * partners,
        share * targets + (1 - share) * partner_targets,
    )
