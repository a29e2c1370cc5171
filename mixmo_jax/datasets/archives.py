"""Files of a folder or an archive, read in place: nothing is ever unpacked to the disk."""

import hashlib
import os
import pathlib
from collections.abc import Callable

from mixmo_jax.datasets import archive_formats
from mixmo_jax.datasets.archive_formats import DAMAGE, FIELD
from mixmo_jax.errors import MAX_BYTES, InputError, open_file, read_bytes, reading, too_large

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")  # of the archives that are looked for

_ADVICE = "expected a folder or a complete zip or tar archive"
_MAX_TEXT = 2**23  # bytes of a list of names; the longest, of Tiny ImageNet, has 2.7 million
_MAX_DEPTH = 100  # of folders inside each other


class Files:
    """The files in a folder, or in a zip or tar archive, that are not hidden.

    Attributes:
      path: The path of the folder or archive.
      names: The names of all files, relative to the root, with "/".
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        max_bytes: int = MAX_BYTES,
        wanted: Callable[[str], bool] = lambda name: True,
    ):
        """Opens a folder or an archive.

        Args:
          path: The folder or archive.
          max_bytes: The largest size of a file that may be read, `dataset.max_file_bytes`.
          wanted: Whether a file of a name may be read later: a compressed tar archive has no index,
            and these of its files are kept in memory.

        Raises:
          InputError: if it cannot be read, if an entry is a link or lies outside of the archive, or
            if the wanted files in a compressed tar are much larger than the archive.
        """
        self.path, self._max_bytes = path, max_bytes
        with reading(path, *DAMAGE, advice=_ADVICE):
            if path.is_dir():
                entries, self._read = _walk(path), self._read_file
            else:
                open_file(path).close()  # refuses what may have no end
                if archive_formats.is_zip(path):
                    entries, self._read = archive_formats.open_zip(path, max_bytes)
                else:
                    entries, self._read = archive_formats.open_tar(path, max_bytes, wanted)
        # Folders end in "/". A Mac adds one of its own to archives.
        self._entries = [
            e
            for e in dict.fromkeys(entries)
            if e[:1] not in ("", ".") and "/." not in e and e.split("/")[0] != "__MACOSX"
        ]
        self.names = [entry for entry in self._entries if not entry.endswith("/")]
        self._known = frozenset(self.names)

    def read(self, name: str) -> bytes:
        """Returns a file's content.

        Raises:
          InputError: if there is no such file, if it cannot be read, or if it is too large.
        """
        if name not in self._known:
            raise InputError(f"{self.path}: lacks the file {name}")
        with reading(self.path, *DAMAGE, advice=_ADVICE):
            return self._read(name)

    def _read_file(self, name):
        return read_bytes(self.path / name, self._max_bytes, FIELD)

    def read_lines(self, name: str) -> list[str]:
        """Returns a text file's lines that are not empty.

        Raises:
          InputError: as `read` does.
        """
        content = self.read(name)
        if len(content) > _MAX_TEXT:
            raise too_large(f"{self.path}: {name}", len(content), _MAX_TEXT)
        text = content.decode(errors="replace")
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
    with reading(path, *DAMAGE, advice=_ADVICE):
        open_file(path).close()
        return [name.removeprefix("./") for name in archive_formats.entry_names(path)]


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
    if len(around) > _MAX_DEPTH:
        raise InputError(f"{folder}: refused: more than {_MAX_DEPTH} folders inside each other")
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
