"""Your own images: a folder for each class, in a folder or an archive."""

import collections
import itertools
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from setups import dataset_config

from mixmo_jax import datasets
from mixmo_jax.errors import InputError


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def save(image: Image.Image, file: pathlib.Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def add_classes(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> dict[bytes, str]:
    """Writes images of 8x8, no two alike; returns the class of each by its pixels."""
    found = {}
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = noise(10_000 * seed + 100 * c + i)
            save(image, root / name / f"{i}.png")
            found[image.tobytes()] = name
    return found


def load(data_dir: pathlib.Path | str, **fields) -> datasets.Dataset:
    config = dataset_config("image_folder", data_dir=data_dir)
    config.update({"image_size": 8, **fields})
    return datasets.load_dataset(config)


def by_pixels(data: datasets.Dataset, *splits: datasets.Split) -> dict[bytes, str]:
    """The class name of each image."""
    return {
        split.images[i].tobytes(): data.class_names[label]
        for split in splits
        for i, label in enumerate(split.labels)
    }


@pytest.mark.parametrize("name", ["test", "val"])
def test_folders_for_training_and_testing(tmp_path, name):
    train = add_classes(tmp_path / "train", {"owl": 3, "ant": 2}, seed=1)
    test = add_classes(tmp_path / name, {"owl": 1}, seed=2)  # may lack a class
    data = load(tmp_path)
    assert data.class_names == ("ant", "owl") and data.validation is None
    assert by_pixels(data, data.train) == train and by_pixels(data, data.test) == test


def test_folders_for_validation_and_testing(tmp_path):
    trees = {}
    for seed, name in enumerate(("train", "val", "test")):
        trees[name] = add_classes(tmp_path / name, {"owl": 3, "ant": 2}, seed)
    data = load(tmp_path)
    found = [by_pixels(data, split) for split in (data.train, data.validation, data.test)]
    assert found == list(trees.values())
    with pytest.raises(InputError, match="expected 0, as the data have a validation"):
        load(tmp_path, validation_fraction=0.2)


@pytest.mark.parametrize("root", ["", "train"])
@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_single_tree_is_split(tmp_path, root, fraction):
    counts = {"owl": 10, "ant": 20, "bee": 5}
    images = add_classes(tmp_path / root, counts)
    data = load(tmp_path, test_fraction=fraction)
    train, test = by_pixels(data, data.train), by_pixels(data, data.test)
    assert train | test == images and len(train) + len(test) == 35  # each image once
    taken = collections.Counter(test.values())
    assert taken == {name: round(fraction * count) for name, count in counts.items()}


def test_all_endings_count_and_other_files_do_not(tmp_path):
    endings = ["png", "jpg", "jpeg", "webp", "bmp", "PNG", "JPG", "Jpeg", "WEBP", "Bmp"]
    for i, ending in enumerate(endings):
        save(noise(i), tmp_path / "ant" / f"{i}.{ending}")
    save(noise(50), tmp_path / "owl" / "deep" / "er" / "0.png")
    for name in ("owl/readme.txt", "owl/.hidden.png", "labels.csv", "loose.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".git").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("ant", "owl")
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(labels).tolist() == [len(endings), 1]


def test_mean_and_deviation_are_measured(tmp_path):
    add_classes(tmp_path, {"owl": 4, "ant": 4})
    data = load(tmp_path)
    pixels = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_splitting_uses_the_same_cache_and_a_new_image_another(tmp_path):
    add_classes(tmp_path, {"owl": 4, "ant": 4})
    load(tmp_path)
    (cache,) = (tmp_path / ".mixmo_jax").glob("*/meta.json")
    before = cache.stat().st_mtime_ns
    load(tmp_path, test_fraction=0.5, split_seed=1)
    assert cache.stat().st_mtime_ns == before
    save(noise(99), tmp_path / "owl" / "new.png")
    assert sum(load(tmp_path).num_images.values()) == 9
    assert load(tmp_path, image_size=12).image_shape == (12, 12, 3)


def test_names_that_are_not_utf8(tmp_path):
    add_classes(tmp_path, {"owl": 4, os.fsdecode(b"caf\xe9"): 4})
    save(noise(77), tmp_path / "owl" / os.fsdecode(b"\xe9.png"))
    assert load(tmp_path).class_names == ("caf\N{REPLACEMENT CHARACTER}", "owl")


def pack(folder: pathlib.Path, archive: pathlib.Path, top: str = "") -> pathlib.Path:
    """Packs a folder, its files in an order of no meaning, below a folder `top` ("" or "…/")."""
    files = sorted(folder.rglob("*"), key=lambda f: f.name, reverse=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as out:
            for file in files:
                out.write(file, f"{top}{file.relative_to(folder)}")
    else:
        with tarfile.open(archive, f"w:{archive.suffix.strip('.').replace('tar', '')}") as out:
            for file in files:
                out.add(file, f"{top}{file.relative_to(folder)}", recursive=False)
    return archive


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz"]
LAYOUTS = [("train", "test"), ("train", "test", "val"), ("",)]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("layout", "top"), [*itertools.product(LAYOUTS, ["", "top/"]), (LAYOUTS[0], "./top/")]
)
def test_archive_has_the_images_of_its_folder(tmp_path, layout, name, top):
    for seed, root in enumerate(layout):
        add_classes(tmp_path / "data" / root, {"owl": 3, "ant-": 2, "ant": 4}, seed)
        save(noise(500 + seed), tmp_path / "data" / root / "owl" / "deep" / "0.png")
    (tmp_path / "data" / "readme.txt").write_text("x")
    found = load(pack(tmp_path / "data", tmp_path / name, top))
    expected = load(tmp_path / "data")
    assert found.class_names == expected.class_names == ("ant", "ant-", "owl")
    assert found.num_images == expected.num_images
    for split, other in zip(found.splits.values(), expected.splits.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(split.images), np.asarray(other.images))
        np.testing.assert_array_equal(split.labels, other.labels)


TWO = {"ant": 2, "owl": 2}
# Classes in each folder, and what the error says. A class without images is an empty folder.
MISFITS = [
    ({"": {}}, "{}: expected a folder of images for each class, 2 or more$"),
    ({"train": {"ant": 3}}, "{}/train: expected a folder of images for each class, 2 or more$"),
    ({"": {**TWO, "bee": 0}}, r"{}/bee: no images \(\.png"),
    ({"train": TWO, "test": {"ant": 2, "owl": 0}}, r"{}/test/owl: no images \(\.png"),
    ({"train": TWO, "val": {"bee": 2}}, "{}/val/bee: there is no such class in train$"),
    ({"train": TWO, "test": {}}, "image_folder: test: 0 images"),
    ({"val": TWO, "test": TWO}, "{}: a folder for testing, but no folder train$"),
    ({"": {"ant": 1, "owl": 1}}, "image_folder: test: no class has a training image to spare$"),
]


@pytest.mark.parametrize("name", ["", "a.zip", "a.tar"])
@pytest.mark.parametrize(("tree", "message"), MISFITS)
def test_folders_that_do_not_fit_together_are_one_line(tmp_path, tree, message, name):
    (tmp_path / "data").mkdir()
    for root, classes in tree.items():
        (tmp_path / "data" / root).mkdir(exist_ok=True)
        add_classes(tmp_path / "data" / root, classes)
    path = pack(tmp_path / "data", tmp_path / name) if name else tmp_path / "data"
    with pytest.raises(InputError, match="^" + message.format(path)):
        load(path)


@pytest.mark.parametrize("name", ["", *ARCHIVES])
def test_damaged_image_is_named(tmp_path, name):
    add_classes(tmp_path / "data", TWO)
    (tmp_path / "data" / "owl" / "0.png").write_text("x")
    path = pack(tmp_path / "data", tmp_path / name) if name else tmp_path / "data"
    with pytest.raises(InputError, match=rf"^{path}: owl/0\.png: not an image$"):
        load(path)


def test_link_that_leads_nowhere_is_named(tmp_path):
    add_classes(tmp_path, TWO)
    os.symlink("missing.png", tmp_path / "owl" / "link.png")
    with pytest.raises(InputError, match=r"owl/link\.png: cannot be read: No such file"):
        load(tmp_path)


def test_other_folders_beside_the_splits_are_warned_of(tmp_path, capsys):
    for root in ("train", "valid"):
        add_classes(tmp_path / root, {"ant": 5, "owl": 5})
    assert load(tmp_path).num_images == {"train": 8, "test": 2}
    assert f"warning: {tmp_path / 'valid'}: not used" in capsys.readouterr().err
