"""CIFAR-10 and CIFAR-100 in the forms in which they are published."""

import io
import os
import pathlib
import pickle
import re

import numpy as np
import pytest
from files_test import write
from setups import dataset_config

from mixmo_jax import datasets
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


def make_files(kind: str, form: str) -> dict[str, bytes]:
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
            if form == "binary":
                columns = [fine] if kind == "cifar10" else [coarse, fine]
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
    return write(root, files) / next(iter(files)).partition("/")[0]


def write_archive(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """Under the name of the official archive."""
    folder = next(iter(files)).partition("/")[0]
    name = folder.replace("batches-bin", "binary").replace("batches-py", "python")
    return write(root / f"{name}.tar.gz", files, "tar.gz")


def load(kind: str, data_dir: pathlib.Path) -> datasets.Dataset:
    return datasets.load_dataset(dataset_config(kind, data_dir=data_dir))


def refused(kind: str, path: pathlib.Path, expected: str) -> None:
    with pytest.raises(InputError, match=rf"^{path}: .*{expected}") as error:
        load(kind, path)
    assert "\n" not in str(error.value)


def check(kind: str, data: datasets.Dataset) -> None:
    """Compares a dataset with the images that were written, bit by bit."""
    assert data.class_names == tuple(NAMES)
    for name, split in (("train", data.train), ("test", data.test)):
        parts = make_split(kind, name)
        assert split.images.dtype == np.uint8
        np.testing.assert_array_equal(split.images, np.concatenate([p[0] for p in parts]))
        np.testing.assert_array_equal(split.labels, np.concatenate([p[1] for p in parts]))


@pytest.mark.parametrize("write_form", [write_folder, write_archive], ids=["folder", "archive"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_images_labels_and_names(tmp_path, kind, form, write_form):
    """`data_dir` is the folder around it, or the folder or archive itself."""
    path = write_form(tmp_path, make_files(kind, form))
    check(kind, load(kind, tmp_path))
    check(kind, load(kind, path))


def test_images_are_upright_and_in_color(tmp_path):
    """Planes of red, green and blue follow each other, each row by row."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0, :16] = 200  # red above
    image[2, :, 16:] = 100  # blue on the right
    files = make_files("cifar100", "binary")
    records = np.frombuffer(files["cifar-100-binary/train.bin"], np.uint8).reshape(7, -1).copy()
    records[0, 2:] = image.ravel()
    files["cifar-100-binary/train.bin"] = records.tobytes()
    write_archive(tmp_path, files)
    first = load("cifar100", tmp_path).train.images[0]
    assert first[0, 0].tolist() == [200, 0, 0] and first[0, 31].tolist() == [200, 0, 100]
    assert first[31, 0].tolist() == [0, 0, 0] and first[31, 31].tolist() == [0, 0, 100]


def test_other_counts_than_the_official_are_warned_of(tmp_path, capfd):
    load("cifar10", write_archive(tmp_path, make_files("cifar10", "binary")))
    warnings = re.findall(r"(\w+): (\d+) images, the official", capfd.readouterr().err)
    assert warnings == [("train", "35"), ("test", "7")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [0, 1, 30, 3074 * 3 - 1])
def test_file_cut_off_is_one_line(tmp_path, form, length):
    folder = write_folder(tmp_path, make_files("cifar100", form))
    name = "train.bin" if form == "binary" else "train"
    os.truncate(folder / name, length)
    if form == "binary" and length == 0:
        with pytest.raises(InputError, match="cifar100: train: 0 images"):
            load("cifar100", folder)
    else:
        refused("cifar100", folder, f"{name}: damaged: ")


@pytest.mark.parametrize("form", FORMS)
def test_missing_file_is_named(tmp_path, form):
    files = make_files("cifar10", form)
    name = "data_batch_4.bin" if form == "binary" else "data_batch_4"
    del files[f"{FOLDERS['cifar10', form.removesuffix('2')]}/{name}"]
    refused("cifar10", write_archive(tmp_path, files), f"lacks the file .*{name}$")


def test_archive_of_something_else_is_one_line(tmp_path):
    path = write_archive(tmp_path, {"cifar-100-binary/thesis.tex": b"x"})
    refused("cifar100", path, "lacks the file")


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {},
        {b"data": PIXELS},
        {b"data": PIXELS, b"fine_labels": [0]},
        {b"data": PIXELS, b"fine_labels": [0, None]},
        {b"data": PIXELS, b"fine_labels": [0, 2**70]},
        {b"data": PIXELS[:, 1:], b"fine_labels": [0, 1]},
        {b"data": PIXELS.tolist(), b"fine_labels": [0, 1]},
    ],
)
def test_pickle_of_something_else_is_one_line(tmp_path, entry):
    files = make_files("cifar100", "python")
    files["cifar-100-python/train"] = pickled(entry)
    refused("cifar100", write_archive(tmp_path, files), "train: damaged: ")


def test_label_without_a_name_is_one_line(tmp_path):
    files = make_files("cifar100", "binary")
    files["cifar-100-binary/fine_label_names.txt"] = b"apple\nbear\n"
    write_archive(tmp_path, files)
    with pytest.raises(InputError, match=r"cifar100: \w+: a label 4, but 2 classes"):
        load("cifar100", tmp_path)
