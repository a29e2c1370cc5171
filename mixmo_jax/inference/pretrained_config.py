"""The `config.json` of a pretrained network: what it may hold."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

from mixmo_jax import config as config_lib
from mixmo_jax.config import check_fields, flatten
from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, format_value, is_count, is_number, read_json, reading
from mixmo_jax.evaluation.ensemble import ENSEMBLES
from mixmo_jax.inference.results import read_results
from mixmo_jax.runs.workdir import DATASET_RULES

CONFIG = "config.json"
LIBRARY, FORMAT_VERSION = "mixmo_jax", 1


def is_config(file: pathlib.Path) -> bool:
    """Returns whether a file is the config of a pretrained network, perhaps with damaged fields."""
    with contextlib.suppress(InputError):
        return read_json(file).get("library_name") == LIBRARY
    return False


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
    """Names the file before what is wrong with the fields in it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def read(file: pathlib.Path) -> dict[str, object]:
    """Reads and checks a config.

    Returns:
      `ensemble`, `temperature`, `image_shape`, `class_names`, `results`, `weights_sha256` and
      `networks`: for each one `model`, the fields of `config.model`, `mean`, `std`, `batch_size`,
      `epoch`, and `config`, that of its run or None.

    Raises:
      InputError: if the file is missing or damaged, or of a later version.
    """
    values = read_json(file)
    with reading(file, ValueError):
        if values.get("library_name") != LIBRARY:
            raise ValueError(f"not a pretrained network of {LIBRARY}")
        if values.get("format_version") != FORMAT_VERSION:
            found, writer = values.get("format_version"), values.get("mixmo_jax_version")
            reason = (
                f"format_version={format_value(found)}, written by {LIBRARY} {format_value(writer)}"
            )
            raise InputError(f"{file}: {reason}: expected {FORMAT_VERSION}")
        _check(values, _RULES)
        for network in values["networks"]:
            _check(network, _NETWORK_RULES)
            channels = values["image_shape"][2]
            if not len(network["mean"]) == len(network["std"]) == channels:
                raise ValueError(f"expected {channels} means and standard deviations")
        results = values["results"]
        results = None if results is None else read_results(results)
    with naming(file):
        networks = [_read_network(network) for network in values["networks"]]
    lists = {name: tuple(values[name]) for name in ("image_shape", "class_names")}
    return {**values, **lists, "networks": networks, "results": results}


def _read_network(network: Mapping[str, object]) -> dict[str, object]:
    """The entry of one network with all fields of `config.model`, checked, and its config."""
    fields = flatten(common.get_config())  # some may be newer than the file
    check_fields(fields | {f"model.{name}": value for name, value in network["model"].items()})
    model = {**common.get_config().model.to_dict(), **network["model"]}
    config = network["config"]
    if config is not None:
        config = config_lib.from_json(json.dumps(config))
    return {**network, "model": model, "config": config}


def _check(values: Mapping[str, object], rules: Mapping[str, Callable[[object], bool]]) -> None:
    """Raises `ValueError` for the first value that is missing or not allowed."""
    for name, is_valid in rules.items():
        if name not in values or not is_valid(values[name]):
            raise ValueError(f"{name}={format_value(values.get(name))}")


def _is_none_or(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_valid(value)


def _is_dictionary(value: object) -> bool:
    return isinstance(value, dict)


_RULES = {
    "ensemble": lambda value: value in ENSEMBLES,
    "temperature": _is_none_or(lambda value: is_number(value) and value > 0),
    "image_shape": DATASET_RULES["image_shape"],
    "class_names": DATASET_RULES["class_names"],
    "networks": lambda networks: (
        isinstance(networks, list) and networks and all(map(_is_dictionary, networks))
    ),
    "results": _is_none_or(_is_dictionary),
    "weights_sha256": lambda digest: isinstance(digest, str),
}
_NETWORK_RULES = {
    "model": _is_dictionary,
    "mean": DATASET_RULES["mean"],
    "std": DATASET_RULES["std"],
    "batch_size": is_count,
    "epoch": _is_none_or(lambda epoch: epoch == 0 or is_count(epoch)),
    "config": _is_none_or(_is_dictionary),
}
