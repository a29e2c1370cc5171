"""The learning rate and the optimiser."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax


def step_schedule(
    *,
    learning_rate: float,
    warmup_steps: int,
    decay_epochs: Sequence[int],
    decay_factor: float,
    batch_repetitions: int,
    steps_per_epoch: int,
) -> optax.Schedule:
    """Linear warm-up from 0, then a rate that falls by a factor at the start of given epochs.

    Args:
      learning_rate: after the warm-up, for b = 1; it is divided by b.
      warmup_steps: for b = 1; multiplied by b.
      decay_epochs: 1-based epochs at whose first step the rate falls.
      decay_factor: by which it falls.
      batch_repetitions: b.
      steps_per_epoch: with the repetitions counted in.

    Returns:
      Schedule of the 0-based step: at the t-th step of the training, `schedule(t - 1)`.
    """
    peak = learning_rate / batch_repetitions
    warmup = warmup_steps * batch_repetitions
    decays = {(epoch - 1) * steps_per_epoch: decay_factor for epoch in decay_epochs}
    steps = optax.piecewise_constant_schedule(peak, decays)
    if not warmup:
        return steps
    return lambda count: jnp.minimum((count + 1) / warmup, 1.0) * steps(count)


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with momentum; the gradient of every parameter gets `weight_decay * parameter` added."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
