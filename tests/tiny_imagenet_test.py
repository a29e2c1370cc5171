"""Tiny ImageNet: the archive and its folder."""

import os
import pathlib
import zipfile

import numpy as np
import pytest
from files_test import encode, write
from PIL import Image
from setups import dataset_config

from mixmo_jax import datasets
from mixmo_jax.errors import InputError

ROOT = "tiny-imagenet-200"
# As in the official wnids.txt, not in alphabetical order.
NAMES = {"n03": "goldfish, Carassius auratus", "n01": "tailed frog", "n02": "black widow"}
NUMBERS = (0, 1, 2, 10)  # of the training images of a class
TESTED = [("val_2.JPEG", "n01"), ("val_10.JPEG", "n03"), ("val_0.JPEG", "n02")]


def image(seed: int, shape: tuple[int, ...] = (64, 64, 3)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG")


@pytest.fixture
def tree() -> dict[str, bytes]:
    """The files of an archive, a few images gray."""
    files = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in NAMES).encode(),
        "words.txt": b"n00\tentity\n" + "".join(f"{k}\t{v}\n" for k, v in NAMES.items()).encode(),
        "val/val_annotations.txt": "".join(f"{n}\t{k}\t0\t0\t62\t62\n" for n, k in TESTED).encode(),
        "test/images/test_0.JPEG": image(99),
    }
    # Neither the classes nor their images lie in the archive in the order that counts.
    for c, wnid in enumerate(NAMES):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t63\t63\n".encode()
        for i in sorted(NUMBERS, key=str):
            content = image(100 * c + i, (64, 64) if i == 2 else (64, 64, 3))
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = content
    for i, (name, _) in enumerate(sorted(TESTED)):
        files[f"val/images/{name}"] = image(50 + i, (64, 64) if i == 1 else (64, 64, 3))
    return files


def write_tree(folder: pathlib.Path, tree: dict[str, bytes], form: str) -> pathlib.Path:
    files = {f"{ROOT}/{name}": content for name, content in tree.items()}
    if form == "zip":
        return write(folder / f"{ROOT}.zip", files, "zip")
    return write(folder, files) / ROOT


def load(data_dir: pathlib.Path) -> datasets.Dataset:
    return datasets.load_dataset(dataset_config("tiny_imagenet", data_dir=data_dir))


def decode(file) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("form", ["zip", "folder"])
@pytest.mark.parametrize("order", [("n01", "n02", "n03"), ("n03", "n01", "n02")])
def test_labels_follow_the_alphabetical_order_of_the_classes(tmp_path, tree, form, order):
    """As in torchvision's ImageFolder, whatever the order of wnids.txt; training images by number.

    `data_dir` is the folder around it, or the folder or archive itself.
    """
    tree["wnids.txt"] = "".join(f"{wnid}\n" for wnid in order).encode()
    path = write_tree(tmp_path, tree, form)
    files = write(tmp_path / "files", tree)
    labels = {"n01": 0, "n02": 1, "n03": 2}
    train = [(f"train/{k}/images/{k}_{i}.JPEG", labels[k]) for k in labels for i in NUMBERS]
    test = [(f"val/images/{name}", labels[k]) for name, k in TESTED]
    for data in (load(tmp_path), load(path)):
        assert data.class_names == tuple(NAMES[wnid] for wnid in labels)
        for split, images in ((data.train, train), (data.test, test)):
            np.testing.assert_array_equal(
                split.images, [decode(files / name) for name, _ in images]
            )
            np.testing.assert_array_equal(split.labels, [label for _, label in images])


def change(name, old, new):
    return lambda tree: tree.update({name: tree[name].replace(old, new)})


def add(name, content=b""):
    return lambda tree: tree.update({name: content or image(0)})


def remove(prefix):
    return lambda tree: [tree.pop(name) for name in list(tree) if name.startswith(prefix)]


VAL = "val/val_annotations.txt"
MISFITS = {
    "annotation without its file": (remove("val/images/val_10.JPEG"), "val_10.JPEG: "),
    "file without annotation": (add("val/images/val_7.JPEG"), "val/images/val_7.JPEG: "),
    "annotation of an unknown class": (change(VAL, b"\tn03", b"\tn09"), f"{VAL}: .*n09"),
    "annotation without a class": (change(VAL, b"10.JPEG\tn03", b"10.JPEG n03"), VAL),
    "class folder without images": (remove("train/n02/images"), "train/n02: no images"),
    "class not in wnids.txt": (add("train/n09/images/n09_0.JPEG"), "train/n09: .* wnids.txt"),
    "no wnids.txt": (remove("wnids.txt"), "lacks the file wnids.txt"),
    "no annotations": (remove(VAL), f"lacks the file .*{VAL}"),
    "image cut off": (add("val/images/val_0.JPEG", image(0)[:500]), "val_0.JPEG: damaged: "),
}


@pytest.mark.parametrize("form", ["zip", "folder"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_files_that_do_not_fit_together_are_one_line(tmp_path, tree, misfit, form):
    spoil, expected = MISFITS[misfit]
    spoil(tree)
    path = write_tree(tmp_path, tree, form)
    with pytest.raises(InputError, match=rf"^{path}: .*{expected}") as error:
        load(path if form == "zip" else tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", [b"", b"n01\n", b"n01\t\n"])
def test_class_without_a_word_is_named_by_its_id(tmp_path, tree, line):
    tree["words.txt"] = tree["words.txt"].replace(b"n01\ttailed frog\n", line)
    write_tree(tmp_path, tree, "zip")
    assert load(tmp_path).class_names[0] == "n01"


def test_the_real_archive(tmp_path):
    folder = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
    archive = folder / "tiny-imagenet-mini.zip"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    path = tmp_path / "tiny-imagenet-200.zip"
    os.symlink(archive, path)
    data = load(path)
    with zipfile.ZipFile(path) as files:
        wnids = files.read(f"{ROOT}/wnids.txt").decode().split()
        lines = files.read(f"{ROOT}/val/val_annotations.txt").decode().splitlines()
        for i in (0, 500, 999):
            name, wnid = lines[i].split("\t")[:2]
            image = decode(files.open(f"{ROOT}/val/images/{name}"))
            np.testing.assert_array_equal(data.test.images[i], image)
            assert data.test.labels[i] == sorted(wnids).index(wnid)
    assert data.num_classes == len(wnids) == 20
    assert np.bincount(data.train.labels).tolist() == [150] * 20
    assert np.bincount(data.test.labels).tolist() == [50] * 20
