"""Finding, overriding and checking configs."""

import difflib
import inspect
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from mixmo_jax.configs import common
from mixmo_jax.datasets import DATASETS
from mixmo_jax.errors import InputError, execute_module, expand, invalid, jsonable, shortened
from mixmo_jax.evaluation.ensemble import ENSEMBLES
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import msda_methods
from mixmo_jax.models import NETWORKS


def is_of_type(value: object, kind: type) -> bool:
    """Whether a value is of a type; an integer is a number, too, and a bool is neither."""
    if kind is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


_INT = (int, "an integer")
_FLOAT = (float, "a number")
_BOOL = (bool, "True or False")
_STR = (str, "a string")
_TUPLE = (tuple, "a tuple")


def _rule(kind, allowed=None, test=lambda value: True):
    return kind[0], allowed or kind[1], test


def _at_least(kind, low, high=math.inf):
    limit = f" and <= {high}" if high < math.inf else ""
    return _rule(
        kind,
        f"{kind[1]} >= {low}{limit}",
        lambda value: low <= value <= high and value < math.inf,
    )


def _above(kind, low):
    return _rule(kind, f"{kind[1]} > {low}", lambda value: low < value < math.inf)


def _fraction(low=0.0, high=1.0):
    return _rule(_FLOAT, f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def _one_of(*choices):
    return _rule(_STR, "one of " + ", ".join(choices), lambda value: value in choices)


def _registered(names, registry):
    """The rule for a name in a registry, which users extend: it is read at every check."""

    def allowed():
        return f"one of {', '.join(names())}, or a name that your own file adds to {registry}"

    return _STR[0], allowed, lambda value: value in names()


def _numbers(above):
    return _rule(
        _TUPLE,
        "a tuple of numbers" + (f" > {above:g}" if math.isfinite(above) else ""),
        lambda values: all(is_of_type(v, float) and math.isfinite(v) and v > above for v in values),
    )


def _path():
    """The rule for a path, or "": what the file system can take."""

    def test(value):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False

    return _rule(_STR, "a path", test)


# Below it, float32 cannot represent how close to 0 the ratios are.
_LEAST_CONCENTRATION = 1e-3

# Every field of a config: its type, what is allowed in words (or a function for them), the test.
RULES = {
    "method": _one_of(*common.METHODS),
    "seed": _rule(_INT, "an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
    "num_epochs": _at_least(_INT, 1),
    "batch_size": _at_least(_INT, 1, 2**20),
    "batch_repetitions": _at_least(_INT, 1, 2**20),
    "input_repetition": _fraction(),
    "label_smoothing": _fraction(),
    "checkpoint_every_epochs": _at_least(_INT, 1),
    "steps_per_call": _at_least(_INT, 0),
    "compilation_cache": _path(),
    "model.name": _registered(lambda: NETWORKS, "mixmo_jax.models.NETWORKS"),
    "model.depth": _at_least(_INT, 1, 10_000),
    "model.width": _at_least(_INT, 1, 10_000),
    "model.num_members": _at_least(_INT, 1, 1000),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "mixmo.block": _registered(lambda: MASKS, "mixmo_jax.mixing.MASKS"),
    "mixmo.patch_prob": _fraction(),
    "mixmo.patch_prob_until": _rule(_FLOAT, "a number >= 0 and < 1", lambda value: 0 <= value < 1),
    "mixmo.alpha": _rule(
        _FLOAT,
        "0, or a number from 0.001 to 1e+06",
        lambda value: value == 0 or _LEAST_CONCENTRATION <= value <= 1e6,
    ),
    "mixmo.weight_root": _rule(_FLOAT, "a number > 0; inf is allowed", lambda value: value > 0),
    "mixmo.unmix": _rule(_BOOL),
    "mixmo.unmix_until": _rule(_FLOAT, "a number > 0; inf is allowed", lambda value: value > 0),
    "mixmo.unmix_normalize": _rule(_BOOL),
    "mixmo.unmix_resize": _one_of("area", "nearest"),
    "msda.method": _registered(lambda: ["none", *msda_methods()], "mixmo_jax.mixing.MASKS"),
    "msda.beta": _fraction(_LEAST_CONCENTRATION, 1e6),
    "msda.prob": _fraction(),
    "augment.augmix": _rule(_BOOL),
    "augment.augmix_width": _at_least(_INT, 1, 100),
    "augment.augmix_depth": _at_least(_INT, 0, 100),
    "augment.augmix_severity": _fraction(0.1, 10.0),
    "augment.augmix_alpha": _fraction(_LEAST_CONCENTRATION, 1e6),
    "dataset.name": _registered(lambda: DATASETS, "mixmo_jax.datasets.DATASETS"),
    "dataset.data_dir": _path(),
    "dataset.cache_dir": _path(),
    "dataset.max_file_bytes": _at_least(_INT, 1, 2**40),
    "dataset.max_image_pixels": _at_least(_INT, 1, 178_956_970),  # Pillow's own limit
    "dataset.num_train_images": _at_least(_INT, 0),
    "dataset.validation_fraction": _fraction(high=0.999),
    "dataset.split_seed": _at_least(_INT, 0),
    "dataset.placement": _one_of("auto", "device", "host"),
    "dataset.image_size": _at_least(_INT, 8, 10_000),
    "dataset.test_fraction": _fraction(low=0.01, high=0.9),
    "dataset.crop_padding": _at_least(_INT, 0, 1000),
    "dataset.flip": _rule(_BOOL),
    "dataset.mean": _numbers(above=-math.inf),
    "dataset.std": _numbers(above=0),
    "optimizer.name": _one_of("sgd", "adamw"),
    "optimizer.schedule": _one_of("steps", "cosine"),
    "optimizer.clip_norm": _at_least(_FLOAT, 0),
    "optimizer.ema_decay": _rule(_FLOAT, "a number >= 0 and < 1", lambda value: 0 <= value < 1),
    "optimizer.learning_rate": _above(_FLOAT, 0),
    "optimizer.warmup_steps": _at_least(_INT, 0),
    "optimizer.warmup_epochs": _at_least(_FLOAT, 0, 10**9),
    "optimizer.decay_epochs": _rule(
        _TUPLE,
        "epochs in rising order, each >= 1",
        lambda epochs: (
            all(is_of_type(e, int) and e >= 1 for e in epochs)
            and list(epochs) == sorted(set(epochs))
        ),
    ),
    "optimizer.decay_factor": _above(_FLOAT, 0),
    "optimizer.momentum": _fraction(),
    "optimizer.nesterov": _rule(_BOOL),
    "optimizer.weight_decay": _at_least(_FLOAT, 0),
    "evaluation.batch_size": _at_least(_INT, 1),
    "evaluation.every_epochs": _at_least(_INT, 1),
    "evaluation.ensemble": _one_of(*ENSEMBLES),
    "evaluation.members": _rule(
        _TUPLE,
        "different numbers of members, from 0",
        lambda numbers: (
            all(is_of_type(n, int) and n >= 0 for n in numbers)
            and len(set(numbers)) == len(numbers)
        ),
    ),
}


# What people call some fields elsewhere.
_ALIASES = {
    "lr": "optimizer.learning_rate",
    "rate": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "epochs": "num_epochs",
    "members": "model.num_members",
    "M": "model.num_members",
    "repetitions": "batch_repetitions",
    "bs": "batch_size",
}


def field_names() -> list[str]:
    """Returns the names of all fields, such as "model.depth"."""
    return list(RULES)


def unknown_field(name: str, prefix: str = "") -> InputError:
    """Returns the error for a field that does not exist; it names those that may be meant.

    Args:
      name: The name given, such as "model.dept" or "lr".
      prefix: The text before a field's name in the message, such as "--config.".
    """
    name = shortened(name)
    group, _, leaf = name.rpartition(".")
    leaves = {field: field.rpartition(".")[2] for field in RULES}
    if group and group in {field.rpartition(".")[0] for field in leaves}:
        leaves = {field: v for field, v in leaves.items() if field.startswith(f"{group}.")}
    close = [field for field in leaves if leaves[field] == leaf]
    close += [_ALIASES[leaf]] if leaf in _ALIASES else []
    near = difflib.get_close_matches(leaf, leaves.values(), n=2, cutoff=0.75)
    close += [field for field in leaves if leaves[field] in near]
    close += [field for field in leaves if not close and len(leaf) > 2 and leaf in leaves[field]]
    close += difflib.get_close_matches(name, RULES, n=1, cutoff=0.85)
    listed = [f"{prefix}{field}" for field in list(dict.fromkeys(close))[:3]]
    if listed:
        hint = f"did you mean {' or '.join(listed)}?"
    elif len(leaves) < len(RULES):
        hint = f"{group} has {', '.join(leaves.values())}"
    else:
        hint = "see configs/common.py"
    return InputError(f"{prefix}{name}: no such config field; {hint}")


def describe_fields() -> str:
    """Lists all fields with their defaults and the comments of `configs/common.py`."""
    lines, comment = [], []
    for line in inspect.getsource(common.get_config).splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif found := re.fullmatch(r"config\.([\w.]+) = (.*?)(?:  # (.*))?", line):
            field, default, note = found.groups()
            if field in RULES and field != "method":
                lines.append(f"  {field} = {default}")
                text = " ".join([*comment, *([note] if note else [])])
                lines += [f"      {text}"] if text else []
            comment = []
        else:
            comment = []
    return "\n".join(lines)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks that the config has just the known fields, each with a valid value.

    Raises:
      InputError: if it does not.
    """
    check_fields(flatten(config))


def check_fields(fields: Mapping[str, object]) -> None:
    """Checks a flat config, `{"model.depth": 28, …}`.

    Raises:
      InputError: see `check`.
    """
    for field in fields.keys() - RULES.keys():
        raise unknown_field(field)
    for field, (kind, _, test) in RULES.items():
        if field not in fields:
            raise InputError(f"{field}: missing, expected {allowed_values(field)}")
        value = fields[field]
        if not is_of_type(value, kind) or not test(value):
            raise invalid(field, value, allowed_values(field))
    if fields["batch_size"] % fields["batch_repetitions"]:
        allowed = f"a multiple of batch_repetitions={fields['batch_repetitions']}"
        raise invalid("batch_size", fields["batch_size"], allowed)
    count, members = fields["model.num_members"], fields["evaluation.members"]
    if max(members, default=0) >= count:
        raise invalid("evaluation.members", members, f"less than model.num_members={count}")
    if fields["optimizer.name"] == "adamw" and fields["optimizer.momentum"] == 1:
        raise invalid("optimizer.momentum", fields["optimizer.momentum"], "less than 1 for adamw")


def from_json_value(field: str, value: object) -> object:
    """Returns the value of a field as JSON holds it in the type that the field has.

    A list becomes a tuple, an integer a float where the field is a number, and "inf", which JSON
    cannot hold otherwise, too. What is of another type stays as it is.
    """
    kind = RULES[field][0] if field in RULES else None
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and (value in ("inf", "-inf", "nan") or is_of_type(value, float)):
        return float(value)
    return value


def allowed_values(field: str) -> str:
    """Returns what a field allows, in words."""
    allowed = RULES[field][1]
    return allowed() if callable(allowed) else allowed


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns the config as a flat dictionary, `{"model.depth": 28, …}`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


FIELD_FLAG = re.compile(r"--?(no)?config\.")  # how the flag of a field begins

_PACKAGED = pathlib.Path(common.__file__).parent

# Fields of older versions, by which their runs are still read.
_RENAMED_FIELDS = {
    "mixmo.prob": "mixmo.patch_prob",
    "mixmo.prob_until": "mixmo.patch_prob_until",
    "mixmo.root": "mixmo.weight_root",
}


def parse(spec: str, overrides: Sequence[str] = ()) -> tuple[str, ml_collections.ConfigDict]:
    """Reads a config as the command line names it.

    Args:
      spec: `FILE[:METHOD]`. FILE is a path, or the name of one of the package's configs (`digits`,
        also as `configs/digits.py` where there is no such file).
      overrides: The `--config.FIELD=VALUE` flags.

    Returns:
      The config's name (the file's stem) and the checked config.

    Raises:
      InputError: if there is no such file, method or field, or a value is of the wrong type or out
        of range.
    """
    path, method = spec, ""
    if ":" in spec and not pathlib.Path(spec).is_file():
        path, _, method = spec.rpartition(":")
    file = _find(path)
    config = _execute(file, method)
    override(config, overrides)
    return file.stem, config


def join_flags(argv: Sequence[str]) -> list[str]:
    """Turns `--config.FIELD VALUE` into `--config.FIELD=VALUE`."""
    bare = re.compile(FIELD_FLAG.pattern + r"[\w.]+")
    joined = []
    for argument in argv:
        if joined and bare.fullmatch(joined[-1]) and argument[:1] != "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> list[str]:
    """Sets fields of a config, and checks it.

    Args:
      config: The config, which is changed.
      overrides: The `--config.FIELD=VALUE` flags.

    Returns:
      The names of the fields that were set.

    Raises:
      InputError: if there is no such field, or a value is of the wrong type or out of range.
    """
    fields = _set_fields(config, overrides)
    check(config)
    for name in ("data_dir", "cache_dir"):  # the same from every working directory
        if config.dataset[name]:
            config.dataset[name] = str(expand(config.dataset[name]).absolute())
    return fields


def names() -> list[str]:
    """Returns the names of the package's configs."""
    return sorted(f.stem for f in _PACKAGED.glob("*.py") if f.stem not in ("__init__", "common"))


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON text, which `from_json` reads back to an equal config."""
    return json.dumps(jsonable(config.to_dict()), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads and checks a config written by `to_json`, also by an older version.

    Fields newer than the text have the default of `configs/common.py`; renamed ones are understood.

    Raises:
      InputError: if the text is not JSON, or not of a config.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a config in JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError("not a config in JSON: expected a dictionary")
    fields, groups = {}, {field.partition(".")[0] for field in field_names() if "." in field}
    for name, value in values.items():
        if name in groups and isinstance(value, dict):
            fields |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            fields[name] = value
    for old, new in _RENAMED_FIELDS.items():
        if old in fields:
            fields[new] = fields.pop(old)
    if "method" in fields:
        fields = {**flatten(common.get_config()), **fields}
    fields = {name: from_json_value(name, value) for name, value in fields.items()}
    check_fields(fields)
    config = common.get_config()
    config.update_from_flattened_dict(fields)
    return config.lock()


def _find(path: str) -> pathlib.Path:
    file = pathlib.Path(path)
    if file.is_file():
        return file
    if path in names() or (re.fullmatch(r"configs/\w+\.py", path) and file.stem in names()):
        return _PACKAGED / f"{file.stem}.py"
    close = "".join(f"; did you mean {n}?" for n in difflib.get_close_matches(path, names(), 1))
    listed = f"the package has {', '.join(names())}"
    raise InputError(f"config={path}: no such file{close or f'; {listed}'}")


def _execute(file: pathlib.Path, method: str) -> ml_collections.ConfigDict:
    """Runs a config file; what its own code raises, beside wrong values, keeps its traceback."""
    module = execute_module(file)
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"config={file}: expected a function get_config")
    try:
        config = module.get_config(*[method] if method else [])
    except ValueError as error:
        raise InputError(f"config={file}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"config={file}: get_config returned {type(config).__name__}")
    return config


def _set_fields(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> list[str]:
    known, named = flatten(config), []
    for flag in overrides:
        field = FIELD_FLAG.sub("", flag, count=1).partition("=")[0]
        named.append(field)
        if field == "method":
            raise InputError("method: cannot be set alone; choose it by --config=FILE:METHOD")
        if field not in known:
            raise unknown_field(field)
        _set_field(config, flag, field)
    config.lock()
    return named


def _set_field(config: ml_collections.ConfigDict, flag: str, field: str) -> None:
    """Sets a field as its flag says."""
    argv, values = ["", flag], flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (SyntaxError, RecursionError, MemoryError):  # of a text that is read as a literal
        raise _not_allowed(field, flag.partition("=")[2]) from None
    except (flags.Error, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        if match := re.match(r"flag --config\.[\w.]+=(.*?): ", reason):
            raise _not_allowed(field, match.group(1)) from None
        raise InputError(shortened(reason.replace("flag --config.", ""))) from None


def _not_allowed(field: str, text: str) -> InputError:
    return InputError(f"{field}={shortened(text)}: expected {allowed_values(field)}")
