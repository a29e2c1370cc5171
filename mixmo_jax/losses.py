"""The training loss."""

import jax
import optax


def weighted_cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum over members of the batch's mean of weight * cross-entropy.

    Args:
      logits: [M, B, K].
      targets: [M, B, K], distributions over the classes.
      weights: [M, B].

    Returns:
      [] in nats.

    References:
      MixMo paper, on loss weighting.
    """
    return (weights * optax.softmax_cross_entropy(logits, targets)).mean(1).sum()
