"""A run from its config to its results: start or resume, train, evaluate."""

import contextlib
import math
import pathlib
import signal
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, distributed
from mixmo_jax.datasets import Dataset
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, Interrupted, warn
from mixmo_jax.evaluation import evaluate
from mixmo_jax.input_pipeline.batch import mixes_by_patches
from mixmo_jax.input_pipeline.streaming import is_streamed
from mixmo_jax.mixing.mixing_block import patch_probability
from mixmo_jax.runs import plots, workdir
from mixmo_jax.runs.lock import lock
from mixmo_jax.runs.metric_writer import (
    METRICS,
    create_writers,
    discard_results,
    read_done,
    read_metrics,
    started,
)
from mixmo_jax.runs.terminal import Progress
from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints, EpochProgress
from mixmo_jax.training.checks import check_network
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.outputs import MetricWriter, Outputs
from mixmo_jax.training.step import TrainState


def train(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    *,
    dataset: Dataset | None = None,
    writers: Sequence[MetricWriter] = (),
    signals: StopSignals | None = None,
) -> dict[str, float] | None:
    """Trains in a folder, or resumes from its last checkpoint; then evaluates.

    On SIGINT or SIGTERM it finishes the steps under way, saves and raises `Interrupted`. Of several
    processes (see `processes`) only the first one uses the folder.

    Args:
      config: The checked config, see `config.parse`.
      folder: The folder of the run, made if it is not there.
      dataset: The dataset; by default the one that the config names is loaded. A run that began
        with other images is not resumed with it.
      writers: Further writers for the metrics, beside those of the files in the folder.
      signals: What notices the signals; by default as it suits a process of its own.

    Returns:
      The final metrics, see `metrics.ensemble_metrics`; None in all processes but the first.

    Raises:
      InputError: if something is wrong with config, data or folder, before anything is written; or
        if a file cannot be written later.
      FloatingPointError: if the loss or a weight is not finite.
    """
    signals = signals or StopSignals()
    check_network(config)
    workdir.check_place(folder, config)
    if not distributed.is_first():
        return train_worker(config, dataset, signals)
    with lock(folder):
        return _train(config, folder, dataset, writers, signals)


def _train(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    given: Dataset | None,
    writers: Sequence[MetricWriter],
    signals: StopSignals,
) -> dict[str, float]:
    workdir.check_run(folder, config)
    dataset = given or datasets.load_dataset(config.dataset)
    dataset = workdir.restore_statistics(folder, dataset, exact=given is not None)
    dataset = _agree(config, dataset)
    trainer = Trainer(config, dataset)
    counts = [f"{count:,} {split}" for split, count in dataset.num_images.items()]
    classes = f"{dataset.num_classes} classes"
    print(f"{config.dataset.name}: {', '.join(counts)} images, {classes}", flush=True)
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        state, begun = trainer.create_state(), EpochProgress()
        if checkpoints.steps:
            state, begun = checkpoints.restore(state)
            _check_extension(trainer, int(state.step), folder)
        state, begun = _share(state, begun)
        workdir.open_run(folder, config, dataset)
        epochs_done = trainer.epochs_done(state, begun)
        if epochs_done < config.num_epochs:
            print(f"{folder}: {_describe_start(int(state.step), epochs_done, begun)}", flush=True)
            _run_epochs(trainer, state, begun, folder, checkpoints, writers, signals)
        else:
            print(f"{folder} is finished (epoch {epochs_done}); evaluating it", flush=True)
    if epoch_metrics := read_metrics(folder):  # none in a run of imported variables
        plots.learning_curves(folder / "learning_curves.png", epoch_metrics)
    return evaluate.evaluate_run(folder, dataset=dataset)


def train_worker(
    config: ml_collections.ConfigDict, given: Dataset | None, signals: StopSignals
) -> None:
    """What all processes but the first do of a training run.

    Raises:
      Interrupted: if a signal asked one of the processes to stop.
    """
    trainer = Trainer(config, _agree(config, given or datasets.load_dataset(config.dataset)))
    state, begun = _share(trainer.create_state(), EpochProgress())
    if trainer.epochs_done(state, begun) == config.num_epochs:
        return
    with signals:
        state, begun = trainer.train(state, begun, outputs=None, stop=signals.requested)
    if trainer.epochs_done(state, begun) < config.num_epochs:
        # A launcher may kill all processes as soon as one of them has ended.
        distributed.broadcast_json("saved")
        raise Interrupted("stopped", signals.received or signal.SIGTERM)


def _agree(config: ml_collections.ConfigDict, dataset: Dataset) -> Dataset:
    """Returns the dataset as the first process normalizes it; checks that all have the same."""
    if distributed.is_alone():
        return dataset
    fields = {
        name: value
        for name, value in config_lib.flatten(config).items()
        if name not in ("dataset.data_dir", "dataset.cache_dir", "compilation_cache")
    }
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


def _share(state: TrainState, begun: EpochProgress) -> tuple[TrainState, EpochProgress]:
    """Returns the first process's state in all of them."""
    if distributed.is_alone():
        return state, begun
    key = state.key
    plain = distributed.broadcast(state.replace(key=jax.random.key_data(key)))
    shared = jax.random.wrap_key_data(plain.key, impl=jax.random.key_impl(key))
    losses, seconds = distributed.broadcast_json((begun.losses.tolist(), begun.seconds))
    begun = EpochProgress(np.asarray(losses, np.float32), seconds)
    return jax.tree.map(jnp.asarray, plain).replace(key=shared), begun


def _describe_start(step: int, epochs_done: int, begun: EpochProgress) -> str:
    if not step:
        return "new"
    if len(begun.losses):
        return f"resuming after step {step:,}, in epoch {epochs_done + 1}"
    return f"resuming after epoch {epochs_done}"


def _check_extension(trainer: Trainer, step: int, folder: pathlib.Path) -> None:
    """Raises `InputError` if the steps done would differ with the number of epochs asked for."""
    config, before = trainer.config, workdir.read_config(folder)
    if config.num_epochs == before.num_epochs:
        return
    change = f"num_epochs={before.num_epochs} (now {config.num_epochs})"
    epochs = jnp.arange(1, -(-step // trainer.steps_per_epoch) + 1)
    old, new = (
        patch_probability(epochs, c.num_epochs, c.mixmo.patch_prob, c.mixmo.patch_prob_until)
        for c in (before, config)
    )
    reasons = {
        "mixed the epochs that are done by other probabilities of patches": (
            mixes_by_patches(config) and bool((old != new).any())
        ),
        "unmixed the steps that are done with another strength": (
            step > 0
            and mixes_by_patches(config)
            and config.mixmo.unmix
            and math.isfinite(config.mixmo.unmix_until)
        ),
        "done the steps with another learning rate": (
            step > 0 and config.optimizer.schedule == "cosine"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(
                f"workdir={folder}: {change} would have {reason}; choose another workdir"
            )


def _run_epochs(
    trainer: Trainer,
    state: TrainState,
    begun: EpochProgress,
    folder: pathlib.Path,
    checkpoints: Checkpoints,
    writers: Sequence[MetricWriter],
    signals: StopSignals,
) -> None:
    """Trains to the end.

    Raises:
      Interrupted: if a signal asked to stop.
    """
    config, steps = trainer.config, trainer.steps_per_epoch
    step, epochs_done = int(state.step), trainer.epochs_done(state, begun)
    if trainer.warmup_steps > steps * config.num_epochs / 2:
        warn(
            f"the learning rate rises for {trainer.warmup_steps:,} steps, and the run has "
            f"{steps * config.num_epochs:,}: see optimizer.warmup_steps and optimizer.warmup_epochs"
        )
    if config.num_epochs == 1 and mixes_by_patches(config):
        warn("the last epoch is mixed linearly, so a run of one epoch never mixes by patches")
    discard_results(folder)  # of fewer epochs
    checkpoints.delete_after(step)  # damaged ones, which would count as the newest
    _draw_training_inputs(trainer, state.key, folder)
    writers = [*create_writers(folder), *writers]
    done = read_done(folder, epochs_done)
    if [line["epoch"] for line in done] != list(range(1, epochs_done + 1)):
        warn(f"{folder / METRICS}: lacks some of the {epochs_done} epochs that are done")
    with (
        signals,
        started(writers, done),
        _best_checkpoint(trainer.dataset, folder, epochs_done * steps) as best,
        Progress(config.num_epochs, steps, config.batch_size, trainer.schedule, step) as progress,
    ):
        outputs = Outputs(checkpoints, best, writers, progress)
        state, begun = trainer.train(state, begun, outputs=outputs, stop=signals.requested)
    if trainer.epochs_done(state, begun) < config.num_epochs:
        checkpoints.wait()
        distributed.broadcast_json("saved")
        where = f"stopped after step {int(state.step):,}, which is saved in {folder}"
        message = f"{where}; run again, it resumes there"
        raise Interrupted(message, signals.received or signal.SIGTERM)


def _best_checkpoint(dataset: Dataset, folder: pathlib.Path, step: int):
    """The checkpoint of the best epoch so far, if there is a validation split to choose it by."""
    if dataset.validation is None:
        return contextlib.nullcontext()
    best = BestCheckpoint(folder / workdir.BEST)
    best.delete_after(step)
    best.verify()
    if best.latest_step is not None:
        scores = {line["step"]: line.get("validation") for line in read_metrics(folder)}
        if not (score := scores.get(best.latest_step)):
            reason = f"step {best.latest_step}, the best one, has no validation"
            advice = f"remove {folder / workdir.BEST} to choose among the epochs to come"
            raise InputError(f"{folder / METRICS}: damaged: {reason}; {advice}")
        best.score = score["accuracy"]
    return best


def _draw_training_inputs(trainer: Trainer, key: jax.Array, folder: pathlib.Path) -> None:
    """Draws a few inputs of the first batch, as if it was mixed by patches and as if linearly."""
    raw, plan = trainer.first_batch(key)
    kinds = {"ratios": False}
    if mixes_by_patches(trainer.config):
        kinds = {"patches": True, **kinds}
    batch_fn = jax.jit(trainer.batch_fn)
    drawn = {
        name: batch_fn(raw, plan.replace(use_patch=jnp.asarray(patch)))
        for name, patch in kinds.items()
    }
    plots.training_inputs(folder / "training_inputs.png", drawn, trainer.dataset)
