"""Training: the state, the step, the one pmap, the loop."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mixmo_jax import batches, devices, evaluate, losses, metrics, optimizers, sampling, streaming
from mixmo_jax.augment import normalize
from mixmo_jax.batches import RawBatch
from mixmo_jax.checkpoints import BestCheckpoint, Checkpoints
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.devices import AXIS
from mixmo_jax.errors import InputError, invalid
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
    model: MixMoNet,
    tx: optax.GradientTransformation,
    plan_fn: Callable,
    batch_fn: Callable,
    *,
    streamed: bool = False,
) -> Callable[[TrainState, Split | RawBatch, jax.Array], tuple[TrainState, jax.Array]]:
    """Returns the training step of one device among those mapped over the axis `AXIS`.

    Args:
      model: the network, built with `axis_name=AXIS`.
      tx: the optimiser.
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.
      batch_fn: `(raw, plan) → Batch`.
      streamed: whether the images of a step come with it; or the training set is on the device.

    Returns:
      `train_step(state, data, order) → (state, loss)`: data is the training set, or if streamed
      this device's part of the step's `RawBatch`; order the epoch's [N] int32 random order of the
      training set; loss the mean over the whole batch, [] float32.
    """

    def train_step(state: TrainState, data: Split, order: jax.Array):
        plan = plan_fn(state.key, state.step, order)
        plan = sampling.shard(plan, jax.lax.axis_index(AXIS), jax.lax.psum(1, AXIS))
        raw = data if streamed else batches.gather(data, *batches.indices(plan))
        batch = batch_fn(raw, plan)

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


def make_update_fn(train_step: Callable, *, streamed: bool = False) -> Callable:
    """Maps a training step over the local devices, and over steps.

    Args:
      train_step: see `make_train_step`.
      streamed: likewise.

    Returns:
      `update(state, data, order, num_steps) → (state, losses)`: state replicated along a leading
      device axis and donated; data and order the same on all devices, but if streamed data are
      `RawBatch`es, [devices, num_steps, …]; losses [devices, num_steps]. Several steps are one
      scan on the device.
    """

    def update(state: TrainState, data: Split | RawBatch, order: jax.Array, num_steps: int):
        def step(state: TrainState, raw: RawBatch | None):
            return train_step(state, raw if streamed else data, order)

        steps = data if streamed else None
        if num_steps == 1:
            state, loss = step(state, jax.tree.map(lambda x: x[0], steps))
            return state, loss[None]
        return jax.lax.scan(step, state, steps, length=num_steps)

    return jax.pmap(
        update,
        axis_name=AXIS,
        in_axes=(0, 0 if streamed else None, None, None),
        static_broadcasted_argnums=3,
        donate_argnums=0,
    )


def call_lengths(steps: int, limit: int) -> Iterator[int]:
    """Cuts an epoch into calls of at most `limit` steps.

    Equal calls if there is a divisor between the limit and its half: each length is compiled.
    """
    divisors = [n for n in range(limit, limit // 2, -1) if steps % n == 0]
    length = divisors[0] if divisors else min(limit, steps)
    for start in range(0, steps, length):
        yield min(length, steps - start)


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
        for field, steps in {
            "num_epochs": config.num_epochs * self.steps_per_epoch,
            "optimizer.warmup_steps": optimizers.warmup_steps(config, self.steps_per_epoch),
        }.items():
            if steps >= 2**31:  # they are counted in int32
                raise InputError(f"{field}: {steps:,} steps, expected fewer than 2**31")
        self.config, self.dataset = config, dataset
        self.model = create_model(config.model, dataset.num_classes, AXIS)
        self.tx, self.schedule = optimizers.create_optimizer(config, self.steps_per_epoch)
        self.plan_fn = batches.make_plan_fn(config, len(dataset.train))
        height, width, _ = dataset.image_shape
        stride = self.model.stem_stride
        if height % stride or width % stride:
            allowed = f"a multiple of the encoders' stride {stride}"
            raise invalid("dataset.image_size", config.dataset.image_size, allowed)
        stem_shape = self.model.stem_shape(height, width)
        self.batch_fn = batches.make_batch_fn(config, dataset, stem_shape)
        self.streamed = streaming.is_streamed(config.dataset.placement, dataset.train.nbytes)
        self.logits = evaluate.make_logits_fn(
            self.model,
            functools.partial(normalize, mean=dataset.mean, std=dataset.std),
            min(config.evaluation.batch_size, len(dataset.test)),
        )

    def create_state(self) -> TrainState:
        """Returns the state before the first step."""
        return create_train_state(self.config.seed, self.model, self.tx, self.dataset.image_shape)

    def train(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        log: MetricsLog,
        best: BestCheckpoint | None = None,
    ) -> TrainState:
        """Trains from a state to the end of the last epoch.

        Every epoch is scored on the validation split; without one, on the test split.

        Args:
          state: of any number of whole epochs.
          checkpoints: of the run.
          log: of the run.
          best: takes the state with the best validation accuracy.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        config, steps = self.config, self.steps_per_epoch
        update, feed = self._make_update_and_feed(state.key)
        name, held_out = "test", self.dataset.test
        if self.dataset.validation is not None:
            name, held_out = "validation", self.dataset.validation
        first = int(state.step) // steps + 1
        state = devices.replicate(state)
        with Progress(
            config.num_epochs, steps, config.batch_size, self.schedule, first
        ) as progress:
            for epoch in range(first, config.num_epochs + 1):
                start, epoch_losses = time.perf_counter(), []
                for data, order, num_steps in feed(epoch):
                    state, call_losses = update(state, data, order, num_steps)
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
                    logits = self.logits(saved.variables, held_out.images)
                    ensemble = config.evaluation.ensemble
                    line[name] = metrics.plain_scores(logits, held_out.labels, ensemble)
                log.write(line)
                progress.end_epoch(line)
                if best is not None and name in line:
                    best.offer(epoch * steps, saved, line[name]["accuracy"])
                if last or epoch % config.checkpoint_every_epochs == 0:
                    checkpoints.save(epoch * steps, saved)
        return devices.unreplicate(state)

    def _make_update_and_feed(self, key: jax.Array) -> tuple[Callable, Callable]:
        """Returns the update function, and `feed(epoch)`, its arguments for every call."""
        train, steps = self.dataset.train, self.steps_per_epoch
        step = make_train_step(
            self.model, self.tx, self.plan_fn, self.batch_fn, streamed=self.streamed
        )
        order_fn = jax.jit(sampling.epoch_order, static_argnums=2)
        # Convolutions inside a loop are many times slower on CPU.
        limit = 1 if jax.default_backend() == "cpu" else 20 if self.streamed else 100
        lengths = list(call_lengths(steps, self.config.steps_per_call or limit))
        if self.streamed:
            stream = streaming.make_stream_fn(self.plan_fn, train, steps)
        else:
            resident = devices.place(train.in_memory())

        def feed(epoch: int) -> Iterator[tuple[Split | RawBatch, jax.Array, int]]:
            order = devices.place(order_fn(key, epoch, len(train)))
            parts = stream(key, epoch, lengths) if self.streamed else itertools.repeat(resident)
            for length, data in zip(lengths, parts, strict=False):
                yield data, order, length

        return make_update_fn(step, streamed=self.streamed), feed
