"""One process at a time in the folder of a run."""

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

from mixmo_jax.errors import InputError, warn
from mixmo_jax.files import writing

LOCK = ".lock"

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing to the folder of a run.

    The operating system drops the lock when the process ends, however it ends. It also holds
    between hosts where the network file system supports locks (NFS from version 4); where there are
    none, a warning says so. The folder is made if it is not there, and removed again if empty.

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
    import fcntl  # not on Windows

    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise InputError(f"workdir={folder}: in use by {holder}") from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise
            warn(f"workdir={folder}: its file system has no locks; start no second process there")
        if _is_current(file, folder):
            break
        os.close(file)  # its holder removed it in between
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def _is_current(file: int, folder: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False
