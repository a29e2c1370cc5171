"""The training loss: loss weights and weighted cross-entropy."""

import optax
from jaxtyping import Array, Float


def loss_weights(masks: Float[Array, "M B #h #w #F"], weight_root: float) -> Float[Array, "M B"]:
    """Weights of the members' losses, proportional to ratio ** (1 / r), with a mean of 1 over M.

    Args:
      masks: [M, B, h, w, F], any of the last three 1; a member's ratio is the mean of its mask.
      weight_root: r. 1 makes the weights proportional to the ratios, infinity makes them equal.

    Returns:
      [M, B] float.

    References:
      MixMo paper, arXiv 2103.06132, on loss weighting.
    """
    ratios = masks.mean((2, 3, 4))  # [M, B]
    powers = (ratios / ratios.max(0, keepdims=True)) ** (1 / weight_root)  # the largest is 1
    return len(powers) * powers / powers.sum(0, keepdims=True)


def weighted_cross_entropy(
    logits: Float[Array, "M B K"],
    targets: Float[Array, "M B K"],
    weights: Float[Array, "M B"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Returns the sum over members of the batch's mean of weight * cross-entropy.

    Args:
      logits: [M, B, K] float.
      targets: [M, B, K] float, distributions over the classes.
      weights: [M, B] float.
      label_smoothing: The part of every target that is spread evenly over the classes.

    Returns:
      [] float, in nats.

    References:
      MixMo paper, arXiv 2103.06132, on loss weighting.
    """
    if label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)  # [M, B]
    return (weights * losses).mean(1).sum()
