"""A run from its config to its results: start or resume, train, evaluate."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from mixmo_jax import datasets, evaluate
from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import warn
from mixmo_jax.input_pipeline.batch import gather, planned_indices
from mixmo_jax.input_pipeline.plan import epoch_order
from mixmo_jax.runs import plots, workdir
from mixmo_jax.runs.metric_writer import MetricWriter, read_metrics
from mixmo_jax.runs.terminal import Progress
from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.step import TrainState


def train(config: ml_collections.ConfigDict, folder: pathlib.Path) -> dict[str, float]:
    """Trains in a folder, or resumes from its last checkpoint; then evaluates.

    Args:
      config: The checked config, see `config.parse`.
      folder: The folder of the run, made if it is not there.

    Returns:
      The final metrics, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if something is wrong with config, data or folder; nothing is written then.
      FloatingPointError: if the loss is not finite.
    """
    workdir.check_run(folder, config)
    dataset = workdir.restore_statistics(folder, datasets.load(config.dataset))
    trainer = Trainer(config, dataset)
    workdir.open_run(folder, config, dataset)
    counts = [f"{count:,} {split}" for split, count in dataset.num_images.items()]
    classes = f"{dataset.num_classes} classes"
    print(f"{config.dataset.name}: {', '.join(counts)} images, {classes}", flush=True)
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        state = trainer.create_state()
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state)
        epochs_done = int(state.step) // trainer.steps_per_epoch
        if epochs_done < config.num_epochs:
            print(f"{folder}: " + (f"resuming after epoch {epochs_done}" if epochs_done else "new"))
            _run_epochs(trainer, state, folder, checkpoints)
        else:
            print(f"{folder} is finished (epoch {epochs_done}); evaluating it")
    if epoch_metrics := read_metrics(folder):  # none in a run of imported variables
        plots.learning_curves(folder / "learning_curves.png", epoch_metrics)
    return evaluate.evaluate_run(folder, dataset=dataset)


def _run_epochs(
    trainer: Trainer, state: TrainState, folder: pathlib.Path, checkpoints: Checkpoints
) -> None:
    """Trains from an epoch boundary to the end."""
    config, steps = trainer.config, trainer.steps_per_epoch
    epochs_done = int(state.step) // steps
    if trainer.warmup_steps > steps * config.num_epochs / 2:
        warn(
            f"the learning rate rises for {trainer.warmup_steps:,} steps, and the run has "
            f"{steps * config.num_epochs:,}: see optimizer.warmup_steps and optimizer.warmup_epochs"
        )
    if config.num_epochs == 1 and _mixes_by_patches(config):
        warn("the last epoch is mixed linearly, so a run of one epoch never mixes by patches")
    _draw_training_inputs(trainer, state.key, folder)
    with (
        MetricWriter(folder, epochs_done) as writer,
        _best_checkpoint(trainer.dataset, folder, epochs_done * steps) as best,
        Progress(
            config.num_epochs, steps, config.batch_size, trainer.schedule, epochs_done + 1
        ) as progress,
    ):
        trainer.train(state, checkpoints=checkpoints, best=best, writer=writer, progress=progress)


def _mixes_by_patches(config: ml_collections.ConfigDict) -> bool:
    block = config.mixmo.block != "linear" and config.mixmo.patch_prob > 0
    return block and config.model.num_members > 1


def _best_checkpoint(dataset: Dataset, folder: pathlib.Path, step: int):
    """The checkpoint of the best epoch so far, if there is a validation split to choose it by."""
    if dataset.validation is None:
        return contextlib.nullcontext()
    best = BestCheckpoint(folder / workdir.BEST)
    best.delete_after(step)
    for epoch_metrics in read_metrics(folder):
        if epoch_metrics["step"] == best.latest_step:
            best.score = epoch_metrics["validation"]["accuracy"]
    return best


def _draw_training_inputs(trainer: Trainer, key: jax.Array, folder: pathlib.Path) -> None:
    """Draws a few inputs of the first batch, as if it was mixed by patches and as if linearly."""
    config, split = trainer.config, trainer.dataset.train
    plan = jax.jit(lambda key: trainer.plan_fn(key, 0, epoch_order(key, 1, len(split))))(key)
    indices = jax.device_get(planned_indices(plan))
    raw = gather(split.images, split.labels, *indices, trainer.dataset.image_shape)
    kinds = {"ratios": False}
    if _mixes_by_patches(config):
        kinds = {"patches": True, **kinds}
    batch_fn = jax.jit(trainer.batch_fn)
    drawn = {
        name: batch_fn(raw, plan.replace(use_patch=jnp.asarray(patch)))
        for name, patch in kinds.items()
    }
    plots.training_inputs(folder / "training_inputs.png", drawn, trainer.dataset)
