"""The model card of a pretrained network: the text, and what the Hub reads of it."""

import json
import re
import shlex
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
import yaml

from mixmo_jax import config as config_lib
from mixmo_jax.config import flatten
from mixmo_jax.errors import invalid, shortened
from mixmo_jax.inference.model import Model
from mixmo_jax.runs.workdir import NEUTRAL_FIELDS

_CODE = "https://github.com/mixmo-jax/mixmo_jax"
_PAPER = "https://arxiv.org/abs/2103.06132"

# Scores that the Hub is told, with the names that people know.
_METRICS = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE"}


def model_card(model: Model, address: str, *, license: str | None = None) -> str:
    """Writes the card: a header in YAML as the Hub defines it, and Markdown.

    Args:
      model: The model.
      address: What the example gives to `load`.
      license: The identifier of a license, such as "apache-2.0"; None to name none.

    Raises:
      InputError: if the license is no identifier.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise invalid("license", license, "an identifier such as apache-2.0")
    name = _name(model.config)
    header = yaml.safe_dump(_header(model, name, license), sort_keys=False, allow_unicode=True)
    shape = ", ".join(map(str, model.image_shape))
    parts = [
        f"---\n{header}---\n\n# {name}",
        f"An image classifier for [mixmo_jax]({_CODE}): {_describe(model)}. "
        f"MixMo ([paper]({_PAPER})) trains several subnetworks inside one network, whose "
        "predictions are averaged.",
        "```python\nimport mixmo_jax\n\n"
        f"model = mixmo_jax.load({json.dumps(address, ensure_ascii=False)})\n"
        f"model.predict_proba(images)  # uint8 [N, {shape}] → [N, {len(model.class_names)}]\n```",
        _table(["", ""], _facts(model)),
        *_scores(model),
        *_training(model.config, model.results or {}),
    ]
    return "\n\n".join(parts) + "\n"


def _name(config: ml_collections.ConfigDict | None) -> str:
    return "mixmo" if config is None else f"{config.dataset.name}-{config.method}"


def _header(model: Model, name: str, license: str | None) -> dict[str, object]:
    """The metadata that the Hub filters and shows."""
    header = {
        "library_name": "mixmo_jax",
        **({"license": license} if license else {}),
        "pipeline_tag": "image-classification",
        "tags": ["mixmo", "jax", "flax", "ensemble", "uncertainty-estimation"],
    }
    if model.results and "scores" in model.results and model.config is not None:
        scores, dataset = model.results["scores"], model.config.dataset.name
        entries = [
            {"type": key, "name": label, "value": scores[key]}
            for key, label in _METRICS.items()
            if np.isfinite(scores.get(key, np.nan))
        ]
        task = {"type": "image-classification", "name": "Image classification"}
        data = {"type": dataset, "name": dataset, "split": "test"}
        result = {"task": task, "dataset": data, "metrics": entries}
        header["metrics"] = ["accuracy"]
        header["model-index"] = [{"name": name, "results": [result]}]
    return header


def _describe(model: Model) -> str:
    """The networks in a few words."""
    kinds = []
    for network in model.networks:
        fields, count = network.architecture, network.module.num_members
        members = f"{count} members" if count > 1 else "1 member"
        kind = f"{fields['name']}, depth {fields['depth']}, width {fields['width']}, {members}"
        kinds.append(kind)
    counted = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return kinds[0] if len(kinds) == 1 else f"an ensemble of {'; '.join(counted)}"


def _facts(model: Model) -> list[list[str]]:
    results, config = model.results or {}, model.config
    names = ", ".join(" ".join(name.split()) for name in model.class_names)
    size = sum(x.size for n in model.networks for x in jax.tree.leaves(n.variables["params"]))
    temperature = "none was fitted" if model.temperature is None else f"{model.temperature:.4g}"
    if model.temperature is not None and "temperature_fitted_on" in results:
        temperature += f", fitted on the {results['temperature_fitted_on']} images"
    return [
        ["images", "uint8, {} x {} pixels, channels: {}".format(*model.image_shape)],
        ["classes", f"{len(model.class_names)}: {shortened(names)}"],
        ["parameters", f"{size:,}"],
        ["members", f"{model.num_members}, their {model.ensemble} are averaged"],
        ["temperature", temperature],
        *([["data", config.dataset.name]] if config is not None else []),
        *([["test images", f"{results['test_images']:,}"]] if "test_images" in results else []),
    ]


def _scores(model: Model) -> list[str]:
    """The scores before and after temperature scaling, if they are known."""
    results = model.results or {}
    if "scores" not in results:
        return []
    plain, scaled = results["scores"], results.get("scaled_scores", {})
    rows = [
        [name.replace("_", " "), *(_number(kind.get(name)) for kind in (plain, scaled))]
        for name in plain
    ]
    note = (
        "Of the test images. For the scaled scores, the temperature of each half of them was "
        "fitted on the other half."
    )
    return ["## Scores", _table(["score", "plain", "scaled"], rows), note]


def _training(config: ml_collections.ConfigDict | None, results: dict[str, object]) -> list[str]:
    """The command, its time and versions, as far as they are known."""
    if config is None:
        return []
    parts = ["## Training"]
    command = training_command(config)
    if command is not None:
        parts.append(f"```sh\n{command}\n```")
    environment = results.get("environment", {})
    versions = [f"{n} {environment[n]}" for n in ("mixmo_jax", "jax") if environment.get(n)]
    devices = f"{environment.get('device_kind')} ({environment.get('device_count')})"
    if "training_seconds" in results and versions:
        time = f"{results['training_seconds']:,.0f} seconds"
        parts.append(f"It took {time}. Devices: {devices}; {', '.join(versions)}.")
    parts.append("`config.json` has every field of the training config.")
    return parts


def training_command(config: ml_collections.ConfigDict) -> str | None:
    """Returns the command that trains with a config, for data in its usual place.

    None if the package has no config of this dataset.
    """
    name = config.dataset.name
    if name not in config_lib.names():
        return None
    base = flatten(config_lib.parse(f"{name}:{config.method}")[1])
    flags = [
        shlex.quote(f"--config.{field}={value}")
        for field, value in flatten(config).items()
        if field not in NEUTRAL_FIELDS and value != base[field]
    ]
    return " \\\n  ".join([f"python -m mixmo_jax.main --config={name}:{config.method}", *flags])


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.4f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
