"""Loading models: of runs, and pretrained ones."""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from mixmo_jax import config as config_lib
from mixmo_jax.errors import InputError, expand, read_json, reading
from mixmo_jax.inference import pretrained
from mixmo_jax.inference.model import Model, TrainedNetwork
from mixmo_jax.input_pipeline.plan import steps_per_epoch
from mixmo_jax.models import create_model, variable_shapes
from mixmo_jax.runs.workdir import ENSEMBLE, RESULTS, Workdir
from mixmo_jax.training.checkpoints import Checkpoints


def load(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
    ema: bool = False,
) -> Model:
    """Loads a trained network, or the ensemble of several.

    A run has the temperature that was fitted when it was evaluated; an ensemble of runs, the one
    fitted when just these runs were evaluated together. Without an evaluation there is none. A
    pretrained model keeps its temperature, which holds for it alone.

    Args:
      paths: One or several of: the folder of a finished run, a folder of `Model.save_pretrained`,
        an address on the Hugging Face Hub, "hf://owner/name" or "hf://owner/name@revision".
      ensemble: How members are averaged, "logits" or "probabilities"; by default as in the config
        of the (first) run.
      allow_unfinished: Whether to take the best or newest checkpoint of an unfinished run.
      ema: Whether to take the moving average of the weights, see `optimizer.ema_decay`. It has no
        temperature.

    Raises:
      InputError: if a path holds no model, or the models do not fit together.
    """
    if isinstance(paths, str | pathlib.Path):
        paths = [paths]
    if not paths:
        raise InputError("paths: none, expected the folder of a run")
    folders = [
        pretrained.download(path) if pretrained.is_address(path) else expand(path) for path in paths
    ]
    of_runs = [not pretrained.is_pretrained(folder) for folder in folders]
    if ema and not all(of_runs):
        raise InputError(f"{folders[of_runs.index(False)]}: only a run has a moving average")
    models = []
    for folder, is_run in zip(folders, of_runs, strict=True):
        if is_run:
            network = load_run(Workdir(folder), allow_unfinished=allow_unfinished, ema=ema)
            models.append(Model([network], network.config.evaluation.ensemble))
        else:
            models.append(load_pretrained(folder))
    networks = [network for model in models for network in model.networks]
    ensemble = ensemble or models[0].ensemble
    if of_runs == [False] and ensemble == models[0].ensemble:
        return models[0]
    if ema or not all(of_runs):
        return Model(networks, ensemble)
    workdirs = [Workdir(folder) for folder in folders]
    return Model(networks, ensemble, *_read_results(workdirs, networks, ensemble))


def load_run(
    workdir: Workdir,
    config: ml_collections.ConfigDict | None = None,
    *,
    allow_unfinished: bool = False,
    ema: bool = False,
) -> TrainedNetwork:
    """Loads the network of a finished run: of the best epoch in validation, or else of the last.

    It has the members that `evaluation.members` names.

    Args:
      workdir: The folder of the run.
      config: The config of the run, if it has been read already.
      allow_unfinished: Whether to take the best or newest checkpoint of an unfinished run.
      ema: Whether to take the moving average of the variables.

    Raises:
      InputError: if there is no finished run, or it is damaged.
    """
    config = config or workdir.read_config()
    if ema and not config.optimizer.ema_decay:
        raise InputError(f"{workdir}: has no moving average: optimizer.ema_decay=0.0")
    if not workdir.has_checkpoint():
        raise InputError(f"{workdir}: has no checkpoint; train it first")
    info = workdir.read_dataset_info()
    steps = steps_per_epoch(config, info["num_images"]["train"])
    module = create_model(config.model, len(info["class_names"]))
    like = variable_shapes(module, info["image_shape"])
    with Checkpoints(workdir.checkpoint_dir) as checkpoints:
        step, variables = checkpoints.restore_variables(like, best=False, ema=ema)
        if step != config.num_epochs * steps and not allow_unfinished:
            raise InputError(
                f"{workdir}: run is unfinished (epoch {step // steps} of {config.num_epochs}): "
                "resume it, or pass --allow_unfinished (in Python allow_unfinished=True)"
            )
        if "validation" in info["num_images"] and checkpoints.best_step != step:
            step, variables = checkpoints.restore_variables(like, best=True, ema=ema)
    network = TrainedNetwork(
        module=module,
        variables=variables,
        class_names=info["class_names"],
        image_shape=info["image_shape"],
        mean=info["mean"],
        std=info["std"],
        batch_size=config.evaluation.batch_size,
        config=config,
        epoch=step // steps,
        architecture=config.model.to_dict(),
    )
    members = config.evaluation.members
    return network.select(members) if members else network


def load_pretrained(folder: pathlib.Path) -> Model:
    """Loads a model from a folder of `Model.save_pretrained`.

    Raises:
      InputError: if a file is missing or damaged.
    """
    values, variables = pretrained.read(folder)
    with reading(folder / pretrained.CONFIG, KeyError, TypeError, ValueError):
        class_names, image_shape = tuple(values["class_names"]), tuple(values["image_shape"])
        networks = []
        for description, arrays in zip(values["networks"], variables, strict=True):
            module = create_model(ml_collections.ConfigDict(description["model"]), len(class_names))
            like = variable_shapes(module, image_shape)
            if jax.tree.map(jnp.shape, arrays) != jax.tree.map(jnp.shape, like):
                raise ValueError("the weights are of a different model")
            config = description["config"]
            networks.append(
                TrainedNetwork(
                    module=module,
                    variables=jax.tree.map(jnp.asarray, arrays),
                    class_names=class_names,
                    image_shape=image_shape,
                    mean=tuple(description["mean"]),
                    std=tuple(description["std"]),
                    batch_size=description["batch_size"],
                    config=config and config_lib.from_json(json.dumps(config)),
                    epoch=description["epoch"],
                    architecture=description["model"],
                )
            )
        results = jax.tree.map(_to_number, values["results"])
        return Model(networks, values["ensemble"], values["temperature"], results)


def _read_results(
    workdirs: Sequence[Workdir], networks: Sequence[TrainedNetwork], ensemble: str
) -> tuple[float | None, dict[str, object] | None]:
    """Returns temperature and results of an evaluation of these networks; None without one.

    Results are None as well if the members were averaged in the other way.
    """
    epochs = [network.epoch for network in networks]
    for workdir in workdirs:
        file = workdir.path / (RESULTS if len(workdirs) == 1 else ENSEMBLE)
        if not file.exists():
            continue
        results = read_json(file)
        with reading(file, KeyError, TypeError, ValueError):
            if len(workdirs) == 1:
                is_same = results.get("epoch", epochs[0]) == epochs[0]
            else:
                digests = [workdir.training_digest() for workdir in workdirs]
                known = results.get("training_digests", [])  # not in version 0.1
                evaluated = sorted(zip(known, results["epochs"], strict=False))
                is_same = evaluated == sorted(zip(digests, epochs, strict=True))
            fitted_for = results.get("ensemble", networks[0].config.evaluation.ensemble)
            temperatures = {fitted_for: results.get("temperature")}
            temperatures |= results.get("prediction_temperatures", {})  # not in version 0.1
            if is_same and temperatures.get(ensemble) is not None:
                kept = {k: results[k] for k in pretrained.KEPT_RESULTS if k in results}
                kept = jax.tree.map(_to_number, kept) if fitted_for == ensemble else None
                return float(temperatures[ensemble]), kept
    return None, None


def _to_number(value: object) -> object:
    """Returns the float that JSON cannot hold, such as "nan"."""
    return float(value) if value in ("nan", "inf", "-inf") else value
