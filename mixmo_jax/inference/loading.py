"""Loading the networks of runs."""

import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from mixmo_jax.errors import InputError
from mixmo_jax.files import read_json
from mixmo_jax.inference.model import Model, Network
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.models import create_model
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import RESULTS
from mixmo_jax.training.checkpoints import Checkpoints


def load(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
) -> Model:
    """Loads the network of a finished run, or the ensemble of several runs.

    The model has the temperature that was fitted when the run, or the ensemble of just these runs,
    was evaluated with the same way to combine members; else none.

    Args:
      paths: The folder of a run, or of several.
      ensemble: How the members are combined, "logits" or "probabilities"; by default as the
        (first) run's config says.
      allow_unfinished: Whether to take the newest checkpoint of a run that is not finished.

    Raises:
      InputError: if there is no finished run in a folder, or the runs do not fit together.
    """
    if isinstance(paths, (str, pathlib.Path)):
        paths = [paths]
    folders = [pathlib.Path(path).expanduser() for path in paths]
    networks = [load_network(folder, allow_unfinished=allow_unfinished) for folder in folders]
    if not networks:
        raise InputError("paths: none, expected the folder of a run")
    ensemble = ensemble or networks[0].config.evaluation.ensemble
    return Model(networks, ensemble, _read_temperature(folders, networks, ensemble))


def load_network(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict | None = None,
    *,
    allow_unfinished: bool = False,
) -> Network:
    """Loads the network of a finished run: that of the best epoch, or else of the last.

    Args:
      folder: The folder of the run.
      config: The config of the run, if it has been read already.
      allow_unfinished: Whether to take the best checkpoint so far, or else the newest, of a run
        that is not finished.

    Raises:
      InputError: if there is no finished run in the folder, or it is damaged.
    """
    config = config or workdir.read_config(folder)
    if not workdir.has_checkpoint(folder):
        raise InputError(f"workdir={folder}: has no checkpoint; train it first")
    info = workdir.read_dataset_info(folder)
    epoch_steps = steps_per_epoch(config, info["num_images"]["train"])
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step = checkpoints.latest_step or 0
    if step != config.num_epochs * epoch_steps and not allow_unfinished:
        done = f"{step // max(1, epoch_steps)} of {config.num_epochs} epochs are done"
        raise InputError(
            f"workdir={folder}: holds no finished run: {done}; train it to the end, or take its "
            "newest checkpoint by --allow_unfinished"
        )
    model = create_model(config.model, len(info["class_names"]))
    images = jnp.zeros((1, *info["image_shape"]), jnp.float32)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    best = workdir.has_checkpoint(folder, workdir.BEST)
    with Checkpoints(folder / (workdir.BEST if best else workdir.CHECKPOINTS)) as checkpoints:
        variables = checkpoints.restore_variables(like)
        step = checkpoints.latest_step
    return Network(
        model=model,
        variables=variables,
        class_names=info["class_names"],
        image_shape=info["image_shape"],
        mean=info["mean"],
        std=info["std"],
        batch_size=config.evaluation.batch_size,
        config=config,
        epoch=step // epoch_steps,
    )


def _read_temperature(
    folders: Sequence[pathlib.Path], networks: Sequence[Network], ensemble: str
) -> float | None:
    """The temperature fitted when these runs were evaluated, None if they were not."""
    file = folders[0] / (RESULTS if len(folders) == 1 else workdir.ENSEMBLE)
    results = read_json(file) if file.exists() else {}
    if len(folders) > 1:
        runs = [pathlib.Path(run).resolve() for run in results.get("runs", [])]
        if sorted(runs) != sorted(folder.resolve() for folder in folders):
            return None
    elif results.get("epoch", networks[0].epoch) != networks[0].epoch:
        return None  # it was fitted before the run went on
    # Runs of older versions do not say it, nor has an ensemble of theirs a temperature of its own.
    if results.get("ensemble", networks[0].config.evaluation.ensemble) != ensemble:
        return None
    if "temperature" not in results:
        return None
    temperature = results["temperature"]
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise InputError(f"{file}: temperature={temperature!r}: expected a number > 0")
    return float(temperature)
