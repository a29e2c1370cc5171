"""Configs: from `FILE[:METHOD]` to a checked ConfigDict, and to JSON and back."""

import difflib
import inspect
import json
import math
import pathlib
from collections.abc import Callable

import ml_collections

from mixmo_jax.configs import common
from mixmo_jax.datasets import DATASETS
from mixmo_jax.errors import (
    InputError,
    execute_module,
    expand,
    format_value,
    invalid,
    jsonable,
    unknown,
)
from mixmo_jax.mixing.masks import MASKS, msda_methods
from mixmo_jax.models import NETWORKS

_FOLDER = pathlib.Path(common.__file__).parent

# Fields of older versions, whose runs stay readable.
_RENAMED = {
    "mixmo.prob": "mixmo.patch_prob",
    "mixmo.prob_until": "mixmo.patch_prob_until",
    "mixmo.root": "mixmo.weight_root",
}
_REMOVED = ("dataset.max_file_bytes", "dataset.max_image_pixels")

# Names of some fields elsewhere.
_ALIASES = {
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "epochs": "num_epochs",
    "members": "model.num_members",
    "M": "model.num_members",
    "repetitions": "batch_repetitions",
    "bs": "batch_size",
}


def get_config(spec: str) -> ml_collections.ConfigDict:
    """Returns the config that a string names.

    Args:
      spec: `FILE[:METHOD]`, as on the command line. FILE is a path or the name of one of the
        package's configs: "cifar10:cut_mixmo", "configs/digits.py", "my_config.py:mimo".

    Raises:
      InputError: if there is no such file or method, or a field has a wrong value.
    """
    file, method = find_config(spec)
    function = getattr(execute_module(file), "get_config", None)
    if function is None:
        raise InputError(f"config={spec}: {file} has no function get_config")
    if method and method not in common.METHODS and file.parent == _FOLDER:
        raise unknown("method", method, common.METHODS, where=", ".join(common.METHODS))
    if method and not inspect.signature(function).parameters:
        raise InputError(f"config={spec}: get_config of {file} takes no method")
    config = function(*[method] if method else [])
    check_config(config)
    return config


def find_config(spec: str) -> tuple[pathlib.Path, str]:
    """Returns the file of a config and its method, "" for the default."""
    path, method = spec, ""
    if ":" in spec and not pathlib.Path(spec).is_file():
        path, _, method = spec.rpartition(":")
    file = expand(path)
    if file.is_file():
        return file, method
    name = file.stem if path == f"configs/{file.stem}.py" else path
    if name not in config_names():
        raise unknown("config", path, config_names(), where=f"{', '.join(config_names())}")
    return _FOLDER / f"{name}.py", method


def config_names() -> list[str]:
    """Returns the names of the package's configs."""
    return sorted(f.stem for f in _FOLDER.glob("*.py") if f.stem not in ("__init__", "common"))


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns a config as a flat dictionary, {"model.depth": 28, …}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def unknown_field(name: str, prefix: str = "") -> InputError:
    """Returns the error for a field that does not exist, with the fields that may be meant.

    Args:
      name: The name, such as "model.dept" or "lr".
      prefix: Text before a field's name in the message, such as "--config.".
    """
    fields = flatten(common.get_config())
    leaf = name.rpartition(".")[2]
    leaves = {field: field.rpartition(".")[2] for field in fields}
    near = difflib.get_close_matches(leaf, leaves.values(), n=2, cutoff=0.75)
    close = [field for field in fields if leaves[field] == leaf]
    close += [_ALIASES[leaf]] if leaf in _ALIASES else []
    close += difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
    close += [field for field in fields if leaves[field] in near]
    hints = [f"{prefix}{field}" for field in dict.fromkeys(close)][:3]
    hint = f"did you mean {' or '.join(hints)}?" if hints else "see configs/common.py"
    return InputError(f"{prefix}{name}: no such config field; {hint}")


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the fields whose wrong values would break training silently or late.

    Raises:
      InputError: with the field, its value and the values allowed.
    """
    fields = flatten(config)
    for field, default in flatten(common.get_config()).items():
        if field not in fields:
            raise InputError(f"{field}: missing in the config")
        value, kind = fields[field], type(default)
        if type(value) is int and kind is float:
            continue
        if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
            raise invalid(field, value, KINDS[kind])
    for field, (is_allowed, allowed) in _CHECKS.items():
        if not is_allowed(fields[field]):
            raise invalid(field, fields[field], allowed() if callable(allowed) else allowed)
    repetitions, members = fields["batch_repetitions"], fields["model.num_members"]
    if fields["batch_size"] % repetitions:
        allowed = f"a multiple of batch_repetitions={repetitions}"
        raise invalid("batch_size", fields["batch_size"], allowed)
    if max(fields["evaluation.members"], default=0) >= members:
        allowed = f"indices below model.num_members={members}"
        raise invalid("evaluation.members", fields["evaluation.members"], allowed)
    if fields["optimizer.name"] == "adamw" and fields["optimizer.momentum"] == 1:
        raise invalid("optimizer.momentum", fields["optimizer.momentum"], "less than 1 for adamw")


# What the values of a type are called in messages.
KINDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
}

Check = tuple[Callable[[object], bool], str | Callable[[], str]]


def _at_least(low: float, high: float = math.inf) -> Check:
    limit = f" and <= {high:g}" if high < math.inf else ""
    return lambda value: low <= value <= high and value < math.inf, f">= {low:g}{limit}"


def _above(low: float, high: float = math.inf) -> Check:
    limit = f" and < {high:g}" if high < math.inf else ""
    return lambda value: low < value and (value < high or high == math.inf), f"> {low:g}{limit}"


def _below_one() -> Check:
    return lambda value: 0 <= value < 1, ">= 0 and < 1"


def _one_of(*choices: str) -> Check:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _registered(names: Callable[[], list[str]], registry: str) -> Check:
    """A name in a registry, to which users add their own."""
    return (
        lambda value: value.partition(":")[0] in names(),
        lambda: f"one of {', '.join(names())}, or a name added to {registry} (see --plugin)",
    )


def _all(is_allowed: Callable[[object], bool], allowed: str) -> Check:
    return (
        lambda values: all(isinstance(v, int | float) and is_allowed(v) for v in values),
        allowed,
    )


_CHECKS: dict[str, Check] = {
    "seed": _at_least(0, 2**32 - 1),
    "num_epochs": _at_least(1),
    "batch_size": _at_least(1),
    "batch_repetitions": _at_least(1),
    "input_repetition": _at_least(0, 1),
    "label_smoothing": _at_least(0, 1),
    "checkpoint_every_epochs": _at_least(1),
    "steps_per_call": _at_least(0),
    "model.name": _registered(lambda: [*NETWORKS], "mixmo_jax.models.NETWORKS"),
    "model.depth": _at_least(1),
    "model.width": _at_least(1),
    "model.num_members": _at_least(1),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "mixmo.block": _registered(lambda: [*MASKS], "mixmo_jax.mixing.MASKS"),
    "mixmo.patch_prob": _at_least(0, 1),
    "mixmo.patch_prob_until": _below_one(),
    # Below 0.001, float32 cannot represent how close to 0 the ratios are.
    "mixmo.alpha": (lambda value: value == 0 or 1e-3 <= value <= 1e6, "0, or from 0.001 to 1e+06"),
    "mixmo.weight_root": _above(0),
    "mixmo.unmix_until": _above(0),
    "mixmo.unmix_resize": _one_of("area", "nearest"),
    "msda.method": _registered(lambda: ["none", *msda_methods()], "mixmo_jax.mixing.MASKS"),
    "msda.beta": _at_least(1e-3, 1e6),
    "msda.prob": _at_least(0, 1),
    "augment.augmix_width": _at_least(1),
    "augment.augmix_depth": _at_least(0),
    "augment.augmix_severity": _at_least(0.1, 10),
    "augment.augmix_alpha": _at_least(1e-3, 1e6),
    "dataset.name": _registered(lambda: [*DATASETS], "mixmo_jax.datasets.DATASETS"),
    "dataset.num_train_images": _at_least(0),
    "dataset.validation_fraction": _below_one(),
    "dataset.split_seed": _at_least(0),
    "dataset.placement": _one_of("auto", "device", "host"),
    "dataset.image_size": _at_least(8),
    "dataset.test_fraction": _above(0, 1),
    "dataset.crop_padding": _at_least(0),
    "dataset.mean": _all(math.isfinite, "a tuple of numbers, one per channel"),
    "dataset.std": _all(lambda v: 0 < v < math.inf, "a tuple of numbers > 0, one per channel"),
    "optimizer.name": _one_of("sgd", "adamw"),
    "optimizer.schedule": _one_of("steps", "cosine"),
    "optimizer.learning_rate": (lambda value: 0 < value < math.inf, "a number > 0"),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.warmup_epochs": _at_least(0),
    "optimizer.decay_epochs": (
        lambda epochs: (
            all(type(e) is int and e >= 1 for e in epochs) and list(epochs) == sorted(set(epochs))
        ),
        "epochs >= 1 in ascending order",
    ),
    "optimizer.decay_factor": (lambda value: 0 < value < math.inf, "a number > 0"),
    "optimizer.momentum": _at_least(0, 1),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.ema_decay": _below_one(),
    "evaluation.batch_size": _at_least(1),
    "evaluation.every_epochs": _at_least(1),
    "evaluation.ensemble": _one_of("logits", "probabilities"),
    "evaluation.members": (
        lambda members: (
            all(type(m) is int and m >= 0 for m in members) and len(set(members)) == len(members)
        ),
        "distinct member indices",
    ),
}


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns a config as JSON, see `from_json`."""
    return json.dumps(jsonable(config.to_dict()), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads a config that `to_json` wrote, also in an older version.

    Renamed fields get their new names, newer fields the defaults of `configs/common.py`.

    Raises:
      InputError: if the text is not the JSON of a config.
    """
    try:
        fields = flatten(ml_collections.ConfigDict(json.loads(text)))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"damaged: not a config in JSON: {format_value(str(error))}") from None
    for field in _REMOVED:
        fields.pop(field, None)
    for old, new in _RENAMED.items():
        if old in fields:
            fields[new] = fields.pop(old)
    config = common.get_config()
    defaults = flatten(config)
    for field, value in fields.items():
        if isinstance(value, list):
            fields[field] = tuple(value)
        # JSON has no infinity, and 1.0 may be written as 1.
        elif isinstance(defaults.get(field), float) and not isinstance(value, bool):
            fields[field] = float(value)
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    check_config(config)
    return config
