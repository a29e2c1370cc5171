"""The mixing block between encoders and core: schedule of p, masks of the members, mixing.

Shapes: M members, B batch size, [h, w, F] output of an encoder. The last three axes of masks have
full length, or length 1 where the mask is constant: "#h" in the annotations.

Mask functions draw M masks per sample, one for each of M roles: role 0 gets the patch, the other
roles share the rest. `mask_index` assigns a role to each member.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mixmo_jax.mixing.masks import MaskFn, get_mask_fn, linear_mask


def patch_probability(
    epoch: Int[Array, "*epochs"] | int, num_epochs: int, prob: float, until: float = 11 / 12
) -> Float[Array, "*epochs"]:
    """Returns p(t), the probability that a batch is mixed by patches instead of linearly.

    p(t) is constant for most of the run, then falls linearly to 0 at the last epoch. Training thus
    ends with linear mixing, the mode of inference.

    Args:
      epoch: One or more epochs, counted from 1.
      num_epochs: Number of epochs of the run.
      prob: p, the initial probability.
      until: Fraction of the run, below 1, during which p(t) = p.

    Returns:
      Float32 of the shape of `epoch`.

    References:
      MixMo, arXiv 2103.06132, on training details.
    """
    left = (num_epochs - epoch) / num_epochs
    return prob * jnp.minimum(1.0, left / (1 - until))


def mixmo_masks(
    ratios: Float[Array, "M B"],
    mask_keys: Key[Array, "B"],
    mask_index: Int[Array, "M"],
    use_patch: Bool[Array, ""],
    *,
    block: str,
    shape: tuple[int, int, int],
) -> Float[Array, "M B #h #w #F"]:
    """Draws the mask of every member.

    Args:
      ratios: [M, B] float, ratio of each role, sum to 1 over M.
      mask_keys: [B] typed keys, one per sample.
      mask_index: [M] int32, role of each member, a permutation.
      use_patch: [] bool, whether to use the mixing block; otherwise linear mixing.
      block: Name of a mask function in `MASKS`.
      shape: (h, w, F) of the encoders' output.

    Returns:
      Float32 in [0, 1] that broadcasts against [M, B, h, w, F] and sums to 1 over M. All ones for
      M = 1.

    Raises:
      InputError: if `block` is not registered.

    References:
      MixMo, arXiv 2103.06132, section 3.
    """

    def draw(mask_fn: MaskFn) -> Float[Array, "M B #h #w #F"]:
        mask_fn = functools.partial(mask_fn, shape=shape)
        return jax.vmap(mask_fn, in_axes=(0, 1), out_axes=1)(mask_keys, ratios)

    block_fn = get_mask_fn(block)
    masks = draw(linear_mask)  # [M, B, 1, 1, 1]
    if block_fn is not linear_mask and len(ratios) > 1:
        masks = jnp.where(use_patch, draw(block_fn), masks)
    return masks[mask_index]


def mix_features(
    features: Float[Array, "M B h w F"], masks: Float[Array, "M B #h #w #F"]
) -> Float[Array, "B h w F"]:
    """Mixes the encoders' outputs: M * sum_i masks_i * features_i.

    Args:
      features: [M, B, h, w, F] outputs of the encoders.
      masks: Masks that broadcast against `features` and sum to 1 over M.

    Returns:
      [B, h, w, F], the dtype of `features`.

    References:
      MixMo, arXiv 2103.06132, equation 2.
    """
    # Term by term: the TPU compiler fuses each product and sum into the encoder's convolution.
    masked = (mask.astype(features.dtype) * x for mask, x in zip(masks, features, strict=True))
    return len(features) * functools.reduce(jnp.add, masked)
