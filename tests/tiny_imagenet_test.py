"""Tiny ImageNet: the archive, its folder, and the builder for tensorflow-datasets."""

import io
import pathlib
import shutil
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets.tiny_imagenet import VERSION
from mixmo_jax.errors import InputError

ROOT = "tiny-imagenet-200"
# As in the official wnids.txt, not in alphabetical order.
NAMES = {"n03": "goldfish, Carassius auratus", "n01": "tailed frog", "n02": "black widow"}
NUMBERS = (0, 1, 2, 10)  # of the training images of a class
TESTED = [("val_2.JPEG", "n01"), ("val_10.JPEG", "n03"), ("val_0.JPEG", "n02")]


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def noise(seed: int, shape: tuple[int, ...] = (64, 64, 3)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def tree():
    return make_tree()


def make_tree() -> dict[str, bytes]:
    """The files of an archive, a few of them gray."""
    files = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in NAMES).encode(),
        "words.txt": b"n00\tentity\n" + "".join(f"{k}\t{v}\n" for k, v in NAMES.items()).encode(),
        "val/val_annotations.txt": "".join(f"{n}\t{k}\t0\t0\t62\t62\n" for n, k in TESTED).encode(),
        "test/images/test_0.JPEG": encode(noise(99)),
    }
    # Neither the classes nor their images lie in the archive in the order that counts.
    for c, wnid in enumerate(NAMES):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t63\t63\n".encode()
        for i in sorted(NUMBERS, key=str):
            image = noise(100 * c + i, (64, 64) if i == 2 else (64, 64, 3))
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encode(image)
    for i, (name, _) in enumerate(sorted(TESTED)):
        files[f"val/images/{name}"] = encode(noise(50 + i, (64, 64) if i == 1 else (64, 64, 3)))
    return files


def write_zip(folder: pathlib.Path, tree: dict[str, bytes]) -> pathlib.Path:
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in tree.items():
            archive.writestr(f"{ROOT}/{name}", content)
    return path


def write_folder(folder: pathlib.Path, tree: dict[str, bytes]) -> pathlib.Path:
    for name, content in tree.items():
        (folder / ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ROOT / name).write_bytes(content)
    return folder / ROOT


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """Prepares what lies in the folder as tensorflow-datasets."""
    from mixmo_jax.datasets.tfds_tiny_imagenet import TinyImagenet

    builder = TinyImagenet(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder / "tiny_imagenet" / VERSION


def prepare_zip(folder: pathlib.Path, tree: dict[str, bytes]) -> pathlib.Path:
    archive = write_zip(folder, tree)
    prepared = prepare(folder)
    archive.unlink()
    return prepared


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory):
    return prepare_zip(tmp_path_factory.mktemp("prepared"), make_tree())


@pytest.fixture
def prepared(tmp_path, prepared_once):
    """The folder of a prepared dataset, to be changed."""
    return pathlib.Path(shutil.copytree(prepared_once, tmp_path / "tiny_imagenet" / VERSION))


FORMS = {"zip": write_zip, "folder": write_folder, "prepared": prepare_zip}


def load(data_dir: pathlib.Path) -> datasets.Dataset:
    flag = f"--config.dataset.data_dir={data_dir}"
    return datasets.load_dataset(config_lib.parse("tiny_imagenet", [flag])[1].dataset)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, file):
        raise InputError("no network")

    monkeypatch.setattr("mixmo_jax.datasets.source.download", refuse)


def refused(path: pathlib.Path, data_dir: pathlib.Path | None = None) -> str:
    """The message of the error, one line that begins with the path; nothing is kept."""
    with pytest.raises(InputError) as caught:
        load(data_dir or path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    caches = (path if path.is_dir() else path.parent) / ".mixmo_jax"
    assert not caches.exists() or list(caches.iterdir()) == []
    return message


def decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def check(data: datasets.Dataset, tree: dict[str, bytes]) -> None:
    """Compares a dataset with the files, bit by bit and in order."""
    labels = {"n01": 0, "n02": 1, "n03": 2}
    train = [(f"train/{k}/images/{k}_{i}.JPEG", labels[k]) for k in labels for i in NUMBERS]
    test = [(f"val/images/{name}", labels[k]) for name, k in TESTED]
    assert data.class_names == tuple(NAMES[wnid] for wnid in labels)
    for split, entries in ((data.train, train), (data.test, test)):
        assert split.images.shape == (len(entries), 64, 64, 3) and split.images.dtype == np.uint8
        np.testing.assert_array_equal(split.images, [decode(tree[name]) for name, _ in entries])
        np.testing.assert_array_equal(split.labels, [label for _, label in entries])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_labels_and_names(tmp_path, tree, form):
    """Likewise where it is looked for: the folder it lies in, or the thing itself."""
    path = FORMS[form](tmp_path, tree)
    check(load(tmp_path), tree)
    check(load(path), tree)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [("n01", "n02", "n03"), ("n02", "n03", "n01")])
def test_labels_follow_the_alphabetical_order_of_the_classes(tmp_path, tree, form, order):
    """As torchvision's ImageFolder has it, whatever the order of wnids.txt."""
    tree["wnids.txt"] = "".join(f"{wnid}\n" for wnid in order).encode()
    FORMS[form](tmp_path, tree)
    data = load(tmp_path)
    check(data, tree)
    assert data.class_names == ("tailed frog", "black widow", "goldfish, Carassius auratus")
    assert data.test.labels.tolist() == [0, 2, 1]  # n01, n03, n02


def test_only_the_classes_of_wnids_count(tmp_path, tree):
    tree["wnids.txt"] = b"n03\nn01\n"
    assert "train/n02: the class is not in wnids.txt" in refused(write_zip(tmp_path, tree))


def test_gray_images_become_rgb(tmp_path, tree):
    write_zip(tmp_path, tree)
    gray = load(tmp_path).train.images[2]
    np.testing.assert_array_equal(gray, gray[..., :1].repeat(3, axis=-1))


def test_a_prepared_dataset_is_used_before_the_archive(tmp_path, tree):
    write_zip(tmp_path, tree)
    prepare(tmp_path)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"damaged since")
    check(load(tmp_path), tree)


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_a_builder_for_tensorflow_datasets(tmp_path, tree, write):
    write(tmp_path, tree)
    prepare(tmp_path)
    from mixmo_jax.datasets.tfds_tiny_imagenet import TinyImagenet

    builder = TinyImagenet(data_dir=tmp_path, file_format="array_record")
    assert builder.info.features["label"].names == sorted(NAMES)
    assert {k: split.num_examples for k, split in builder.info.splits.items()} == {
        "train": len(NAMES) * len(NUMBERS),
        "test": len(TESTED),
    }
    names = {e["file_name"].decode() for e in builder.as_data_source("test")}
    assert names == {"000000/val_2.JPEG", "000001/val_10.JPEG", "000002/val_0.JPEG"}
    labels = {e["file_name"].decode()[7:]: e["label"] for e in builder.as_data_source("test")}
    assert {name: sorted(NAMES)[label] for name, label in labels.items()} == dict(TESTED)


def test_tensorflow_is_not_imported(tmp_path, tree):
    prepare_zip(tmp_path, tree)
    check(load(tmp_path), tree)
    assert [m for m in sys.modules if m.partition(".")[0] == "tensorflow"] == []


def test_loading_a_prepared_dataset_leaves_it_intact(tmp_path, tree):
    path = prepare_zip(tmp_path, tree)
    load(tmp_path)
    assert prepare(tmp_path) == path  # nothing to do: the archive is gone
    check(load(tmp_path), tree)


def test_preparation_from_nothing_names_the_file_to_put(tmp_path):
    with pytest.raises(InputError, match=r"put tiny-imagenet-200\.zip there"):
        prepare(tmp_path)
    assert not (tmp_path / "tiny_imagenet" / VERSION).exists()


def test_preparation_from_a_damaged_archive_leaves_nothing_to_use(tmp_path, tree):
    path = write_zip(tmp_path, tree)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=": damaged: "):
        prepare(tmp_path)
    assert not (tmp_path / "tiny_imagenet" / VERSION).exists()


def replace(old, new):
    return lambda content: content.replace(old, new)


# What is done to a file; nothing means that it is removed.
DAMAGES = [
    ("features.json", None),
    ("features.json", lambda content: content[:100]),
    ("features.json", lambda content: b"1"),
    ("features.json", replace(b"featuresDict", b"featuresDocs")),
    ("dataset_info.json", lambda content: content[:100]),
    ("dataset_info.json", lambda content: b"{}"),
    ("dataset_info.json", replace(b'"name": "test"', b'"name": "Rest"')),
    ("metadata.json", None),
    ("metadata.json", lambda content: b"[1]"),
    ("metadata.json", lambda content: b"\xff"),
    ("tiny_imagenet-test.array_record-00000-of-00001", None),
    ("tiny_imagenet-train.array_record-00000-of-00001", lambda content: content[:-30_000]),
    ("tiny_imagenet-train.array_record-00000-of-00001", lambda content: content[:-1]),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_prepared_dataset_is_to_be_prepared_again(prepared, name, damage):
    content = (prepared / name).read_bytes()
    (prepared / name).unlink()
    if damage:
        (prepared / name).write_bytes(damage(content))
    message = refused(prepared)
    assert ": damaged: " in message and message.endswith("; prepare it again")


def outdate(prepared: pathlib.Path) -> pathlib.Path:
    """Turns a prepared dataset into one of the version before."""
    info = prepared / "dataset_info.json"
    text = info.read_text()
    assert f'"version": "{VERSION}"' in text
    info.write_text(text.replace(f'"version": "{VERSION}"', '"version": "1.0.0"'))
    return prepared.rename(prepared.with_name("1.0.0"))


def test_an_outdated_prepared_dataset_is_refused(prepared):
    """Its labels are in another order."""
    message = refused(outdate(prepared))
    assert f"version 1.0.0: its labels are not those of version {VERSION}" in message
    assert message.endswith("; prepare it again")


def test_an_outdated_prepared_dataset_is_passed_over(tmp_path, prepared, tree):
    outdate(prepared)
    with pytest.raises(InputError, match=r"put tiny-imagenet-200\.zip there"):
        load(tmp_path)
    write_zip(tmp_path, tree)
    check(load(tmp_path), tree)


def change(name, old, new):
    return lambda tree: tree.update({name: tree[name].replace(old, new)})


def add(name, content=b""):
    return lambda tree: tree.update({name: content or encode(noise(0))})


def remove(prefix):
    return lambda tree: [tree.pop(name) for name in list(tree) if name.startswith(prefix)]


VAL = "val/val_annotations.txt"
MISFITS = {
    "annotation without its file": (remove("val/images/val_10.JPEG"), "val_10.JPEG"),
    "file without annotation": (add("val/images/val_7.JPEG"), "val/images/val_7.JPEG"),
    "annotated twice": (add(VAL, b"val_0.JPEG\tn02\nval_0.JPEG\tn02\n"), "annot"),
    "class folder without images": (remove("train/n02/images"), "train/n02: no images"),
    "no class folder": (remove("train/n02"), "train/n02: no images"),
    "class not in wnids.txt": (add("train/n09/images/n09_0.JPEG"), "train/n09: .* wnids.txt"),
    "annotation of an unknown class": (
        change(VAL, b"val_10.JPEG\tn03", b"val_10.JPEG\tn09"),
        r"val_10\.JPEG: its class 'n09' is not in wnids\.txt",
    ),
    "annotation without a class": (change(VAL, b"val_10.JPEG\tn03", b"val_10.JPEG n03"), "val_10"),
    "class listed twice": (change("wnids.txt", b"n02", b"n01"), "names a class twice"),
    "no classes": (add("wnids.txt", b"\n"), "wnids.txt"),
    "no images for testing": (add(VAL, b"\n"), "val_annotations.txt"),
    "no wnids.txt": (remove("wnids.txt"), "lacks the file wnids.txt"),
    "no words.txt": (remove("words.txt"), "lacks the file .*words.txt"),
    "no annotations": (remove(VAL), "lacks the file .*val_annotations.txt"),
    "text instead of an image": (add("train/n01/images/n01_2.JPEG", b"<html>"), "n01_2.JPEG: not"),
    "image cut off": (
        add("val/images/val_0.JPEG", encode(noise(0))[:500]),
        "val/images/val_0.JPEG: damaged: ",
    ),
    "image of another size": (
        add("val/images/val_0.JPEG", encode(noise(0, (64, 65, 3)))),
        "val/images/val_0.JPEG: is 65x64, expected 64x64",
    ),
}


@pytest.mark.parametrize("write", [write_zip, write_folder])
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_together_is_named(tmp_path, tree, misfit, write):
    spoil, expected = MISFITS[misfit]
    spoil(tree)
    path = write(tmp_path, tree)
    with pytest.raises(InputError, match=expected):
        raise InputError(refused(path, tmp_path))


@pytest.mark.parametrize("line", [b"", b"n01\n", b"n01\t\n", b"tailed frog\n"])
def test_class_without_a_word_keeps_its_number(tmp_path, tree, line):
    tree["words.txt"] = tree["words.txt"].replace(b"n01\ttailed frog\n", line)
    write_zip(tmp_path, tree)
    assert load(tmp_path).class_names[0] == "n01"


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_zip_cut_off(tmp_path, tree, part):
    path = write_zip(tmp_path, tree)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert ": damaged: " in refused(path)


def test_a_changed_byte_in_a_zip(tmp_path, tree):
    """It is the archive that is damaged; the image may look right even so."""
    path = write_zip(tmp_path, tree)
    content = bytearray(path.read_bytes())
    content[content.find(tree["val/images/val_0.JPEG"]) + 1000] ^= 1
    path.write_bytes(content)
    message = refused(path)
    assert ": damaged: " in message and "val_0.JPEG" in message


def test_the_real_archive(tmp_path):
    archive = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
    archive /= "tiny-imagenet-mini.zip"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    path = shutil.copy(archive, tmp_path / "tiny-imagenet-200.zip")
    data = load(tmp_path)
    with zipfile.ZipFile(path) as files:
        wnids = files.read(f"{ROOT}/wnids.txt").decode().split()
        lines = files.read(f"{ROOT}/val/val_annotations.txt").decode().splitlines()
        for i in (0, 500, 999):
            name, wnid = lines[i].split("\t")[:2]
            image = decode(files.read(f"{ROOT}/val/images/{name}"))
            np.testing.assert_array_equal(data.test.images[i], image)
            assert data.test.labels[i] == sorted(wnids).index(wnid)
    assert data.num_classes == len(wnids) == 20
    assert np.bincount(data.train.labels).tolist() == [150] * 20
    assert np.bincount(data.test.labels).tolist() == [50] * 20
