"""Folders and archives, decoding, the cache, and downloads."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from setups import dataset_config

from mixmo_jax.datasets import files as files_lib
from mixmo_jax.datasets.files import (
    Files,
    create_split,
    find_images,
    load_cached,
    locate,
    read_images,
)
from mixmo_jax.errors import InputError

CONTENT = {"b/2.txt": b"two", "b/1.txt": b"one", "a.txt": b"\n x\r\ny\n", "b-/3.txt": b"3"}
HIDDEN = {".git/x": b"", "b/.x": b"", "__MACOSX/b/1.txt": b""}
FORMS = ("folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


def write(path: pathlib.Path, contents: dict[str, bytes], form: str = "folder") -> pathlib.Path:
    """Writes files into a folder, or into an archive in no order of meaning."""
    if form == "folder":
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{form.partition('.')[2]}") as archive:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_folders_and_archives_hold_the_same_files(tmp_path, form):
    path = write(tmp_path / "x", CONTENT | HIDDEN, form)
    files = Files(path)
    assert files.names == ["a.txt", "b/1.txt", "b/2.txt", "b-/3.txt"]
    assert {name: files.read(name) for name in files.names} == CONTENT
    assert files.read_lines("a.txt") == [" x", "y"]
    assert (files.folders(), files.folders("b/")) == (["b", "b-"], [])
    assert (files.folder_of("2.txt"), files.folder_of("a.txt")) == ("b/", "")
    with pytest.raises(InputError, match=r"x: lacks the file b/9\.txt$"):
        files.read("b/9.txt")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_archive_cut_off_is_one_line(tmp_path, form, part):
    noise = np.random.default_rng(0).bytes(50_000)
    path = write(tmp_path / f"x.{form}", {f"{i}.bin": noise for i in range(4)}, form)
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(
        InputError, match=r": damaged: .*; expected a folder or a complete"
    ) as error:
        Files(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_archive_with_a_changed_byte_is_damaged(tmp_path):
    for form in ("zip", "tar.gz"):
        path = write(tmp_path / f"x.{form}", {"a": np.random.default_rng(0).bytes(9000)}, form)
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged: "):
            Files(path).read("a")


def test_tar_cut_off_between_two_files_is_damaged(tmp_path):
    path = write(tmp_path / "x.tar", {"a": bytes(512), "b": bytes(512)}, "tar")
    content = path.read_bytes()[:1024]
    path.write_bytes(content)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content))
    for name in ("x.tar", "x.tar.gz"):
        with pytest.raises(InputError, match="unexpected end of data"):
            Files(tmp_path / name)


def test_links_are_followed(tmp_path):
    write(tmp_path / "store", {"a/1.png": b"1", "2.png": b"2"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "class").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "data" / "2.png").symlink_to(tmp_path / "store" / "2.png")
    files = Files(tmp_path / "data")
    assert [files.read(name) for name in files.names] == [b"2", b"1"]
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        os.link(tmp_path / "store" / "2.png", tmp_path / "store" / "3.png")
        archive.add(tmp_path / "store", "store")
    assert Files(tmp_path / "x.tar.gz").read("store/3.png") == b"2"


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(tmp_path, content: bytes, shape=(8, 8, 3)) -> np.ndarray:
    (tmp_path / "image").write_bytes(content)
    return read_images([tmp_path / "image"], shape)[0]


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


WIDE = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
# Images of one color, and the color.
MODES = {
    "gray": (encode(Image.new("L", (8, 8), 100)), (100, 100, 100)),
    "gray with alpha": (encode(Image.new("LA", (8, 8), (100, 255))), (100, 100, 100)),
    "black and white": (encode(Image.new("1", (8, 8), 1)), (255, 255, 255)),
    "16 bits": (encode(WIDE), (100, 100, 100)),
    "16 bits TIFF": (encode(WIDE, "TIFF"), (100, 100, 100)),
    "16 bits PPM": (
        encode(Image.fromarray(np.full((8, 8), 100 * 257, np.int32)), "PPM"),
        (100, 100, 100),
    ),
    "palette": (encode(Image.new("RGB", (8, 8), (0, 255, 0)).convert("P")), (0, 255, 0)),
    "alpha": (encode(Image.new("RGBA", (8, 8), (10, 20, 200, 255))), (10, 20, 200)),
    "CMYK": (encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),
    "BMP": (encode(Image.new("RGB", (8, 8), (9, 8, 7)), "BMP"), (9, 8, 7)),
    "one pixel": (encode(Image.new("RGB", (1, 1), (9, 8, 7))), (9, 8, 7)),
    **{
        f"animated {kind}": (animation(kind), (255, 0, 0)) for kind in ("GIF", "WEBP", "PNG", "MPO")
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_images_of_all_modes_become_rgb_or_gray(tmp_path, mode):
    content, color = MODES[mode]
    np.testing.assert_allclose(decode(tmp_path, content), np.broadcast_to(color, (8, 8, 3)), atol=6)
    gray = np.dot(color, (0.299, 0.587, 0.114))
    np.testing.assert_allclose(
        decode(tmp_path, content, (8, 8, 1)), np.full((8, 8, 1), gray), atol=6
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_pixels_of_the_right_size_are_kept(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), kind, lossless=True)
    np.testing.assert_array_equal(decode(tmp_path, content), pixels)


RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def picture(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right, the upper quarter green."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    image.paste(GREEN, (0, 0, width, height // 4))
    return image


def assert_is_picture(image: np.ndarray) -> None:
    places = {(2, 4): GREEN, (2, 28): GREEN, (28, 4): RED, (28, 28): BLUE}
    for place, color in places.items():
        np.testing.assert_allclose(image[place].astype(int), color, atol=12)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (16, 16), (96, 64), (9, 8), (300, 100)])
def test_images_are_scaled_and_center_cropped(tmp_path, width, height):
    assert_is_picture(decode(tmp_path, encode(picture(width, height)), (32, 32, 3)))


# How a turned camera stores a picture, by the orientation it notes.
TURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


@pytest.mark.parametrize("orientation", [None, 1, *TURNED, 99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_noted_by_a_camera_is_honored(tmp_path, orientation, kind):
    image, exif = picture(48, 32), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    if orientation in TURNED:
        image = image.transpose(Image.Transpose(TURNED[orientation]))
    content = encode(image, kind, exif=exif, quality=100)
    assert_is_picture(decode(tmp_path, content, (32, 32, 3)))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image$"),
        (b"<html>", "not an image$"),
        *[
            (encode(NOISE, kind)[:-60], "not an image$|damaged: ")
            for kind in ("PNG", "JPEG", "BMP")
        ],
        (encode(NOISE, "PNG", exif=b"Exif\0\0MM\0*"), "damaged: "),
        (encode(WIDE.convert("F"), "TIFF"), "has the mode F, expected 8 bits, or 16"),
        (b"P6 999999 999999 255\n", "damaged: DecompressionBombError"),
    ],
)
def test_file_that_cannot_be_decoded_is_one_line(tmp_path, content, reason):
    with pytest.raises(InputError, match=rf"^{tmp_path}/image: ({reason})") as error:
        decode(tmp_path, content)
    assert "\n" not in str(error.value) and " object at 0x" not in str(error.value)


def test_images_are_found_in_folders(tmp_path):
    names = ["b.PNG", "a/c.jpeg", "a/x.txt", ".h/d.png", "a/.e.png"]
    write(tmp_path / "x", dict.fromkeys(names, b""))
    given = tmp_path / "x" / "a" / "x.txt"  # a file that is given counts whatever its ending
    found = find_images([given, tmp_path / "x"])
    assert [str(f.relative_to(tmp_path / "x")) for f in found] == ["a/x.txt", "a/c.jpeg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no images \(\.png, "):
        find_images([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"missing: no such file or folder$"):
        find_images([tmp_path / "missing"])


@pytest.fixture
def source(tmp_path):
    """A dataset of one file, and where its cache is."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("1")
    return tmp_path / "data"


def load(source: pathlib.Path, cache_dir: object = "", decode=None, **options):
    """Loads one image whose pixels are the number in the file; returns them."""
    config = dataset_config("image_folder")
    config.cache_dir = str(cache_dir)
    splits, class_names = load_cached(source, config, decode or decode_number, **options)
    assert class_names == ["a"] and splits["train"].labels.tolist() == [0]
    return splits["train"].images


def decode_number(path: pathlib.Path, cache: pathlib.Path, size: int = 2) -> list[str]:
    create_split(cache, "train", [0], (size, size, 3))[:] = int((path / "file").read_text())
    return ["a"]


def must_not_decode(path, cache, **options):
    raise AssertionError("decoded again")


def caches(folder: pathlib.Path) -> list[pathlib.Path]:
    """The caches in a folder, beside which only locks lie."""
    found = [f for f in folder.iterdir() if f.suffix != ".lock"] if folder.exists() else []
    assert all((f / "meta.json").is_file() for f in found)
    return found


def test_images_are_decoded_once_and_mapped_for_reading(source):
    load(source)
    images = load(source, decode=must_not_decode)
    assert isinstance(images, np.memmap) and not images.flags.writeable and (images == 1).all()


def test_changed_source_is_decoded_again(source):
    first = load(source)
    (source / "file").write_text("2")
    os.utime(source / "file", ns=(1, 1))
    assert (load(source) == 2).all() and len(caches(source / ".mixmo_jax")) == 1
    assert (first == 1).all()  # another run may be using it
    (source / "another").touch()
    with pytest.raises(AssertionError, match="decoded again"):
        load(source, decode=must_not_decode)


def test_options_and_sources_have_their_own_caches(source, tmp_path):
    write(tmp_path / "other", {"file": b"9"})
    for _ in range(2):
        assert load(source, tmp_path / "c").shape == (1, 2, 2, 3)
        assert load(source, tmp_path / "c", size=3).shape == (1, 3, 3, 3)
        assert (load(tmp_path / "other", tmp_path / "c") == 9).all()
    assert len(caches(tmp_path / "c")) == 3
    assert [f.name for f in source.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["meta.json", "train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize("size", [None, 0, 50])
def test_damaged_cache_is_built_again(source, name, size):
    load(source)
    (cache,) = caches(source / ".mixmo_jax")
    (cache / name).unlink() if size is None else os.truncate(cache / name, size)
    assert (load(source) == 1).all()
    load(source, decode=must_not_decode)


def test_one_process_decodes_and_the_others_wait(source):
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def decode_slowly(path, cache):
        begun.set()
        assert go_on.wait(60)
        return decode_number(path, cache)

    def start(decode):
        thread = threading.Thread(target=lambda: loaded.append(load(source, decode=decode)))
        thread.start()
        return thread

    threads = [start(decode_slowly)]
    assert begun.wait(60)
    threads += [start(must_not_decode), start(must_not_decode)]
    time.sleep(0.2)
    assert not loaded
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(loaded) == 3 and all((images == 1).all() for images in loaded)


def test_process_killed_while_it_decodes_leaves_no_cache(source):
    script = """
        import os, pathlib, sys
        sys.path.append(sys.argv[2])
        import files_test

        def decode_and_die(path, cache):
            files_test.decode_number(path, cache)
            os._exit(9)

        files_test.load(pathlib.Path(sys.argv[1]), decode=decode_and_die)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), source, pathlib.Path(__file__).parent]
    assert subprocess.run(command, timeout=60).returncode == 9
    assert len(list((source / ".mixmo_jax").glob("*.part"))) == 1
    assert (load(source) == 1).all() and len(caches(source / ".mixmo_jax")) == 1


@pytest.mark.parametrize("error", [InputError, ZeroDivisionError, KeyboardInterrupt])
def test_exception_while_decoding_leaves_nothing(source, error):
    def fail(path, cache):
        decode_number(path, cache)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        load(source, decode=fail)
    assert caches(source / ".mixmo_jax") == []


def test_full_disk_is_one_line(source, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        with pytest.raises(InputError, match=r"No space left on device.*dataset\.cache_dir"):
            load(source)
    assert caches(source / ".mixmo_jax") == []
    with pytest.raises(InputError, match=r"cannot keep .*dataset\.cache_dir"):
        load(source, cache_dir=source / "file" / "cache")


BODY = np.random.default_rng(0).bytes(100_000)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    """A server with one file; yields its address."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path.endswith("images.zip")
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(BODY * found)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_missing_archive_is_downloaded_once(tmp_path, server, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new"))
    arguments = {"names": ["images.zip"], "known_hash": SHA256}
    path = locate("", url=f"{server}/images.zip", **arguments)
    assert path == tmp_path / "new" / "images.zip" and path.read_bytes() == BODY
    assert locate("", url="http://nowhere.invalid/images.zip", **arguments) == path


@pytest.mark.parametrize(
    ("name", "known_hash", "reason"),
    [("images.zip", f"md5:{'0' * 32}", "not the official file"), ("x.zip", SHA256, "HTTPError")],
)
def test_download_of_something_else_is_not_kept(tmp_path, server, name, known_hash, reason):
    expected = rf"data_dir='{tmp_path}': put {name} there.*failed: {reason}\)$"
    with pytest.raises(InputError, match=expected):
        locate(str(tmp_path), url=f"{server}/{name}", known_hash=known_hash)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_file_to_put_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    expected = rf"^dataset\.data_dir='{tmp_path}': put images\.zip there, or set another folder "
    with pytest.raises(InputError, match=expected) as error:
        locate(str(tmp_path), url="http://127.0.0.1:9/images.zip", known_hash=SHA256)
    assert time.monotonic() - start < 5 and "\n" not in str(error.value)
    assert files_lib._TIMEOUT[0] <= 5  # seconds, to a server that does not answer


@pytest.mark.parametrize("place", ["", "downloads/manual/"])
def test_dataset_is_found_in_its_folder(tmp_path, place):
    write(tmp_path, {f"{place}y.zip": b"", f"{place}z/marker": b""})
    arguments = {"markers": ["marker"], "url": "http://nowhere.invalid/x.zip"}
    assert locate(str(tmp_path), ["x.zip", "y.zip", "z"], **arguments) == tmp_path / place / "y.zip"
    assert locate(str(tmp_path), ["z", "y.zip"], **arguments) == tmp_path / place / "z"
    for itself in (tmp_path / place / "y.zip", tmp_path / place / "z"):
        assert locate(str(itself), ["x.zip"], **arguments) == itself


@pytest.mark.parametrize(
    ("data_dir", "url"), [("missing", "http://x/y"), ("missing", ""), ("", "")]
)
def test_data_dir_that_does_not_exist_is_an_error(tmp_path, data_dir, url):
    given = str(tmp_path / data_dir) if data_dir else ""
    expected = rf"^dataset\.data_dir='{given}': expected an existing folder or archive$"
    with pytest.raises(InputError, match=expected):
        locate(given, url=url)
    assert list(tmp_path.iterdir()) == []
