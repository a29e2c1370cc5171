"""Archives and folders as sources of files."""

import io
import os
import pathlib
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from mixmo_jax.datasets import archives
from mixmo_jax.errors import InputError

FILES = {
    "data/a.txt": b"first\n\nsecond\r\n",
    "data/sub/b.bin": np.random.default_rng(0).bytes(2000),  # noise: gzip can only store it
    "data/sub/empty": b"",
}


def write_folder(path: pathlib.Path) -> None:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def write_zip(path: pathlib.Path, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("data")
        for name, content in FILES.items():
            archive.writestr(name, content)


def write_tar(path: pathlib.Path, mode: str, prefix: str = "") -> None:
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo(f"{prefix}data")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in FILES.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


FORMS = {
    "folder": write_folder,
    "a.zip": write_zip,
    "stored.zip": lambda path: write_zip(path, zipfile.ZIP_STORED),
    "a.tar": lambda path: write_tar(path, "w"),
    "a.tar.gz": lambda path: write_tar(path, "w:gz"),
    "a.tar.bz2": lambda path: write_tar(path, "w:bz2"),
    "a.tar.xz": lambda path: write_tar(path, "w:xz"),
    "dotted.tar.gz": lambda path: write_tar(path, "w:gz", "./"),
    "no-ending": write_zip,
}
ADVICE = "; expected a folder or a complete zip or tar archive"
CHECKED_FORMS = ["a.zip", "stored.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"]  # with checksums


def read_all(path: pathlib.Path) -> dict[str, bytes]:
    files = archives.Files(path)
    return {name: files.read(name) for name in files.names}


def refused(path: pathlib.Path) -> str:
    """The message of the error, one line that names the path."""
    with pytest.raises(InputError) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_files(tmp_path, form):
    FORMS[form](tmp_path / form)
    before = sorted(tmp_path.rglob("*"))
    assert read_all(tmp_path / form) == FILES
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


@pytest.mark.parametrize("form", ["folder", "a.zip", "a.tar.gz"])
def test_a_file_that_is_not_there_is_named(tmp_path, form):
    FORMS[form](tmp_path / form)
    files = archives.Files(tmp_path / form)
    with pytest.raises(InputError, match=rf"{form}: lacks the file data/c\.txt$"):
        files.read("data/c.txt")
    with pytest.raises(InputError, match=rf"{form}: lacks the file c\.txt$"):
        files.folder_of("c.txt")


def test_lines_of_a_text(tmp_path):
    write_zip(tmp_path / "a.zip")
    assert archives.Files(tmp_path / "a.zip").read_lines("data/a.txt") == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "folder"), [("a.txt", "data/"), ("b.bin", "data/sub/"), ("sub/b.bin", "data/")]
)
def test_folder_of_a_file(tmp_path, name, folder):
    write_zip(tmp_path / "a.zip")
    assert archives.Files(tmp_path / "a.zip").folder_of(name) == folder


@pytest.mark.parametrize("form", ["a.zip", "a.tar"])
def test_hidden_files_of_an_archive_are_not_seen(tmp_path, form):
    """Such as those that macOS adds."""
    path = tmp_path / form
    FORMS[form](path)
    hidden = ["data/.DS_Store", "__MACOSX/data/._a.txt", ".git/config"]
    for name in hidden:
        if form == "a.zip":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(name, "x")
        else:
            with tarfile.open(path, "a") as archive:
                archive.addfile(tarfile.TarInfo(name))
    if form == "a.zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/", "")  # many name the folders, too
    assert read_all(path) == FILES
    assert archives.Files(path).subfolders() == ["data"]


def test_hidden_files_of_a_folder_are_not_seen(tmp_path):
    write_folder(tmp_path)
    before = archives.fingerprint(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("x")
    (tmp_path / "data" / ".DS_Store").write_text("x")
    assert read_all(tmp_path) == FILES
    assert archives.fingerprint(tmp_path) == before


ESCAPES = ["/absolute", "../up", "data/../../up", "..", "data/..\\..\\up", "C:\\drive"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_an_entry_outside_of_the_archive_is_refused(tmp_path, name, form):
    path = tmp_path / "in" / f"a.{form}"
    path.parent.mkdir()
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/a.txt", "a")
            archive.writestr(zipfile.ZipInfo(name), "x")
    else:
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    assert refused(path).endswith(f"its entry {name!r} lies outside of the archive")
    assert list(tmp_path.rglob("*")) == [path.parent, path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "data/a.txt"])
def test_a_link_in_a_tar_is_refused(tmp_path, kind, target):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("data/link")
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    assert refused(path).endswith("its entry 'data/link' is a link")


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("data/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert refused(path).endswith("its entry 'data/link' is a link")


@pytest.mark.parametrize("form", CHECKED_FORMS)
def test_a_truncated_archive_is_refused(tmp_path, form):
    path = tmp_path / form
    FORMS[form](path)
    content = path.read_bytes()
    for length in range(0, len(content) - 100, 150):
        path.write_bytes(content[:length])
        message = refused(path)
        assert ": damaged: " in message and message.endswith(ADVICE)


@pytest.mark.parametrize("form", CHECKED_FORMS)
def test_a_changed_byte_never_changes_a_file_unnoticed(tmp_path, form):
    """Headers have bytes that do not matter; what is read is right, or refused."""
    path = tmp_path / form
    FORMS[form](path)
    content = path.read_bytes()
    for place in range(0, len(content), 23):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            files = read_all(path)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert files == FILES, f"byte {place} of {len(content)}"


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 9)], ids=["encrypted", "deflate64"])
def test_a_zip_that_python_cannot_read_is_refused(tmp_path, offset, value):
    """What other programs write: entries with a password, or by another method."""
    path = tmp_path / "a.zip"
    write_zip(path)
    content = bytearray(path.read_bytes())
    directory = -1
    while (directory := content.find(b"PK\x01\x02", directory + 1)) >= 0:
        content[directory + offset] = value
    path.write_bytes(content)
    refused(path)


def test_text_instead_of_an_archive_is_refused(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_text("<html>404 Not Found</html>")
    message = refused(path)
    assert ": damaged: " in message and message.endswith(ADVICE)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_nothing_at_the_path(tmp_path, name):
    message = f"{tmp_path / name}: cannot be read: No such file or directory{ADVICE}"
    assert refused(tmp_path / name) == message


def test_a_file_that_vanishes(tmp_path):
    write_folder(tmp_path)
    files = archives.Files(tmp_path)
    file = tmp_path / "data" / "a.txt"
    file.unlink()
    with pytest.raises(InputError, match=rf"^{file}: cannot be read: No such file or directory$"):
        files.read("data/a.txt")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_names_are_listed_without_reading(tmp_path, form):
    FORMS[form](tmp_path / form)
    assert set(archives.archive_names(tmp_path / form)) >= set(FILES)


@pytest.mark.parametrize("form", CHECKED_FORMS)
def test_names_of_a_damaged_archive(tmp_path, form):
    path = tmp_path / form
    FORMS[form](path)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match=f"^{path}: damaged: .*{ADVICE}$"):
        archives.archive_names(path)


@pytest.mark.parametrize("form", FORMS)
def test_subfolders(tmp_path, form):
    FORMS[form](tmp_path / form)
    files = archives.Files(tmp_path / form)
    assert files.subfolders() == ["data"]
    assert files.subfolders("data/") == ["sub"]
    assert files.subfolders("data/sub/") == files.subfolders("other/") == []


@pytest.mark.parametrize("form", ["folder", "a.zip", "a.tar.gz"])
def test_an_empty_folder_is_a_subfolder(tmp_path, form):
    path = tmp_path / form
    if form == "folder":
        (path / "top" / "empty").mkdir(parents=True)
    elif form == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("top/empty")
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name in (".", "./top", "./top/empty"):
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
    files = archives.Files(path)
    assert (files.names, files.subfolders(), files.subfolders("top/")) == ([], ["top"], ["empty"])


def test_a_tar_may_begin_with_the_name_of_another_format(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("BZh/a.txt"))
    assert read_all(tmp_path / "a.tar") == {"BZh/a.txt": b""}


def test_a_file_twice_in_a_tar_counts_once(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"old", b"new"):
            entry = tarfile.TarInfo("a.txt")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    files = archives.Files(path)
    assert files.names == ["a.txt"] and files.read("a.txt") == b"new"


def test_fingerprint_follows_names_sizes_and_times(tmp_path):
    write_folder(tmp_path)
    file = tmp_path / "data" / "a.txt"
    seen = [archives.fingerprint(tmp_path)]
    assert archives.fingerprint(tmp_path) == seen[0]
    os.utime(file, ns=(0, 0))
    seen.append(archives.fingerprint(tmp_path))
    file.write_bytes(b"longer than before, at the same time")
    os.utime(file, ns=(0, 0))
    seen.append(archives.fingerprint(tmp_path))
    file.rename(file.with_name("c.txt"))
    seen.append(archives.fingerprint(tmp_path))
    (tmp_path / "data" / "new").write_bytes(b"")
    seen.append(archives.fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)
