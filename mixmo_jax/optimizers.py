"""The learning rate and the optimiser."""

from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections
import optax


def create_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser and the learning rate as a function of the steps done."""
    fields = config.optimizer
    schedule = step_schedule(
        learning_rate=fields.learning_rate,
        warmup_steps=warmup_steps(config, steps_per_epoch),
        decay_epochs=[epoch for epoch in fields.decay_epochs if epoch <= config.num_epochs],
        decay_factor=fields.decay_factor,
        batch_repetitions=config.batch_repetitions,
        steps_per_epoch=steps_per_epoch,
    )
    tx = sgd(
        schedule,
        momentum=fields.momentum,
        nesterov=fields.nesterov,
        weight_decay=fields.weight_decay,
    )
    return tx, schedule


def warmup_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns the steps over which the rate rises: longer by the repetitions, as an epoch is."""
    fields = config.optimizer
    steps = fields.warmup_steps * config.batch_repetitions
    return steps + round(fields.warmup_epochs * steps_per_epoch)


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
      warmup_steps: over which the rate rises, with the repetitions counted in.
      decay_epochs: 1-based epochs at whose first step the rate falls.
      decay_factor: by which it falls.
      batch_repetitions: b.
      steps_per_epoch: with the repetitions counted in.

    Returns:
      Schedule of the 0-based step: at the t-th step of the training, `schedule(t - 1)`.
    """
    peak = learning_rate / batch_repetitions
    decays = {(epoch - 1) * steps_per_epoch: decay_factor for epoch in decay_epochs}
    steps = optax.piecewise_constant_schedule(peak, decays)
    if not warmup_steps:
        return steps
    return lambda count: jnp.minimum((count + 1) / warmup_steps, 1.0) * steps(count)


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with momentum; the gradient of every parameter gets `weight_decay * parameter` added."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
