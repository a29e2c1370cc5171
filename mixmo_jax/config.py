"""Finding, overriding and checking configs."""

import difflib
import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, invalid, unknown

FIELD_FLAG = re.compile(r"--?(no)?config\.")  # how the flag of a field begins

_PACKAGED = pathlib.Path(common.__file__).parent

_INT = (int, "an integer")
_FLOAT = (float, "a number")
_BOOL = (bool, "True or False")
_STR = (str, "a string")
_TUPLE = (tuple, "a tuple")


def _rule(kind, allowed=None, test=lambda value: True):
    return kind[0], allowed or kind[1], test


def _at_least(kind, low):
    return _rule(kind, f"{kind[1]} >= {low}", lambda value: math.isfinite(value) and value >= low)


def _above(kind, low):
    return _rule(kind, f"{kind[1]} > {low}", lambda value: math.isfinite(value) and value > low)


def _share(low=0.0, high=1.0):
    return _rule(_FLOAT, f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def _one_of(*choices):
    return _rule(_STR, "one of " + ", ".join(choices), lambda value: value in choices)


def _numbers(above):
    return _rule(
        _TUPLE,
        f"a tuple of numbers > {above:g}",
        lambda values: all(
            isinstance(v, (int, float)) and math.isfinite(v) and v > above for v in values
        ),
    )


# Every field of a config: its type, what is allowed in words, and the test.
_RULES = {
    "method": _one_of(*common.METHODS),
    "seed": _rule(_INT, "an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
    "num_epochs": _at_least(_INT, 1),
    "batch_size": _at_least(_INT, 1),
    "batch_repetitions": _at_least(_INT, 1),
    "input_repetition": _share(),
    "checkpoint_every_epochs": _at_least(_INT, 1),
    "steps_per_call": _at_least(_INT, 0),
    "model.name": _one_of("wide_resnet", "preact_resnet"),
    "model.depth": _at_least(_INT, 1),
    "model.width": _at_least(_INT, 1),
    "model.num_members": _at_least(_INT, 1),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "mixmo.block": _one_of("linear", "cutmix"),
    "mixmo.prob": _share(),
    "mixmo.prob_until": _rule(_FLOAT, "a number >= 0 and < 1", lambda value: 0 <= value < 1),
    "mixmo.alpha": _share(high=1e6),
    "mixmo.root": _rule(_FLOAT, "a number > 0; inf is allowed", lambda value: value > 0),
    "msda.method": _one_of("none", "mixup", "cutmix"),
    "msda.beta": _above(_FLOAT, 0),
    "msda.prob": _share(),
    "dataset.name": _one_of("digits", "cifar10", "cifar100", "tiny_imagenet", "image_folder"),
    "dataset.data_dir": _rule(_STR),
    "dataset.cache_dir": _rule(_STR),
    "dataset.validation_fraction": _share(high=0.9),
    "dataset.split_seed": _at_least(_INT, 0),
    "dataset.placement": _one_of("auto", "device", "host"),
    "dataset.image_size": _at_least(_INT, 8),
    "dataset.test_fraction": _share(low=0.01, high=0.9),
    "dataset.crop_padding": _at_least(_INT, 0),
    "dataset.flip": _rule(_BOOL),
    "dataset.mean": _numbers(above=-math.inf),
    "dataset.std": _numbers(above=0),
    "optimizer.learning_rate": _above(_FLOAT, 0),
    "optimizer.warmup_steps": _at_least(_INT, 0),
    "optimizer.warmup_epochs": _at_least(_FLOAT, 0),
    "optimizer.decay_epochs": _rule(
        _TUPLE,
        "epochs in rising order, each >= 1",
        lambda epochs: (
            all(isinstance(e, int) and e >= 1 for e in epochs)
            and list(epochs) == sorted(set(epochs))
        ),
    ),
    "optimizer.decay_factor": _above(_FLOAT, 0),
    "optimizer.momentum": _share(),
    "optimizer.nesterov": _rule(_BOOL),
    "optimizer.weight_decay": _at_least(_FLOAT, 0),
    "evaluation.batch_size": _at_least(_INT, 1),
    "evaluation.every_epochs": _at_least(_INT, 1),
    "evaluation.ensemble": _one_of("logits", "probabilities"),
}


def parse(spec: str, overrides: Sequence[str] = ()) -> tuple[str, ml_collections.ConfigDict]:
    """Reads a config as the command line names it.

    Args:
      spec: `FILE[:METHOD]`. FILE is a path, or the name of a config that the package brings
        (`digits`, also as `configs/digits.py` where no such file is).
      overrides: `--config.FIELD=VALUE` flags.

    Returns:
      The config's name (the file's stem) and the checked config.

    Raises:
      InputError: no such file, method or field, or a value of the wrong type or out of range.
    """
    path, method = spec, ""
    if ":" in spec and not pathlib.Path(spec).is_file():
        path, _, method = spec.rpartition(":")
    file = _find(path)
    config = _execute(file, method)
    override(config, overrides)
    return file.stem, config


def join_flags(argv: Sequence[str]) -> list[str]:
    """Makes `--config.FIELD=VALUE` of `--config.FIELD VALUE`."""
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
      config: is changed.
      overrides: `--config.FIELD=VALUE` flags.

    Returns:
      The names of the fields that were set.

    Raises:
      InputError: no such field, or a value of the wrong type or out of range.
    """
    fields = _set_fields(config, overrides)
    check(config)
    for name in ("data_dir", "cache_dir"):  # to be found from other places, too
        if config.dataset[name]:
            config.dataset[name] = str(pathlib.Path(config.dataset[name]).expanduser().absolute())
    return fields


def field_names() -> list[str]:
    """Returns the names of all fields, such as "model.depth"."""
    return list(_RULES)


def names() -> list[str]:
    """Returns the names of the configs that the package brings."""
    return sorted(f.stem for f in _PACKAGED.glob("*.py") if f.stem not in ("__init__", "common"))


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `InputError` unless the config has just the known fields, each with a valid value."""
    fields = flatten(config)
    for field in fields.keys() - _RULES.keys():
        raise unknown("config field", field, _RULES)
    for field, (kind, allowed, test) in _RULES.items():
        if field not in fields:
            raise InputError(f"{field}: missing, expected {allowed}")
        value = fields[field]
        number = isinstance(value, int) and not isinstance(value, bool)
        right_type = isinstance(value, kind) if kind is not int and kind is not float else number
        if kind is float and isinstance(value, float):
            right_type = True
        if not right_type or not test(value):
            raise invalid(field, value, allowed)
    if config.batch_size % config.batch_repetitions:
        allowed = f"a multiple of batch_repetitions={config.batch_repetitions}"
        raise invalid("batch_size", config.batch_size, allowed)


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns the config as a flat dictionary, `{"model.depth": 28, …}`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON text, which `from_json` reads back to an equal config."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Reads and checks a config written by `to_json`.

    Fields that are younger than the text have the default of `configs/common.py`.
    """

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    def complete(value, default):
        if not isinstance(value, dict) or not isinstance(default, dict):
            return value
        return {**default, **{k: complete(v, default.get(k)) for k, v in value.items()}}

    try:
        values = tuples(json.loads(text))
        if "method" in values:
            values = complete(values, common.get_config().to_dict())
        config = ml_collections.ConfigDict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"not a config in JSON: {error}") from None
    check(config)
    return config.lock()


def _find(path: str) -> pathlib.Path:
    file = pathlib.Path(path)
    if file.is_file():
        return file
    if path in names() or (re.fullmatch(r"configs/\w+\.py", path) and file.stem in names()):
        return _PACKAGED / f"{file.stem}.py"
    close = "".join(f"; did you mean {n}?" for n in difflib.get_close_matches(path, names(), 1))
    brings = f"the package brings {', '.join(names())}"
    raise InputError(f"config={path}: no such file{close or f'; {brings}'}")


def _execute(file: pathlib.Path, method: str) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None:
        raise InputError(f"config={file}: expected a Python file with a function get_config")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*[method] if method else [])
    except (Exception, SystemExit) as error:  # whatever somebody's file does
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(f"config={file}: {kind}{reason}") from error
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
            raise unknown("config field", field, known, where="configs/common.py")
    argv, values = ["", *overrides], flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", reason):
            field, value = match.groups()
            raise InputError(f"{field}={value}: expected {_RULES[field][1]}") from None
        raise InputError(reason.replace("flag --config.", "")) from None
    return named
