"""CIFAR-10 and CIFAR-100, from the official archives in their binary or their Python form.

An unpacked archive does as well. The pickles of the Python form run no code, see `_Unpickler`.
"""

import codecs
import io
import pickle

import ml_collections
import numpy as np

from mixmo_jax.datasets.dataset import Split
from mixmo_jax.datasets.files import DAMAGED, Files, create_split, load_cached, locate
from mixmo_jax.errors import reading, warn

# Exceptions of a damaged or foreign pickle, or of records cut off.
_DAMAGED = (*DAMAGED, pickle.UnpicklingError, AttributeError)
_NUM_IMAGES = {"train": 50_000, "test": 10_000}
_CIFAR10 = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
    # The file of the class names in the binary form and in the Python form, and its key there.
    "names": ("batches.meta.txt", "batches.meta", b"label_names"),
    "labels": b"labels",
    "label_bytes": 1,
}
_CIFAR100 = {
    "train": ["train"],
    "test": ["test"],
    "names": ("fine_label_names.txt", "meta", b"fine_label_names"),
    "labels": b"fine_labels",
    "label_bytes": 2,  # coarse, fine
}


def load_cifar10(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the splits and class names of CIFAR-10; a loader of `DATASETS`."""
    folders = ("cifar-10-batches-bin", "cifar-10-batches-py")
    sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    return _load(config, "cifar-10", folders, sha256, _CIFAR10)


def load_cifar100(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the splits and the fine class names of CIFAR-100; a loader of `DATASETS`."""
    folders = ("cifar-100-binary", "cifar-100-python")
    sha256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
    return _load(config, "cifar-100", folders, sha256, _CIFAR100)


def _load(config, name, folders, sha256, layout):
    binary, python = f"{name}-binary.tar.gz", f"{name}-python.tar.gz"
    path = locate(
        config.data_dir,
        names=(binary, python, *folders),
        markers=layout["names"][:2],
        url=f"https://www.cs.toronto.edu/~kriz/{binary}",
        known_hash=f"sha256:{sha256}",
    )
    return load_cached(path, config, lambda path, cache: _decode(path, cache, layout))


def _decode(path, cache, layout):
    """Decodes both splits into the cache; returns the class names."""
    files = Files(path)
    names_file, pickled_names_file, names_key = layout["names"]
    is_binary = any(name.endswith(".bin") for name in files.names)
    folder = files.folder_of(names_file if is_binary else pickled_names_file)
    if is_binary:
        class_names = files.read_lines(folder + names_file)
    else:
        with reading(f"{path}: {pickled_names_file}", *_DAMAGED):
            pickled_names = _unpickle(files.read(folder + pickled_names_file))[names_key]
            class_names = [name.decode() for name in pickled_names]
    for split, official in _NUM_IMAGES.items():
        parts = []
        for name in layout[split]:
            name = f"{folder}{name}.bin" if is_binary else folder + name
            with reading(f"{path}: {name}", *_DAMAGED):
                read = _read_records if is_binary else _read_pickle
                parts.append(read(files.read(name), layout))
        labels, pixels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if len(labels) != official:
            warn(f"{path}: {split}: {len(labels):,} images, the official archive has {official:,}")
        images = create_split(cache, split, labels, (32, 32, 3))
        images[:] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return class_names


def _read_records(content, layout):
    """Returns labels [N] and pixels [N, 3072] of records: one or two labels, then the pixels."""
    records = np.frombuffer(content, np.uint8).reshape(-1, layout["label_bytes"] + 3072)
    return records[:, layout["label_bytes"] - 1], records[:, layout["label_bytes"] :]


def _read_pickle(content, layout):
    """Returns labels [N] and pixels [N, 3072] of a pickled dictionary."""
    entry = _unpickle(content)
    labels = np.array(entry[layout["labels"]], np.int64)
    return labels, entry[b"data"].reshape(len(labels), 3072)


def _unpickle(content):
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    """Loads dictionaries, lists, strings, numbers and arrays. Nothing else can be called."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> object:
        """Returns a class or function that a pickled array needs."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module}.{name}")
        return self._ALLOWED[module, name]
