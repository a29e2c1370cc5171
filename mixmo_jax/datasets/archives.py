"""Files of a folder or an archive, read in place: nothing is ever unpacked to the disk."""

import gzip
import hashlib
import lzma
import os
import pathlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from mixmo_jax.errors import InputError
from mixmo_jax.files import reading

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")  # of the archives that are looked for

_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,  # of zipfile: encrypted, or compressed by an unknown method
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)
_ADVICE = "expected a folder or a complete zip or tar archive"


class Files:
    """The files in a folder, or in a zip or tar archive, that are not hidden.

    Attributes:
      path: The path of the folder or archive.
      names: The names of all files, relative to the root, with "/".
    """

    def __init__(self, path: pathlib.Path):
        """Opens a folder or an archive.

        Raises:
          InputError: if it cannot be read, or if an entry is a link or lies outside of the archive.
        """
        self.path = path
        with reading(path, *_DAMAGE, advice=_ADVICE):
            if path.is_dir():
                entries, self._read = _walk(path), lambda name: (path / name).read_bytes()
            elif _is_zip(path):
                entries, self._read = _open_zip(path)
            else:
                entries, self._read = _open_tar(path)
        # Folders end in "/".
        self._entries = [e for e in dict.fromkeys(entries) if e[0] != "." and "/." not in e]
        self.names = [entry for entry in self._entries if not entry.endswith("/")]
        self._known = frozenset(self.names)

    def read(self, name: str) -> bytes:
        """Returns a file's content.

        Raises:
          InputError: if there is no such file, or if it cannot be read.
        """
        if name not in self._known:
            raise InputError(f"{self.path}: lacks the file {name}")
        is_folder = self.path.is_dir()
        what, advice = (self.path / name, "") if is_folder else (self.path, _ADVICE)
        with reading(what, *_DAMAGE, advice=advice):
            return self._read(name)

    def read_lines(self, name: str) -> list[str]:
        """Returns a text file's lines that are not empty.

        Raises:
          InputError: as `read` does.
        """
        text = self.read(name).decode(errors="replace")
        return [line.rstrip("\r") for line in text.split("\n") if line.strip()]

    def folder_of(self, name: str) -> str:
        """Returns the folder, "" or "…/", in which a file lies; the uppermost if there are several.

        Raises:
          InputError: if there is no such file.
        """
        found = [n for n in self.names if n == name or n.endswith("/" + name)]
        if not found:
            raise InputError(f"{self.path}: lacks the file {name}")
        return min(found, key=len).removesuffix(name)

    def subfolders(self, folder: str = "") -> list[str]:
        """Returns the names of the folders in a folder, "" or "…/", in alphabetical order."""
        below = [e.removeprefix(folder) for e in self._entries if e.startswith(folder)]
        return sorted({entry.partition("/")[0] for entry in below if "/" in entry})


def archive_names(path: pathlib.Path) -> list[str]:
    """Returns the names of all files in an archive, which are not read.

    Raises:
      InputError: if it is not an archive, or if it is damaged.
    """
    with reading(path, *_DAMAGE, advice=_ADVICE):
        with zipfile.ZipFile(path) if _is_zip(path) else tarfile.open(path) as archive:
            names = archive.namelist() if _is_zip(path) else archive.getnames()
        return [name.removeprefix("./") for name in names]


def fingerprint(path: pathlib.Path) -> str:
    """Returns a text that changes with the names, sizes and times of the files at a path.

    Raises:
      InputError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in _walk(path) if path.is_dir() else [""]:
        if name.endswith("/"):
            continue
        with reading(path / name):
            status = os.stat(path / name)
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _walk(folder, prefix="", around=()) -> list[str]:
    """Returns the files and folders ("…/") in a folder that are not hidden, in order."""
    with reading(folder):
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    place = (status.st_dev, status.st_ino)
    if place in around:
        raise InputError(f"{folder}: refused: a link to a folder that it is in")
    names = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # unlike entry.is_dir(), accepts a link to itself
            names += [f"{prefix}{entry.name}/"]
            names += _walk(entry.path, f"{prefix}{entry.name}/", (*around, place))
        else:
            names.append(prefix + entry.name)
    return names


def _is_zip(path) -> bool:
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def _open_zip(path) -> tuple[list[str], Callable[[str], bytes]]:
    archive = zipfile.ZipFile(path)
    for entry in archive.infolist():
        _check_entry(path, entry.filename, stat.S_ISLNK(entry.external_attr >> 16))
    return archive.namelist(), archive.read


def _open_tar(path) -> tuple[list[str], Callable[[str], bytes]]:
    """Reads all files at once: a compressed tar has no index."""
    entries, contents = [], {}
    with tarfile.open(path) as archive:
        for entry in archive:
            _check_entry(path, entry.name, entry.issym() or entry.islnk())
            name = entry.name.removeprefix("./")
            if entry.isfile():
                entries.append(name)
                contents[name] = archive.extractfile(entry).read()
            elif entry.isdir() and name != ".":
                entries.append(f"{name}/")
        # The checksum is compared only at the end of the stream.
        while archive.fileobj.read(1 << 20):
            pass
    return entries, contents.__getitem__


def _check_entry(path, name, is_link):
    parts = pathlib.PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        raise InputError(f"{path}: refused: its entry {name!r} lies outside of the archive")
    if is_link:
        raise InputError(f"{path}: refused: its entry {name!r} is a link")
