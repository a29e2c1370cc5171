"""The reference program's numbers: weights drawn by name, in torch's layout, and what they give."""

import json
import pathlib
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def draw(net: str, key: str, shape: list[int]) -> np.ndarray:
    """The array that the recipe of the golden numbers gives to a name."""
    rng = np.random.default_rng(zlib.crc32(f"{net}/{key}".encode()))
    if len(shape) == 4:
        scale = np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        scale = np.sqrt(1 / shape[1])
    elif ".bn" in key or key.startswith("bn"):
        if key.endswith("weight"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        scale = 0.2
    else:
        scale = 0.3
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def draw_images(name: str, count: int, size: int, members: int = 1) -> np.ndarray:
    """[members, count, size, size, 3] float32."""
    rng = np.random.default_rng(zlib.crc32(f"{name}/images/{members}".encode()))
    images = rng.standard_normal((count, 3 * members, size, size)).astype(np.float32)
    return images.reshape(count, members, 3, size, size).transpose(1, 0, 3, 4, 2)


class Reference:
    """One golden network: its state dict and the numbers measured on it."""

    def __init__(self, net: str):
        self.net = net
        self.numbers = dict(np.load(GOLDENS / f"{net}.npz"))
        self.state_dict = {}
        for key, shape in json.loads(str(self.numbers["shapes"])):
            if key.endswith("num_batches_tracked"):
                continue
            stored = self.numbers.get(f"sd/{key}")
            self.state_dict[key] = draw(net, key, shape) if stored is None else stored

    def variables(self, template: dict) -> dict:
        """The state dict in the shape of a model's variables."""
        return _map_with_names(template, lambda path: self.array(self.state_dict, path))

    def array(self, arrays: dict[str, np.ndarray], path: tuple[str, ...]) -> np.ndarray:
        """The array that belongs at a path of the variables, in this library's layout."""
        _, *names, leaf = path
        if names[-1] in ("stem", "heads"):
            name = {"stem": "conv1", "heads": "fc"}[names[-1]]
            kind = "weight" if leaf == "kernel" else "bias"
            members = [key for key in arrays if key.startswith(f"list_{name}.") and kind in key]
            keys = sorted(members) or [f"{name}.{kind}"]
            return np.stack([_layout(arrays[key]) for key in keys])
        kind = {
            "kernel": "weight",
            "scale": "weight",
            "bias": "bias",
            "mean": "running_mean",
            "var": "running_var",
        }[leaf]
        if names[-1] == "bn":
            return arrays[f"bn1.{kind}"]
        stage, block = names[1].split("_")
        layer = {"shortcut": "shortcut.0"}.get(names[-1], names[-1])
        prefix = f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}"
        return _layout(arrays[f"{prefix}.{layer}.{kind}"])


def _layout(array):
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def _map_with_names(tree, function, path=()):
    if isinstance(tree, dict):
        return {k: _map_with_names(v, function, (*path, k)) for k, v in tree.items()}
    return function(path)
