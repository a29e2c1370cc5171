"""A run from its config to its pictures, and from its folder to its scores."""

import contextlib
import math
import pathlib

import jax
import ml_collections
import numpy as np

from mixmo_jax import batches, datasets, metrics, plots, reporting, sampling, workdir
from mixmo_jax.checkpoints import BestCheckpoint, Checkpoints
from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import InputError
from mixmo_jax.train import Trainer, TrainState


def train(config: ml_collections.ConfigDict, folder: pathlib.Path) -> dict[str, float]:
    """Trains, or goes on with a training, in a folder; then evaluates.

    Args:
      config: checked, see `config.parse`.
      folder: of the run; made if it is not there.

    Returns:
      The final scores, see `metrics.score`.

    Raises:
      InputError: whatever is wrong with config, data or folder; nothing is written then.
      FloatingPointError: if the loss is not finite.
    """
    workdir.check_run(folder, config)
    trainer = _create_trainer(config, folder)
    workdir.open_run(folder, config, trainer.dataset)
    print(_describe(config, trainer.dataset))
    state = trainer.create_state()
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(checkpoints.latest_step, state)
        epochs_done = int(state.step) // trainer.steps_per_epoch
        if epochs_done == config.num_epochs:
            print(f"{folder} is finished ({epochs_done} epochs); evaluating it")
        else:
            print(f"{folder}: " + (f"resuming after epoch {epochs_done}" if epochs_done else "new"))
            _draw_training_inputs(trainer, state.key, folder)
            with (
                workdir.MetricsLog(folder, epochs_done) as log,
                _best_checkpoint(trainer, folder, epochs_done) as best,
            ):
                state = trainer.train(state, checkpoints, log, best)
    plots.learning_curves(folder / "learning_curves.png", workdir.read_metrics(folder))
    return _evaluate(trainer, state, folder)


def _create_trainer(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Trainer:
    return Trainer(config, workdir.with_kept_facts(folder, datasets.load(config.dataset)))


def _describe(config: ml_collections.ConfigDict, dataset: Dataset) -> str:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = [f"{len(split):,} {name}" for name, split in splits.items() if split is not None]
    return f"{config.dataset.name}: {', '.join(counts)} images, {dataset.num_classes} classes"


def _best_checkpoint(trainer: Trainer, folder: pathlib.Path, epochs_done: int):
    """The checkpoint of the best epoch so far, if there is a validation split to choose it by."""
    if trainer.dataset.validation is None:
        return contextlib.nullcontext()
    lines = workdir.read_metrics(folder)
    scores = [
        line["validation"]["accuracy"]
        for line in lines
        if "validation" in line and line["epoch"] <= epochs_done
    ]
    best = BestCheckpoint(folder / workdir.BEST, max(scores, default=-math.inf))
    best.drop_after(epochs_done * trainer.steps_per_epoch)
    return best


def evaluate(folder: pathlib.Path) -> dict[str, float]:
    """Evaluates the finished run in a folder.

    Returns:
      The final scores, see `metrics.score`.

    Raises:
      InputError: if there is no finished run in the folder.
    """
    config = workdir.read_config(folder)
    trainer = _create_trainer(config, folder)
    if not (folder / workdir.CHECKPOINTS).is_dir():
        raise InputError(f"workdir={folder}: has no checkpoint; train it first")
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step = checkpoints.latest_step or 0
        if step != config.num_epochs * trainer.steps_per_epoch:
            done = f"{step // trainer.steps_per_epoch} of {config.num_epochs} epochs"
            raise InputError(f"workdir={folder}: {done} are done; train it to the end first")
        state = checkpoints.restore(step, jax.eval_shape(trainer.create_state))
    return _evaluate(trainer, state, folder)


def _evaluate(trainer: Trainer, state: TrainState, folder: pathlib.Path) -> dict[str, float]:
    """Scores a trained state on the test split, writes and prints it.

    With a validation split it is not the last state but the best one.
    """
    config, test = trainer.config, trainer.dataset.test
    if trainer.dataset.validation is not None:
        with Checkpoints(folder / workdir.BEST) as best:
            state = best.restore(best.latest_step, jax.eval_shape(trainer.create_state))
    epoch = int(state.step) // trainer.steps_per_epoch
    scores, logits = trainer.score(state.variables, test)
    log_probs = metrics.ensemble_log_probs(logits, config.evaluation.ensemble)
    plots.reliability_diagram(folder / "reliability.png", np.exp(log_probs), test.labels)
    title = f"{config.dataset.name}, {config.method}, seed {config.seed}"
    which = "the last" if trainer.dataset.validation is None else "the best in validation"
    print(f"\n{title}: {len(test):,} test images, epoch {epoch} ({which})")
    print(reporting.score_table(scores))
    workdir.write_results(folder, {"epoch": epoch, "test_images": len(test), "scores": scores})
    return scores


def _draw_training_inputs(trainer: Trainer, key: jax.Array, folder: pathlib.Path) -> None:
    """Draws a few inputs of the first batch, as if it was mixed by patches and as if linearly."""
    config, data = trainer.config, trainer.dataset.train
    order = sampling.epoch_order(key, 1, len(data))
    plan = trainer.plan_fn(key, 0, order)
    kinds = (True, False) if config.mixmo.block != "linear" else (False,)
    raw = batches.gather(data, *jax.device_get(batches.indices(plan)))
    drawn = [trainer.batch_fn(raw, plan.replace(use_patch=np.bool_(kind))) for kind in kinds]
    plots.training_inputs(folder / "training_inputs.png", drawn, trainer.dataset)
