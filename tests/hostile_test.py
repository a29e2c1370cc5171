"""Nothing in a data file is executed: each file would write a marker, which must not appear."""

import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from cifar_test import make_files, write_archive
from setups import dataset_config

import mixmo_jax
from mixmo_jax import datasets
from mixmo_jax.datasets.files import read_images
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation.corruptions import score_corruptions


@pytest.fixture
def marker(tmp_path):
    marker = tmp_path / "marker"
    yield marker
    assert not marker.exists()


class Call:
    """Pickled so that loading it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(marker: pathlib.Path) -> dict[str, Call]:
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "memmap": Call(np.memmap, str(marker), "u1", "w+", 0, (1,)),
        "getattr": Call(getattr, os, "mkdir"),
    }


@pytest.mark.parametrize("place", [b"data", b"fine_labels", b"extra"])
@pytest.mark.parametrize("call", calls(pathlib.Path()))
def test_pickle_of_cifar_calls_nothing(tmp_path, marker, call, place):
    files, part = make_files("cifar100", "python"), "cifar-100-python/train"
    entry = pickle.loads(files[part], encoding="bytes")
    if call == "getattr":
        files[part] = b"\x80\x02}U\x01xcbuiltins\ngetattr\ncos\nsystem\nU\x01y\x86Rs."
    else:
        files[part] = pickle.dumps({**entry, place: calls(marker)[call]}, 2)
    config = dataset_config("cifar100", data_dir=write_archive(tmp_path, files))
    with pytest.raises(InputError, match=r"train: damaged: .*refused: .* asks for") as error:
        datasets.load_dataset(config)
    assert "\n" not in str(error.value)


def objects(marker: pathlib.Path) -> bytes:
    """A file `.npy` of Python objects; loading them would write the marker."""
    out = io.BytesIO()
    np.save(out, np.array([calls(marker)["os.system"]], object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", ["labels.npy", "noise.npy"])
def test_array_of_objects_is_not_loaded(tmp_path, marker, name):
    np.save(tmp_path / "noise.npy", np.zeros((5, 8, 8, 1), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(5, np.int64))
    (tmp_path / name).write_bytes(objects(marker))
    with pytest.raises(InputError, match=name):
        score_corruptions(lambda x: np.zeros((len(x), 2, 10)), tmp_path, (8, 8, 1), "logits")


def test_cache_of_objects_is_built_again(tmp_path, marker):
    files = make_files("cifar100", "binary")
    config = dataset_config("cifar100", data_dir=write_archive(tmp_path, files))
    expected = np.array(datasets.load_dataset(config).train.images)
    for name in ("train_images.npy", "train_labels.npy"):
        (cache,) = (tmp_path / ".mixmo_jax").glob("cifar100-*")
        (cache / name).unlink()  # it is mapped
        (cache / name).write_bytes(objects(marker))
        np.testing.assert_array_equal(datasets.load_dataset(config).train.images, expected)


def test_checkpoint_of_arrays_of_objects_is_not_loaded(tmp_path, marker):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("bn1.bias.npy", objects(marker))
    with pytest.raises(InputError, match=r"x\.npz"):
        mixmo_jax.from_torch(tmp_path / "x.npz")


@pytest.mark.parametrize("form", ["zip", "plain pickle"])
def test_torch_checkpoint_calls_nothing(tmp_path, marker, form):
    pytest.importorskip("torch")
    content = pickle.dumps({"bn1.bias": calls(marker)["os.system"]}, 2)
    path = tmp_path / "x.ckpt"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.ckpt"):
        mixmo_jax.from_torch(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
EPS_OF_DOS = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(EPS).to_bytes(4, "little")


@pytest.mark.parametrize("content", [EPS, EPS_OF_DOS + bytes(18) + EPS])
def test_eps_named_png_starts_no_ghostscript(tmp_path, marker, monkeypatch, content):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png: not an image$"):
        read_images([tmp_path / "x.png"], (8, 8, 3))
