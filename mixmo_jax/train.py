"""Training: the state, the step, the one pmap, the loop."""

import time
from collections.abc import Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mixmo_jax import batches, devices, evaluate, losses, optimizers, sampling
from mixmo_jax.checkpoints import Checkpoints
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.devices import AXIS
from mixmo_jax.errors import invalid
from mixmo_jax.models import MixMoNet, create_model
from mixmo_jax.reporting import Progress
from mixmo_jax.workdir import MetricsLog


@flax.struct.dataclass
class TrainState:
    """All that changes during training, and the key from which all randomness follows."""

    step: jax.Array  # [] int32, steps done
    key: jax.Array  # [] typed key, constant
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    seed: int, model: MixMoNet, tx: optax.GradientTransformation, image_shape: tuple[int, int, int]
) -> TrainState:
    """Draws the initial parameters.

    Args:
      seed: of the whole training.
      model: the network.
      tx: the optimiser.
      image_shape: (H, W, C).
    """

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        init_key, train_key = jax.random.split(key)
        variables = model.init(init_key, jnp.zeros((1, *image_shape)), train=False)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=train_key,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
        )

    return create(jax.random.key(seed))


def make_train_step(
    model: MixMoNet, tx: optax.GradientTransformation, plan_fn: Callable, batch_fn: Callable
) -> Callable[[TrainState, Split, jax.Array], tuple[TrainState, jax.Array]]:
    """Returns the training step of one device among those mapped over the axis `AXIS`.

    Args:
      model: the network, built with `axis_name=AXIS`.
      tx: the optimiser.
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.
      batch_fn: `(data, plan) → Batch`.

    Returns:
      `train_step(state, data, order) → (state, loss)`: data is the training set, order the
      epoch's [N] int32 random order of it, loss the mean over the whole batch, [] float32.
    """

    def train_step(state: TrainState, data: Split, order: jax.Array):
        plan = plan_fn(state.key, state.step, order)
        plan = sampling.shard(plan, jax.lax.axis_index(AXIS), jax.lax.psum(1, AXIS))
        batch = batch_fn(data, plan)

        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(
                variables, batch.images, batch.masks, train=True, mutable=["batch_stats"]
            )
            loss = losses.weighted_cross_entropy(logits, batch.targets, batch.weights)
            return loss, updated["batch_stats"]

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, batch_stats), grads = grad_fn(state.params)
        loss, grads = jax.lax.pmean((loss, grads), AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, loss

    return train_step


def make_update_fn(train_step: Callable) -> Callable:
    """Maps a training step over the local devices, and over steps.

    Returns:
      `update(state, data, order, num_steps) → (state, losses)`: state replicated along a leading
      device axis and donated, data and order the same on all devices, losses
      [devices, num_steps]. Several steps are one scan on the device.
    """

    def update(state: TrainState, data: Split, order: jax.Array, num_steps: int):
        if num_steps == 1:
            state, loss = train_step(state, data, order)
            return state, loss[None]
        return jax.lax.scan(lambda s, _: train_step(s, data, order), state, length=num_steps)

    return jax.pmap(
        update,
        axis_name=AXIS,
        in_axes=(0, None, None, None),
        static_broadcasted_argnums=3,
        donate_argnums=0,
    )


def call_lengths(steps: int, steps_per_call: int) -> Iterator[int]:
    """Cuts an epoch into calls of at most `steps_per_call` steps (0: by the backend).

    Equal calls if there is a divisor between the limit and its half: each length is compiled.
    """
    limit = steps_per_call or (1 if jax.default_backend() == "cpu" else 100)
    divisors = [n for n in range(limit, limit // 2, -1) if steps % n == 0]
    length = divisors[0] if divisors else min(limit, steps)
    for start in range(0, steps, length):
        yield min(length, steps - start)


def create_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser and the learning rate as a function of the steps done."""
    fields = config.optimizer
    schedule = optimizers.step_schedule(
        learning_rate=fields.learning_rate,
        warmup_steps=fields.warmup_steps,
        decay_epochs=fields.decay_epochs,
        decay_factor=fields.decay_factor,
        batch_repetitions=config.batch_repetitions,
        steps_per_epoch=steps_per_epoch,
    )
    tx = optimizers.sgd(
        schedule,
        momentum=fields.momentum,
        nesterov=fields.nesterov,
        weight_decay=fields.weight_decay,
    )
    return tx, schedule


class Trainer:
    """All that a run is made of, built from its config and data set.

    Raises:
      InputError: if the batch does not fit the devices or the data set, or the network's
        description is not valid.
    """

    def __init__(self, config: ml_collections.ConfigDict, dataset: Dataset):
        count = jax.device_count()
        if config.batch_size % count:
            raise invalid("batch_size", config.batch_size, f"a multiple of the {count} devices")
        self.steps_per_epoch = batches.steps_per_epoch(config, len(dataset.train))
        if not self.steps_per_epoch:
            most = len(dataset.train) * config.batch_repetitions
            raise invalid("batch_size", config.batch_size, f"at most {most} with this data set")
        self.config, self.dataset = config, dataset
        self.model = create_model(config.model, dataset.num_classes, AXIS)
        self.tx, self.schedule = create_optimizer(config, self.steps_per_epoch)
        self.plan_fn = batches.make_plan_fn(config, len(dataset.train))
        stem_shape = self.model.stem_shape(*dataset.image_shape[:2])
        self.batch_fn = batches.make_batch_fn(config, dataset, stem_shape)
        self.score = evaluate.make_score_fn(
            self.model,
            dataset,
            batch_size=min(config.evaluation.batch_size, len(dataset.test)),
            ensemble=config.evaluation.ensemble,
        )

    def create_state(self) -> TrainState:
        """Returns the state before the first step."""
        return create_train_state(self.config.seed, self.model, self.tx, self.dataset.image_shape)

    def train(self, state: TrainState, checkpoints: Checkpoints, log: MetricsLog) -> TrainState:
        """Trains from a state to the end of the last epoch.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        config, steps = self.config, self.steps_per_epoch
        update = make_update_fn(make_train_step(self.model, self.tx, self.plan_fn, self.batch_fn))
        order_fn = jax.jit(sampling.epoch_order, static_argnums=2)
        data = devices.place(self.dataset.train)
        key, first = state.key, int(state.step) // steps + 1
        state = devices.replicate(state)
        with Progress(
            config.num_epochs, steps, config.batch_size, self.schedule, first
        ) as progress:
            for epoch in range(first, config.num_epochs + 1):
                start, epoch_losses = time.perf_counter(), []
                order = devices.place(order_fn(key, epoch, len(self.dataset.train)))
                for length in call_lengths(steps, config.steps_per_call):
                    state, call_losses = update(state, data, order, length)
                    epoch_losses.append(call_losses)
                    progress.update(call_losses)
                loss = float(np.concatenate(jax.device_get(epoch_losses), axis=1)[0].mean())
                seconds = time.perf_counter() - start
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} in epoch {epoch}; a lower optimizer.learning_rate "
                        f"than {config.optimizer.learning_rate} may help"
                    )
                line = {
                    "epoch": epoch,
                    "step": epoch * steps,
                    "loss": loss,
                    "learning_rate": float(self.schedule(epoch * steps - 1)),
                    "seconds": seconds,
                    "images_per_second": steps * config.batch_size / seconds,
                }
                last = epoch == config.num_epochs
                saved = devices.unreplicate(state)
                if last or epoch % config.evaluation.every_epochs == 0:
                    line["test"], _ = self.score(saved.variables, self.dataset.test)
                log.write(line)
                progress.end_epoch(line)
                if last or epoch % config.checkpoint_every_epochs == 0:
                    checkpoints.save(epoch * steps, saved)
        return devices.unreplicate(state)
