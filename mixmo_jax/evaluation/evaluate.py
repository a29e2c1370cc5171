"""Evaluation of finished runs: one, an ensemble, on corrupted images, of imported weights."""

import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mixmo_jax.datasets import Dataset, load_dataset
from mixmo_jax.errors import InputError, write_arrays, write_json
from mixmo_jax.evaluation import calibration, corruptions, metrics
from mixmo_jax.inference.load import load, load_run
from mixmo_jax.inference.model import Model
from mixmo_jax.input_pipeline.plan import steps_per_epoch
from mixmo_jax.models import create_model
from mixmo_jax.runs import plots, terminal
from mixmo_jax.runs.workdir import (
    CORRUPTIONS,
    ENSEMBLE,
    ENSEMBLE_CORRUPTIONS,
    ENSEMBLE_LOGITS,
    LOGITS,
    RESULTS,
    Workdir,
    describe_environment,
)
from mixmo_jax.training.checkpoints import Checkpoints
from mixmo_jax.training.optimizers import create_optimizer
from mixmo_jax.training.step import create_train_state


def evaluate_run(
    workdir: Workdir,
    *,
    dataset: Dataset | None = None,
    overrides: Mapping[str, object] | None = None,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict[str, float]:
    """Evaluates a finished run, and writes results, logits and pictures to its folder.

    Args:
      workdir: The folder of the run.
      dataset: The dataset of the run, if it has been loaded already.
      overrides: See `Workdir.read_config`.
      ensemble: How members are averaged; by default as in the config.
      allow_unfinished: Whether to take the best or newest checkpoint of an unfinished run.

    Returns:
      The test scores, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if there is no finished run, or its data are missing.
    """
    config = workdir.read_config(overrides)
    network = load_run(workdir, config, allow_unfinished=allow_unfinished)
    dataset = dataset or _load_dataset(workdir, config)
    model = Model([network], ensemble or config.evaluation.ensemble)
    which = f"of {config.num_epochs}"
    if dataset.validation is not None and network.epoch < config.num_epochs:
        which = "the best in validation"
    title = f"{config.dataset.name}, {config.method}, seed {config.seed}"
    results = {
        "epoch": network.epoch,
        "test_images": len(dataset.test),
        "seed": config.seed,
        "training_seconds": sum(m["seconds"] for m in workdir.read_metrics()),
        "environment": describe_environment(),
    }
    print(f"\n{title}: {len(dataset.test):,} test images, epoch {network.epoch} ({which})")
    results |= _evaluate(model, dataset, title, workdir.path, "reliability.png", LOGITS)
    if config.optimizer.ema_decay:
        average = load_run(workdir, config, allow_unfinished=allow_unfinished, ema=True)
        logits = Model([average], model.ensemble).logits(dataset.test.images)
        scores = metrics.ensemble_metrics(logits, dataset.test.labels, model.ensemble)
        results["ema_scores"] = scores
        print(f"  accuracy of the moving average of the weights: {scores['accuracy']:.2%}")
    workdir.write_results(results, network.epoch * steps_per_epoch(config, len(dataset.train)))
    pictures = ", ".join(sorted(file.name for file in workdir.path.glob("*.png")))
    print(f"  results in {workdir.path / RESULTS}; pictures: {pictures}")
    return results["scores"]


def evaluate_ensemble(
    workdirs: Sequence[Workdir],
    *,
    overrides: Mapping[str, object] | None = None,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict[str, float]:
    """Evaluates the deep ensemble of finished runs, and writes to the folder of the first.

    Args:
      workdirs: The folders of the runs.
      overrides: For the config of the first run, see `Workdir.read_config`.
      ensemble: How members are averaged; by default as in the config of the first run.
      allow_unfinished: See `evaluate_run`.

    Returns:
      The test scores, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if a run is not finished, or the runs do not fit together.
    """
    first = workdirs[0]
    model = _load_model(workdirs, ensemble, allow_unfinished)
    dataset = _load_dataset(first, first.read_config(overrides))
    for workdir in workdirs[1:]:
        workdir.warn_of_other_test_images(dataset.test)
    validation = {workdir.read_dataset_info()["validation_digest"] for workdir in workdirs}
    # Other runs may have been trained on the first one's split. Version 0.1 wrote no digests.
    if len(validation) > 1 or None in validation:
        dataset = dataset.replace(validation=None)
    title = f"ensemble of {len(workdirs)} runs, {model.num_members} members"
    results = {
        "runs": [str(workdir.path.resolve()) for workdir in workdirs],
        "epochs": [network.epoch for network in model.networks],
        "training_digests": [workdir.training_digest() for workdir in workdirs],
        "environment": describe_environment(),
    }
    print(f"\n{title}: {len(dataset.test):,} test images")
    results |= _evaluate(model, dataset, title, first.path, "ensemble.png", ENSEMBLE_LOGITS)
    write_json(first.path / ENSEMBLE, results)
    print(f"  results in {first.path / ENSEMBLE}; picture: ensemble.png")
    return results["scores"]


def evaluate_corruptions(
    workdirs: Sequence[Workdir],
    images: pathlib.Path,
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> dict:
    """Evaluates runs on corrupted images, and writes to the folder of the first.

    Args:
      workdirs: The folders of one or several finished runs.
      images: A folder in the layout of CIFAR-10-C.
      ensemble: How members are averaged; by default as in the config of the first run.
      allow_unfinished: See `evaluate_run`.

    Returns:
      The scores, see `corruptions.score_corruptions`.

    Raises:
      InputError: if a run is not finished, the runs do not fit together, or the images are missing
        or damaged.
    """
    model = _load_model(workdirs, ensemble, allow_unfinished)
    scores = corruptions.score_corruptions(
        model.logits, images, model.image_shape, model.ensemble, model.weights
    )
    print(terminal.corruption_table(scores))
    file = workdirs[0].path / (CORRUPTIONS if len(workdirs) == 1 else ENSEMBLE_CORRUPTIONS)
    results = {
        "images": images.resolve().name,
        "runs": [str(workdir.path.resolve()) for workdir in workdirs],
        "epochs": [network.epoch for network in model.networks],
        "ensemble": model.ensemble,
        "environment": describe_environment(),
        "scores": scores,
    }
    write_json(file, results)
    print(f"  all results are in {file}")
    return scores


def import_variables(
    config: ml_collections.ConfigDict, variables: dict, num_classes: int, workdir: Workdir
) -> dict[str, float]:
    """Makes a finished run of variables trained elsewhere, and evaluates it.

    Args:
      config: The config, which describes the network.
      variables: The variables of the network.
      num_classes: K.
      workdir: A new folder.

    Returns:
      The test scores, see `metrics.ensemble_metrics`.

    Raises:
      InputError: if the folder holds a run, or network and data do not fit together.
    """
    with workdir.lock():
        if workdir.has_checkpoint() or workdir.read_metrics():
            raise InputError(f"{workdir}: holds a run already")
        dataset = load_dataset(config.dataset)
        channels = variables["params"]["stem"]["kernel"].shape[-2]
        for kind, found, expected in (
            ("classes", dataset.num_classes, num_classes),
            ("channels", dataset.image_shape[-1], channels),
        ):
            if found != expected:
                reason = f"{found} {kind}, the network has {expected}"
                raise InputError(f"dataset.name={config.dataset.name!r}: {reason}")
        workdir.open(config, dataset)
        steps = steps_per_epoch(config, len(dataset.train))
        tx, _ = create_optimizer(config, steps)
        model = create_model(config.model, num_classes)
        state = create_train_state(config.seed, model, tx, dataset.image_shape)
        step = jnp.int32(config.num_epochs * steps)
        # The schedule follows the optimizer's own count, if the run gets more epochs.
        opt_state = optax.tree_utils.tree_set(state.opt_state, _is_schedule, count=step)
        ema = variables if config.optimizer.ema_decay else None
        state = state.replace(step=step, ema=ema, opt_state=opt_state, **variables)
        with Checkpoints(workdir.checkpoint_dir) as checkpoints:
            checkpoints.save(int(step), state)
        return evaluate_run(workdir, dataset=dataset)


def _is_schedule(path: tuple, _) -> bool:
    """Returns whether a field of an optimizer's state belongs to the learning rate."""
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"


def _load_model(workdirs, ensemble, allow_unfinished) -> Model:
    paths = [workdir.path for workdir in workdirs]
    return load(paths, ensemble=ensemble, allow_unfinished=allow_unfinished)


def _load_dataset(workdir: Workdir, config: ml_collections.ConfigDict) -> Dataset:
    return workdir.restore_statistics(load_dataset(config.dataset))


def _evaluate(
    model: Model, dataset: Dataset, title: str, folder: pathlib.Path, picture: str, arrays: str
) -> dict[str, object]:
    """Scores a model before and after temperature scaling; prints, draws and stores it."""
    test, weights = dataset.test, model.weights
    logits = model.logits(test.images)
    plain = metrics.ensemble_metrics(logits, test.labels, model.ensemble, weights)
    scaled, temperatures = calibration.scaled_metrics(logits, test.labels, model.ensemble, weights)
    fitted_on, split, split_logits = "test", test, logits
    if dataset.validation is not None:
        fitted_on, split = "validation", dataset.validation
        split_logits = model.logits(split.images)
    fitted = {
        ensemble: calibration.fit_temperature(split_logits, split.labels, ensemble, weights)
        for ensemble in metrics.ENSEMBLES
    }
    temperature = fitted[model.ensemble]
    print(terminal.metric_table(plain, scaled))
    print(f"  temperatures fitted on halves: {temperatures[0]:.4f}, {temperatures[1]:.4f}")
    print(f"  temperature for prediction, fitted on the {fitted_on} split: {temperature:.4f}")
    probs = np.exp(metrics.ensemble_log_probs(logits, model.ensemble, weights))
    bins = metrics.reliability_bins(probs, np.asarray(test.labels))
    plots.reliability_diagram(folder / picture, title, *bins, plain["ece"])
    write_arrays(folder / arrays, logits=logits, labels=np.asarray(test.labels))
    return {
        "ensemble": model.ensemble,
        "temperature": temperature,
        "temperature_fitted_on": fitted_on,
        "prediction_temperatures": fitted,
        "scores": plain,
        "scaled_scores": scaled,
        "temperatures": temperatures,
    }
