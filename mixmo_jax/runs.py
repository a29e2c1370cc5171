"""A run from its config to its pictures, and from its folder to its scores."""

import pathlib

import jax
import ml_collections
import numpy as np

from mixmo_jax import datasets, metrics, plots, reporting, sampling, workdir
from mixmo_jax.checkpoints import Checkpoints
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
    trainer = Trainer(config, datasets.load(config.dataset))
    workdir.open_run(folder, config)
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
            with workdir.MetricsLog(folder, epochs_done) as log:
                state = trainer.train(state, checkpoints, log)
    plots.learning_curves(folder / "learning_curves.png", workdir.read_metrics(folder))
    return _evaluate(trainer, state, folder)


def evaluate(folder: pathlib.Path) -> dict[str, float]:
    """Evaluates the finished run in a folder.

    Returns:
      The final scores, see `metrics.score`.

    Raises:
      InputError: if there is no finished run in the folder.
    """
    config = workdir.read_config(folder)
    trainer = Trainer(config, datasets.load(config.dataset))
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
    """Scores a trained state on the test split, writes and prints it."""
    config, test = trainer.config, trainer.dataset.test
    scores, logits = trainer.score(state.variables, test)
    log_probs = metrics.ensemble_log_probs(logits, config.evaluation.ensemble)
    plots.reliability_diagram(folder / "reliability.png", np.exp(log_probs), test.labels)
    title = f"{config.dataset.name}, {config.method}, seed {config.seed}"
    print(f"\n{title}: {len(test):,} test images after {config.num_epochs} epochs")
    print(reporting.score_table(scores))
    results = {"epoch": config.num_epochs, "test_images": len(test), "scores": scores}
    workdir.write_results(folder, results)
    return scores


def _draw_training_inputs(trainer: Trainer, key: jax.Array, folder: pathlib.Path) -> None:
    """Draws a few inputs of the first batch, as if it was mixed by patches and as if linearly."""
    config, data = trainer.config, trainer.dataset.train
    order = sampling.epoch_order(key, 1, len(data))
    plan = trainer.plan_fn(key, 0, order)
    kinds = (True, False) if config.mixmo.block != "linear" else (False,)
    drawn = [trainer.batch_fn(data, plan.replace(use_patch=np.bool_(kind))) for kind in kinds]
    plots.training_inputs(folder / "training_inputs.png", drawn, trainer.dataset)
