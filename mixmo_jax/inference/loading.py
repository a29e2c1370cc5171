"""Loading trained networks: those of runs, and pretrained ones."""

import pathlib
from collections.abc import Sequence

import ml_collections

from mixmo_jax.errors import (
    InputError,
    expand,
    format_value,
    invalid,
    is_number,
    read_json,
    reading,
)
from mixmo_jax.inference import hub
from mixmo_jax.inference.model import Model
from mixmo_jax.inference.network import TrainedNetwork
from mixmo_jax.inference.pretrained import is_pretrained, load_pretrained
from mixmo_jax.inference.results import read_results
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.models import create_model, variable_shapes
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import RESULTS
from mixmo_jax.training.checkpoints import Checkpoints


def load(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    ensemble: str | None = None,
    allow_unfinished: bool = False,
    ema: bool = False,
) -> Model:
    """Loads a trained network, or the ensemble of several.

    The model has the temperature that was fitted when the run, or the ensemble of just these runs,
    was evaluated; none if it was not. That of a pretrained network is kept with it, and holds for
    it alone.

    Args:
      paths: The folder of a finished run, a folder that `Model.save_pretrained` wrote, or the
        address of one on the Hugging Face Hub, "hf://owner/name" or "hf://owner/name@revision"; or
        several of them.
      ensemble: How the members are combined, "logits" or "probabilities"; by default as the
        (first) run's config says.
      allow_unfinished: Whether to take the best or newest checkpoint of a run that is not
        finished.
      ema: Whether to take the moving average of the weights, see `optimizer.ema_decay`. No
        temperature was fitted for it.

    Raises:
      InputError: if a folder holds neither a finished run nor a pretrained network, or they do not
        fit together.
    """
    if isinstance(paths, (str, pathlib.Path)):
        paths = [paths]
    folders = [hub.download(path) if hub.is_address(path) else expand(path) for path in paths]
    if not folders:
        raise InputError("paths: none, expected the folder of a run")
    pretrained = [is_pretrained(folder) for folder in folders]
    if any(pretrained) and ema:
        raise InputError(f"{folders[pretrained.index(True)]}: holds no moving average, only a run")
    options = {"allow_unfinished": allow_unfinished, "ema": ema}
    models = [
        load_pretrained(folder) if kept else _load_run(folder, options)
        for folder, kept in zip(folders, pretrained, strict=True)
    ]
    networks = [network for model in models for network in model.networks]
    ensemble = ensemble or models[0].ensemble
    if pretrained == [True] and ensemble == models[0].ensemble:
        return models[0]
    if ema or any(pretrained):
        return Model(networks, ensemble)
    return Model(networks, ensemble, *_read_results(folders, networks, ensemble))


def _load_run(folder: pathlib.Path, options: dict[str, bool]) -> Model:
    """The network of a run, not yet with its temperature."""
    network = load_run(folder, **options)
    return Model([network], network.config.evaluation.ensemble)


def load_run(
    folder: pathlib.Path,
    config: ml_collections.ConfigDict | None = None,
    *,
    allow_unfinished: bool = False,
    ema: bool = False,
) -> TrainedNetwork:
    """Loads the network of a finished run: that of the best epoch, or else of the last.

    It has the members that `evaluation.members` names.

    Args:
      folder: The folder of the run.
      config: The config of the run, if it has been read already.
      allow_unfinished: Whether to take the best checkpoint so far, or else the newest, of a run
        that is not finished.
      ema: Whether to take the moving average of the variables.

    Raises:
      InputError: if there is no finished run in the folder, or it is damaged.
    """
    config = config or workdir.read_config(folder)
    if ema and not config.optimizer.ema_decay:
        raise InputError(f"workdir={folder}: has no moving average: optimizer.ema_decay=0.0")
    if not workdir.has_checkpoint(folder):
        raise InputError(f"workdir={folder}: has no checkpoint; train it first")
    info = workdir.read_dataset_info(folder)
    epoch_steps = steps_per_epoch(config, info["num_images"]["train"])
    if not epoch_steps:
        most = info["num_images"]["train"] * config.batch_repetitions
        allowed = f"at most {most} with the dataset of the run"
        raise InputError(f"workdir={folder}: {invalid('batch_size', config.batch_size, allowed)}")
    model = create_model(config.model, len(info["class_names"]))
    like = variable_shapes(model, info["image_shape"])
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS)
    step, variables = checkpoints.restore_variables(like, ema=ema)
    if step != config.num_epochs * epoch_steps and not allow_unfinished:
        done = f"{step // epoch_steps} of {config.num_epochs} epochs are done"
        raise InputError(
            f"workdir={folder}: holds no finished run: {done}; train it to the end, or take "
            "what it has: --allow_unfinished, in Python allow_unfinished=True"
        )
    # Without a validation split it would be that of an abandoned run.
    if "validation" in info["num_images"] and workdir.has_checkpoint(folder, workdir.BEST):
        best = Checkpoints(folder / workdir.BEST)
        step, variables = best.restore_variables(like, ema=ema)
    network = TrainedNetwork(
        module=model,
        variables=variables,
        class_names=info["class_names"],
        image_shape=info["image_shape"],
        mean=info["mean"],
        std=info["std"],
        batch_size=config.evaluation.batch_size,
        config=config,
        epoch=step // epoch_steps,
        architecture=config.model.to_dict(),
    )
    members = config.evaluation.members
    return network.select(members) if members else network


def _read_results(
    folders: Sequence[pathlib.Path], networks: Sequence[TrainedNetwork], ensemble: str
) -> tuple[float | None, dict[str, object] | None]:
    """The temperature and the results of evaluating just these networks, None if they were not.

    The results are None as well if the members were combined in the other way.
    """
    name = RESULTS if len(folders) == 1 else workdir.ENSEMBLE
    epochs = [network.epoch for network in networks]
    for file in [folder / name for folder in folders]:
        if not file.exists():
            continue
        with reading(file, ValueError, TypeError, RecursionError):
            results = read_json(file)
            if len(folders) == 1:
                same = results.get("epoch", epochs[0]) == epochs[0]
            else:
                names, identify = results.get("training_digests"), workdir.training_digest
                if not names or "" in names:  # of older versions
                    names, identify = results.get("runs", []), lambda folder: str(folder.resolve())
                evaluated = sorted(zip(names, results.get("epochs", []), strict=False))
                same = evaluated == sorted(zip(map(identify, folders), epochs, strict=True))
            found = dict(results.get("prediction_temperatures", {}))
            if "temperature" in results:  # of runs of older versions, the only one
                found.setdefault(networks[0].config.evaluation.ensemble, results["temperature"])
            if same and ensemble in found:
                temperature = found[ensemble]
                if not is_number(temperature) or temperature <= 0:
                    raise ValueError(
                        f"temperature={format_value(temperature)}: expected a number > 0"
                    )
                of_ensemble = results.get("ensemble", networks[0].config.evaluation.ensemble)
                kept = read_results(results) if of_ensemble == ensemble else None
                return float(temperature), kept
    return None, None
