"""CIFAR-10 and CIFAR-100 in the forms in which they are published."""

import codecs
import io
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from hostile_files import Call

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets import cifar
from mixmo_jax.datasets.archives import Files
from mixmo_jax.errors import InputError

KINDS = ("cifar10", "cifar100")
FORMS = ("binary", "python", "python2")
NAMES = ["apple", "aquarium fish", "bear", "beaver", "bed"]
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}
PARTS = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


class Python2Pickler(pickle._Pickler):
    """Pickles as Python 2 did: text and bytes both as its strings of bytes."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        data = value.encode() if isinstance(value, str) else value
        self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def pickled(value: object, form: str = "python") -> bytes:
    if form == "python":
        return pickle.dumps(value, 2)
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(value)
    return out.getvalue().replace(b"numpy._core.", b"numpy.core.")


def make_split(kind: str, split: str) -> list[tuple[np.ndarray, list[int], list[int]]]:
    """Images [N, 32, 32, 3], fine and coarse labels of each file of a split; always the same."""
    rng = np.random.default_rng([KINDS.index(kind), len(split)])
    return [
        (
            rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8),
            [(i + 3) % len(NAMES) for i in range(7)],
            rng.integers(100, 200, 7).tolist(),
        )
        for _ in PARTS[kind][split]
    ]


def members(kind: str, form: str) -> dict[str, bytes]:
    """The files of an archive."""
    folder = FOLDERS[kind, form.removesuffix("2")]
    lines = "".join(f"{name}\n" for name in NAMES).encode()
    if form == "binary":
        name = "batches.meta.txt" if kind == "cifar10" else "fine_label_names.txt"
        files = {name: lines + b"\n", "readme.html": b"<html>"}
    else:
        name = "batches.meta" if kind == "cifar10" else "meta"
        key = b"label_names" if kind == "cifar10" else b"fine_label_names"
        meta = {key: [n.encode() for n in NAMES], b"num_vis": 3072}
        files = {name: pickled(meta, form), "readme.html": b"<html>"}
    for split, parts in PARTS[kind].items():
        for part, (images, fine, coarse) in zip(parts, make_split(kind, split), strict=True):
            pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            columns = [fine] if kind == "cifar10" else [coarse, fine]
            if form == "binary":
                records = np.column_stack([*columns, pixels]).astype(np.uint8)
                files[f"{part}.bin"] = records.tobytes()
                continue
            entry = {b"batch_label": b"batch 1 of 1", b"data": pixels, b"filenames": [b"a.png"] * 7}
            if kind == "cifar10":
                entry[b"labels"] = fine
            else:
                entry |= {b"coarse_labels": coarse, b"fine_labels": fine}
            files[part] = pickled(entry, form)
    return {f"{folder}/{name}": content for name, content in files.items()}


def write_folder(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return (root / name).parent


def write_archive(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """Under the name that the official archive has."""
    folder = next(iter(files)).partition("/")[0]
    name = folder.replace("batches-bin", "binary").replace("batches-py", "python")
    path = root / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def load(kind: str, data_dir: pathlib.Path) -> datasets.Dataset:
    flag = f"--config.dataset.data_dir={data_dir}"
    return datasets.load_dataset(config_lib.parse(kind, [flag])[1].dataset)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, file):
        raise InputError("no network")

    monkeypatch.setattr("mixmo_jax.datasets.source.download", refuse)


def refused(kind: str, path: pathlib.Path) -> str:
    """The message of the error, one line that names the path; nothing is kept."""
    with pytest.raises(InputError) as caught:
        load(kind, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    caches = (path if path.is_dir() else path.parent) / ".mixmo_jax"
    assert not caches.exists() or list(caches.iterdir()) == []
    return message


def check(kind: str, data: datasets.Dataset) -> None:
    """Compares a dataset with the images that were written, bit by bit."""
    assert data.class_names == tuple(NAMES)
    for name, split in (("train", data.train), ("test", data.test)):
        parts = make_split(kind, name)
        assert split.images.dtype == np.uint8
        np.testing.assert_array_equal(split.images, np.concatenate([p[0] for p in parts]))
        np.testing.assert_array_equal(split.labels, np.concatenate([p[1] for p in parts]))


@pytest.mark.parametrize("write", [write_folder, write_archive], ids=["folder", "archive"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_images_labels_and_names(tmp_path, kind, form, write):
    """Likewise where it is looked for: the folder it lies in, or the thing itself."""
    path = write(tmp_path, members(kind, form))
    check(kind, load(kind, tmp_path))
    check(kind, load(kind, path))


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_for_manual_downloads(tmp_path, kind):
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    write_archive(tmp_path / "downloads" / "manual", members(kind, "python"))
    check(kind, load(kind, tmp_path))


@pytest.mark.parametrize("form", FORMS)
def test_other_counts_than_the_official_are_mentioned(tmp_path, capfd, form):
    path = write_archive(tmp_path, members("cifar10", form))
    load("cifar10", tmp_path)
    assert capfd.readouterr().err.splitlines() == [
        f"warning: {path}: train: 35 images, the official archive has 50,000",
        f"warning: {path}: test: 7 images, the official archive has 10,000",
    ]


def calls(marker: pathlib.Path) -> dict[str, object]:
    """What would make a file, were it called."""
    return {
        "system": Call(os.system, f"touch {marker}"),
        "mkdir": Call(os.mkdir, str(marker)),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "memmap": Call(np.memmap, str(marker), "u1", "w+", 0, (1,)),
        "save": Call(np.save, str(marker), 0),
        "import": Call(__import__, "antigravity"),
        "exit": Call(exit),
    }


@pytest.mark.parametrize("place", ["data", "labels", "extra", "top"])
@pytest.mark.parametrize("call", calls(pathlib.Path()))
def test_a_pickle_that_calls_anything_is_refused(tmp_path, call, place):
    marker = tmp_path / "marker"
    files, part = members("cifar100", "python"), "cifar-100-python/train"
    entry = pickle.loads(files[part], encoding="bytes")
    key = {"data": b"data", "labels": b"fine_labels", "extra": b"extra"}.get(place)
    bad = calls(marker)[call]
    files[part] = pickle.dumps({**entry, key: bad} if key else bad, 2)
    path = write_archive(tmp_path, files)
    assert "refused to load: the pickle asks for" in refused("cifar100", path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [path.name]


def test_a_pickle_of_another_encoding_is_refused(tmp_path):
    files = members("cifar100", "python")
    files["cifar-100-python/meta"] = pickled({b"x": Call(codecs.encode, "x", "rot13")})
    message = refused("cifar100", write_archive(tmp_path, files))
    assert message.endswith("refused to load: the pickle asks for the encoding 'rot13'")


def test_a_refusal_is_one_line(tmp_path):
    files = members("cifar100", "python")
    module = b"os\nerror: x"
    files["cifar-100-python/meta"] = (
        b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x06system\x93."
    )
    assert "refused to load" in refused("cifar100", write_archive(tmp_path, files))


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_cut_off(tmp_path, form):
    path = write_archive(tmp_path, members("cifar100", form))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert ": damaged: " in refused("cifar100", path)


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_with_a_changed_byte(tmp_path, form):
    path = write_archive(tmp_path, members("cifar100", form))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # amid the pixels
    path.write_bytes(content)
    assert ": damaged: " in refused("cifar100", path)


@pytest.mark.parametrize(
    ("kind", "name", "size"),
    [("cifar10", "data_batch_3.bin", 3073), ("cifar100", "test.bin", 3074)],
)
@pytest.mark.parametrize("length", [0, 1, 3074 * 3 - 1])
def test_a_binary_file_cut_off(tmp_path, kind, name, size, length):
    files = members(kind, "binary")
    folder = write_folder(tmp_path, files)
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    message = refused(kind, folder)
    assert f"{name}: truncated: {length:,} bytes, expected a multiple of {size}" in message


@pytest.mark.parametrize("name", ["train", "meta"])
@pytest.mark.parametrize("length", [0, 1, 30])
def test_a_pickle_cut_off(tmp_path, name, length):
    folder = write_folder(tmp_path, members("cifar100", "python"))
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    assert f"{name}: damaged" in refused("cifar100", folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_label_without_a_name(tmp_path, monkeypatch, kind, form):
    names = NAMES[:4]
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "NAMES", names)
        fewer = members(kind, form)
    files = members(kind, form)
    for name in files:
        if "meta" in name or "names" in name:
            files[name] = fewer[name]
    message = refused(kind, write_archive(tmp_path, files))
    assert "train: a label 4, but only 4 class names" in message


def test_a_class_without_images(tmp_path):
    files = members("cifar100", "binary")
    files["cifar-100-binary/fine_label_names.txt"] += b"bee\n"
    write_archive(tmp_path, files)
    with pytest.raises(InputError, match="cifar100: train: no image of 1 of the classes"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize("write", [write_folder, write_archive], ids=["folder", "archive"])
@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [
        ("cifar10", "binary", "data_batch_4.bin"),
        ("cifar10", "binary", "batches.meta.txt"),
        ("cifar10", "python", "test_batch"),
        ("cifar100", "binary", "test.bin"),
        ("cifar100", "binary", "fine_label_names.txt"),
        ("cifar100", "python", "train"),
    ],
)
def test_a_missing_file_is_named(tmp_path, kind, form, name, write):
    files = members(kind, form)
    del files[f"{FOLDERS[kind, form]}/{name}"]
    message = refused(kind, write(tmp_path, files))
    assert "lacks the file" in message and message.endswith(name)


def test_an_archive_of_something_else(tmp_path):
    path = write_archive(tmp_path, {"cifar-100-binary/thesis.tex": b"x"})
    assert "lacks the file" in refused("cifar100", path)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {},
        {b"data": PIXELS},
        {b"data": PIXELS, b"fine_labels": [0]},
        {b"data": PIXELS, b"fine_labels": [0, -1]},
        {b"data": PIXELS, b"fine_labels": [0, 1.5]},
        {b"data": PIXELS, b"fine_labels": [0, None]},
        {b"data": PIXELS, b"fine_labels": [0, 2**70]},
        {b"data": PIXELS[:, 1:], b"fine_labels": [0, 1]},
        {b"data": PIXELS.astype(np.float32), b"fine_labels": [0, 1]},
        {b"data": PIXELS.tolist(), b"fine_labels": [0, 1]},
    ],
)
def test_a_pickle_of_something_else(tmp_path, entry):
    files = members("cifar100", "python")
    files["cifar-100-python/train"] = pickled(entry)
    assert "train" in refused("cifar100", write_archive(tmp_path, files))


@pytest.mark.parametrize("form", ["python", "python2"])
def test_a_pickle_without_images(tmp_path, form):
    files = members("cifar100", form)
    entry = {b"data": PIXELS[:0], b"fine_labels": []}
    files["cifar-100-python/train"] = pickled(entry, form)
    assert "train" in refused("cifar100", write_archive(tmp_path, files))


@pytest.mark.parametrize(
    ("module", "name"),
    [("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")],
)
@pytest.mark.parametrize("state", ["", "None", "(1, 2)", "(1, (3072,), None, 0, b'')"])
def test_a_pickled_array_that_is_damaged(tmp_path, module, name, state):
    """NumPy itself would crash on some."""
    files = members("cifar100", "python")
    pixels = f"c{module}\n{name}\n)R".encode()
    if state:
        pixels += pickle.dumps(eval(state), 0)[:-1] + b"b"
    files["cifar-100-python/train"] = (
        b"("
        + pickle.dumps(b"data", 3)[2:-1]
        + pixels
        + pickle.dumps(b"fine_labels", 3)[2:-1]
        + b"(lK\x00ad."
    )
    assert "train: " in refused("cifar100", write_archive(tmp_path, files))


@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_in_both_orders(tmp_path, order):
    files = members("cifar100", "python")
    entry = {b"data": make_split("cifar100", "train")[0][0].transpose(0, 3, 1, 2).reshape(7, -1)}
    entry[b"data"] = np.asarray(entry[b"data"], order=order)
    entry[b"fine_labels"] = make_split("cifar100", "train")[0][1]
    files["cifar-100-python/train"] = pickled(entry)
    write_archive(tmp_path, files)
    check("cifar100", load("cifar100", tmp_path))


def test_random_damage_to_a_pickle_is_named(tmp_path):
    """Whatever it leads to; what can be read all the same is not pixels of another shape."""
    rng = np.random.default_rng(0)
    content = pickled({b"data": PIXELS[:, :64], b"fine_labels": [0, 1]}, "python2")
    (tmp_path / "train").write_bytes(content)
    files = Files(tmp_path)
    for _ in range(500):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=2):
            damaged[place] = rng.integers(256)
        (tmp_path / "train").write_bytes(damaged)
        with pytest.raises(InputError, match="train: "):
            cifar._read_pickle(files, "train", cifar._CIFAR100)


@pytest.mark.parametrize("names", [None, "apple", [1, 2, 3, 4, 5], {}])
def test_class_names_of_something_else(tmp_path, names):
    files = members("cifar100", "python")
    files["cifar-100-python/meta"] = pickled({b"fine_label_names": names})
    assert "expected a list of class names" in refused("cifar100", write_archive(tmp_path, files))


def test_images_are_upright_and_in_color(tmp_path):
    """Planes of red, green and blue follow each other, each row by row."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0, :16] = 200  # red above
    image[2, :, 16:] = 100  # blue on the right
    files = members("cifar100", "binary")
    records = np.frombuffer(files["cifar-100-binary/train.bin"], np.uint8).reshape(7, -1).copy()
    records[0, 2:] = image.ravel()
    files["cifar-100-binary/train.bin"] = records.tobytes()
    write_archive(tmp_path, files)
    first = load("cifar100", tmp_path).train.images[0]
    assert first[0, 0].tolist() == [200, 0, 0] and first[0, 31].tolist() == [200, 0, 100]
    assert first[31, 0].tolist() == [0, 0, 0] and first[31, 31].tolist() == [0, 0, 100]
