"""Checkpoints of the MixMo authors' PyTorch program."""

import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from mixmo_jax.configs import common, tiny_imagenet
from mixmo_jax.errors import InputError, expand, reading
from mixmo_jax.inference.model import Model, TrainedNetwork
from mixmo_jax.models import NETWORKS, MixMoNet, variable_shapes

StateDict = Mapping[str, np.ndarray]

_STATE_DICT = "classifier_state_dict"  # its key in the authors' files


def from_torch(
    source: str | pathlib.Path | StateDict, class_names: Sequence[str] | None = None
) -> Model:
    """Makes a model of a checkpoint. The architecture follows from names and shapes.

    Images are normalized as for CIFAR before a Wide ResNet, as for Tiny ImageNet before a
    PreActResNet. The model computes in float32.

    Args:
      source: A state dict of arrays; or a file, `.npz` of arrays or written by `torch.save`, which
        needs PyTorch. No code in the file is executed.
      class_names: The names of the K classes; by default "0", "1", ….

    Raises:
      InputError: if the file cannot be read, or its names or shapes do not fit.
    """
    state_dict = source if isinstance(source, Mapping) else read_state_dict(expand(source))
    module, variables, fields = convert(state_dict)
    names = tuple(map(str, range(module.num_classes)) if class_names is None else class_names)
    if len(names) != module.num_classes:
        raise InputError(f"class_names: {len(names)}, expected {module.num_classes}")
    wide = module.stem_stride == 1
    data = (common if wide else tiny_imagenet).get_config("vanilla").dataset
    shape = (32, 32, 3) if wide else (64, 64, 3)
    architecture = {**fields, "dtype": "float32"}
    network = TrainedNetwork(
        module, variables, names, shape, data.mean, data.std, architecture=architecture
    )
    return Model([network])


def read_state_dict(file: pathlib.Path) -> StateDict:
    """Reads the state dict of a checkpoint file, see `from_torch`."""
    if not file.is_file():
        raise InputError(f"checkpoint={file}: no such file")
    if file.suffix == ".npz":
        damage = (ValueError, EOFError, zipfile.BadZipFile)
        with reading(f"checkpoint={file}", *damage), np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    try:
        import torch
    except ImportError:
        reason = "reading it needs PyTorch: pip install torch"
        raise InputError(f"checkpoint={file}: {reason}") from None
    damage = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError)
    with reading(f"checkpoint={file}", *damage):
        saved = torch.load(file, map_location="cpu", weights_only=True)
        saved = saved.get(_STATE_DICT, saved)
        return {name: value.numpy() for name, value in saved.items() if torch.is_tensor(value)}


def convert(state_dict: StateDict) -> tuple[MixMoNet, dict, dict[str, object]]:
    """Converts a state dict.

    Returns:
      The Flax module, its variables, and the fields of `config.model` that build it.

    Raises:
      InputError: if names or shapes do not fit; it says which.
    """
    arrays = {
        str(name).removeprefix("module."): np.asarray(array)
        for name, array in state_dict.get(_STATE_DICT, state_dict).items()
        if not str(name).endswith("num_batches_tracked")
    }
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) or not array.ndim or not array.size:
            raise InputError(f"checkpoint: {name} is {array.dtype} {array.shape}, expected floats")
        if not np.isfinite(array).all():
            raise InputError(f"checkpoint: {name} is not finite")
    fields, num_classes = _describe(arrays)
    arguments = {name: value for name, value in fields.items() if name != "name"}
    build = NETWORKS[fields["name"]]
    model = build(**arguments, num_classes=num_classes, dtype=jnp.dtype("float32"))
    like = variable_shapes(model, (32, 32, 3))
    taken = set()
    flat = {
        path: _take(arrays, path, leaf.shape, taken)
        for path, leaf in flax.traverse_util.flatten_dict(like).items()
    }
    unknown = sorted(arrays.keys() - taken)
    if unknown:
        raise InputError(f"checkpoint: has no place for {_some(unknown)}")
    return model, flax.traverse_util.unflatten_dict(flat), fields


def torch_names(path: Sequence[str], num_members: int | None) -> list[str]:
    """Returns the names in a state dict for a path of the variables.

    Stem and heads have a name per member; here the arrays of the members are stacked.

    Args:
      path: The path, such as ("params", "core", "stage1_block1", "bn1", "scale").
      num_members: M; None for a plain network, whose stem and head have other names.
    """
    _, *names, leaf = path
    kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    kind = kind.get(leaf, leaf)
    if names[-1] in ("stem", "heads"):
        name = {"stem": "conv1", "heads": "fc"}[names[-1]]
        if num_members is None:
            return [f"{name}.{kind}"]
        return [f"list_{name}.{i}.{kind}" for i in range(num_members)]
    if names[-1] == "bn":
        return [f"bn1.{kind}"]
    stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", names[1]).groups()
    layer = {"shortcut": "shortcut.0"}.get(names[-1], names[-1])
    return [f"layer{stage}.{int(block) - 1}.{layer}.{kind}"]


def _describe(arrays):
    """Returns the fields of `config.model`, and the number of classes."""
    members = [name for name in arrays if re.fullmatch(r"list_conv1\.\d+\.weight", name)]
    num_members = len(members) or 1
    head = "list_fc.0.bias" if members else "fc.bias"
    first = "layer1.0.conv1.weight"
    for name in (head, first):
        if name not in arrays:
            raise InputError(f"checkpoint: not of a MixMo network: lacks {name}")
    wide = "bn1.weight" in arrays
    blocks = {m[1] for name in arrays if (m := re.match(r"layer1\.(\d+)\.", name))}
    fields = {
        "name": "wide_resnet" if wide else "preact_resnet",
        "depth": 6 * len(blocks) + 4 if wide else 18,
        "width": max(1, len(arrays[first]) // (16 if wide else 64)),
        "num_members": num_members,
    }
    return fields, len(arrays[head])


def _take(arrays, path, shape, taken):
    """Returns the array of a path and shape, in the layout of Flax."""
    stacked = path[-2] in ("stem", "heads")
    listed = "list_conv1.0.weight" in arrays
    names = torch_names(path, shape[0] if stacked and listed else None)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"checkpoint: lacks {_some(missing)}")
    taken.update(names)
    parts = [_layout(arrays[name]) for name in names]
    for name, part in zip(names, parts, strict=True):
        expected = shape[1:] if stacked else shape
        if part.shape != expected:
            found = f"{part.shape} after transposing, expected {expected}"
            raise InputError(f"checkpoint: {name} has the shape {found}")
    return jnp.asarray(np.stack(parts) if stacked else parts[0], jnp.float32)


def _layout(array):
    """Transposes OIHW to HWIO, and (out, in) to (in, out)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _some(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
