"""Downloads, and what is said where there is no network."""

import dataclasses
import hashlib
import io
import pathlib
import socket
import socketserver
import tarfile
import threading
import time
import types
import urllib.request
import zipfile

import numpy as np
import pytest

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets import cifar, tiny_imagenet
from mixmo_jax.datasets import download as download_lib
from mixmo_jax.datasets.download import download
from mixmo_jax.datasets.source import Official
from mixmo_jax.errors import InputError

# An exception in a thread prints a traceback.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

BODY = np.random.default_rng(0).bytes(100_000)


def answer(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + body


WHOLE = answer(BODY, f"Content-Length: {len(BODY)}")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve():
    """Starts servers that give one answer to every request; returns an address there."""
    servers = []

    def start(
        content: bytes, name: str = "images.tar.gz", stall: float = 0, rest: bytes = b""
    ) -> str:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(content)
                time.sleep(stall)
                self.wfile.write(rest)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/{name}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nowhere():
    """An address at which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}/images.tar.gz"


def refused(url: str, folder: pathlib.Path) -> str:
    """The message of a download that fails, one line; nothing is left in the folder."""
    with pytest.raises(InputError) as caught:
        download(url, folder / "images.tar.gz")
    assert "\n" not in str(caught.value)
    assert not folder.exists() or list(folder.iterdir()) == []
    return str(caught.value)


def test_a_complete_file_gets_its_name(tmp_path, serve):
    file = tmp_path / "new" / "folder" / "images.tar.gz"
    download(serve(WHOLE), file)
    assert file.read_bytes() == BODY
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("headers", [[], ["Content-Length: many"]])
def test_a_server_that_tells_no_size(tmp_path, serve, headers):
    download(serve(answer(BODY, *headers)), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


CHUNK = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n"


def test_a_transfer_in_chunks(tmp_path, serve):
    download(serve(answer(CHUNK + b"0\r\n\r\n", "Transfer-Encoding: chunked")), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_transfer_that_breaks_off(tmp_path, serve):
    url = serve(WHOLE[:-1])
    assert refused(url, tmp_path) == f"{url}: broke off after 99,999 of 100,000 bytes"


@pytest.mark.parametrize("chunks", [CHUNK, CHUNK[:-50], b""])
def test_a_transfer_in_chunks_that_breaks_off(tmp_path, serve, chunks):
    url = serve(answer(chunks, "Transfer-Encoding: chunked"))
    assert url in refused(url, tmp_path)


def test_a_transfer_that_stalls(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download_lib, "_STALL_SECONDS", 0.2)
    url = serve(WHOLE[:-1], stall=30)
    start = time.monotonic()
    assert url in refused(url, tmp_path)
    assert time.monotonic() - start < 20


def test_a_short_stall_is_waited_for(tmp_path, serve, monkeypatch):
    """The seconds within which a server has to answer are not those of the whole transfer."""
    monkeypatch.setattr(download_lib, "_CONNECT_SECONDS", 1.0)
    url = serve(WHOLE[:-1], rest=WHOLE[-1:], stall=1.5)
    download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "Not Found"),
        (b"", ""),
        (b"not HTTP at all\r\n\r\n", ""),
    ],
    ids=["not found", "nothing", "another protocol"],
)
def test_a_server_that_refuses_or_talks_nonsense(tmp_path, serve, capfd, content, reason):
    url = serve(content)
    message = refused(url, tmp_path)
    assert message.startswith(url) and reason in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("url", ["", "images.tar.gz", "gopher://127.0.0.1/x", "http://[::1/x"])
def test_what_is_not_an_address(tmp_path, url):
    refused(url, tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, serve):
    (tmp_path / "file").write_text("x")
    url = serve(WHOLE)
    with pytest.raises(InputError, match="Not a directory"):
        download(url, tmp_path / "file" / "folder" / "images.tar.gz")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_without_a_server_the_file_to_put_is_named(tmp_path, nowhere):
    source = dataclasses.replace(cifar.CIFAR100, url=nowhere)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        source.locate(str(tmp_path))
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert message.startswith(f"dataset.data_dir='{tmp_path}': put images.tar.gz there")
    assert "--config.dataset.data_dir" in message and nowhere in message
    assert "Connection refused" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_look_up_that_hangs_fails_within_seconds(tmp_path, monkeypatch):
    released, closed = threading.Event(), threading.Event()
    late = types.SimpleNamespace(close=closed.set)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait(30) and late)
    assert download_lib._CONNECT_SECONDS <= 5
    monkeypatch.setattr(download_lib, "_CONNECT_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"put tiny-imagenet-200\.zip there.*no answer"):
        tiny_imagenet.TINY_IMAGENET.locate(str(tmp_path))
    assert time.monotonic() - start < 20
    released.set()
    assert closed.wait(30)  # what answers when nobody waits any more
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", "downloads/manual"])
@pytest.mark.parametrize("name", cifar.CIFAR10.candidates)
def test_what_is_there_is_not_downloaded(tmp_path, nowhere, name, place):
    source = dataclasses.replace(cifar.CIFAR10, url=nowhere)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / name).write_text("x")
    assert source.locate(str(tmp_path)) == tmp_path / place / name
    assert source.locate(str(tmp_path / place / name)) == tmp_path / place / name


@pytest.mark.parametrize("place", ["missing", "file/missing", "link"])
def test_a_given_folder_that_does_not_exist_is_not_downloaded_to(tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("link")
    monkeypatch.setattr("mixmo_jax.datasets.source.download", lambda *args: 1 / 0)
    expected = f"^dataset.data_dir='{tmp_path / place}': cannot be read: .*; expected a folder or"
    with pytest.raises(InputError, match=expected):
        cifar.CIFAR10.locate(str(tmp_path / place))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "link"]


def test_the_default_folder_is_made(tmp_path, monkeypatch, serve):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "new"))
    official = Official(len(BODY), hashlib.md5(BODY).hexdigest())
    source = dataclasses.replace(cifar.CIFAR10, url=serve(WHOLE), official=(official,))
    assert source.locate("") == tmp_path / "new" / "images.tar.gz"
    assert (tmp_path / "new" / "images.tar.gz").read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), 1_000_000])
def test_what_is_not_the_official_file_is_not_kept(tmp_path, serve, size):
    """Such as the page of a network that wants a login, or a transfer cut off without a size."""
    official = (Official(size, hashlib.md5(b"another").hexdigest()),)
    source = dataclasses.replace(cifar.CIFAR10, url=serve(answer(BODY)), official=official)
    reason = "md5 is" if size == len(BODY) else "not the official file: 100,000 bytes"
    with pytest.raises(InputError, match=rf"put images\.tar\.gz there.*{reason}"):
        source.locate(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_no_folder(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    with pytest.raises(InputError, match="TFDS_DATA_DIR='gs://bucket/data': expected a local"):
        cifar.CIFAR10.locate("")
    with pytest.raises(InputError, match="data_dir='gs://bucket': expected a local folder"):
        cifar.CIFAR10.locate("gs://bucket")


def write_names(path: pathlib.Path, names: list[str]) -> None:
    """Writes an archive of empty files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "")
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))


LAYOUTS = [(cifar.CIFAR10, form) for form in cifar.CIFAR10.archived]
LAYOUTS += [(cifar.CIFAR100, form) for form in cifar.CIFAR100.archived]
LAYOUTS += [(tiny_imagenet.TINY_IMAGENET, form) for form in tiny_imagenet.TINY_IMAGENET.archived]


@pytest.mark.parametrize(
    ("ending", "top"),
    [
        *((ending, "") for ending in (".zip", ".tar", ".tar.gz", ".tgz", ".ZIP")),
        *((ending, top) for ending in (".zip", ".tgz") for top in ("./", "top/", "a/b/")),
    ],
)
@pytest.mark.parametrize(("source", "form"), LAYOUTS)
def test_an_archive_of_any_name_is_found_by_what_it_holds(
    tmp_path, nowhere, source, form, ending, top
):
    for other, files in LAYOUTS:
        if other is not source:
            write_names(tmp_path / "another.zip", files)
    write_names(tmp_path / "parts.zip", [f"{i}/{name}" for i, name in enumerate(form)])
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    path = tmp_path / "downloads" / "manual" / f"mine{ending}"
    write_names(path, [f"{top}{name}" for name in ("readme", *form)])
    source = dataclasses.replace(source, url=nowhere)
    assert source.locate(str(tmp_path)) == path
    (tmp_path / source.candidates[-1]).mkdir()
    assert source.locate(str(tmp_path)) == tmp_path / source.candidates[-1]


def test_a_damaged_archive_of_another_name_is_mentioned(tmp_path, capfd, nowhere):
    (tmp_path / "a.zip").write_text("x")
    write_names(tmp_path / "b.zip", list(cifar.CIFAR100.archived[0]))
    source = dataclasses.replace(cifar.CIFAR100, url=nowhere)
    assert source.locate(str(tmp_path)) == tmp_path / "b.zip"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'a.zip'}: damaged: ") and "; ignored" in line


@pytest.mark.parametrize("setting", ["TFDS_DATA_DIR", "HOME"])
def test_without_a_folder_it_is_that_of_tensorflow_datasets(tmp_path, monkeypatch, setting):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv(setting, str(tmp_path))
    folder = tmp_path / "tensorflow_datasets" if setting == "HOME" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "cifar-10-binary.tar.gz").write_text("x")
    assert cifar.CIFAR10.locate("") == folder / "cifar-10-binary.tar.gz"


def archive_of_noise() -> bytes:
    """A CIFAR-100 archive with 2 classes."""
    rng, content = np.random.default_rng(0), io.BytesIO()
    files = {"fine_label_names.txt": b"apple\nbear\n"}
    for split in ("train", "test"):
        records = rng.integers(0, 256, (4, 2 + 3072), dtype=np.uint8)
        records[:, 1] = np.arange(4) % 2
        files[f"{split}.bin"] = records.tobytes()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def load(folder: pathlib.Path) -> datasets.Dataset:
    flag = f"--config.dataset.data_dir={folder}"
    return datasets.load_dataset(config_lib.parse("cifar100", [flag])[1].dataset)


@pytest.fixture
def use(monkeypatch):
    """Replaces fields of the source of CIFAR-100."""

    def replace(**fields):
        source = dataclasses.replace(cifar.CIFAR100, **fields)
        monkeypatch.setitem(datasets.DATASETS, "cifar100", source)

    return replace


def test_a_missing_archive_is_downloaded_once_and_loaded(tmp_path, serve, use, nowhere):
    body = archive_of_noise()
    whole = answer(body, f"Content-Length: {len(body)}")
    official = Official(len(body), hashlib.md5(body).hexdigest())
    use(url=serve(whole, name="cifar-100-binary.tar.gz"), official=(official,))
    first = load(tmp_path)
    use(url=nowhere)
    second = load(tmp_path)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.class_names == ("apple", "bear")
    assert sorted(f.name for f in tmp_path.iterdir()) == [".mixmo_jax", "cifar-100-binary.tar.gz"]


@pytest.mark.parametrize("name", ["mine.tar.gz", "downloads/manual/cifar.tgz"])
def test_an_archive_of_another_name_is_loaded(tmp_path, use, nowhere, name):
    use(url=nowhere)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(archive_of_noise())
    assert load(tmp_path).class_names == ("apple", "bear")


@pytest.mark.parametrize("method", ["md5", "sha256"])
def test_an_archive_of_the_official_size_has_the_official_content(tmp_path, use, method):
    file = tmp_path / "cifar-100-binary.tar.gz"
    file.write_bytes(archive_of_noise())
    digest = hashlib.new(method, file.read_bytes()).hexdigest()
    wrong = digest[::-1]
    use(official=(Official(file.stat().st_size, wrong),))
    with pytest.raises(InputError, match=f"damaged: {method} is {digest}, expected {wrong}"):
        load(tmp_path)
    assert not (tmp_path / ".mixmo_jax").exists()
    use(official=(Official(file.stat().st_size, digest),))
    assert len(load(tmp_path).train) == 4
