"""Learning rate schedules and optimizers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import optax


def create_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Creates the optimizer and its schedule, a function of the number of steps done."""
    fields = config.optimizer
    warmup = warmup_steps(config, steps_per_epoch)
    if fields.schedule == "cosine":
        schedule = cosine_schedule(
            learning_rate=fields.learning_rate,
            warmup_steps=warmup,
            num_steps=config.num_epochs * steps_per_epoch,
            batch_repetitions=config.batch_repetitions,
        )
    else:
        schedule = step_schedule(
            learning_rate=fields.learning_rate,
            warmup_steps=warmup,
            decay_epochs=[epoch for epoch in fields.decay_epochs if epoch <= config.num_epochs],
            decay_factor=fields.decay_factor,
            batch_repetitions=config.batch_repetitions,
            steps_per_epoch=steps_per_epoch,
        )
    if fields.name == "adamw":
        tx = optax.adamw(schedule, b1=fields.momentum, weight_decay=fields.weight_decay)
    else:
        # Unlike in AdamW, the decay is part of the gradient, as in the reference program.
        tx = optax.chain(
            optax.add_decayed_weights(fields.weight_decay),
            optax.sgd(schedule, momentum=fields.momentum, nesterov=fields.nesterov),
        )
    if fields.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(fields.clip_norm), tx)
    return tx, schedule


def warmup_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns the number of warm-up steps. It grows with b, as the steps of an epoch do."""
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
    """Linear warm-up from 0, then a piecewise constant learning rate.

    Args:
      learning_rate: The peak for b = 1; it is divided by b.
      warmup_steps: Number of warm-up steps.
      decay_epochs: The learning rate is multiplied by `decay_factor` at the first step of each of
        these epochs, counted from 1.
      decay_factor: See `decay_epochs`.
      batch_repetitions: b.
      steps_per_epoch: Number of steps of an epoch.

    Returns:
      A schedule of the step counted from 0: step t of the run uses `schedule(t - 1)`.

    References:
      MixMo, arXiv 2103.06132, on training details.
    """
    peak = learning_rate / batch_repetitions
    decays = {(epoch - 1) * steps_per_epoch: decay_factor for epoch in decay_epochs}
    return _warm_up(optax.piecewise_constant_schedule(peak, decays), warmup_steps)


def cosine_schedule(
    *, learning_rate: float, warmup_steps: int, num_steps: int, batch_repetitions: int
) -> optax.Schedule:
    """Linear warm-up from 0, multiplied by a half cosine that reaches 0 after the last step.

    Args:
      learning_rate: The peak for b = 1; it is divided by b.
      warmup_steps: Number of warm-up steps.
      num_steps: Number of steps of the run.
      batch_repetitions: b.

    Returns:
      A schedule of the step counted from 0.

    References:
      SGDR, arXiv 1608.03983, without restarts.
    """
    peak = learning_rate / batch_repetitions
    return _warm_up(optax.cosine_decay_schedule(peak, num_steps), warmup_steps)


def _warm_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Multiplies a schedule by a linear warm-up, whose first factor is 1 / warmup_steps."""

    def warmed_up(count: jax.Array | int) -> jax.Array:
        learning_rate = schedule(jnp.asarray(count, float))
        if not warmup_steps:
            return learning_rate
        return jnp.minimum((count + 1) / warmup_steps, 1.0) * learning_rate

    return warmed_up
