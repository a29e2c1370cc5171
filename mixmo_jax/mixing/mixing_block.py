"""The mixing block between encoders and core: schedule, masks, features, loss weights.

Glossary: M members, B positions of the batch, [h, w, F] an encoder's output. A batch has M roles,
each with a mask; `mask_index` says which role's mask a member gets. The last three axes of masks
are full, or 1 where nothing varies along them: "#h" in the annotations.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mixmo_jax.mixing.masks import MaskFn, get_mask_fn, linear_mask


def patch_probability(
    epoch: Int[Array, "*epochs"] | int, num_epochs: int, prob: float, until: float = 11 / 12
) -> Float[Array, "*epochs"]:
    """The probability that a batch is mixed by patches and not linearly.

    It is `prob` for most of the training run, then falls linearly to 0 at the last epoch: the
    network ends its training as it is used afterwards, with linear mixing.

    Args:
      epoch: The epoch, counted from 1; or an array of epochs.
      num_epochs: The number of epochs of the training run.
      prob: The probability at first.
      until: The fraction of the training run up to which it stays so, less than 1.

    Returns:
      [] float32; or one for each epoch.

    References:
      MixMo paper, arXiv 2103.06132, on training details.
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
    """The mask of every member at every position of the encoders' output.

    Args:
      ratios: [M, B] float, the ratios of the roles, sum to 1 over M.
      mask_keys: [B] typed keys, one for each sample's masks.
      mask_index: [M] int32, the role whose mask each member gets: a permutation.
      use_patch: [] bool, whether the batch is mixed by the block or linearly.
      block: The name of a mask function, see `mixmo_jax.mixing.MASKS`.
      shape: (h, w, F) of the encoders' output.

    Returns:
      Float32 in [0, 1] that broadcasts against [M, B, h, w, F] and sums to 1 over M; all ones for
      M = 1.

    Raises:
      InputError: if no mask function is registered under the name.

    References:
      MixMo paper, arXiv 2103.06132, on the mixing block.
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
    """Mixes the encoders' outputs: `M * sum_i masks_i * features_i`.

    Args:
      features: [M, B, h, w, F], the encoders' outputs.
      masks: They broadcast against the features and sum to 1 over M.

    Returns:
      [B, h, w, F].

    References:
      MixMo paper, arXiv 2103.06132, equation 2.
    """
    # Term by term: a TPU's compiler attaches each product and sum to the encoder's convolution.
    masked = (mask.astype(features.dtype) * x for mask, x in zip(masks, features, strict=True))
    return len(features) * functools.reduce(jnp.add, masked)
