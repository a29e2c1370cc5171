"""Finding, overriding and checking configs."""

import difflib
import json
import pathlib
import re
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, shortened
from mixmo_jax.files import execute_module, expand, jsonable
from mixmo_jax.schema import (
    allowed_values,
    check,
    check_fields,
    field_names,
    flatten,
    from_json_value,
    unknown_field,
)

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
