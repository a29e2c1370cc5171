"""Files that nobody should trust: each is refused in one line, or read; nothing in it is run."""

import gzip
import os
import pathlib
import re
import zipfile

import hostile_archives
import hostile_files
import numpy as np
import pytest
from hostile_archives import IMAGE, zip_of

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, predict
from mixmo_jax.datasets import archives, cifar
from mixmo_jax.datasets.decode import decode_images
from mixmo_jax.errors import InputError, read_bytes, read_json
from mixmo_jax.evaluation.corruptions import score_corruptions
from mixmo_jax.inference import torch_checkpoints

PIPES = {"pipe": os.mkfifo, "endless": lambda path: os.symlink("/dev/zero", path)}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What would be written if anything were run; as Ghostscript, too."""
    marker, programs = tmp_path / "marker", tmp_path / "programs"
    programs.mkdir()
    for name in ("gs", "gswin32c", "djpeg", "convert"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield marker
    assert not marker.exists()


def refused(call, name: str, expected: str = "") -> str:
    """The message of the error, one line that names the file."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert name in message and "\n" not in message and len(message) < 1000
    assert re.search(expected, message), message
    return message


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_all(path: pathlib.Path) -> dict[str, bytes]:
    files = archives.Files(path)
    return {name: files.read(name) for name in files.names}


def decode(file: pathlib.Path) -> np.ndarray:
    out = np.zeros((1, 8, 8, 3), np.uint8)
    decode_images(read_bytes, [str(file)], out, resize=True, where=pathlib.Path("images"))
    return out[0]


def load(data_dir: pathlib.Path, *flags: str, name: str = "image_folder") -> datasets.Dataset:
    flags = [f"--config.dataset.data_dir={data_dir}", *flags]
    return datasets.load_dataset(config_lib.parse(name, flags)[1].dataset)


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("case", hostile_archives.TARS)
def test_tar_archives(tmp_path, case, compressed):
    content, expected = hostile_archives.TARS[case]
    path = tmp_path / ("x.tar.gz" if compressed else "x.tar")
    write(path, gzip.compress(content) if compressed else content)
    refused(lambda: read_all(path), str(path), expected)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_tar_archives_compressed_and_cut_off(tmp_path, quarter):
    content = gzip.compress(hostile_archives.tar_of())
    path = write(tmp_path / "x.tar.gz", content[: len(content) * quarter // 4])
    refused(lambda: read_all(path), str(path), "damaged: ")


@pytest.mark.parametrize("case", hostile_archives.ZIPS)
def test_zip_archives(tmp_path, case):
    content, expected = hostile_archives.ZIPS[case]
    path = write(tmp_path / "x.zip", content)
    refused(lambda: read_all(path), str(path), expected)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_entries_with_one_name_the_last_counts(tmp_path):
    path = write(tmp_path / "x.zip", zip_of(("owl/good.png", b"last")))
    assert read_all(path) == {"owl/good.png": b"last"}


def test_a_folder_with_the_name_of_an_image_is_none(tmp_path):
    entries = [("owl/x.png/", b""), ("ant/a.png", IMAGE), ("ant/b.png", IMAGE)]
    path = write(tmp_path / "x.zip", zip_of(*entries, ("owl/b.png", IMAGE)))
    assert sum(load(path).num_images.values()) == 4


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "folder"])
def test_the_limit_of_a_file_has_a_field_and_counts_for_needed_files_only(tmp_path, form):
    big, files = IMAGE + bytes(50_000), {}
    for name in ("ant/a.png", "ant/b.png", "owl/a.png", "owl/b.png"):
        files[name] = IMAGE
    files["notes.txt"] = big
    for kind in ("good", "bad"):
        files |= {"owl/b.png": big} if kind == "bad" else {}
        for name, content in files.items():
            write(tmp_path / kind / name, content)
        if form != "folder":
            path = tmp_path / f"{kind}.{form}"
            hostile_archives.pack(path, files)
            (tmp_path / kind).rename(tmp_path / f"{kind}-folder")
            path.rename(tmp_path / kind)
    flag = "--config.dataset.max_file_bytes=50000"
    assert sum(load(tmp_path / "good", flag).num_images.values()) == 4
    expected = r"expected at most dataset\.max_file_bytes=50000$"
    refused(lambda: load(tmp_path / "bad", flag), "owl/b.png", expected)
    assert sum(load(tmp_path / "bad").num_images.values()) == 4


def test_a_compressed_tar_does_not_grow_beyond_its_size(tmp_path):
    path = tmp_path / "x.tar.gz"
    hostile_archives.pack(path, {f"owl/{i}.png": bytes(40_000) for i in range(10)})
    with pytest.raises(InputError, match=r"expands beyond dataset\.max_file_bytes=50000"):
        archives.Files(path, max_bytes=50_000)
    archives.Files(path, max_bytes=50_000, wanted=lambda name: "3" in name)


@pytest.mark.parametrize("case", hostile_files.IMAGES)
def test_images(tmp_path, marker, case, capfd):
    content, expected = hostile_files.IMAGES[case]
    path = write(tmp_path / "x.png", content)
    refused(lambda: decode(path), str(path), expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("case", hostile_files.ODD_IMAGES)
def test_odd_images_are_decoded(tmp_path, marker, case):
    assert decode(write(tmp_path / "x.png", hostile_files.ODD_IMAGES[case])).shape == (8, 8, 3)


def test_an_image_beyond_the_limit_names_its_field(tmp_path):
    for name in ("ant/a.png", "ant/b.png", "owl/a.png", "owl/b.png"):
        write(tmp_path / name, IMAGE)
    flag = "--config.dataset.max_image_pixels=63"
    refused(lambda: load(tmp_path, flag), ".png", "is 8x8, more than dataset.max_image_pixels=63$")
    load(tmp_path, "--config.dataset.max_image_pixels=64")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_random_damage_to_an_image_is_named(tmp_path, marker, kind):
    rng = np.random.default_rng(0)
    image = hostile_files.Image.fromarray(np.kron(hostile_files.PIXELS, np.ones((4, 4, 1), "u1")))
    content = hostile_files.encode(image, kind)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(min(len(content), 200), size=3):
            damaged[place] = rng.integers(256)
        path = write(tmp_path / "x.png", bytes(damaged))
        try:
            decode(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_no_image(tmp_path, kind):
    for name in ("ant/a.png", "ant/b.png", "owl/a.png", "owl/b.png"):
        write(tmp_path / name, IMAGE)
    PIPES[kind](tmp_path / "owl" / "x.png")
    expected = "cannot be read: expected a regular file"
    refused(lambda: load(tmp_path), str(tmp_path / "owl" / "x.png"), expected)


@pytest.mark.parametrize("name", ["image_folder", "cifar100", "tiny_imagenet"])
@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_no_dataset(tmp_path, kind, name):
    PIPES[kind](tmp_path / "x")
    refused(lambda: load(tmp_path / "x", name=name), str(tmp_path / "x"), "regular file")


@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_passed_over_in_a_search(tmp_path, kind, monkeypatch, capsys):
    monkeypatch.setattr("mixmo_jax.datasets.source.download", hostile_files.no_network)
    PIPES[kind](tmp_path / "x.tar.gz")
    refused(lambda: load(tmp_path, name="cifar100"), str(tmp_path), "no network")
    PIPES[kind](tmp_path / "cifar-100-binary.tar.gz")
    refused(lambda: load(tmp_path, name="cifar100"), "cifar-100-binary", "regular file")


def test_folders_inside_each_other(tmp_path):
    os.makedirs(tmp_path / "/".join("a" * 300))
    refused(lambda: load(tmp_path), str(tmp_path), "more than 100 folders inside each other")
    refused(lambda: predict._find([tmp_path]), str(tmp_path), "more than 100 folders inside each")


@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_not_predicted(tmp_path, kind, capsys):
    write(tmp_path / "images" / "good.png", IMAGE)
    (tmp_path / "images" / "folder.png").mkdir()
    PIPES[kind](tmp_path / "images" / "x.png")
    found = predict._find([tmp_path / "images"])
    assert [f.name for f in found] == ["good.png"]
    assert capsys.readouterr().err.endswith("x.png: not a file; ignored\n")
    refused(lambda: predict._find([tmp_path / "images" / "x.png"]), "x.png", "a pipe or a device")


@pytest.mark.parametrize("case", hostile_files.pickles(pathlib.Path()))
def test_pickles(tmp_path, marker, case):
    write(tmp_path / "data" / "train", hostile_files.pickles(marker)[case])
    files = archives.Files(tmp_path / "data")
    refused(lambda: cifar._read_pickle(files, "train", cifar._CIFAR100), f"{files.path}: train: ")


def logits(images):
    return np.zeros((len(images), 2, 10), np.float32)


def score(folder: pathlib.Path, name: str, content: bytes) -> None:
    """Scores a folder of corruptions in which a file has another content."""
    folder.mkdir()
    np.save(folder / "noise.npy", np.zeros((5, 8, 8, 1), np.uint8))
    np.save(folder / "labels.npy", np.zeros(5, np.int64))
    (folder / name).write_bytes(content)
    score_corruptions(logits, folder, (8, 8, 1), "logits")


@pytest.mark.parametrize("name", ["labels.npy", "noise.npy"])
@pytest.mark.parametrize("case", hostile_files.ARRAYS)
def test_arrays(tmp_path, case, name):
    content = hostile_files.ARRAYS[case]
    refused(lambda: score(tmp_path / "x", name, content), str(tmp_path / "x" / name))


@pytest.mark.parametrize("case", hostile_files.LABELS)
def test_labels(tmp_path, case):
    content = hostile_files.array(hostile_files.LABELS[case])
    refused(lambda: score(tmp_path / "x", "labels.npy", content), "labels.npy")


@pytest.mark.parametrize("name", ["labels.npy", "noise.npy"])
@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_no_array(tmp_path, kind, name):
    PIPES[kind](tmp_path / name)
    if name != "labels.npy":
        np.save(tmp_path / "labels.npy", np.zeros(5, int))
    arguments = (logits, tmp_path, (8, 8, 1), "logits")
    refused(lambda: score_corruptions(*arguments), name, "expected a regular file")


@pytest.mark.parametrize("case", hostile_files.ARRAYS)
def test_checkpoints_of_arrays(tmp_path, case):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bn1.weight.npy", hostile_files.ARRAYS[case])
    refused(lambda: torch_checkpoints.from_torch(path), "checkpoint", "")


def test_objects_in_arrays_are_not_unpickled(tmp_path, marker):
    content = hostile_files.objects(marker)
    refused(lambda: score(tmp_path / "x", "noise.npy", content), "noise.npy", "damaged: ")
    for name, data in {"npy.npz": content, "zip.npz": zip_of(("bn1.bias.npy", content))}.items():
        path = write(tmp_path / name, data)
        refused(lambda path=path: torch_checkpoints.from_torch(path), str(path), "damaged: ")


def test_a_checkpoint_does_not_grow(tmp_path):
    path = write(tmp_path / "x.npz", zip_of(("bn1.weight.npy", bytes(2**21))))
    refused(lambda: torch_checkpoints.from_torch(path), str(path), "decompressed: 2097")


@pytest.mark.parametrize("name", ["x.npz", "x.ckpt"])
@pytest.mark.parametrize("kind", PIPES)
def test_what_has_no_end_is_no_checkpoint(tmp_path, kind, name):
    PIPES[kind](tmp_path / name)
    refused(lambda: torch_checkpoints.from_torch(tmp_path / name), name, "no such file, or a")


@pytest.mark.parametrize("case", hostile_files.TORCH)
def test_checkpoints_that_run_code(tmp_path, marker, case):
    path = write(tmp_path / "x.ckpt", hostile_files.TORCH[case](marker))
    refused(lambda: torch_checkpoints.from_torch(path), str(path), "damaged: |needs PyTorch")


@pytest.mark.parametrize("case", hostile_files.JSONS)
def test_json(tmp_path, case):
    path = write(tmp_path / "x.json", hostile_files.JSONS[case])
    refused(lambda: read_json(path), str(path), "damaged: ")


def test_a_cache_that_others_wrote_is_built_again(tmp_path):
    for name in ("ant/a.png", "ant/b.png", "owl/a.png", "owl/b.png"):
        write(tmp_path / name, IMAGE)
    expected = load(tmp_path).train.images[:]
    (built,) = (tmp_path / ".mixmo_jax").iterdir()
    for name, content in {"meta.json": b"[" * 10_000, "train_images.npy": b"x"}.items():
        (built / name).write_bytes(content)
        np.testing.assert_array_equal(load(tmp_path).train.images, expected)
    (built / "train_images.npy").unlink()
    os.mkfifo(built / "train_images.npy")
    np.testing.assert_array_equal(load(tmp_path).train.images, expected)
