"""The training loss: loss weights and weighted cross-entropy.

Shapes: M members, B batch size, [h, w, F] output of an encoder, K classes.
"""

import optax
from jaxtyping import Array, Float


def loss_weights(masks: Float[Array, "M B #h #w #F"], weight_root: float) -> Float[Array, "M B"]:
    """Computes the weight of each member's loss from its ratio, the mean of its mask.

    The weights are proportional to ratio ** (1 / r) and have mean 1 over M.

    Args:
      masks: [M, B, h, w, F]; h, w and F may be 1.
      weight_root: r. With 1 the weights are proportional to the ratios, with infinity equal.

    References:
      MixMo, arXiv 2103.06132, on loss weighting.
    """
    ratios = masks.mean((2, 3, 4))  # [M, B]
    # Relative to the largest ratio, so that no power of all members underflows.
    powers = (ratios / ratios.max(0, keepdims=True)) ** (1 / weight_root)
    return len(powers) * powers / powers.sum(0, keepdims=True)


def weighted_cross_entropy(
    logits: Float[Array, "M B K"],
    targets: Float[Array, "M B K"],
    weights: Float[Array, "M B"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Computes the weighted cross-entropy, averaged over the batch and summed over the members.

    Args:
      logits: [M, B, K] float.
      targets: [M, B, K] float, sum to 1 over K.
      weights: [M, B] float.
      label_smoothing: Fraction of each target that is spread evenly over the classes.

    Returns:
      [] float, in nats.

    References:
      MixMo, arXiv 2103.06132, on loss weighting.
    """
    if label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)  # [M, B]
    return (weights * losses).mean(1).sum()
