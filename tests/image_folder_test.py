"""Folders of images, one for each class, in a folder or an archive."""

import collections
import io
import itertools
import os
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets.decode import decode_images
from mixmo_jax.errors import InputError
from mixmo_jax.runs import workdir
from mixmo_jax.train import train

ORIENTATION = 0x0112  # a tag of EXIF
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def noise(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def save(image: Image.Image, file: pathlib.Path, **options) -> pathlib.Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


def add_classes(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> dict[bytes, str]:
    """Writes images of 8x8, no two alike; returns the class of each by its pixels."""
    found = {}
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            image = noise(10_000 * seed + 100 * c + i)
            save(image, root / name / f"{i}.png")
            found[image.tobytes()] = name
    return found


def parse(data_dir: pathlib.Path | str, **fields):
    config = config_lib.parse("image_folder", [f"--config.dataset.data_dir={data_dir}"])[1].dataset
    config.update({"image_size": 8, **fields})
    return config


def load(data_dir: pathlib.Path | str, **fields) -> datasets.Dataset:
    return datasets.load_dataset(parse(data_dir, **fields))


def classes_by_pixels(data: datasets.Dataset, split: datasets.Split) -> dict[bytes, str]:
    images = np.asarray(split.images)
    return {
        images[i].tobytes(): data.class_names[label]
        for i, label in enumerate(np.asarray(split.labels))
    }


def refused(data_dir: pathlib.Path, expected: str) -> str:
    with pytest.raises(InputError, match=expected) as caught:
        load(data_dir)
    assert "\n" not in str(caught.value)
    caches = (data_dir if data_dir.is_dir() else data_dir.parent) / ".mixmo_jax"
    assert not caches.exists() or list(caches.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("name", ["test", "val"])
def test_folders_for_training_and_testing(tmp_path, name):
    train = add_classes(tmp_path / "train", {"owl": 3, "ant": 2}, seed=1)
    test = add_classes(tmp_path / name, {"owl": 1, "ant": 2}, seed=2)
    data = load(tmp_path)
    assert data.class_names == ("ant", "owl")
    assert classes_by_pixels(data, data.train) == train
    assert classes_by_pixels(data, data.test) == test


def test_folders_for_validation_and_testing(tmp_path):
    train = add_classes(tmp_path / "train", {"owl": 3, "ant": 2}, seed=1)
    validation = add_classes(tmp_path / "val", {"owl": 1, "ant": 2}, seed=2)
    test = add_classes(tmp_path / "test", {"owl": 1, "ant": 1}, seed=3)
    data = load(tmp_path)
    assert classes_by_pixels(data, data.train) == train
    assert classes_by_pixels(data, data.validation) == validation
    assert classes_by_pixels(data, data.test) == test
    expected = "validation_fraction=0.2: expected 0, as the data have a validation split"
    with pytest.raises(InputError, match=expected):
        load(tmp_path, validation_fraction=0.2)


def test_testing_may_lack_a_class(tmp_path):
    add_classes(tmp_path / "train", {"owl": 3, "ant": 2})
    add_classes(tmp_path / "test", {"owl": 1})
    data = load(tmp_path)
    assert data.class_names == ("ant", "owl") and np.asarray(data.test.labels).tolist() == [1]


@pytest.mark.parametrize("root", ["", "train"])
@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_a_single_tree_is_split(tmp_path, root, fraction):
    counts = {"owl": 10, "ant": 20, "bee": 5}
    files = add_classes(tmp_path / root, counts)
    data = load(tmp_path, test_fraction=fraction)
    train = classes_by_pixels(data, data.train)
    test = classes_by_pixels(data, data.test)
    assert train | test == files and len(train) + len(test) == 35  # each image once
    taken = collections.Counter(test.values())
    assert taken == {name: round(fraction * count) for name, count in counts.items()}


def test_the_seed_decides_the_split(tmp_path):
    add_classes(tmp_path, {"owl": 10, "ant": 20})
    splits = []
    for seed in (0, 0, 1):
        data = load(tmp_path, split_seed=seed)
        splits.append(set(classes_by_pixels(data, data.test)))
    assert splits[0] == splits[1] != splits[2]


def test_every_class_is_tested_when_it_can_be(tmp_path):
    add_classes(tmp_path, {"owl": 2, "ant": 30, "bee": 1})
    data = load(tmp_path, test_fraction=0.1)
    assert np.bincount(data.test.labels, minlength=3).tolist() == [3, 0, 1]
    assert np.bincount(data.train.labels, minlength=3).tolist() == [27, 1, 1]


def test_too_few_images_to_test_any(tmp_path):
    add_classes(tmp_path, {"owl": 1, "ant": 1})
    with pytest.raises(InputError, match="test"):
        load(tmp_path)


ENDINGS = ["png", "jpg", "jpeg", "webp", "bmp", "PNG", "JPG", "Jpeg", "WEBP", "Bmp"]


def test_all_endings_count_and_other_files_do_not(tmp_path):
    for i, ending in enumerate(ENDINGS):
        save(noise(i), tmp_path / "ant" / f"{i}.{ending}")
    save(noise(50), tmp_path / "owl" / "deep" / "er" / "0.png")
    (tmp_path / "owl" / "readme.txt").write_text("x")
    (tmp_path / "owl" / ".hidden.png").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "labels.csv").write_text("x")
    data = load(tmp_path)
    assert data.class_names == ("ant", "owl")
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(labels).tolist() == [len(ENDINGS), 1]


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_pixels_of_the_right_size_are_kept(tmp_path, ending):
    image = noise(0)
    save(image, tmp_path / "train" / "ant" / f"0.{ending}", lossless=True)
    add_classes(tmp_path / "train", {"owl": 1}, seed=1)
    add_classes(tmp_path / "test", {"owl": 1})
    np.testing.assert_array_equal(load(tmp_path).train.images[0], np.asarray(image))


def picture(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right, the upper quarter green."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    image.paste(GREEN, (0, 0, width, height // 4))
    return image


def load_one(folder: pathlib.Path, image: Image.Image, size: int, ending="png", **options):
    """What a single image becomes."""
    save(image, folder / "train" / "ant" / f"0.{ending}", **options)
    add_classes(folder / "train", {"owl": 1}, seed=1)
    add_classes(folder / "test", {"owl": 1})
    return load(folder, image_size=size).train.images[0].astype(int)


def assert_close(pixel, color):
    np.testing.assert_allclose(pixel, color, atol=12)


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (16, 16), (96, 64), (64, 96), (9, 7), (300, 100)]
)
def test_images_are_scaled_and_their_center_cropped(tmp_path, width, height):
    image = load_one(tmp_path, picture(width, height), 32)
    assert image.shape == (32, 32, 3)
    assert_close(image[28, 3], RED)
    assert_close(image[28, 28], BLUE)
    # A tall picture loses a part of its upper quarter.
    cut = max(0, height - width) / 2
    edge = (height // 4 - cut) * 32 / min(width, height)
    if edge > 4:
        assert_close(image[0, 3], GREEN)
        assert_close(image[int(edge) - 4, 28], GREEN)
    assert_close(image[int(np.ceil(edge)) + 4, 3], RED)


def test_the_crop_is_central_and_keeps_proportions(tmp_path):
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste(GREEN, (20, 0, 40, 20))
    image = load_one(tmp_path, wide, 10)
    np.testing.assert_allclose(image[:, 1:-1], np.broadcast_to(GREEN, (10, 8, 3)), atol=25)


# How a camera that was turned stores a picture, and what it notes of it.
TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_orientation_noted_by_a_camera_is_honored(tmp_path, orientation, ending):
    image = picture(48, 32)
    stored = image if TURNED[orientation] is None else image.transpose(TURNED[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    loaded = load_one(tmp_path, stored, 32, ending, exif=exif, quality=100)
    assert_close(loaded[2, 4], GREEN)
    assert_close(loaded[2, 28], GREEN)
    assert_close(loaded[28, 4], RED)
    assert_close(loaded[28, 28], BLUE)


# Pictures of one color in many modes, and the color.
MODES = {
    "gray": (Image.new("L", (8, 8), 100), (100, 100, 100)),
    "gray with alpha": (Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
    "black and white": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "16 bits": (Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), (100, 100, 100)),
    "palette": (Image.new("RGB", (8, 8), (0, 255, 0)).convert("P"), (0, 255, 0)),
    "alpha": (Image.new("RGBA", (8, 8), (10, 20, 200, 255)), (10, 20, 200)),
}


@pytest.mark.parametrize("mode", MODES)
def test_images_of_all_modes_become_rgb(tmp_path, mode):
    image, color = MODES[mode]
    loaded = load_one(tmp_path, image, 8)
    assert loaded.shape == (8, 8, 3)
    np.testing.assert_allclose(loaded, np.broadcast_to(color, (8, 8, 3)), atol=6)


def test_values_of_more_than_8_bits_are_not_cut_off():
    """A PGM of 16 bits is scaled; what has no range is refused."""

    def decode(image, ending):
        content = io.BytesIO()
        image.save(content, ending)
        out = np.zeros((1, 8, 8, 3), np.uint8)
        decode_images(
            lambda name: content.getvalue(),
            ["a"],
            out,
            resize=True,
            where=pathlib.Path("x"),
            max_pixels=100,
        )
        return out

    wide = Image.fromarray(np.full((8, 8), 100 * 257, np.int32))
    assert (decode(wide, "ppm") == 100).all()
    for mode in (wide, wide.convert("F")):
        with pytest.raises(InputError, match=r"x: a: has the mode [IF], expected 8 bits, or 16"):
            decode(mode, "tiff")


def test_a_print_in_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert_close(load_one(tmp_path, image, 8, "jpg")[4, 4], (0, 255, 255))


def test_mean_and_deviation_are_measured(tmp_path):
    add_classes(tmp_path, {"owl": 4, "ant": 4})
    data = load(tmp_path)
    pixels = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_no_folder_is_given():
    with pytest.raises(
        InputError, match=r"^dataset\.data_dir='': expected a folder or an archive$"
    ):
        load("")


def test_the_folder_is_missing(tmp_path):
    missing = tmp_path / "missing"
    refused(missing, rf"^dataset\.data_dir='{missing}': cannot be read: No such file")


def test_a_file_instead_of_a_folder(tmp_path):
    file = save(noise(0), tmp_path / "image.png")
    expected = rf"^{file}: damaged: .*; expected a folder or a complete zip or tar archive$"
    with pytest.raises(InputError, match=expected):
        load(file)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-60])


def break_exif(file):
    """A camera's notes that end amid a number."""
    noise(0).save(file, exif=b"Exif\0\0MM\0*")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b""), "not an image$"),
        (lambda file: file.write_text("x"), "not an image$"),
        (cut_off, "(damaged: |not an image$)"),
        (break_exif, "damaged: "),
    ],
    ids=["empty", "text", "cut off", "broken EXIF"],
)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, damage, reason, ending):
    add_classes(tmp_path, {"ant": 3, "owl": 3})
    damage(save(noise(0), tmp_path / "owl" / f"bad.{ending}"))
    if damage is break_exif and ending in ("jpg", "bmp"):
        load(tmp_path)  # Pillow passes over it
    else:
        refused(tmp_path, rf"^{tmp_path}: owl/bad\.{ending}: {reason}")


def test_the_error_is_free_of_addresses_in_memory(tmp_path):
    add_classes(tmp_path, {"ant": 3, "owl": 3})
    (tmp_path / "owl" / "bad.png").write_text("x")
    assert " object at 0x" not in refused(tmp_path, "bad.png")


@pytest.mark.parametrize("target", ["missing.png", "link.png"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, target):
    add_classes(tmp_path, {"ant": 3, "owl": 3})
    os.symlink(target, tmp_path / "owl" / "link.png")
    refused(tmp_path, r"owl/link\.png")


def test_links_to_images_and_folders_are_followed(tmp_path):
    files = add_classes(tmp_path / "store", {"a": 3, "b": 3})
    (tmp_path / "data" / "owl").mkdir(parents=True)
    os.symlink(tmp_path / "store" / "a", tmp_path / "data" / "ant")
    for i in range(3):
        os.symlink(tmp_path / "store" / "b" / f"{i}.png", tmp_path / "data" / "owl" / f"{i}.png")
    data = load(tmp_path / "data")
    found = classes_by_pixels(data, data.train) | classes_by_pixels(data, data.test)
    assert found == {k: {"a": "ant", "b": "owl"}[v] for k, v in files.items()}


def test_links_in_a_circle_are_named(tmp_path):
    add_classes(tmp_path, {"owl": 4, "ant": 4})
    (tmp_path / "ant" / "loop").symlink_to("..")
    (tmp_path / "owl" / "other").symlink_to("../..")
    refused(tmp_path, "loop: refused: a link to a folder that it is in")


def test_links_to_images_elsewhere_are_followed(tmp_path):
    files = add_classes(tmp_path / "elsewhere", {"owl": 4, "ant": 4})
    (tmp_path / "data").mkdir()
    for name in ("owl", "ant"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    data = load(tmp_path / "data", test_fraction=0.5)
    assert classes_by_pixels(data, data.train) | classes_by_pixels(data, data.test) == files


def test_names_that_are_not_utf8(tmp_path):
    add_classes(tmp_path, {"owl": 4, os.fsdecode(b"caf\xe9"): 4})
    save(noise(77), tmp_path / "owl" / os.fsdecode(b"\xe9.png"))
    data = load(tmp_path)
    assert data.class_names == ("caf\N{REPLACEMENT CHARACTER}", "owl")


def test_one_image_to_test(tmp_path):
    add_classes(tmp_path, {"owl": 2, "ant": 1})
    assert len(load(tmp_path).test) == 1


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


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"]


LAYOUTS = [("train", "test"), ("train", "val"), ("train", "test", "val"), ("train",), ("",)]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("layout", "top"),
    [*itertools.product(LAYOUTS, [""]), *itertools.product(LAYOUTS[2:3], ["top/", "./", "./top/"])],
)
def test_an_archive_has_the_images_of_its_folder(tmp_path, layout, name, top):
    for seed, root in enumerate(layout):
        add_classes(tmp_path / "data" / root, {"owl": 3, "ant-": 2, "ant": 4}, seed)
        save(noise(500 + seed), tmp_path / "data" / root / "owl" / "deep" / "0.png")
    (tmp_path / "data" / "readme.txt").write_text("x")
    found = load(pack(tmp_path / "data", tmp_path / name, top))
    expected = load(tmp_path / "data")
    assert found.class_names == expected.class_names == ("ant", "ant-", "owl")
    assert found.num_images == expected.num_images
    for split in found.num_images:
        one, other = getattr(found, split), getattr(expected, split)
        np.testing.assert_array_equal(np.asarray(one.images), np.asarray(other.images))
        np.testing.assert_array_equal(one.labels, other.labels)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".mixmo_jax", name, "data"]


def test_a_class_of_other_files(tmp_path):
    add_classes(tmp_path, {"ant": 2, "owl": 2})
    for file in (tmp_path / "owl").iterdir():
        file.rename(file.with_suffix(".txt"))
    refused(tmp_path, rf"^{tmp_path / 'owl'}: no images \(\.png, \.jpg, \.jpeg, \.webp, \.bmp\)$")


TWO = {"ant": 2, "owl": 2}
# Classes in each folder, and what is wrong with them. A class without images is an empty folder.
MISFITS = [
    ({"": {}}, "{}: expected a folder of images for each class, 2 or more$"),
    ({"train": {}}, "{}/train: expected a folder of images for each class, 2 or more$"),
    ({"train": {"ant": 3}}, "{}/train: expected a folder of images for each class, 2 or more$"),
    ({"": {**TWO, "bee": 0}}, r"{}/bee: no images \(\.png"),
    ({"train": {**TWO, "bee": 0}}, r"{}/train/bee: no images \(\.png"),
    ({"train": TWO, "test": {"ant": 2, "owl": 0}}, r"{}/test/owl: no images \(\.png"),
    ({"train": TWO, "val": {"ant": 2, "owl": 0}}, r"{}/val/owl: no images \(\.png"),
    ({"train": TWO, "test": {"bee": 2}}, "{0}/test/bee: there is no such class in {0}/train$"),
    ({"train": TWO, "val": {"bee": 2}}, "{0}/val/bee: there is no such class in {0}/train$"),
    ({"train": TWO, "test": {}}, "{}/test: expected a folder of images for each class$"),
    ({"val": TWO, "test": TWO}, "{}: a folder for testing, but no folder train$"),
    ({"test": TWO}, "{}: a folder for testing, but no folder train$"),
]


@pytest.mark.parametrize("name", ["", *ARCHIVES])
@pytest.mark.parametrize(("tree", "message"), MISFITS)
def test_what_does_not_fit_together_is_named(tmp_path, tree, message, name):
    for root, classes in tree.items():
        (tmp_path / "data" / root).mkdir(parents=True, exist_ok=True)
        for class_name in classes:
            (tmp_path / "data" / root / class_name).mkdir()
        add_classes(tmp_path / "data" / root, classes)
    path = pack(tmp_path / "data", tmp_path / name) if name else tmp_path / "data"
    refused(path, "^" + message.format(path))


def test_a_single_class(tmp_path):
    """In an archive, it is taken for a folder around everything."""
    add_classes(tmp_path / "data", {"ant": 3})
    expected = "expected a folder of images for each class, 2 or more$"
    refused(tmp_path / "data", f"^{tmp_path / 'data'}: {expected}")
    path = pack(tmp_path / "data", tmp_path / "a.zip")
    refused(path, f"^{path}/ant: {expected}")


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_image_in_an_archive_is_named(tmp_path, name):
    add_classes(tmp_path / "data", TWO)
    (tmp_path / "data" / "owl" / "0.png").write_text("x")
    path = pack(tmp_path / "data", tmp_path / name)
    refused(path, rf"^{path}: owl/0\.png: not an image$")


def test_a_changed_archive_is_decoded_again(tmp_path):
    add_classes(tmp_path / "data", {"owl": 3, "ant": 2})
    archive = pack(tmp_path / "data", tmp_path / "a.zip")
    assert sum(load(archive).num_images.values()) == 5
    add_classes(tmp_path / "data", {"owl": 4})
    pack(tmp_path / "data", archive)
    assert sum(load(archive).num_images.values()) == 6


def test_other_folders_beside_those_of_the_splits_are_warned_of(tmp_path, capsys):
    for root in ("train", "valid"):
        add_classes(tmp_path / root, {"ant": 5, "owl": 5})
    assert load(tmp_path).num_images == {"train": 8, "test": 2}
    assert (
        f"{tmp_path / 'valid'}: not used; expected train, test and val" in capsys.readouterr().err
    )


def test_a_run_does_not_lie_among_its_images(tmp_path):
    add_classes(tmp_path, {"ant": 5, "owl": 5})
    fields = [f"--config.dataset.data_dir={tmp_path}", "--config.batch_size=2"]
    _, config = config_lib.parse("image_folder:vanilla", fields)
    with pytest.raises(InputError, match=r"run: lies in dataset\.data_dir=.*; choose another"):
        train(config, tmp_path / "runs" / "run")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["ant", "owl"]
    workdir.check_place(tmp_path / ".runs" / "run", config)  # is not read
    (tmp_path / "train").mkdir()
    workdir.check_place(tmp_path / "runs" / "run", config)  # likewise
