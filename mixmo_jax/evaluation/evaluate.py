"""Finished runs to metrics: one, the ensemble of several, corrupted images, imported weights."""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mixmo_jax import datasets
from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import InputError, write_arrays, write_json
from mixmo_jax.evaluation import calibration, corruptions, metrics
from mixmo_jax.evaluation.ensemble import ENSEMBLES, ensemble_log_probs
from mixmo_jax.inference.loading import load, load_run
from mixmo_jax.inference.model import Model
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.models import create_model
from mixmo_jax.runs import plots, terminal, workdir
from mixmo_jax.runs.lock import lock
from mixmo_jax.runs.metric_writer import (
    CORRUPTIONS,
    METRICS,
    RESULTS,
    read_metrics,
    write_results,
)
from mixmo_jax.runs.provenance import describe_environment
from mixmo_jax.training.checkpoints import Checkpoints
from mixmo_jax.training.optimizers import create_optimizer
from mixmo_jax.training.step import create_train_state


def evaluate_run(
    folder: pathlib.Path,
    overrides: Sequence[str] = (),
    *,
    dataset: Dataset | None = None,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict[str, float]:
    """Evaluates the finished run in a folder and writes its results there.

    Args:
      folder: The folder of the run.
      overrides: See `workdir.read_config`.
      dataset: The dataset of the run, if it has been loaded already.
      ensemble: How the members are combined; by default as the run's config says.
      allow_unfinished: Whether to take the best or newest checkpoint of a run that is not
        finished.

    Returns:
      The metrics, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if there is no finished run in the folder, or its data are not there.
    """
    config = workdir.read_config(folder, overrides)
    network = load_run(folder, config, allow_unfinished=allow_unfinished)
    dataset = dataset or _load_dataset(folder, config)
    model = Model([network], ensemble or config.evaluation.ensemble)
    best = dataset.validation is not None and workdir.has_checkpoint(folder, workdir.BEST)
    which = "the best in validation" if best else f"of {config.num_epochs}"
    title = f"{config.dataset.name}, {config.method}, seed {config.seed}"
    of = f"{len(dataset.test):,} test images, epoch {network.epoch} ({which})"
    results = {
        "epoch": network.epoch,
        "test_images": len(dataset.test),
        "seed": config.seed,
        "training_seconds": sum(m["seconds"] for m in read_metrics(folder)),
        "environment": describe_environment(),
    }
    results.update(
        _evaluate(model, dataset, title, of, folder / "reliability.png", folder / workdir.LOGITS)
    )
    if config.optimizer.ema_decay:
        average = load_run(folder, config, allow_unfinished=allow_unfinished, ema=True)
        logits = Model([average], model.ensemble).logits(dataset.test.images)
        scores = metrics.ensemble_metrics(logits, dataset.test.labels, model.ensemble)
        results["ema_scores"] = scores
        print(f"  accuracy of the moving average of the weights: {scores['accuracy']:.2%}")
    step = network.epoch * steps_per_epoch(config, len(dataset.train))
    write_results(folder, results, step)
    print(f"  results in {folder / RESULTS}; pictures: {_pictures(folder)}")
    return results["scores"]


def evaluate_ensemble(
    folders: Sequence[pathlib.Path],
    overrides: Sequence[str] = (),
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict[str, float]:
    """Evaluates the deep ensemble of several finished runs; writes to the first one's folder.

    Args:
      folders: The folders of the runs.
      overrides: Overrides for the first one's config, see `workdir.read_config`.
      ensemble: How the members are combined; by default as the first run's config says.
      allow_unfinished: Whether to take the best or newest checkpoint of a run that is not
        finished.

    Returns:
      The metrics, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if there is no finished run in a folder, or the runs do not fit together.
    """
    model = load(folders, ensemble=ensemble, allow_unfinished=allow_unfinished)
    dataset = _load_dataset(folders[0], workdir.read_config(folders[0], overrides))
    for folder in folders[1:]:
        workdir.warn_of_other_test_images(folder, dataset.test)
    if not _same_validation_split(folders):  # some of the images others were trained on
        dataset = dataset.replace(validation=None)
    title = f"ensemble of {len(folders)} runs, {model.num_members} members"
    of = f"{len(dataset.test):,} test images"
    results = {
        "runs": [str(folder.resolve()) for folder in folders],
        "epochs": [network.epoch for network in model.networks],
        "training_digests": [workdir.training_digest(folder) for folder in folders],
        "environment": describe_environment(),
    }
    results.update(
        _evaluate(
            model,
            dataset,
            title,
            of,
            folders[0] / "ensemble.png",
            folders[0] / workdir.ENSEMBLE_LOGITS,
        )
    )
    write_json(folders[0] / workdir.ENSEMBLE, results)
    print(f"  results in {folders[0] / workdir.ENSEMBLE}; picture: ensemble.png")
    return results["scores"]


def evaluate_corruptions(
    folders: Sequence[pathlib.Path],
    images: pathlib.Path,
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict:
    """Evaluates one or several finished runs on corrupted images; writes to the first folder.

    Args:
      folders: The folders of the runs.
      images: The folder of the images, in the layout of CIFAR-10-C.
      ensemble: How the members are combined; by default as the first run's config says.
      allow_unfinished: Whether to take the best or newest checkpoint of a run that is not
        finished.

    Returns:
      The metrics, see `corruptions.score_corruptions`.

    Raises:
      InputError: if there is no finished run in a folder, the runs do not fit together, or the
        images are missing or damaged.
    """
    model = load(folders, ensemble=ensemble, allow_unfinished=allow_unfinished)
    scores = corruptions.score_corruptions(
        model.logits, images, model.image_shape, model.ensemble, model.weights
    )
    print(terminal.corruption_table(scores))
    name = CORRUPTIONS if len(folders) == 1 else workdir.ENSEMBLE_CORRUPTIONS
    results = {
        "images": images.resolve().name,
        "runs": [str(folder.resolve()) for folder in folders],
        "epochs": [network.epoch for network in model.networks],
        "ensemble": model.ensemble,
        "environment": describe_environment(),
        "scores": scores,
    }
    write_json(folders[0] / name, results)
    print(f"  all results are in {folders[0] / name}")
    return scores


def import_variables(
    config: ml_collections.ConfigDict, variables: dict, num_classes: int, folder: pathlib.Path
) -> dict[str, float]:
    """Makes a finished run of variables trained elsewhere, and evaluates it.

    Args:
      config: The checked config, which describes the network.
      variables: The network's variables.
      num_classes: K of the network.
      folder: The folder of the run, new.

    Returns:
      The metrics, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if the folder holds a run, or network and data do not fit together.
    """
    with lock(folder):
        return _import_variables(config, variables, num_classes, folder)


def _import_variables(
    config: ml_collections.ConfigDict, variables: dict, num_classes: int, folder: pathlib.Path
) -> dict[str, float]:
    if workdir.has_checkpoint(folder) or (folder / METRICS).exists():
        raise InputError(f"workdir={folder}: holds a run already")
    workdir.check_place(folder, config)
    dataset = datasets.load_dataset(config.dataset)
    channels = variables["params"]["stem"]["kernel"].shape[-2]
    for kind, found, expected in (
        ("classes", dataset.num_classes, num_classes),
        ("channels", dataset.image_shape[-1], channels),
    ):
        if found != expected:
            reason = f"{found} {kind}, the network {expected}"
            raise InputError(f"dataset.name={config.dataset.name!r}: {reason}")
    steps = steps_per_epoch(config, len(dataset.train))
    if not 0 < config.num_epochs * steps < 2**31:
        raise InputError(f"batch_size={config.batch_size}: {steps} steps an epoch of this dataset")
    workdir.open_run(folder, config, dataset)
    model = create_model(config.model, num_classes)
    tx, _ = create_optimizer(config, steps)
    state = create_train_state(config.seed, model, tx, dataset.image_shape)
    ema = variables if config.optimizer.ema_decay else None
    step = jnp.int32(config.num_epochs * steps)
    # The learning rate goes by the optimizer's own count, should the run get more epochs.
    opt_state = optax.tree_utils.tree_set(state.opt_state, _is_of_schedule, count=step)
    state = state.replace(step=step, ema=ema, opt_state=opt_state, **variables)
    kept = [workdir.CHECKPOINTS] + [workdir.BEST] * (dataset.validation is not None)
    for name in kept:
        with Checkpoints(folder / name) as checkpoints:
            checkpoints.save(int(state.step), state)
    return evaluate_run(folder, dataset=dataset)


def _is_of_schedule(path: tuple, _) -> bool:
    """Whether a field of an optimizer's state is that of the learning rate."""
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"


def _same_validation_split(folders: Sequence[pathlib.Path]) -> bool:
    """Whether the runs of an ensemble have set the same images apart."""
    digests = {workdir.read_dataset_info(folder)["validation_digest"] for folder in folders}
    return len(digests) == 1 and None not in digests


def _load_dataset(folder: pathlib.Path, config: ml_collections.ConfigDict) -> Dataset:
    return workdir.restore_statistics(folder, datasets.load_dataset(config.dataset))


def _evaluate(
    model: Model,
    dataset: Dataset,
    title: str,
    of: str,
    picture: pathlib.Path,
    logits_file: pathlib.Path,
) -> dict[str, object]:
    """Scores a model before and after temperature scaling; prints, draws and keeps it."""
    test, weights = dataset.test, model.weights
    logits = model.logits(test.images)
    plain = metrics.ensemble_metrics(logits, test.labels, model.ensemble, weights)
    scaled, temperatures = metrics.scaled_metrics(logits, test.labels, model.ensemble, weights)
    fitted_on, split, split_logits = "test", test, logits
    if dataset.validation is not None:
        fitted_on, split = "validation", dataset.validation
        split_logits = model.logits(split.images)
    fitted = {
        kind: calibration.fit_temperature(split_logits, split.labels, kind, weights)
        for kind in ENSEMBLES
    }
    temperature = fitted[model.ensemble]
    print(f"\n{title}: {of}")
    print(terminal.metric_table(plain, scaled))
    print(f"  temperatures fitted on halves: {temperatures[0]:.4f}, {temperatures[1]:.4f}")
    print(f"  temperature for prediction, fitted on the {fitted_on} split: {temperature:.4f}")
    probs = np.exp(ensemble_log_probs(logits, model.ensemble, weights))
    plots.reliability_diagram(picture, title, probs, test.labels)
    write_arrays(logits_file, logits=logits, labels=np.asarray(test.labels))
    return {
        "ensemble": model.ensemble,
        "temperature": temperature,
        "temperature_fitted_on": fitted_on,
        "prediction_temperatures": fitted,
        "scores": plain,
        "scaled_scores": scaled,
        "temperatures": temperatures,
    }


def _pictures(folder: pathlib.Path) -> str:
    return ", ".join(sorted(file.name for file in folder.glob("*.png")))
