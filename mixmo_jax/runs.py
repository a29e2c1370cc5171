"""A run from its config to its pictures, and from its folder to its scores."""

import contextlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import (
    batches,
    corruptions,
    datasets,
    inference,
    metrics,
    optimizers,
    plots,
    reporting,
    sampling,
    workdir,
)
from mixmo_jax.checkpoints import BestCheckpoint, Checkpoints
from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import InputError, warn
from mixmo_jax.train import Trainer, TrainState


def train(config: ml_collections.ConfigDict, folder: pathlib.Path) -> dict[str, float]:
    """Trains, or goes on with a training, in a folder; then evaluates.

    Args:
      config: checked, see `config.parse`.
      folder: of the run; made if it is not there.

    Returns:
      The final scores, see `metrics.plain_scores`.

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
            state = checkpoints.restore(state)
        epochs_done = int(state.step) // trainer.steps_per_epoch
        if epochs_done == config.num_epochs:
            print(f"{folder} is finished (epoch {epochs_done}); evaluating it")
        else:
            print(f"{folder}: " + (f"resuming after epoch {epochs_done}" if epochs_done else "new"))
            _warn_of_long_warmup(config, trainer.steps_per_epoch)
            _draw_training_inputs(trainer, state.key, folder)
            with (
                workdir.MetricsLog(folder, epochs_done) as log,
                _best_checkpoint(trainer, folder, epochs_done) as best,
            ):
                state = trainer.train(state, checkpoints, log, best)
    if lines := workdir.read_metrics(folder):  # none in a run made of an imported network
        plots.learning_curves(folder / "learning_curves.png", lines)
    return _evaluate(trainer, state, folder)


def _create_trainer(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Trainer:
    return Trainer(config, workdir.with_kept_facts(folder, datasets.load(config.dataset)))


def _describe(config: ml_collections.ConfigDict, dataset: Dataset) -> str:
    counts = [f"{count:,} {split}" for split, count in dataset.num_images.items()]
    return f"{config.dataset.name}: {', '.join(counts)} images, {dataset.num_classes} classes"


def _warn_of_long_warmup(config: ml_collections.ConfigDict, steps_per_epoch: int) -> None:
    warmup = optimizers.warmup_steps(config, steps_per_epoch)
    steps = steps_per_epoch * config.num_epochs
    if warmup > steps / 2:
        warn(
            f"the learning rate rises for {warmup:,} steps, and the training has {steps:,}: "
            "see optimizer.warmup_steps and optimizer.warmup_epochs"
        )


def _best_checkpoint(trainer: Trainer, folder: pathlib.Path, epochs_done: int):
    """The checkpoint of the best epoch so far, if there is a validation split to choose it by."""
    if trainer.dataset.validation is None:
        return contextlib.nullcontext()
    best = BestCheckpoint(folder / workdir.BEST)
    best.drop_after(epochs_done * trainer.steps_per_epoch)
    for line in workdir.read_metrics(folder):
        if line["step"] == best.latest_step:
            best.score = line["validation"]["accuracy"]
    return best


def evaluate(folder: pathlib.Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Evaluates the finished run in a folder.

    Args:
      folder: of the run.
      overrides: see `workdir.read_config`.

    Returns:
      The final scores, see `metrics.plain_scores`.

    Raises:
      InputError: if there is no finished run in the folder.
    """
    config = workdir.read_config(folder, overrides)
    trainer = _create_trainer(config, folder)
    if not (folder / workdir.CHECKPOINTS).is_dir():
        raise InputError(f"workdir={folder}: has no checkpoint; train it first")
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step = checkpoints.latest_step or 0
        if step != config.num_epochs * trainer.steps_per_epoch:
            done = f"{step // trainer.steps_per_epoch} of {config.num_epochs} epochs"
            raise InputError(f"workdir={folder}: {done} are done; train it to the end first")
        state = checkpoints.restore(jax.eval_shape(trainer.create_state))
    return _evaluate(trainer, state, folder)


def import_variables(
    config: ml_collections.ConfigDict, variables: dict, num_classes: int, folder: pathlib.Path
) -> dict[str, float]:
    """Makes a finished run of variables trained elsewhere, and evaluates it.

    Args:
      config: checked; describes the network.
      variables: of the network.
      num_classes: K of the network.
      folder: of the run, new.

    Returns:
      The scores, see `metrics.plain_scores`.
    """
    if (folder / workdir.CONFIG).exists():
        raise InputError(f"workdir={folder}: holds a run already")
    trainer = _create_trainer(config, folder)
    if trainer.dataset.num_classes != num_classes:
        found = f"{trainer.dataset.num_classes} classes, the network {num_classes}"
        raise InputError(f"dataset.name={config.dataset.name!r}: {found}")
    channels = variables["params"]["stem"]["kernel"].shape[-2]
    if trainer.dataset.image_shape[-1] != channels:
        found = f"{trainer.dataset.image_shape[-1]} channels, the network {channels}"
        raise InputError(f"dataset.name={config.dataset.name!r}: {found}")
    workdir.open_run(folder, config, trainer.dataset)
    step = config.num_epochs * trainer.steps_per_epoch
    state = trainer.create_state().replace(step=jnp.int32(step), **variables)
    kept = [workdir.CHECKPOINTS] + [workdir.BEST] * (trainer.dataset.validation is not None)
    for name in kept:
        with Checkpoints(folder / name) as checkpoints:
            checkpoints.save(step, state)
    return _evaluate(trainer, state, folder)


def evaluate_ensemble(
    folders: Sequence[pathlib.Path], overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Evaluates the deep ensemble of several finished runs; writes to the first one's folder.

    Args:
      folders: of the runs.
      overrides: for the first one's config, see `workdir.read_config`.

    Returns:
      The scores, see `metrics.plain_scores`.

    Raises:
      InputError: if there is no finished run in a folder, or the runs do not fit together.
    """
    model = inference.load(folders)
    config = workdir.read_config(folders[0], overrides)
    test = workdir.with_kept_facts(folders[0], datasets.load(config.dataset)).test
    for folder in folders[1:]:
        workdir.warn_of_other_test_images(folder, test)
    title = f"ensemble of {len(folders)} runs, {model.num_members} members"
    logits = model.logits(test.images)
    results = _score(f"{title}: {len(test):,} test images", logits, test.labels, model.ensemble)
    probs = np.exp(metrics.ensemble_log_probs(logits, model.ensemble))
    plots.reliability_diagram(folders[0] / "ensemble.png", title, probs, test.labels)
    results["runs"] = [str(folder) for folder in folders]
    workdir.write_json(folders[0] / workdir.ENSEMBLE, results)
    print(f"  in {folders[0] / workdir.ENSEMBLE} and ensemble.png")
    return results["scores"]


def evaluate_corruptions(folders: Sequence[pathlib.Path], images: pathlib.Path) -> dict:
    """Evaluates one or several finished runs on corrupted images; writes to the first folder.

    Args:
      folders: of the runs.
      images: folder in the layout of CIFAR-10-C.

    Returns:
      The scores, see `corruptions.score_corruptions`.
    """
    model = inference.load(folders)
    results = corruptions.score_corruptions(model.logits, images, model.image_shape, model.ensemble)
    print(reporting.corruption_table(results))
    workdir.write_json(folders[0] / workdir.CORRUPTIONS, results)
    print(f"  all scores are in {folders[0] / workdir.CORRUPTIONS}")
    return results


def _evaluate(trainer: Trainer, state: TrainState, folder: pathlib.Path) -> dict[str, float]:
    """Scores a trained state on the test split, writes and prints it.

    With a validation split it is not the last state but the best one.
    """
    config, test = trainer.config, trainer.dataset.test
    if trainer.dataset.validation is not None:
        with Checkpoints(folder / workdir.BEST) as best:
            state = best.restore(jax.eval_shape(trainer.create_state))
    epoch = int(state.step) // trainer.steps_per_epoch
    logits = trainer.logits(state.variables, test.images)
    title = f"{config.dataset.name}, {config.method}, seed {config.seed}"
    which = "the last" if trainer.dataset.validation is None else "the best in validation"
    of = f"{len(test):,} test images, epoch {epoch} ({which})"
    results = _score(f"{title}: {of}", logits, test.labels, config.evaluation.ensemble)
    probs = np.exp(metrics.ensemble_log_probs(logits, config.evaluation.ensemble))
    plots.reliability_diagram(folder / "reliability.png", title, probs, test.labels)
    temperature = metrics.fit_temperature(logits, test.labels, config.evaluation.ensemble)
    print(f"  temperature fitted on all, for prediction: {temperature:.4f}")
    facts = {"epoch": epoch, "test_images": len(test), "temperature": temperature}
    workdir.write_results(folder, {**facts, **results}, int(state.step))
    return results["scores"]


def _score(title: str, logits: np.ndarray, labels: np.ndarray, ensemble: str) -> dict:
    """Scores and prints them, before and after temperature scaling."""
    scores = metrics.plain_scores(logits, labels, ensemble)
    scaled, temperatures = metrics.scaled_scores(logits, labels, ensemble)
    print(f"\n{title}")
    print(reporting.score_table(scores, scaled))
    print(f"  temperatures fitted on halves: {temperatures[0]:.4f}, {temperatures[1]:.4f}")
    return {"scores": scores, "scaled_scores": scaled, "temperatures": temperatures}


def _draw_training_inputs(trainer: Trainer, key: jax.Array, folder: pathlib.Path) -> None:
    """Draws a few inputs of the first batch, as if it was mixed by patches and as if linearly."""
    config, data = trainer.config, trainer.dataset.train
    order = sampling.epoch_order(key, 1, len(data))
    plan = trainer.plan_fn(key, 0, order)
    mixed = config.model.num_members > 1 and config.mixmo.block != "linear"
    kinds = {"patches": True, "shares": False} if mixed else {"shares": False}
    raw = batches.gather(data, *jax.device_get(batches.indices(plan)))
    drawn = {
        name: trainer.batch_fn(raw, plan.replace(use_patch=np.bool_(patch)))
        for name, patch in kinds.items()
    }
    plots.training_inputs(folder / "training_inputs.png", drawn, trainer.dataset)
