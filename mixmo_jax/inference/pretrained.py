"""Trained models as folders to share, in the layout of the Hugging Face Hub.

A folder holds `model.safetensors`, all variables in float32; `config.json`, everything else that
rebuilds the model; and `README.md`, the model card. Nothing in it is executed. `load.load` reads
it.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shlex
import tempfile
from collections.abc import Iterator

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

import mixmo_jax
from mixmo_jax import config as config_lib
from mixmo_jax.configs import common
from mixmo_jax.errors import (
    InputError,
    expand,
    format_value,
    invalid,
    read_json,
    reading,
    sha256_of,
    warn,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from mixmo_jax.models import create_model
from mixmo_jax.runs.workdir import NEUTRAL_FIELDS

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_LIBRARY, _FORMAT_VERSION = "mixmo_jax", 1
_SCHEME = "hf://"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CODE = "https://github.com/mixmo-jax/mixmo_jax"
_PAPER = "https://arxiv.org/abs/2103.06132"
# The results of a run that are kept with its network.
KEPT_RESULTS = (
    "scores",
    "scaled_scores",
    "test_images",
    "temperature_fitted_on",
    "training_seconds",
    "environment",
)
# The scores in the card's metadata, with the names that people know.
_METRICS = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE"}


def save(
    model, folder: str | pathlib.Path, *, license: str | None = None, address: str | None = None
) -> None:
    """Writes a model into a folder, from which `load` makes an equal one.

    Paths of this machine are left out of the configs.

    Args:
      model: The `Model`, of networks whose `architecture` is known.
      folder: A folder that is new, empty, or holds a pretrained model, which is replaced.
      license: License of the weights, an identifier of the Hub such as "apache-2.0".
      address: The argument of `load` in the model card; by default the name of the folder.

    Raises:
      InputError: if the folder holds something else or cannot be written, or a network cannot be
        rebuilt from its architecture.
    """
    folder, arrays = expand(folder), {}
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise invalid("license", license, "an identifier such as apache-2.0")
    for i, network in enumerate(model.networks):
        fields = {**(network.architecture or {}), "num_members": network.module.num_members}
        config = ml_collections.ConfigDict(fields)
        if network.architecture is None or network.module != create_model(
            config, len(network.class_names)
        ):
            raise InputError(f"networks: network {i} is not built by its architecture")
        for path, value in flax.traverse_util.flatten_dict(network.variables).items():
            arrays[_name(i, path)] = np.array(value, order="C")  # as safetensors needs it
    content = safetensors.numpy.save(arrays, metadata={"format": "flax"})
    values = {
        "library_name": _LIBRARY,
        "format_version": _FORMAT_VERSION,
        "mixmo_jax_version": mixmo_jax.__version__,
        "ensemble": model.ensemble,
        "temperature": model.temperature,
        "image_shape": list(map(int, model.image_shape)),
        "class_names": list(model.class_names),
        "networks": [_describe(network) for network in model.networks],
        "results": model.results,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    card = model_card(model, address or folder.absolute().name, license=license)
    with writing(f"folder={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        others = [f for f in folder.iterdir() if not f.name.startswith(".")]
    if others and not (is_pretrained(folder) and (folder / CONFIG).exists()):
        raise InputError(f"folder={folder}: expected an empty folder or a pretrained model")
    if others:
        warn(f"folder={folder}: the pretrained model in it is replaced")
    write_bytes(folder / WEIGHTS, content)  # first: on a full disk, the old model stays intact
    write_json(folder / CONFIG, values)
    write_text(folder / CARD, card)


def read(folder: pathlib.Path) -> tuple[dict, list[dict]]:
    """Reads a folder of `save`.

    Returns:
      The values of `config.json`, and the variables of each network.

    Raises:
      InputError: if a file is missing or damaged, or is of a newer version.
    """
    values = read_json(folder / CONFIG)
    version = values.get("format_version")
    if values.get("library_name") != _LIBRARY or version != _FORMAT_VERSION:
        reason = f"format_version={format_value(version)}, expected {_FORMAT_VERSION}"
        raise InputError(f"{folder / CONFIG}: not a pretrained model of mixmo_jax: {reason}")
    if sha256_of(folder / WEIGHTS) != values.get("weights_sha256"):
        raise InputError(f"{folder / WEIGHTS}: damaged: its SHA-256 is not that of {CONFIG}")
    with reading(folder / WEIGHTS, safetensors.SafetensorError, ValueError):
        arrays = safetensors.numpy.load_file(folder / WEIGHTS)
    variables = flax.traverse_util.unflatten_dict(arrays, sep=".")["networks"]
    return values, [variables[str(i)] for i in range(len(variables))]


def is_pretrained(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a pretrained model, perhaps a damaged one."""
    config = folder / CONFIG  # of a run, it names no library
    return (folder / WEIGHTS).exists() or (config.exists() and "library_name" in read_json(config))


def push(model, repo_id: str, *, private: bool | None = None, license: str | None = None) -> str:
    """Uploads a model to the Hub as one commit; the repository is created if it does not exist.

    Args:
      model: The `Model`.
      repo_id: The repository, "owner/name".
      private: Whether a new repository is private; None for the owner's default.
      license: See `save`.

    Returns:
      The address, which `load` takes.

    Raises:
      InputError: if huggingface_hub is missing, the Hub refuses or cannot be reached.
    """
    if not _REPO.fullmatch(repo_id):
        raise invalid("repo_id", repo_id, "owner/name")
    address = f"{_SCHEME}{repo_id}"
    with _hub(address) as hub, tempfile.TemporaryDirectory() as folder:
        save(model, folder, license=license, address=address)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        message = f"Upload a network of mixmo_jax {mixmo_jax.__version__}"
        hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return address


def is_address(path: object) -> bool:
    """Returns whether a path is an address on the Hub, "hf://…"."""
    return str(path).startswith(_SCHEME)


def download(address: str) -> pathlib.Path:
    """Downloads a pretrained model, or finds it in the Hub's cache; returns its folder.

    Args:
      address: "hf://owner/name" or "hf://owner/name@revision".

    Raises:
      InputError: if huggingface_hub is missing, or there is no such model.
    """
    repo_id, at, revision = address.removeprefix(_SCHEME).partition("@")
    if not _REPO.fullmatch(repo_id) or bool(at) != bool(revision):
        raise InputError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    with _hub(address) as hub:
        files = [CONFIG, WEIGHTS]
        folder = hub.snapshot_download(repo_id, revision=revision or None, allow_patterns=files)
    return pathlib.Path(folder)


@contextlib.contextmanager
def _hub(address: str) -> Iterator:
    """Yields huggingface_hub, and turns its errors into one line."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        reason = "needs huggingface_hub: pip install huggingface_hub"
        raise InputError(f"{address}: {reason}") from None
    try:
        yield huggingface_hub
    except InputError:
        raise
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{address}: {type(error).__name__}: {reason}") from error


def _name(i: int, path: tuple[str, ...]) -> str:
    """Returns the name of a variable of network i, such as "networks.0.params.stem.kernel"."""
    return ".".join(["networks", str(i), *path])


def _describe(network) -> dict[str, object]:
    """Returns everything that rebuilds a network, except its variables."""
    config = None
    if network.config is not None:
        shared, default = network.config.copy_and_resolve_references(), common.get_config()
        with shared.unlocked():
            for name in ("data_dir", "cache_dir"):  # paths of this machine
                shared.dataset[name] = default.dataset[name]
            shared.compilation_cache = default.compilation_cache
        config = json.loads(config_lib.to_json(shared))
    return {
        "model": {**network.architecture, "num_members": network.module.num_members},
        "mean": [float(value) for value in network.mean],
        "std": [float(value) for value in network.std],
        "batch_size": network.batch_size,
        "epoch": network.epoch,
        "config": config,
    }


def model_card(model, address: str, *, license: str | None = None) -> str:
    """Returns the model card: metadata for the Hub (with huggingface_hub), and Markdown.

    Args:
      model: The `Model`.
      address: The argument of `load` in the example.
      license: See `save`.
    """
    config, results = model.config, model.results or {}
    name = "mixmo" if config is None else f"{config.dataset.name}-{config.method}"
    kinds = [
        "{name}, depth {depth}, width {width}, ".format(**n.architecture)
        + ("1 member" if n.module.num_members == 1 else f"{n.module.num_members} members")
        for n in model.networks
    ]
    parts = [
        f"{_metadata(model, name, license)}# {name}",
        f"An image classifier for [mixmo_jax]({_CODE}): {'; '.join(kinds)}. MixMo "
        f"([paper]({_PAPER})) trains several subnetworks inside one network. Their predictions "
        "are averaged.",
        "```python\nimport mixmo_jax\n\n"
        f"model = mixmo_jax.load({json.dumps(address, ensure_ascii=False)})\n"
        f"model.predict_proba(images)  # uint8 [N, {', '.join(map(str, model.image_shape))}] → "
        f"[N, {len(model.class_names)}]\n```",
        _table(["", ""], _facts(model)),
    ]
    if "scores" in results:
        scaled = results.get("scaled_scores", {})
        rows = [
            [score.replace("_", " "), f"{value:.4f}", f"{scaled.get(score, float('nan')):.4f}"]
            for score, value in results["scores"].items()
        ]
        parts += [
            "## Scores",
            _table(["score", "plain", "scaled"], rows),
            "On the test images. For the scaled scores, the temperature of each half of them was "
            "fitted on the other half.",
        ]
    if config is not None:
        parts.append("## Training")
        if command := training_command(config):
            parts.append(f"```sh\n{command}\n```")
        if "training_seconds" in results and "environment" in results:
            environment = results["environment"]
            device = f"{environment['device_count']} x {environment['device_kind']}"
            parts.append(f"It took {results['training_seconds']:,.0f} seconds on {device}.")
        parts.append("`config.json` has every field of the config.")
    return "\n\n".join(parts) + "\n"


def _metadata(model, name: str, license: str | None) -> str:
    """Returns the YAML that the Hub filters and shows; "" without huggingface_hub."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        return ""
    scores = (model.results or {}).get("scores", {})
    dataset = "" if model.config is None else model.config.dataset.name
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric,
            metric_name=label,
            metric_value=scores[metric],
        )
        for metric, label in _METRICS.items()
        if dataset and np.isfinite(scores.get(metric, np.nan))
    ]
    data = ModelCardData(
        library_name=_LIBRARY,
        license=license,
        pipeline_tag="image-classification",
        tags=["mixmo", "jax", "flax", "ensemble", "uncertainty-estimation"],
        metrics=["accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _facts(model) -> list[list[str]]:
    results, config = model.results or {}, model.config
    names = format_value(", ".join(" ".join(name.split()) for name in model.class_names))
    size = sum(x.size for n in model.networks for x in jax.tree.leaves(n.variables["params"]))
    temperature = "none was fitted" if model.temperature is None else f"{model.temperature:.4g}"
    if model.temperature is not None and "temperature_fitted_on" in results:
        temperature += f", fitted on the {results['temperature_fitted_on']} images"
    return [
        ["images", "uint8, {} x {} pixels, channels: {}".format(*model.image_shape)],
        ["classes", f"{len(model.class_names)}: {names}"],
        ["parameters", f"{size:,}"],
        ["members", f"{model.num_members}, their {model.ensemble} are averaged"],
        ["temperature", temperature],
        *([["data", config.dataset.name]] if config is not None else []),
        *([["test images", f"{results['test_images']:,}"]] if "test_images" in results else []),
    ]


def training_command(config: ml_collections.ConfigDict) -> str | None:
    """Returns the command that trains with a config; None if the package lacks its dataset."""
    name = config.dataset.name
    if name not in config_lib.config_names():
        return None
    base = config_lib.flatten(config_lib.get_config(f"{name}:{config.method}"))
    flags = [
        shlex.quote(f"--config.{field}={value}")
        for field, value in config_lib.flatten(config).items()
        if field not in NEUTRAL_FIELDS and value != base.get(field)
    ]
    return " \\\n  ".join([f"python -m mixmo_jax.main --config={name}:{config.method}", *flags])


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
