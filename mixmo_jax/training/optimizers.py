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
        tx = sgd(
            schedule,
            momentum=fields.momentum,
            nesterov=fields.nesterov,
            weight_decay=fields.weight_decay,
        )
    if fields.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(fields.clip_norm), tx)
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
    return _warm_up(optax.piecewise_constant_schedule(peak, decays), warmup_steps)


def cosine_schedule(
    *, learning_rate: float, warmup_steps: int, num_steps: int, batch_repetitions: int
) -> optax.Schedule:
    """Linear warm-up from 0, times half a period of a cosine that reaches 0 after the last step.

    Args:
      learning_rate: The learning rate that the cosine starts from for b = 1; it is divided by b.
      warmup_steps: The number of steps of the warm-up, repetitions included.
      num_steps: The number of steps of the training run.
      batch_repetitions: b.

    Returns:
      A schedule of the step counted from 0.

    References:
      SGDR, arXiv 1608.03983, without restarts.
    """
    peak = learning_rate / batch_repetitions
    return _warm_up(optax.cosine_decay_schedule(peak, num_steps), warmup_steps)


def _warm_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Multiplies a schedule by a factor that rises linearly: that of the first step is not 0."""

    def warmed_up(count: jax.Array | int) -> jax.Array:
        learning_rate = schedule(jnp.asarray(count, float))
        if not warmup_steps:
            return learning_rate
        return jnp.minimum((count + 1) / warmup_steps, 1.0) * learning_rate

    return warmed_up


def sgd(
    schedule: optax.Schedule, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with momentum that adds `weight_decay * parameter` to every parameter's gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
