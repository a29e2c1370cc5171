"""Zip and tar archives, of which no name, size or header is trusted."""

import bz2
import gzip
import lzma
import os
import pathlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mixmo_jax.errors import InputError, open_file, too_large

FIELD = "dataset.max_file_bytes"  # the config field that limits what is read into memory

# What reading a damaged archive may raise.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,  # of zipfile: encrypted, or of an unknown version; a recursion of tarfile
    ValueError,
)

_OPEN = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_MAX_HEADER = 2**20  # bytes of an entry's headers in a tar; those with a long name have several
_MAX_NAMES = 2**28  # bytes of memory for the names of all entries of a tar
_MAX_NAME = 4096  # bytes; Linux has no longer paths
_MAX_XZ = 2**28  # bytes of memory; xz takes up to 65 MiB, unless it is told otherwise
# The files in a compressed tar that are read may have this many times its size, and the size of one
# file more. Images hardly compress, zeros do a thousandfold.
_MAX_EXPANSION = 8

Read = Callable[[str], bytes]


def is_zip(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive, by its name or its content."""
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


def open_zip(path: pathlib.Path, max_bytes: int) -> tuple[list[str], Read]:
    """Opens a zip archive.

    Args:
      path: The archive.
      max_bytes: The largest size of a file in it that may be read.

    Returns:
      The names of its entries, those of folders with "/" at the end; and a function that reads one.
    """
    archive = zipfile.ZipFile(path)
    for entry in archive.infolist():
        mode = entry.external_attr >> 16
        special = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        _check_entry(path, entry.filename, stat.S_ISLNK(mode), special)

    def read(name: str) -> bytes:
        """Reads not a byte more than the directory declares."""
        entry = archive.getinfo(name)
        if entry.file_size > max_bytes:
            raise too_large(f"{path}: {name}", entry.file_size, max_bytes, FIELD)
        # The others decompress a block at once, whatever its size.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{name} is neither stored nor deflated")
        with archive.open(entry) as file:
            return file.read(entry.file_size + 1)

    return archive.namelist(), read


def open_tar(
    path: pathlib.Path, max_bytes: int, wanted: Callable[[str], bool]
) -> tuple[list[str], Read]:
    """Opens a tar archive; reads it once if it is compressed, as it has no index then.

    Args:
      path: The archive.
      max_bytes: The largest size of a file in it that may be read.
      wanted: Whether a file of a name may be read later. Only these of a compressed archive are
        kept in memory.

    Returns:
      The names of its entries, those of folders with "/" at the end; and a function that reads one.
    """
    names, sizes, places, contents = [], {}, {}, {}
    left = max_bytes + _MAX_EXPANSION * os.stat(path).st_size
    with open_file(path) as file:
        stream = _decompressed(file)
        for entry in _tar_entries(stream):
            _check_entry(path, entry.name, entry.issym() or entry.islnk(), entry.isdev())
            name = entry.name.removeprefix("./")
            if entry.isdir() and name != ".":
                names.append(f"{name}/")
            if not entry.isfile():
                continue
            names.append(name)
            sizes[name], places[name] = entry.size, entry.offset_data
            if entry.issparse():  # its size is nothing that the archive holds
                sizes[name] = None
            elif stream is not file and entry.size <= max_bytes and wanted(name):
                left -= entry.size
                if left < 0:
                    limit = f"{FIELD}={max_bytes} and {_MAX_EXPANSION} times its size"
                    raise InputError(f"{path}: refused: expands beyond {limit}; pack a zip")
                contents[name] = _read_exactly(stream, entry.size)

    def read(name: str) -> bytes:
        if sizes[name] is None:
            raise InputError(f"{path}: refused: its entry {name!r} is a sparse file")
        if sizes[name] > max_bytes:
            raise too_large(f"{path}: {name}", sizes[name], max_bytes, FIELD)
        if stream is not file:
            return contents[name]
        with open_file(path) as archive:
            archive.seek(places[name])
            return _read_exactly(archive, sizes[name])

    return names, read


def entry_names(path: pathlib.Path) -> list[str]:
    """Returns the names of all entries of an archive, which are not read."""
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with open_file(path) as file:
        return [entry.name for entry in _tar_entries(_decompressed(file))]


def _decompressed(file) -> BinaryIO:
    """Returns the stream of a tar archive: its file itself if it is not compressed."""
    start = file.read(2**16)
    file.seek(0)
    if start.startswith(b"\xfd7zXZ\0"):  # it says how much memory it takes
        lzma.LZMADecompressor(memlimit=_MAX_XZ).decompress(start, max_length=1)
    if start[257:262] != b"ustar":  # a tar begins with a name, which may look like the others
        for magic, decompress in _OPEN.items():
            if start.startswith(magic):
                return decompress(file)
    return file


def _tar_entries(stream) -> Iterator[tarfile.TarInfo]:
    """Yields the entries of a tar, at each of which the stream is where its content begins."""
    headers, names, end = _Headers(stream), 0, -1
    with tarfile.open(fileobj=headers, mode="r:") as archive:
        while entry := archive.next():
            archive.members.clear()  # where tarfile keeps them all
            names += len(entry.name) + 100
            if len(entry.name) > _MAX_NAME or names > _MAX_NAMES:
                raise tarfile.ReadError("too long names, or too many")
            if entry.size < 0 or archive.offset <= end:
                raise tarfile.ReadError("a negative size")
            end = archive.offset
            yield entry
            headers.begin()
    if headers.last.strip(b"\0") or len(headers.last) != tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    while stream.read(2**20):  # a checksum is compared only at the end of the stream
        pass


class _Headers:
    """What tarfile reads of a stream: headers, but not those that would fill the memory.

    Attributes:
      last: What was read last.
    """

    def __init__(self, stream: BinaryIO):
        self._stream, self.tell, self.seek = stream, stream.tell, stream.seek
        self.last = b""
        self.begin()

    def begin(self) -> None:
        """Prepares for the headers of another entry."""
        self._left = _MAX_HEADER

    def read(self, size: int) -> bytes:
        """Reads a header, or a part of it."""
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError("a header that is too long")
        self.last = self._stream.read(size)
        return self.last


def _read_exactly(stream, size):
    content = stream.read(size)
    if len(content) < size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _check_entry(path, name, is_link, is_special):
    parts = pathlib.PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        raise InputError(f"{path}: refused: its entry {name!r} lies outside of the archive")
    if is_link:
        raise InputError(f"{path}: refused: its entry {name!r} is a link")
    if is_special:
        raise InputError(f"{path}: refused: its entry {name!r} is a pipe or a device")
