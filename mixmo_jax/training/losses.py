"""The training loss."""

import optax
from jaxtyping import Array, Float


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
