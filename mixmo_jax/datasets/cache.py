"""Decoded images on the disk: decoded once, memory-mapped from then on."""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Callable

import numpy as np

from mixmo_jax.errors import ARRAY_DAMAGE, InputError, map_array, read_text
from mixmo_jax.file_lock import lock_file

_META = "meta.json"
_FORMAT = 3  # to be raised when what is written changes
_BLOCK = 1 << 24


class Arrays:
    """Named arrays in a folder under construction.

    Attributes:
      meta: Any values that JSON can hold, stored with the arrays.
    """

    def __init__(self, folder: pathlib.Path):
        self.meta = {}
        self._folder = folder
        self._open = []

    def create(self, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """Returns a new array to be filled in, memory-mapped to its file."""
        file = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        # Reserved at once: writing to a mapped file on a full disk would kill the process.
        with file.open("r+b") as handle:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
            else:  # macOS
                handle.seek(array.offset)
                for start in range(0, array.nbytes, _BLOCK):
                    handle.write(bytes(min(_BLOCK, array.nbytes - start)))
        self._open.append((file, array))
        return array

    def finish(self, source: dict[str, str]) -> None:
        """Writes everything to the disk."""
        for file, array in self._open:
            array.flush()
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        names = [file.stem for file, _ in self._open]
        meta = {"source": source, "arrays": names, "meta": self.meta}
        (self._folder / _META).write_text(json.dumps(meta))


def load(
    folder: pathlib.Path, name: str, source: dict[str, str], build: Callable[[Arrays], None]
) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the cached arrays of a source, after building them if they are not there.

    Of several processes that need them one builds them; the others wait for it.

    Args:
      folder: The folder of the caches.
      name: The name of this cache.
      source: The facts that determine the arrays; a cache with other facts is replaced.
      build: A function that creates and fills in the arrays. They count once it has returned.

    Returns:
      The arrays by name, memory-mapped for reading; and the metadata.

    Raises:
      InputError: if the disk is full, or if the folder cannot be written.
    """
    source = {**source, "format": _FORMAT}
    final = folder / name
    cached = _open(final, source)
    if cached is None:
        try:
            return _build_alone(final, source, build)
        except OSError as error:
            raise InputError(
                f"{final}: cannot keep the decoded images: {error.strerror or error}; "
                "free some space or choose another folder with --config.dataset.cache_dir"
            ) from None
    return cached


def _open(folder, source):
    """Returns arrays and metadata; None if they are missing, damaged or of another source."""
    try:
        meta = json.loads(read_text(folder / _META))
        if meta["source"] != source:
            return None
        arrays = {name: map_array(folder / f"{name}.npy") for name in meta["arrays"]}
        return arrays, meta["meta"]
    except (*ARRAY_DAMAGE, InputError):
        return None


def _build_alone(final, source, build):
    """Builds the arrays, unless another process just did; returns what `_open` does."""
    new = not final.parent.exists()
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = final.with_name(f".{final.name}.lock")
    try:
        try:
            descriptor, locked = lock_file(lock, wait=False)
        except BlockingIOError:
            print(f"{final}: another process decodes the images; waiting for it", file=sys.stderr)
            descriptor, locked = lock_file(lock, wait=True)
        try:
            if (cached := _open(final, source)) is None:
                if locked:  # nobody else is building: these are of processes that were killed
                    for left in [*final.parent.glob(f".{final.name}.*.part*")]:
                        shutil.rmtree(left, ignore_errors=True)
                _build(final, source, build)
                cached = _open(final, source)
            return cached
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        if new:
            with contextlib.suppress(OSError):
                final.parent.rmdir()  # if it is empty


def _build(final, source, build):
    """Builds in a folder beside the final one, which it becomes when all is written."""
    # The number of the process is not its own on other hosts and in other containers.
    part = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    old = part.with_name(f"{part.name}.old")
    part.mkdir()
    try:
        arrays = Arrays(part)
        build(arrays)
        arrays.finish(source)
        if final.exists():
            final.rename(old)
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def key(*parts: object) -> str:
    """Returns a short name for a combination of values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
