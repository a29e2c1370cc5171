"""Trained networks as files to share, in the layout that the Hugging Face Hub's tools take.

A folder holds `model.safetensors`, all variables in float32; `config.json`, what else it takes to
rebuild the model; and `README.md`, the model card. Nothing in it is run.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import flax.traverse_util
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

import mixmo_jax
from mixmo_jax import config as config_lib
from mixmo_jax.configs import common
from mixmo_jax.errors import (
    InputError,
    digest_of,
    expand,
    open_file,
    reading,
    warn,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from mixmo_jax.inference import pretrained_config
from mixmo_jax.inference.model import Model
from mixmo_jax.inference.model_card import model_card
from mixmo_jax.inference.network import TrainedNetwork
from mixmo_jax.inference.pretrained_config import CONFIG, FORMAT_VERSION, LIBRARY
from mixmo_jax.models import MixMoNet, create_model, variable_shapes
from mixmo_jax.runs.workdir import WEIGHTS

CARD = "README.md"

# Building a network takes time with its depth; one that is deeper has more arrays than this.
_DEPTH_OF_ANY_FILE = 100


def save_pretrained(
    model: Model,
    folder: str | pathlib.Path,
    *,
    license: str | None = None,
    address: str | None = None,
) -> None:
    """Writes a model into a folder, from which `load` makes an equal one.

    Paths of this machine are left out of the runs' configs.

    Args:
      model: The model, of networks whose `architecture` is known.
      folder: The folder, which is new or empty, or holds a pretrained network, which is replaced.
      license: The license of the weights, by its identifier on the Hub, such as "apache-2.0".
      address: What the model card gives to `load`; the name of the folder by default.

    Raises:
      InputError: if the folder holds something else or cannot be written, or a network cannot be
        rebuilt from its architecture or is not finite.
    """
    folder = expand(folder)
    arrays = {}
    for i, network in enumerate(model.networks):
        arrays |= _arrays_of(network, i)
    content = safetensors.numpy.save(arrays, metadata={"format": "flax"})
    values = {
        "library_name": LIBRARY,
        "format_version": FORMAT_VERSION,
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
    _make_folder(folder)
    # Files of two models never pass for one: the digest tells.
    if not (folder / CONFIG).exists():  # from the first file on it is known whose folder it is
        write_json(folder / CONFIG, values)
    write_bytes(folder / WEIGHTS, content)  # first: without space, the model before stays whole
    write_json(folder / CONFIG, values)
    write_text(folder / CARD, card)


def is_pretrained(folder: pathlib.Path) -> bool:
    """Returns whether a folder is one of `save_pretrained`, perhaps damaged."""
    return (folder / WEIGHTS).exists() or pretrained_config.is_config(folder / CONFIG)


def load_pretrained(folder: pathlib.Path) -> Model:
    """Loads the model that `save_pretrained` wrote into a folder.

    Nothing larger than the files is allocated, whatever they claim.

    Raises:
      InputError: if a file is missing or damaged, or they do not belong together.
    """
    values = pretrained_config.read(folder / CONFIG)
    file = folder / WEIGHTS
    damage = (safetensors.SafetensorError, ValueError, MemoryError)
    with reading(file, *damage):
        open_file(file).close()  # not a pipe
        with safetensors.safe_open(file, framework="np") as weights:
            networks = _rebuild(values, weights, folder)
    return Model(networks, values["ensemble"], values["temperature"], values["results"])


def _make_folder(folder: pathlib.Path) -> None:
    """Makes the folder, if need be; checks that it holds nothing but a pretrained network."""
    with writing(f"folder={folder}", ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        others = [f for f in folder.iterdir() if not f.name.startswith(".")]
    if others and not pretrained_config.is_config(folder / CONFIG):
        raise InputError(f"folder={folder}: expected an empty folder or one of save_pretrained")
    if others:
        warn(f"folder={folder}: the pretrained network in it is replaced")


def _describe(network: TrainedNetwork) -> dict[str, object]:
    """What rebuilds a network, beside its variables."""
    config = None
    if network.config is not None:
        shared = ml_collections.ConfigDict(network.config.to_dict())
        default = common.get_config()
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


def _arrays_of(network: TrainedNetwork, i: int) -> dict[str, np.ndarray]:
    """The variables of a network under their names, if they can be loaded again."""
    if network.architecture is None:
        raise InputError(f"networks: network {i} has no architecture to be rebuilt from")
    fields = {**network.architecture, "num_members": network.module.num_members}
    num_classes = len(network.class_names)
    if create_model(ml_collections.ConfigDict(fields), num_classes) != network.module:
        raise InputError(f"networks: network {i} is not what its architecture builds")
    arrays = {
        _name(i, path): np.array(value, order="C")  # safetensors takes memory as it lies
        for path, value in flax.traverse_util.flatten_dict(network.variables).items()
    }
    shapes = _shapes(network.module, network.image_shape)
    expected = {_name(i, path): shape for path, shape in shapes.items()}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise InputError(f"networks: network {i} has other variables than its architecture")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise InputError(f"networks: {name} is {array.dtype}, expected finite float32")
    return arrays


def _rebuild(values: Mapping[str, object], weights, folder: pathlib.Path) -> list[TrainedNetwork]:
    """The networks, after checking all there is to check before their arrays are read."""
    names = set(weights.keys())
    for description in values["networks"]:
        most = max(_DEPTH_OF_ANY_FILE, len(names))
        if description["model"]["depth"] > most:
            reason = f"model.depth={description['model']['depth']}: expected at most {most}"
            raise InputError(f"{folder / CONFIG}: {reason} for {len(names)} arrays in {WEIGHTS}")
    models, shapes = [], []
    for i, description in enumerate(values["networks"]):
        with pretrained_config.naming(folder / CONFIG):
            architecture = ml_collections.ConfigDict(description["model"])
            models.append(create_model(architecture, len(values["class_names"])))
        shapes.append(_shapes(models[i], values["image_shape"]))
        for path, shape in shapes[i].items():
            _check_shape(weights, names, _name(i, path), shape)
            names.remove(_name(i, path))
    if names:
        raise ValueError(f"has no place for {min(names)}")
    if digest_of(folder / WEIGHTS) != values["weights_sha256"]:
        raise ValueError(f"not the file that {CONFIG} was written with: its SHA-256 differs")
    return [
        TrainedNetwork(
            module=model,
            variables=_read_variables(weights, i, paths),
            class_names=values["class_names"],
            image_shape=values["image_shape"],
            mean=tuple(description["mean"]),
            std=tuple(description["std"]),
            batch_size=description["batch_size"],
            config=description["config"],
            epoch=description["epoch"],
            architecture=description["model"],
        )
        for i, (model, paths, description) in enumerate(
            zip(models, shapes, values["networks"], strict=True)
        )
    ]


def _name(i: int, path: Sequence[str]) -> str:
    """The name of a variable of network i, such as "networks.0.params.stem.kernel"."""
    return ".".join(["networks", str(i), *path])


def _shapes(
    model: MixMoNet, image_shape: tuple[int, int, int]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of a network's variables by their paths; none of them is computed."""
    like = variable_shapes(model, image_shape)
    return {path: x.shape for path, x in flax.traverse_util.flatten_dict(like).items()}


def _check_shape(weights, names: set[str], name: str, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` unless the file has an array of this name and shape, in float32."""
    if name not in names:
        raise ValueError(f"lacks {name}")
    header = weights.get_slice(name)
    dtype, found = header.get_dtype(), tuple(header.get_shape())
    if (dtype, found) != ("F32", shape):
        raise ValueError(f"{name} is {dtype} {found}, expected F32 {shape}")


def _read_variables(weights, i: int, paths: Iterable[tuple[str, ...]]) -> dict:
    """Reads the variables of network i; raises `ValueError` if a number is not finite."""
    flat = {}
    for path in paths:
        array = weights.get_tensor(_name(i, path))
        if not np.isfinite(array).all():
            raise ValueError(f"{_name(i, path)} is not finite")
        flat[path] = jnp.asarray(array)
    return flax.traverse_util.unflatten_dict(flat)
