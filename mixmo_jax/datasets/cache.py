"""Decoded images on the disk: decoded once, memory-mapped from then on."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from mixmo_jax.errors import InputError
from mixmo_jax.files import ARRAY_DAMAGE, map_array, read_text

_META = "meta.json"
_FORMAT = 3  # to be raised when what is written changes


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
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
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
            _build(final, source, build)
        except OSError as error:
            raise InputError(
                f"{final}: cannot keep the decoded images: {error.strerror or error}; "
                "free some space or choose another folder with --config.dataset.cache_dir"
            ) from None
        cached = _open(final, source)
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


def _build(final, source, build):
    """Builds in a folder beside the final one, which it becomes when all is written."""
    new = not final.parent.exists()
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final)
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        arrays = Arrays(part)
        build(arrays)
        arrays.finish(source)
        if final.exists():
            final.rename(part.with_suffix(".old"))
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(part.with_suffix(".old"), ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                final.parent.rmdir()  # if it is empty


def _remove_leftovers(final):
    """Removes what killed processes have left."""
    for part in final.parent.glob(f".{final.name}.*"):
        pid = part.name.split(".")[-2]
        # A process with the ID of this one is dead, too: in containers the IDs repeat.
        dead = pid == str(os.getpid()) or not pathlib.Path(f"/proc/{pid}").exists()
        if pid.isdigit() and dead:
            shutil.rmtree(part, ignore_errors=True)


def key(*parts: object) -> str:
    """Returns a short name for a combination of values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
