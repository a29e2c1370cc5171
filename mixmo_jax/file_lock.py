"""A lock between processes, also between hosts."""

import errno
import os
import pathlib

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def lock_file(file: pathlib.Path, *, wait: bool) -> tuple[int, bool]:
    """Makes and locks a file, as one process at a time can.

    The operating system drops the lock when the process ends, however it ends. It also holds
    between hosts where the network file system supports locks (NFS from version 4). Who has the
    lock may remove the file before closing it.

    Args:
      file: The file.
      wait: Whether to wait for another process that has the lock.

    Returns:
      The file's descriptor, whose closing ends the lock; and whether it is locked, which it is not
      if the file system has no locks.

    Raises:
      BlockingIOError: if another process, or this one, has the lock and `wait` is False.
      OSError: if the file cannot be made.
    """
    import fcntl  # not on Windows

    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor, True
        except FileNotFoundError:  # who had the lock removed it in between
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
