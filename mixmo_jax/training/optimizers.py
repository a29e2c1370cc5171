"""The learning rate and the optimizer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import optax


def create_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer, and the learning rate as a function of the number of steps done."""
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
    """Returns the number of steps over which the learning rate rises.

    It grows with the repetitions, as the number of steps of an epoch does.
    """
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
    """Linear warm-up from 0, then a learning rate that falls by a factor at given epochs.

    Args:
      learning_rate: The learning rate after the warm-up for b = 1; it is divided by b.
      warmup_steps: The number of steps over which it rises, repetitions included.
      decay_epochs: The epochs, counted from 1, at whose first step it falls.
      decay_factor: The factor by which it falls.
      batch_repetitions: b.
      steps_per_epoch: The number of steps of an epoch, repetitions included.

    Returns:
      A schedule of the step counted from 0: the t-th step of the run uses `schedule(t - 1)`.

    References:
      MixMo paper, arXiv 2103.06132, on training details.
    """
    peak = learning_rate / batch_repetitions
    decays = {(epoch - 1) * steps_per_epoch: decay_factor for epoch in decay_epochs}
    steps = optax.piecewise_constant_schedule(peak, decays)

    def schedule(count: jax.Array | int) -> jax.Array:
        learning_rate = steps(jnp.asarray(count, float))
        if not warmup_steps:
            return learning_rate
        return jnp.minimum((count + 1) / warmup_steps, 1.0) * learning_rate

    return schedule


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with momentum that adds `weight_decay * parameter` to every parameter's gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
