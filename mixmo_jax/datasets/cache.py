"""Decoded images beside their source, so that they are decoded once and memory-mapped after."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from mixmo_jax.errors import InputError

_META = "meta.json"
_FORMAT = 2  # raise it when what is written changes


class Arrays:
    """Named arrays in a folder under construction; `meta` is any JSON that goes with them."""

    def __init__(self, folder: pathlib.Path):
        self.meta = {}
        self._folder = folder
        self._open = []

    def create(self, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """Returns a new array to be filled in, mapped to its file."""
        file = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        # Reserved at once: writing to a mapped file on a full disk would kill the process.
        with file.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        self._open.append((file, array))
        return array

    def finish(self, source: dict[str, str]) -> None:
        """Writes all to the disk."""
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
      folder: of all caches beside a source.
      name: of the source.
      source: what the arrays follow from; a cache of another source is replaced.
      build: fills in the arrays. What it writes counts only once it has returned.

    Returns:
      The arrays, memory-mapped for reading, by name; and the meta data.

    Raises:
      InputError: if the disk is full or cannot be written.
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
    """Arrays and meta data; None if they are missing, damaged or of another source."""
    try:
        meta = json.loads((folder / _META).read_text())
        if meta["source"] != source:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        return arrays, meta["meta"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _build(final, source, build):
    """Builds beside the place and moves there when all is written: a part is never in place."""
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
                final.parent.rmdir()  # if nothing came of it


def _remove_leftovers(final):
    """Removes what processes that were killed have left."""
    for part in final.parent.glob(f".{final.name}.*"):
        pid = part.name.split(".")[-2]
        # A process of our own number is dead, too: in containers the numbers repeat.
        dead = pid == str(os.getpid()) or not pathlib.Path(f"/proc/{pid}").exists()
        if pid.isdigit() and dead:
            shutil.rmtree(part, ignore_errors=True)


def key(*parts: object) -> str:
    """Returns a short name for a combination of values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
