"""Training runs: from a config to a trained and evaluated network."""

import collections
import contextlib
import math
import pathlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import distributed
from mixmo_jax.datasets import Dataset, Split, create_dataset, load_dataset
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, Interrupted, expand, invalid, warn
from mixmo_jax.evaluation import metrics
from mixmo_jax.evaluation.evaluate import evaluate_run
from mixmo_jax.inference.load import load
from mixmo_jax.inference.model import Model, make_logits_fn
from mixmo_jax.input_pipeline.feed import create_feed, gather, is_streamed, planned_indices
from mixmo_jax.input_pipeline.plan import (
    epoch_order,
    make_plan_fn,
    mixes_by_patches,
    steps_per_epoch,
)
from mixmo_jax.mixing.mixing_block import patch_probability
from mixmo_jax.models import create_model
from mixmo_jax.runs import plots
from mixmo_jax.runs.terminal import Progress
from mixmo_jax.runs.workdir import MetricWriter, Workdir
from mixmo_jax.training.checkpoints import Checkpoints, EpochProgress
from mixmo_jax.training.optimizers import create_optimizer, warmup_steps
from mixmo_jax.training.step import (
    TrainState,
    create_train_state,
    make_train_step,
    make_update_fn,
)

_CALLS_IN_FLIGHT = 2  # the device never waits for the host, and memory is bounded


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    dataset: Dataset | None = None,
    writers: Sequence[MetricWriter] = (),
    signals: StopSignals | None = None,
) -> dict[str, float] | None:
    """Trains a network, or resumes from the last checkpoint, and evaluates it.

    SIGINT and SIGTERM finish the steps under way, save, and raise `Interrupted`. Of several
    processes, process 0 alone uses the workdir.

    Args:
      config: The config, see `config.get_config`.
      workdir: The folder of the run. It is created if it does not exist.
      dataset: The dataset; by default the one that the config names.
      writers: Metric writers beside those of the workdir.
      signals: The signal handling; by default that of a command.

    Returns:
      The test scores, see `metrics.ensemble_metrics`; None in all processes but process 0.

    Raises:
      InputError: if config, data or workdir do not fit together (before anything is written), or a
        file cannot be written.
      FloatingPointError: if the loss or a parameter is not finite.
      Interrupted: after a signal.
    """
    first, workdir = distributed.is_first(), Workdir(workdir)
    signals = signals or StopSignals()
    check_network(config)
    with workdir.lock() if first else contextlib.nullcontext():
        if first:
            workdir.check(config)
        dataset = _prepare_dataset(config, workdir, dataset)
        steps = steps_per_epoch(config, len(dataset.train))
        check_sizes(config, dataset, steps)
        model = create_model(config.model, dataset.num_classes, distributed.AXIS)
        tx, schedule = create_optimizer(config, steps)
        plan_fn = make_plan_fn(config, len(dataset.train))
        train_step = make_train_step(config, model, tx, dataset)
        update = make_update_fn(train_step, plan_fn)
        evaluate = make_evaluate_fn(config, dataset)

        with contextlib.ExitStack() as stack:
            state = create_train_state(
                config.seed, model, tx, dataset.image_shape, ema=config.optimizer.ema_decay > 0
            )
            epoch_progress, checkpoints, bar = EpochProgress(), None, None
            if first:
                checkpoints = stack.enter_context(Checkpoints(workdir.checkpoint_dir))
                if checkpoints.steps:
                    state, epoch_progress = checkpoints.restore(state)
                    _check_num_epochs(config, workdir, int(state.step), steps)
                workdir.open(config, dataset)
            state, epoch_progress = _broadcast(state, epoch_progress)
            step, key = int(state.step), state.key
            epochs_done = (step - len(epoch_progress.losses)) // steps
            if first:
                _print_start(workdir, config, dataset, step, epochs_done, epoch_progress)
            if first and epochs_done < config.num_epochs:
                _warn_of_schedule(config, steps)
                workdir.discard_results()  # of a run with fewer epochs
                checkpoints.delete_after(step)  # damaged ones
                inputs = training_inputs(config, train_step, plan_fn, state, dataset)
                statistics = (dataset.mean, dataset.std, dataset.class_names)
                plots.training_inputs(workdir.path / "training_inputs.png", inputs, *statistics)
                writers = [*workdir.metric_writers(), *writers]
                stack.enter_context(_started(writers, workdir.read_metrics(), epochs_done))
                bar = Progress(config.num_epochs, steps, config.batch_size, schedule, step)
                stack.enter_context(bar)
            if epochs_done < config.num_epochs:
                stack.enter_context(signals)
                feed = create_feed(config, plan_fn, dataset.train)
                state = distributed.replicate_for_pmap(state)
            stop = distributed.any_process(signals.requested, delay=_CALLS_IN_FLIGHT)

            for epoch in range(epochs_done + 1, config.num_epochs + 1):
                start, in_flight = time.perf_counter(), collections.deque()
                losses = epoch_progress.losses.tolist()

                def finish_call(epoch=epoch, in_flight=in_flight, losses=losses):
                    values = distributed.fetch_first(in_flight.popleft())  # waits for the device
                    if not np.isfinite(values).all():
                        done = len(losses) + int(np.argmin(np.isfinite(values))) + 1
                        raise _divergence(config, (epoch - 1) * steps + done, epoch)
                    losses.extend(values)
                    if bar:
                        bar.update(len(values), values)

                with contextlib.closing(feed(key, epoch, len(losses))) as calls:
                    for call in calls:
                        if stop():
                            break
                        state, call_losses = update(state, *call)
                        in_flight.append(call_losses)
                        if len(in_flight) > _CALLS_IN_FLIGHT:
                            finish_call()
                while in_flight:
                    finish_call()
                seconds = epoch_progress.seconds + time.perf_counter() - start
                saved = distributed.unreplicate(state)

                if stop():
                    step = int(saved.step)
                    if first:
                        checkpoints.wait()
                        if step != checkpoints.latest_step:
                            progress = EpochProgress(np.asarray(losses, np.float32), seconds)
                            checkpoints.save(step, saved, progress)
                            checkpoints.wait()
                    # A launcher may kill all processes as soon as one of them has ended.
                    distributed.broadcast_json("saved")
                    raise Interrupted(
                        f"stopped after step {step:,}, which is saved in {workdir.path}; "
                        "run again, it resumes there",
                        signals.received or signal.SIGTERM,
                    )

                epoch_progress, last = EpochProgress(), epoch == config.num_epochs
                epoch_metrics = {
                    "epoch": epoch,
                    "step": epoch * steps,
                    "loss": float(np.mean(losses, dtype=np.float32)),
                    "learning_rate": float(schedule(epoch * steps - 1)),
                    "seconds": seconds,
                    "images_per_second": steps * config.batch_size / seconds,
                }
                if last or epoch % config.evaluation.every_epochs == 0:
                    epoch_metrics |= evaluate(saved)
                if first:
                    for writer in writers:
                        writer.write(epoch_metrics)
                    bar.end_epoch(epoch_metrics)
                    score = epoch_metrics.get("validation", {}).get("accuracy")
                    former = checkpoints.best_score
                    best = score is not None and (former is None or score >= former)
                    if last or best or epoch % config.checkpoint_every_epochs == 0:
                        checkpoints.save(epoch * steps, saved, score=score)
                del saved  # frees its memory for the next epoch

        if not first:
            return None
        if epoch_metrics := workdir.read_metrics():  # none in a run of imported weights
            plots.learning_curves(workdir.path / "learning_curves.png", epoch_metrics)
        return evaluate_run(workdir, dataset=dataset)


def check_network(config: ml_collections.ConfigDict) -> None:
    """Checks network and batch size before the dataset is loaded, which may take long.

    Raises:
      InputError: if the network cannot be built or the batch does not fit the devices.
    """
    create_model(config.model, num_classes=1)
    count = jax.device_count()
    if config.batch_size % count:
        raise invalid("batch_size", config.batch_size, f"a multiple of the {count} devices")


def check_sizes(config: ml_collections.ConfigDict, dataset: Dataset, steps: int) -> None:
    """Checks that batch size, image size and number of steps fit the dataset.

    Raises:
      InputError: if an epoch has no step, steps overflow int32, or the encoders' stride does not
        divide the sides of the images.
    """
    if not steps:
        most = len(dataset.train) * config.batch_repetitions
        raise invalid("batch_size", config.batch_size, f"at most {most} with this dataset")
    if config.num_epochs * steps >= 2**31:
        raise invalid("num_epochs", config.num_epochs, "fewer than 2**31 steps")
    stride = create_model(config.model, dataset.num_classes).stem_stride
    height, width, _ = dataset.image_shape
    if height % stride or width % stride:
        raise InputError(
            f"images: {height}x{width} pixels, expected multiples of the stride {stride}; "
            "dataset.image_size sets the size of image_folder"
        )


def training_inputs(
    config: ml_collections.ConfigDict,
    train_step: Callable,
    plan_fn: Callable,
    state: TrainState,
    dataset: Dataset,
) -> dict:
    """Computes the inputs of the first step, mixed by patches and linearly.

    Returns:
      A dictionary from "patches" (if the run uses a mixing block) and "ratios" to the step's
      `TrainingInputs`.
    """
    split = dataset.train
    plan = jax.jit(lambda key: plan_fn(key, 0, epoch_order(key, 1, len(split))))(state.key)
    indices = jax.device_get(planned_indices(plan))
    raw = gather(split.images, split.labels, *indices, dataset.image_shape)

    @jax.jit  # drops the network, as its results are not used
    def inputs(state, raw, plan):
        batched = jax.tree.map(lambda x: x[None], (raw, plan))
        mapped = jax.vmap(train_step, in_axes=(None, 0, 0), axis_name=distributed.AXIS)
        return jax.tree.map(lambda x: x[0], mapped(state, *batched)[2])

    kinds = {"patches": True} if mixes_by_patches(config) else {}
    return {
        kind: jax.device_get(inputs(state, raw, plan.replace(use_patch=jnp.asarray(patch))))
        for kind, patch in {**kinds, "ratios": False}.items()
    }


def make_evaluate_fn(
    config: ml_collections.ConfigDict, dataset: Dataset
) -> Callable[[TrainState], dict[str, dict[str, float]]]:
    """Returns `evaluate(state)`: the scores on the validation split, or else the test split.

    The scores are under the name of the split, those of the moving average under "ema_…". The
    function raises `FloatingPointError` if a logit is not finite.
    """
    logits_fn = make_logits_fn(
        create_model(config.model, dataset.num_classes),
        batch_size=config.evaluation.batch_size,
        mean=dataset.mean,
        std=dataset.std,
    )
    name = "test" if dataset.validation is None else "validation"
    split, members = dataset.splits[name], list(config.evaluation.members)

    def evaluate(state: TrainState) -> dict[str, dict[str, float]]:
        scores = {}
        for key, variables in {name: state.variables, f"ema_{name}": state.ema}.items():
            if variables is None:
                continue
            placed = distributed.replicate(variables)
            rows = distributed.map_rows(lambda x: logits_fn(placed, x), split.images)  # noqa: B023
            if not np.isfinite(rows).all():
                raise FloatingPointError(f"after step {int(state.step)} the logits are not finite")
            rows = rows[:, members] if members else rows
            scores[key] = metrics.ensemble_metrics(rows, split.labels, config.evaluation.ensemble)
        return scores

    return evaluate


def fit(
    config: str | ml_collections.ConfigDict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    workdir: str | pathlib.Path | None = None,
    writers: Sequence[MetricWriter] = (),
) -> Model:
    """Trains a network on images in memory, as the command does, and evaluates it.

    The same call resumes an interrupted run, and evaluates a finished one. Ctrl-C finishes the step
    and saves it; outside the main thread signals are not noticed.

    Args:
      config: A string such as "digits:cut_mixmo", or a config, which is not changed. Of
        `config.dataset`, fields on files are ignored. With a string config, mean and std are
        computed from `images`; in a config they count unless they are ().
      images: [N, H, W, C] uint8 with C = 1 or 3, or [N, H, W]. They are not copied and must not
        change during training.
      labels: [N] int, 0 to K - 1; every class has an image.
      test: Images and labels for the final scores.
      validation: Images and labels to select the best epoch and fit the temperature; by default
        `config.dataset.validation_fraction` of the training images.
      class_names: The names of the K classes; by default "0", "1", ….
      workdir: The folder of the run; by default a temporary one, which is deleted afterwards.
      writers: Further metric writers. They are not started if the run is finished.

    Returns:
      The trained model with its temperature, as `mixmo_jax.load(workdir)` returns it.

    Raises:
      InputError: if an argument cannot be used, or `workdir` holds another run.
      Interrupted: a KeyboardInterrupt, after a signal.
      FloatingPointError: if the loss or a parameter is not finite.
    """
    if not distributed.is_alone():
        raise InputError("fit: one process only; for several, use python -m mixmo_jax.main")
    if isinstance(config, str):
        config = config_lib.get_config(config)
        config.dataset.mean = config.dataset.std = ()
    config = ml_collections.ConfigDict(config.to_dict())
    config.dataset.name = "arrays"
    config_lib.check_config(config)
    splits = {"train": _to_split("images", images, labels), "test": _to_split("test", *test)}
    if validation is not None:
        splits["validation"] = _to_split("validation", *validation)
    dataset = create_dataset(config.dataset, splits, class_names)
    distributed.use_compilation_cache(config.compilation_cache)
    with _workdir_or_temporary(workdir) as folder:
        signals = StopSignals(own_process=False)
        train_and_evaluate(config, folder, dataset=dataset, writers=writers, signals=signals)
        return load(folder)


def _to_split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """Returns a split; images [N, H, W] get a channel axis."""
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError:  # a list of images of several sizes
        raise InputError(f"{name}: expected arrays [N, H, W, C] and [N]") from None
    return Split(images[..., None] if images.ndim == 3 else images, labels)


@contextlib.contextmanager
def _workdir_or_temporary(workdir: str | pathlib.Path | None) -> Iterator[pathlib.Path]:
    if workdir is not None:
        yield expand(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="mixmo_jax-") as folder:
        try:
            yield pathlib.Path(folder)
        except Interrupted as error:
            reason = "stopped; nothing is kept without a workdir"
            raise Interrupted(reason, error.signum) from None
    print("  these files are deleted, as no workdir was given", flush=True)


def _prepare_dataset(
    config: ml_collections.ConfigDict, workdir: Workdir, given: Dataset | None
) -> Dataset:
    """Returns the dataset with the mean and std that its run began with, equal in all processes."""
    dataset = given or load_dataset(config.dataset)
    if distributed.is_first():
        dataset = workdir.restore_statistics(dataset, exact=given is not None)
    if distributed.is_alone():
        return dataset
    local = ("dataset.data_dir", "dataset.cache_dir", "compilation_cache")
    fields = {k: v for k, v in config_lib.flatten(config).items() if k not in local}
    distributed.check_equal(
        {
            **fields,
            "devices": jax.local_device_count(),
            "images": dataset.num_images,
            "classes": dataset.class_names,
            **{f"{name} images": split.digest() for name, split in dataset.splits.items()},
            "placement": is_streamed(config.dataset.placement, dataset.train.nbytes),
        }
    )
    mean, std = map(tuple, distributed.broadcast_json((dataset.mean, dataset.std)))
    return dataset.replace(mean=mean, std=std)


def _broadcast(
    state: TrainState, epoch_progress: EpochProgress
) -> tuple[TrainState, EpochProgress]:
    """Returns the state of process 0 in all processes."""
    if distributed.is_alone():
        return state, epoch_progress
    numbers = distributed.broadcast(state.replace(key=jax.random.key_data(state.key)))
    key = jax.random.wrap_key_data(numbers.key, impl=jax.random.key_impl(state.key))
    losses, seconds = distributed.broadcast_json(
        (epoch_progress.losses.tolist(), epoch_progress.seconds)
    )
    epoch_progress = EpochProgress(np.asarray(losses, np.float32), seconds)
    return jax.tree.map(jnp.asarray, numbers).replace(key=key), epoch_progress


def _check_num_epochs(
    config: ml_collections.ConfigDict, workdir: Workdir, step: int, steps: int
) -> None:
    """Raises `InputError` if the steps done would differ with the new number of epochs."""
    before = workdir.read_config()
    if config.num_epochs == before.num_epochs:
        return
    epochs = jnp.arange(1, -(-step // steps) + 1)
    old, new = (
        patch_probability(epochs, c.num_epochs, c.mixmo.patch_prob, c.mixmo.patch_prob_until)
        for c in (before, config)
    )
    by_patches, mixmo = mixes_by_patches(config), config.mixmo
    reasons = {
        "patch probabilities": by_patches and bool((old != new).any()),
        "unmixing": by_patches and mixmo.unmix and math.isfinite(mixmo.unmix_until),
        "learning rates": config.optimizer.schedule == "cosine",
    }
    for reason, differs in reasons.items():
        if differs:
            raise InputError(
                f"workdir={workdir.path}: num_epochs={before.num_epochs} (now "
                f"{config.num_epochs}) would give the epochs done other {reason}; choose another "
                "workdir"
            )


def _print_start(workdir, config, dataset, step, epochs_done, epoch_progress) -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset.num_images.items())
    print(f"{config.dataset.name}: {counts} images, {dataset.num_classes} classes")
    if epochs_done == config.num_epochs:
        status = f"is finished (epoch {epochs_done}); evaluating it"
    elif len(epoch_progress.losses):
        status = f"resuming after step {step:,}, in epoch {epochs_done + 1}"
    elif step:
        status = f"resuming after epoch {epochs_done}"
    else:
        status = "new"
    print(f"{workdir.path}: {status}", flush=True)


def _warn_of_schedule(config: ml_collections.ConfigDict, steps: int) -> None:
    """Warns of settings that train badly without an error."""
    warmup = warmup_steps(config, steps)
    if warmup > steps * config.num_epochs / 2:
        warn(
            f"the warm-up takes {warmup:,} of {steps * config.num_epochs:,} steps: see "
            "optimizer.warmup_steps and optimizer.warmup_epochs"
        )
    if config.num_epochs == 1 and mixes_by_patches(config):
        warn("the last epoch is mixed linearly, so a run of one epoch never mixes by patches")


@contextlib.contextmanager
def _started(
    writers: Sequence[MetricWriter], recorded: Sequence[dict], epochs_done: int
) -> Iterator[None]:
    """Starts the writers with the metrics of the epochs done, and closes them in the end."""
    done = [line for line in recorded if line["epoch"] <= epochs_done]
    if len(done) < epochs_done:
        warn(f"metrics.jsonl lacks some of the {epochs_done} epochs that are done")
    with contextlib.ExitStack() as stack:
        for writer in writers:
            writer.start(done)
            stack.callback(writer.close)
        yield


def _divergence(config: ml_collections.ConfigDict, step: int, epoch: int) -> FloatingPointError:
    return FloatingPointError(
        f"step {step:,} (epoch {epoch}): loss or weights are not finite; the last checkpoint is "
        f"intact; a lower optimizer.learning_rate than {config.optimizer.learning_rate} may help"
    )
