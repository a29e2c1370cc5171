"""Decoded images on the disk."""

import concurrent.futures
import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets import cache
from mixmo_jax.errors import InputError

CLASSES = ("cat", "dog")
SOURCE = {"path": "/a", "fingerprint": "1"}


def add_image(file: pathlib.Path, seed: int, size: int = 8) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path):
    """Three images of 8x8 of each of two classes."""
    root = tmp_path / "images"
    for c, name in enumerate(CLASSES):
        for i in range(3):
            add_image(root / name / f"{i}.png", 10 * c + i)
    return root


def load(folder: pathlib.Path, **fields) -> datasets.Dataset:
    config = config_lib.parse("image_folder", [f"--config.dataset.data_dir={folder}"])[1].dataset
    config.update({"image_size": 8, **fields})
    return datasets.load_dataset(config)


def all_images(data: datasets.Dataset) -> np.ndarray:
    return np.concatenate([data.train.images, data.test.images])


def finished_caches(folder: pathlib.Path) -> list[pathlib.Path]:
    """The caches of a folder of caches, in which nothing else lies."""
    caches = sorted(folder.iterdir()) if folder.exists() else []
    assert [c for c in caches if not (c / "meta.json").is_file()] == []
    return caches


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of images that were decoded so far, load by load."""
    counts, decode = [], datasets.image_folder.decode_images

    def count(read, names, *args, **kwargs):
        counts.append(len(names))
        decode(read, names, *args, **kwargs)

    monkeypatch.setattr(datasets.image_folder, "decode_images", count)
    return counts


def test_images_are_decoded_once(folder, decoded):
    first, second = load(folder), load(folder)
    assert decoded == [6]
    np.testing.assert_array_equal(all_images(first), all_images(second))
    np.testing.assert_array_equal(first.train.labels, second.train.labels)
    assert first.class_names == second.class_names == CLASSES


def test_images_are_mapped_for_reading(folder):
    load(folder)
    (built,) = finished_caches(folder / ".mixmo_jax")
    arrays, _ = cache.load(built.parent, built.name, _source_in(built), _must_not_build)
    assert all(isinstance(array, np.memmap) for array in arrays.values())
    assert not any(array.flags.writeable for array in arrays.values())


def _source_in(built):
    source = json.loads((built / "meta.json").read_text())["source"]
    del source["format"]
    return source


def _must_not_build(arrays):
    raise AssertionError("built again")


@pytest.mark.parametrize(
    ("change", "total"),
    [
        (lambda root: add_image(root / "cat" / "0.png", 99), 6),
        (lambda root: add_image(root / "cat" / "0.png", 99, size=16), 6),
        (lambda root: os.utime(root / "cat" / "0.png", ns=(1, 1)), 6),
        (lambda root: add_image(root / "cat" / "new.png", 99), 7),
        (lambda root: (root / "cat" / "0.png").unlink(), 5),
        (lambda root: (root / "cat" / "0.png").rename(root / "dog" / "x.png"), 6),
    ],
    ids=["content", "size", "time", "file added", "file removed", "class changed"],
)
def test_a_changed_source_is_decoded_again(folder, decoded, change, total):
    load(folder)
    change(folder)
    data = load(folder)
    assert decoded == [6, total]
    assert len(all_images(data)) == total
    fresh = load(folder, cache_dir=str(folder.parent / "fresh"))
    np.testing.assert_array_equal(all_images(data), all_images(fresh))
    assert len(finished_caches(folder / ".mixmo_jax")) == 1


def test_another_image_size_has_its_own_cache(folder, decoded):
    assert load(folder).train.images.shape[1:] == (8, 8, 3)
    assert load(folder, image_size=12).train.images.shape[1:] == (12, 12, 3)
    assert load(folder).train.images.shape[1:] == (8, 8, 3)
    assert decoded == [6, 6]


@pytest.mark.parametrize(
    "fields", [{"test_fraction": 0.5}, {"split_seed": 1}, {"validation_fraction": 0.3}]
)
def test_splitting_uses_the_same_cache(folder, decoded, fields):
    load(folder)
    load(folder, **fields)
    assert decoded == [6]


def test_cache_elsewhere(folder, tmp_path):
    elsewhere = tmp_path / "deep" / "cache"
    load(folder, cache_dir=str(elsewhere))
    assert len(finished_caches(elsewhere)) == 1
    assert sorted(f.name for f in folder.iterdir()) == list(CLASSES)


def test_two_sources_share_a_folder_of_caches(folder, tmp_path):
    other = tmp_path / "other"
    for name in ("x", "y"):
        for i in range(2):
            add_image(other / name / f"{i}.png", i)
    elsewhere = str(tmp_path / "cache")
    for _ in range(2):
        assert load(folder, cache_dir=elsewhere).class_names == CLASSES
        assert load(other, cache_dir=elsewhere).class_names == ("x", "y")
    assert len(finished_caches(tmp_path / "cache")) == 2


def test_earlier_arrays_stay_when_the_cache_is_replaced(folder):
    """Another run may be using them."""
    first = load(folder)
    before = all_images(first)
    add_image(folder / "cat" / "0.png", 99)
    load(folder)
    np.testing.assert_array_equal(all_images(first), before)


def build_seven(arrays: cache.Arrays) -> None:
    arrays.create("seven", (3,), np.int32)[:] = 7
    arrays.meta = {"class_names": ["a"]}


def test_arrays_and_meta_come_back(tmp_path):
    for build in (build_seven, _must_not_build):
        arrays, meta = cache.load(tmp_path, "x", SOURCE, build)
        assert {name: array.tolist() for name, array in arrays.items()} == {"seven": [7, 7, 7]}
        assert meta == {"class_names": ["a"]}


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"source": {}}', '{"source'])
def test_a_cache_without_its_metadata_is_not_used(tmp_path, text):
    cache.load(tmp_path, "x", SOURCE, build_seven)
    np.save(tmp_path / "x" / "seven.npy", np.zeros(3))
    np.save(tmp_path / "x" / "more.npy", np.zeros(3))
    (tmp_path / "x" / "meta.json").unlink()
    if text is not None:
        (tmp_path / "x" / "meta.json").write_text(text)
    arrays, _ = cache.load(tmp_path, "x", SOURCE, build_seven)
    assert {name: array.tolist() for name, array in arrays.items()} == {"seven": [7, 7, 7]}
    assert len(finished_caches(tmp_path)) == 1


def test_a_cache_of_an_older_format_is_not_used(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_FORMAT", cache._FORMAT - 1)
        before = all_images(load(folder))
    (built,) = finished_caches(folder / ".mixmo_jax")
    images = np.load(built / "train_images.npy", mmap_mode="r+")
    images[:] = 0
    images.flush()
    np.testing.assert_array_equal(all_images(load(folder)), before)
    assert finished_caches(folder / ".mixmo_jax") == [built]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, 50),
        lambda file: os.truncate(file, file.stat().st_size - 1),
    ],
    ids=["missing", "header cut", "data cut"],
)
def test_a_cache_with_a_damaged_array_is_not_used(folder, damage):
    """As a copy that broke off, or a disk that was cleaned up, leaves it."""
    before = all_images(load(folder))
    (built,) = finished_caches(folder / ".mixmo_jax")
    damage(built / "train_images.npy")
    np.testing.assert_array_equal(all_images(load(folder)), before)


@pytest.mark.parametrize("ending", ["part", "part.old"])
def test_what_a_killed_process_left_is_removed(tmp_path, ending):
    left = tmp_path / f".x.1234abcd.{ending}"
    left.mkdir()
    np.save(left / "seven.npy", np.zeros(3))
    (left / "meta.json").write_text("{}")
    arrays, _ = cache.load(tmp_path, "x", SOURCE, build_seven)
    assert arrays["seven"].tolist() == [7, 7, 7]
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("before", [False, True])
def test_one_process_builds_and_the_others_wait_for_it(tmp_path, before, capsys):
    """Also where a cache of other facts has to give way. A lock is of whoever opened the file."""
    if before:
        cache.load(tmp_path, "x", {**SOURCE, "fingerprint": "0"}, build_seven)
    begun, go_on = threading.Event(), threading.Event()

    def build_slowly(arrays):
        begun.set()
        assert go_on.wait(60)
        build_seven(arrays)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(cache.load, tmp_path, "x", SOURCE, build_slowly)
        assert begun.wait(60)
        others = [pool.submit(cache.load, tmp_path, "x", SOURCE, _must_not_build) for _ in "ab"]
        shown = ""
        for _ in range(600):
            if "another process decodes the images" in (shown := shown + capsys.readouterr().err):
                break
            time.sleep(0.1)
        assert "another process decodes the images" in shown
        assert not any(other.done() for other in others)
        go_on.set()
        loaded = [future.result(60) for future in (first, *others)]
    assert all(arrays["seven"].tolist() == [7, 7, 7] for arrays, _ in loaded)
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_file_system_without_locks(tmp_path, monkeypatch):
    """Then what lies beside may be that of a living process."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    building = tmp_path / ".x.1234abcd.part"
    building.mkdir()
    arrays, _ = cache.load(tmp_path, "x", SOURCE, build_seven)
    assert arrays["seven"].tolist() == [7, 7, 7]
    assert building.is_dir()


def test_a_process_killed_while_it_builds_leaves_no_cache(folder):
    script = """
        import os, sys
        from mixmo_jax import config, datasets

        def decode_some_and_die(read, names, out, **kwargs):
            out[:1] = 1
            out.flush()
            os._exit(9)

        datasets.image_folder.decode_images = decode_some_and_die
        flags = [f"--config.dataset.data_dir={sys.argv[1]}", "--config.dataset.image_size=8"]
        datasets.load_dataset(config.parse("image_folder", flags)[1].dataset)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    assert subprocess.run(command, timeout=60).returncode == 9
    assert len([*(folder / ".mixmo_jax").glob("*.part")]) == 1
    data = load(folder)
    fresh = load(folder, cache_dir=str(folder.parent / "fresh"))
    np.testing.assert_array_equal(all_images(data), all_images(fresh))
    assert len(finished_caches(folder / ".mixmo_jax")) == 1


@pytest.mark.parametrize("error", [ValueError, InputError, KeyboardInterrupt, MemoryError])
def test_an_exception_while_building_leaves_nothing(tmp_path, error):
    def build(arrays):
        build_seven(arrays)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        cache.load(tmp_path, "x", SOURCE, build)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(error, match="stop"):
        cache.load(tmp_path / "new", "x", SOURCE, build)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_building_keeps_the_earlier_cache(tmp_path):
    cache.load(tmp_path, "x", SOURCE, build_seven)
    with pytest.raises(AssertionError, match="built again"):
        cache.load(tmp_path, "x", {**SOURCE, "fingerprint": "2"}, _must_not_build)
    cache.load(tmp_path, "x", SOURCE, _must_not_build)
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_full_disk(folder, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"No space left on device.*dataset\.cache_dir") as e:
            load(folder)
    assert "\n" not in str(e.value)
    assert finished_caches(folder / ".mixmo_jax") == []
    load(folder)


@pytest.mark.parametrize("allocate", [True, False])
def test_space_is_reserved_before_it_is_written(tmp_path, monkeypatch, allocate):
    """Writing to a mapped file without it kills the process when the disk is full."""
    if not allocate:  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(cache, "_BLOCK", 300_000)
    arrays = cache.Arrays(tmp_path)
    array = arrays.create("x", (1000, 1000), np.uint8)
    assert os.stat(tmp_path / "x.npy").st_blocks * 512 >= array.nbytes


def test_cache_folder_that_cannot_be_made(folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for place in (file, file / "cache"):
        with pytest.raises(InputError, match=r"file.*: cannot keep .*dataset\.cache_dir") as e:
            load(folder, cache_dir=str(place))
        assert "\n" not in str(e.value)
    assert file.read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(InputError, match=r"Permission denied.*dataset\.cache_dir"):
            load(folder)
    finally:
        folder.chmod(0o755)


def test_read_only_file_system(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"Read-only file system.*dataset\.cache_dir"):
        load(folder)


def test_keys_are_short_names_of_all_values():
    keys = {cache.key(*parts) for parts in [("/a",), ("/b",), ("/a", 1), ("/a", "1")]}
    assert len(keys) == 4
    assert all(key.isalnum() and len(key) == 12 for key in keys)
