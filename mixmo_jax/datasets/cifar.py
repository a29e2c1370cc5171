"""CIFAR-10 and CIFAR-100, from the official archives in their binary or their Python form.

The pickles of the Python form are read without running or trusting anything in them.
"""

import functools
import io
import pathlib
import pickle
import pickletools

import ml_collections
import numpy as np

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.cache import Arrays
from mixmo_jax.datasets.source import Official, Source
from mixmo_jax.errors import InputError, reading, warn

_PIXELS = 3 * 32 * 32
_MAX_TUPLES = 1000  # in a pickle, those of calls aside; an array has two
_OFFICIAL_COUNTS = {"train": 50_000, "test": 10_000}

# For each dataset: the files of a split in the binary form (".bin") and in the Python form, the
# files with the class names, the keys of names and labels, the bytes of labels before an image.
_CIFAR10 = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
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

# What reading a damaged pickle may raise.
_PICKLE_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


def _build(
    path: pathlib.Path, config: ml_collections.ConfigDict, arrays: Arrays, layout: dict
) -> None:
    """Fills in the arrays of both splits."""
    text_names, pickled_names, names_key = layout["names"]
    parts = [*layout["train"], *layout["test"]]
    wanted = {text_names, pickled_names, *parts, *(f"{part}.bin" for part in parts)}
    files = Files(
        path,
        max_bytes=config.max_file_bytes,
        wanted=lambda name: name.rpartition("/")[2] in wanted,
    )
    if any(name.endswith(".bin") for name in files.names):
        folder = files.folder_of(text_names)
        class_names = files.read_lines(folder + text_names)
        read = _read_binary
    else:
        folder = files.folder_of(pickled_names)
        class_names = _names(_unpickle(files, folder + pickled_names).get(names_key), files)
        read = _read_pickle
    for split in ("train", "test"):
        parts = [read(files, folder + name, layout) for name in layout[split]]
        labels = np.concatenate([labels for labels, _ in parts])
        if labels.max() >= len(class_names):
            message = f"a label {labels.max()}, but only {len(class_names)} class names"
            raise InputError(f"{path}: {split}: {message}")
        if len(labels) != _OFFICIAL_COUNTS[split]:
            count = f"{len(labels):,} images, the official archive has {_OFFICIAL_COUNTS[split]:,}"
            warn(f"{path}: {split}: {count}")
        images = arrays.create(f"{split}_images", (len(labels), 32, 32, 3), np.uint8)
        pixels = np.concatenate([pixels for _, pixels in parts])
        images[:] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays.create(f"{split}_labels", labels.shape, np.int32)[:] = labels
    arrays.meta = {"class_names": class_names}


def _read_binary(files, name, layout):
    """Returns labels [N] and pixels [N, 3072] of a file of records: label bytes, then pixels."""
    name, size = f"{name}.bin", layout["label_bytes"] + _PIXELS
    data = np.frombuffer(files.read(name), np.uint8)
    if not data.size or data.size % size:
        message = f"{data.size:,} bytes, expected a multiple of {size}"
        raise InputError(f"{files.path}: {name}: truncated: {message}")
    records = data.reshape(-1, size)
    return records[:, layout["label_bytes"] - 1], records[:, layout["label_bytes"] :]


def _read_pickle(files, name, layout):
    """Returns labels [N] and pixels [N, 3072] of a pickled dictionary."""
    entry = _unpickle(files, name)
    data, labels = entry.get(b"data"), entry.get(layout["labels"])
    if isinstance(data, _PickledArray):
        with reading(f"{files.path}: {name}", TypeError, ValueError, OverflowError):
            data = data.to_numpy()
    pixels = isinstance(data, np.ndarray) and data.shape[1:] == (_PIXELS,)
    if not pixels or not isinstance(labels, list):
        raise InputError(f"{files.path}: {name}: expected data of uint8 [N, {_PIXELS}] and labels")
    valid = bool(labels) and all(isinstance(k, int) and 0 <= k < 2**31 for k in labels)
    if not valid or len(labels) != len(data):
        raise InputError(f"{files.path}: {name}: expected a label >= 0 for each image")
    return np.array(labels), data


def _names(names, files):
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise InputError(f"{files.path}: expected a list of class names")
    return [name.decode(errors="replace") for name in names]


def _unpickle(files: Files, name: str) -> dict:
    what = f"{files.path}: {name}"
    content = files.read(name)
    with reading(what, *_PICKLE_DAMAGE):
        _check_pickle(content)
        value = _DataUnpickler(what, io.BytesIO(content), encoding="bytes").load()
    if not isinstance(value, dict):
        raise InputError(f"{what}: expected a dictionary")
    return value


def _check_pickle(content):
    """Raises `UnpicklingError` for what would fill the memory, or end the process, when loaded.

    Those are many small objects, a table with a large index, and tuples deep inside each other,
    the hashing of which overflows the stack. Only tuples that are not the arguments of a call, or
    that are taken from the table, can get into another one.
    """
    most = len(content) // 256 + 2**16  # an image of 3072 bytes has about six
    table, tuples, last = {}, 0, ""  # the table has the opcodes that made its objects
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        is_put = name == "MEMOIZE" or "PUT" in name
        if is_put:
            table[len(table) if argument is None else argument] = last
        else:
            tuples += "TUPLE" in last and name != "REDUCE"
            last = table.get(argument, "") if "GET" in name else name
        if count > most or tuples > _MAX_TUPLES or (is_put and (argument or 0) > most):
            raise pickle.UnpicklingError(f"too many objects, or nested ones, at {name}")


class _DataUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, strings, numbers and arrays; runs nothing else."""

    def __init__(self, what: str, file: io.BytesIO, **kwargs: object):
        super().__init__(file, **kwargs)
        self._what = what

    def find_class(self, module, name):
        """Returns what a pickle of arrays may ask for; anything else is refused."""
        known = {
            ("numpy", "ndarray"): _PickledArray,
            ("numpy", "dtype"): _PickledDtype,
            ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
            ("_codecs", "encode"): self._encode,
            ("__builtin__", "bytes"): self._no_bytes,
            ("builtins", "bytes"): self._no_bytes,
        }
        core = module.replace("numpy._core", "numpy.core")
        if (core, name) not in known:
            raise self._refused(repr(f"{module}.{name}"))
        return known[core, name]

    def _encode(self, text, encoding):
        """Returns bytes as pickles of protocol 2 hold them."""
        if encoding not in ("latin1", b"latin1"):
            raise self._refused(f"the encoding {encoding!r}")
        return text.encode("latin1")

    def _no_bytes(self):
        """Returns bytes of no length as pickles of protocol 2 hold them."""
        return b""

    def _refused(self, name):
        return InputError(f"{self._what}: refused to load: the pickle asks for {name}")


class _PickledDtype:
    """A pickled dtype, of which only the name counts."""

    name = None

    def __init__(self, name=None, *args):
        self.name = name

    def __setstate__(self, state):
        """Ignores the byte order and the like."""


class _PickledArray:
    """A pickled array. NumPy's own unpickling may crash on a damaged file."""

    _state = ()

    def __init__(self, *args):
        """Ignores the type and shape of an array that is still empty."""

    def __setstate__(self, state):
        self._state = state

    def to_numpy(self) -> np.ndarray:
        """Returns the array, uint8."""
        _, shape, dtype, is_fortran, data = self._state
        if not isinstance(dtype, _PickledDtype) or dtype.name not in ("u1", b"u1"):
            raise ValueError("expected an array of uint8")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


CIFAR10 = Source(
    build=functools.partial(_build, layout=_CIFAR10),
    candidates=(
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
    ),
    markers=("data_batch_1.bin", "data_batch_1"),
    archived=(("data_batch_1.bin", "batches.meta.txt"), ("data_batch_1", "batches.meta")),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    official=(
        Official(170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        Official(170_498_071, "c58f30108f718f92721af3b95e74349a"),
    ),
)
CIFAR100 = Source(
    build=functools.partial(_build, layout=_CIFAR100),
    candidates=(
        "cifar-100-binary.tar.gz",
        "cifar-100-python.tar.gz",
        "cifar-100-binary",
        "cifar-100-python",
    ),
    markers=("train.bin", "fine_label_names.txt", "meta"),
    archived=(("train.bin", "fine_label_names.txt"), ("train", "test", "meta")),
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    official=(
        Official(168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        Official(169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
    ),
)
