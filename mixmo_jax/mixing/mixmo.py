"""The mixing block between encoders and core: masks, schedule, features, loss weights."""

import jax
import jax.numpy as jnp

from mixmo_jax.mixing import masks as masks_lib
from mixmo_jax.sampling import BatchPlan


def patch_probability(
    epoch: jax.Array | int, num_epochs: int, prob: float, until: float = 11 / 12
) -> jax.Array:
    """Probability that a batch is mixed by patches and not linearly.

    `prob` for most of the training, then falling linearly to 0 at the last epoch: the network
    ends its training as it will be used, with linear mixing.

    Args:
      epoch: 1-based.
      num_epochs: length of the training.
      prob: probability at first.
      until: share of the training up to which it stays so, less than 1.

    References:
      MixMo paper, training details.
    """
    left = (num_epochs - epoch) / num_epochs
    return prob * jnp.minimum(1.0, left / (1 - until))


def mixmo_masks(plan: BatchPlan, block: str, shape: tuple[int, int]) -> jax.Array:
    """The mask of every member at every position of the encoders' output.

    Args:
      plan: of the batch (or of a device's slice of it).
      block: "linear" or "cutmix".
      shape: (h, w) of the encoders' output.

    Returns:
      [M, B, h, w, 1] float32 in [0, 1], sum to 1 over M; for M = 1 all ones.

    References:
      MixMo paper, on the mixing block.
    """
    masks = masks_lib.linear_masks(plan.ratios, shape)
    if block == "cutmix" and len(plan.ratios) > 1:
        patches = masks_lib.cutmix_masks(plan.ratios, plan.centres[0], shape)
        masks = jnp.where(plan.use_patch, patches, masks)
    return masks[plan.roles][..., None]


def mix_features(features: jax.Array, masks: jax.Array) -> jax.Array:
    """`M * sum_i masks_i * features_i`.

    Args:
      features: [M, B, h, w, F], the encoders' outputs.
      masks: [M, B, h, w, 1].

    Returns:
      [B, h, w, F].

    References:
      MixMo paper, on the mixing block.
    """
    return len(features) * (masks.astype(features.dtype) * features).sum(0)


def loss_weights(masks: jax.Array, root: float) -> jax.Array:
    """Weights of the members' losses: they go with ratio ** (1 / root) and average to 1 over M.

    Args:
      masks: [M, B, h, w, 1]; a member's ratio is the mean of its mask.
      root: r. 1 is proportional, infinity is equal weights.

    Returns:
      [M, B] float.

    References:
      MixMo paper, on loss weighting.
    """
    ratios = masks.mean((2, 3, 4))
    powers = (ratios / ratios.max(0)) ** (1 / root)  # else all might vanish for a small root
    return len(powers) * powers / powers.sum(0)
