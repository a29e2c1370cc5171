"""The training loop: from a state to the end of the last epoch."""

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Generator

import jax
import ml_collections
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.datasets import Dataset
from mixmo_jax.evaluation import metrics
from mixmo_jax.evaluation.logits import make_logits_fn
from mixmo_jax.input_pipeline import batch as batch_lib
from mixmo_jax.input_pipeline.plan import BatchPlan, epoch_order
from mixmo_jax.input_pipeline.streaming import Call, create_feed
from mixmo_jax.mixing.unmix import unmix_features
from mixmo_jax.models import create_model
from mixmo_jax.training.checkpoints import EpochProgress
from mixmo_jax.training.checks import check_network, check_sizes
from mixmo_jax.training.losses import weighted_cross_entropy
from mixmo_jax.training.optimizers import create_optimizer, warmup_steps
from mixmo_jax.training.outputs import Outputs, ProgressDisplay
from mixmo_jax.training.step import (
    TrainState,
    create_train_state,
    make_train_step,
    make_update_fn,
)

_CALLS_IN_FLIGHT = 2  # left unfinished: the device never waits, and memory is bounded


class Trainer:
    """All that a training run is made of, built from its config and dataset.

    Attributes:
      steps_per_epoch: The number of steps of an epoch.
      schedule: The learning rate by the number of steps done.
      warmup_steps: The number of steps over which the learning rate rises.
      plan_fn: `(key, step, order) → BatchPlan`.
      batch_fn: `(raw, plan) → Batch`.
      logits_fn: `(variables, images) → [N, M, K]` of uint8 images, see `make_logits_fn`.

    Raises:
      InputError: if the batch does not fit the devices or the dataset, or the network's
        description is not valid.
    """

    def __init__(self, config: ml_collections.ConfigDict, dataset: Dataset):
        self.config, self.dataset = config, dataset
        self.steps_per_epoch = batch_lib.steps_per_epoch(config, len(dataset.train))
        self.warmup_steps = warmup_steps(config, self.steps_per_epoch)
        self.model = create_model(config.model, dataset.num_classes, distributed.AXIS)
        check_network(config)
        check_sizes(
            config,
            dataset,
            steps_per_epoch=self.steps_per_epoch,
            warmup_steps=self.warmup_steps,
            stride=self.model.stem_stride,
        )
        self.tx, self.schedule = create_optimizer(config, self.steps_per_epoch)
        self.plan_fn = batch_lib.make_plan_fn(config, len(dataset.train))
        stem_shape = self.model.stem_shape(*dataset.image_shape[:2])
        self.batch_fn = batch_lib.make_batch_fn(config, dataset, stem_shape)
        self.logits_fn = make_logits_fn(
            create_model(config.model, dataset.num_classes),
            batch_size=config.evaluation.batch_size,
            mean=dataset.mean,
            std=dataset.std,
        )

    def create_state(self) -> TrainState:
        """Returns the train state before the first step."""
        ema = self.config.optimizer.ema_decay > 0
        shape = self.dataset.image_shape
        return create_train_state(self.config.seed, self.model, self.tx, shape, ema=ema)

    def first_batch(self, key: jax.Array) -> tuple[batch_lib.RawBatch, BatchPlan]:
        """Returns the images and labels of a run's first batch, and its plan, for `batch_fn`.

        Args:
          key: The key of the run, that of its train state.
        """
        split = self.dataset.train

        @jax.jit
        def draw(key):
            return self.plan_fn(key, 0, epoch_order(key, 1, len(split)))

        plan = draw(key)
        indices = jax.device_get(batch_lib.planned_indices(plan))
        shape = self.dataset.image_shape
        return batch_lib.gather(split.images, split.labels, *indices, shape), plan

    def create_train_step(self, fetch_fn: Callable, batch_fn: Callable | None = None) -> Callable:
        """Returns the training step, see `training.step.make_train_step`.

        Args:
          fetch_fn: That of the feed.
          batch_fn: In place of the trainer's own.
        """
        config = self.config
        smoothing = config.label_smoothing
        return make_train_step(
            self.model,
            self.tx,
            fetch_fn=fetch_fn,
            batch_fn=batch_fn or self.batch_fn,
            loss_fn=functools.partial(weighted_cross_entropy, label_smoothing=smoothing),
            unmix_fn=functools.partial(
                unmix_features,
                normalize=config.mixmo.unmix_normalize,
                resize=config.mixmo.unmix_resize,
            ),
            ema_decay=config.optimizer.ema_decay,
        )

    def epochs_done(self, state: TrainState, begun: EpochProgress) -> int:
        """Returns the number of whole epochs that a state has behind it."""
        return (int(state.step) - len(begun.losses)) // self.steps_per_epoch

    def train(
        self,
        state: TrainState,
        begun: EpochProgress = EpochProgress(),  # noqa: B008
        *,
        outputs: Outputs | None,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[TrainState, EpochProgress]:
        """Trains from a state to the end of the last epoch.

        The model is evaluated on the validation split; without one, on the test split.

        Args:
          state: The train state.
          begun: What the state's epoch has come to, if the state is not at an epoch boundary.
          outputs: Where it leaves what comes of it; None in all processes but the first.
          stop: Asked before each call of the update function, and at the end of an epoch, whether
            to save and return. All processes ask equally often, and stop at the same step if one of
            them is asked to.

        Returns:
          The state after the last epoch, or where it stopped; and what an epoch that is not
          finished has come to, see `epochs_done`.

        Raises:
          FloatingPointError: if the loss, a weight or a logit is not finite.
          InputError: if a checkpoint or the metrics cannot be written.
        """
        config, steps = self.config, self.steps_per_epoch
        key, first = state.key, self.epochs_done(state, begun) + 1
        feed = create_feed(
            config.dataset.placement, self.plan_fn, self.dataset.train, steps, config.steps_per_call
        )
        update = make_update_fn(self.create_train_step(feed.fetch), self.plan_fn)
        state = distributed.replicate_for_pmap(state)
        progress = outputs and outputs.progress
        stop = distributed.any_process(stop, delay=_CALLS_IN_FLIGHT)
        for epoch in range(first, config.num_epochs + 1):
            calls = feed.calls(key, epoch, len(begun.losses))
            state, begun = self.run_calls(
                update, state, calls, begun, epoch=epoch, progress=progress, stop=stop
            )
            saved = distributed.unreplicate(state)
            if stop():
                step = (epoch - 1) * steps + len(begun.losses)
                if outputs:
                    outputs.checkpoints.wait()  # for that of the epoch before, if it is this step
                    if step != outputs.checkpoints.latest_step:
                        outputs.wait_for_best()
                        outputs.checkpoints.save(step, saved, begun)
                return saved, begun
            losses, seconds = begun
            begun = EpochProgress()
            epoch_metrics = {
                "epoch": epoch,
                "step": epoch * steps,
                "loss": float(losses.mean()),
                "learning_rate": float(self.schedule(epoch * steps - 1)),
                "seconds": seconds,
                "images_per_second": steps * config.batch_size / seconds,
            }
            if epoch == config.num_epochs or epoch % config.evaluation.every_epochs == 0:
                epoch_metrics.update(self.evaluate(saved))
            if outputs:
                self._end_epoch(epoch_metrics, saved, outputs)
            del saved  # frees its memory for the next epoch
        return distributed.unreplicate(state), begun

    def _end_epoch(self, epoch_metrics: dict, state: TrainState, outputs: Outputs) -> None:
        """Writes and shows what came of an epoch, and saves the state."""
        config, (checkpoints, best, writers, progress) = self.config, outputs
        epoch, step = epoch_metrics["epoch"], epoch_metrics["step"]
        for writer in writers:
            writer.write(epoch_metrics)
        progress.end_epoch(epoch_metrics)
        if best is not None and "validation" in epoch_metrics:
            best.offer(step, state, epoch_metrics["validation"]["accuracy"])
        if epoch == config.num_epochs or epoch % config.checkpoint_every_epochs == 0:
            outputs.wait_for_best()
            resumable = checkpoints.latest_step  # certain to be there: saving takes its time
            checkpoints.save(step, state)
            if best is not None and resumable is not None:
                best.commit(resumable)

    def run_calls(
        self,
        update: Callable,
        state: TrainState,
        calls: Generator[Call],
        begun: EpochProgress = EpochProgress(),  # noqa: B008
        *,
        epoch: int = 1,
        progress: ProgressDisplay | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[TrainState, EpochProgress]:
        """Runs the calls of an epoch, a few of them ahead of the device.

        Args:
          update: See `training.step.make_update_fn`.
          state: The train state, replicated for pmap.
          calls: The calls that are left in the epoch.
          begun: What the epoch has come to before.
          epoch: The epoch, counted from 1.
          progress: Shows the steps as they finish.
          stop: Asked before each call whether to return.

        Returns:
          The state, and what the epoch has come to.

        Raises:
          FloatingPointError: if the loss or a weight is not finite.
        """
        dispatched, finished = collections.deque(), begun.losses.tolist()
        start = time.perf_counter()

        def finish():
            num_steps, losses = dispatched.popleft()
            values = distributed.fetch_first(losses)  # waits for the device
            if not np.isfinite(values).all():
                step = len(finished) + int(np.argmin(np.isfinite(values))) + 1
                raise self._divergence((epoch - 1) * self.steps_per_epoch + step, epoch)
            finished.extend(values)
            if progress is not None:
                progress.update(num_steps, values)

        with contextlib.closing(calls):
            while not stop() and (call := next(calls, None)) is not None:
                state, losses = update(
                    state, call.resident, call.streamed, call.order, call.num_steps
                )
                dispatched.append((call.num_steps, losses))
                if len(dispatched) > _CALLS_IN_FLIGHT:
                    finish()
            while dispatched:
                finish()
        seconds = begun.seconds + time.perf_counter() - start
        return state, EpochProgress(np.asarray(finished, np.float32), seconds)

    def evaluate(self, state: TrainState) -> dict[str, dict[str, float]]:
        """Returns the metrics on the validation split, or else the test split, by its name.

        Those of the moving average of the variables, if there is one, are called "ema_…".

        Raises:
          FloatingPointError: if a logit is not finite.
        """
        name, split = "test", self.dataset.test
        if self.dataset.validation is not None:
            name, split = "validation", self.dataset.validation
        evaluated = {name: state.variables}
        if state.ema is not None:
            evaluated[f"ema_{name}"] = state.ema
        epoch_metrics = {}
        for name, variables in evaluated.items():
            variables = distributed.replicate(variables)
            logits = distributed.map_rows(
                lambda images: self.logits_fn(variables, images),  # noqa: B023
                split.images,
            )
            if not np.isfinite(logits).all():
                raise FloatingPointError(f"after step {int(state.step)} the logits are not finite")
            ensemble, members = self.config.evaluation.ensemble, self.config.evaluation.members
            chosen = logits[:, list(members)] if members else logits
            epoch_metrics[name] = metrics.ensemble_metrics(chosen, split.labels, ensemble)
        return epoch_metrics

    def _divergence(self, step: int, epoch: int) -> FloatingPointError:
        return FloatingPointError(
            f"step {step:,} (epoch {epoch}): loss or weights are not finite; the last checkpoint "
            "is from before; a lower optimizer.learning_rate than "
            f"{self.config.optimizer.learning_rate} may help"
        )
