"""Files of an archive or a folder, read in place: nothing is ever unpacked to the disk."""

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


class Files:
    """The files below a folder, or in a zip or tar archive.

    Args:
      path: of the folder or archive.

    Attributes:
      path: likewise.
      names: of all files, relative to the root, with "/".

    Raises:
      InputError: if the archive is damaged, or an entry is a link or lies outside of the archive.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            if path.is_dir():
                self.names, self._read = _open_folder(path)
            elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
                self.names, self._read = _open_zip(path)
            else:
                self.names, self._read = _open_tar(path)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None

    def read(self, name: str) -> bytes:
        """Returns a file's content.

        Raises:
          InputError: if there is no such file, or it cannot be read.
        """
        try:
            return self._read(name)
        except (KeyError, FileNotFoundError):
            raise InputError(f"{self.path}: lacks the file {name}") from None
        except (*_DAMAGE, OSError) as error:
            if self.path.is_dir():
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{self.path / name}: cannot be read: {reason}") from None
            raise self._damaged(error) from None

    def read_lines(self, name: str) -> list[str]:
        """Returns a text file's lines that are not empty."""
        text = self.read(name).decode(errors="replace")
        return [line.rstrip("\r") for line in text.split("\n") if line.strip()]

    def folder_of(self, name: str) -> str:
        """Returns the folder, as "" or "…/", of the only file with this name."""
        found = [n for n in self.names if n == name or n.endswith("/" + name)]
        if not found:
            raise InputError(f"{self.path}: lacks the file {name}")
        return min(found, key=len).removesuffix(name)

    def _damaged(self, error):
        reason = " ".join(str(error).split())
        return InputError(f"{self.path}: truncated or corrupt ({reason}); download it again")


_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,  # of zipfile: encrypted, or compressed in an unknown way
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
)


def fingerprint(path: pathlib.Path) -> str:
    """Returns a text that changes with the files at a path: their names, sizes and times."""
    digest = hashlib.sha256()
    for name in _walk(path) if path.is_dir() else [""]:
        try:
            status = os.stat(path / name)
        except OSError as error:
            raise InputError(f"{path / name}: cannot be read: {error.strerror}") from None
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _walk(folder, prefix="", around=()) -> list[str]:
    """The files below a folder that are not hidden, in order."""
    status = os.stat(folder)
    place = (status.st_dev, status.st_ino)
    if place in around:
        raise InputError(f"{folder}: refused: a link to a folder that it is in")
    names = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # unlike entry.is_dir(), takes a link to itself
            names += _walk(entry.path, f"{prefix}{entry.name}/", (*around, place))
        else:
            names.append(prefix + entry.name)
    return names


def _open_folder(path) -> tuple[list[str], Callable[[str], bytes]]:
    return _walk(path), lambda name: (path / name).read_bytes()


def _open_zip(path) -> tuple[list[str], Callable[[str], bytes]]:
    archive = zipfile.ZipFile(path)
    for entry in archive.infolist():
        _check_entry(path, entry.filename, stat.S_ISLNK(entry.external_attr >> 16))
    return [e.filename for e in archive.infolist() if not e.is_dir()], archive.read


def _open_tar(path) -> tuple[list[str], Callable[[str], bytes]]:
    """Reads all files at once: a compressed tar has no index."""
    contents = {}
    with tarfile.open(path) as archive:
        for entry in archive:
            _check_entry(path, entry.name, entry.issym() or entry.islnk())
            if entry.isfile():
                contents[entry.name.removeprefix("./")] = archive.extractfile(entry).read()
        # Its checksum is compared only at the end of the stream.
        while archive.fileobj.read(1 << 20):
            pass
    return list(contents), contents.__getitem__


def _check_entry(path, name, is_link):
    parts = pathlib.PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        raise InputError(f"{path}: refused: its entry {name!r} lies outside of the archive")
    if is_link:
        raise InputError(f"{path}: refused: its entry {name!r} is a link")
