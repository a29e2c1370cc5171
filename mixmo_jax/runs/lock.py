"""One process at a time in the folder of a run."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

from mixmo_jax.errors import InputError, warn, writing
from mixmo_jax.file_lock import lock_file

LOCK = ".lock"


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing to the folder of a run, see `file_lock.lock_file`.

    Where the file system has no locks, a warning says so. The folder is made if it is not there,
    and removed again if empty.

    Args:
      folder: The folder of the run.

    Raises:
      InputError: if another process, or this one, holds the lock, or the folder cannot be written.
    """
    made = []
    with writing(f"workdir={folder}"):
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
        file = _acquire(folder)
    try:
        yield
    finally:
        if made and {f.name for f in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):  # another process may have put something there
                for parent in reversed(made):
                    parent.rmdir()
        os.close(file)


def _acquire(folder: pathlib.Path) -> int:
    """Opens and locks the file; returns its descriptor."""
    file = folder / LOCK
    try:
        descriptor, locked = lock_file(file, wait=False)
    except BlockingIOError:
        holder = ""
        with contextlib.suppress(OSError):
            holder = file.read_text(errors="replace")[:200].strip()
        raise InputError(f"workdir={folder}: in use by {holder or 'another process'}") from None
    if not locked:
        warn(f"workdir={folder}: its file system has no locks; start no second process there")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor
