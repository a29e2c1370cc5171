"""What a user can get wrong, as one line; and the few helpers that read and write files."""

import contextlib
import difflib
import errno
import hashlib
import importlib.util
import io
import json
import math
import os
import pathlib
import signal
import stat
import sys
import tokenize
import types
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The message is one line: what it is, its value, and what is allowed. The commands print that
    line and exit with 2; any other exception is a defect and keeps its traceback.
    """

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).splitlines()))  # names may have line breaks


def shortened(text: str, most: int = 200) -> str:
    """Returns a text, cut off after some characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def format_value(value: object) -> str:
    """Returns the `repr` of a value, shortened."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # an integer too long to be printed, or a deep nesting
        return f"<{type(value).__name__}>"


class Interrupted(KeyboardInterrupt):
    """Ends a command after a signal.

    Attributes:
      signum: The number of the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum = signum


def invalid(field: str, value: object, allowed: str) -> InputError:
    """Returns the error for a field whose value is not allowed."""
    return InputError(f"{field}={format_value(value)}: expected {allowed}")


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> InputError:
    """Returns the error for a name that does not exist.

    Args:
      kind: The kind of thing that is named.
      name: The name given.
      known: All names that exist; similar ones are suggested.
      where: A place that lists them, named if no name is similar.
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; see {where}" if where else ""
    if close:
        hint = f"; did you mean {' or '.join(close)}?"
    return InputError(f"{name}: no such {kind}{hint}")


def warn(message: str) -> None:
    """Prints what a user should know, but may have intended, as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


MAX_BYTES = 2**28  # of a file that is read as a whole

# What reading a damaged file of an array (`.npy`) may raise.
ARRAY_DAMAGE = (
    ValueError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    KeyError,
    ArithmeticError,  # a shape beyond all integers
    RecursionError,
    MemoryError,
    EOFError,
)


@contextlib.contextmanager
def reading(
    what: object, *damage: type[Exception], advice: str = "", reason_length: int = 200
) -> Iterator[None]:
    """Names the file in whatever goes wrong while it is read.

    The only place where exceptions of reading become user errors. Name just the exceptions that a
    damaged file leads to; any other is a defect and passes through, as an `InputError` does.

    Args:
      what: The file, folder or archive, as the message is to name it.
      *damage: The exceptions that mean that the content is damaged. `OSError` always means that
        the file cannot be read.
      advice: The end of the message, such as "download it again".
      reason_length: The number of characters after which the reason is cut off.

    Raises:
      InputError: if an `OSError` or one of `damage` was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, *damage) as error:
        if isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read: {error.strerror}"
        else:
            detail = " ".join(str(error).split())[:reason_length]
            kind = type(error).__name__
            reason = f"damaged: {kind}: {detail}" if detail else f"damaged: {kind}"
        end = f"; {advice}" if advice else ""
        raise InputError(f"{what}: {reason}{end}") from error


def expand(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a path with the user's folder for ~; that of an unknown user stays as it is."""
    return pathlib.Path(os.path.expanduser(path))


def open_file(file: str | pathlib.Path) -> BinaryIO:
    """Opens a regular file for reading; a named pipe, on which that would wait, is refused.

    Raises:
      OSError: if it cannot be opened, or if it is a folder, a pipe or a device.
    """
    stream = open(file, "rb", opener=_open_at_once)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "expected a regular file")
    return stream


def _open_at_once(name, flags):
    """Opens without waiting for a writer at the other end of a pipe."""
    return os.open(name, flags | os.O_NONBLOCK)


def read_bytes(file: str | pathlib.Path, max_bytes: int = MAX_BYTES, field: str = "") -> bytes:
    """Reads a regular file that is not too large.

    Args:
      file: The file.
      max_bytes: The largest size allowed.
      field: The config field that sets it, for the message; "" if there is none.

    Raises:
      InputError: if it cannot be read, or is no file but a pipe or device, which may have no end,
        or if it is too large.
    """
    with reading(file), open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            raise too_large(file, size, max_bytes, field)
        return stream.read(size)


def too_large(what: object, size: int, max_bytes: int, field: str = "") -> InputError:
    """Returns the error for a file that is too large, see `read_bytes`."""
    limit = f"{field}={max_bytes}" if field else f"{max_bytes:,}"
    return InputError(f"{what}: {format_value(size)} bytes, expected at most {limit}")


def digest_of(file: pathlib.Path) -> str:
    """Returns the SHA-256 digest of a regular file, in hexadecimal digits.

    Raises:
      InputError: if it cannot be read.
    """
    with reading(file), open_file(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_text(file: pathlib.Path, errors: str = "strict") -> str:
    """Reads a text file.

    Args:
      file: The file, in UTF-8.
      errors: What to do about bytes that are not UTF-8, as in `open`.

    Raises:
      InputError: as `read_bytes` does, or if it is not UTF-8.
    """
    with reading(file, UnicodeDecodeError):
        return read_bytes(file).decode("utf-8", errors)


def map_array(file: pathlib.Path) -> np.ndarray:
    """Maps an array file (`.npy`) into memory, for reading.

    Raises:
      InputError: if it cannot be read, or if it is damaged or an array of Python objects, in which
        there may be code.
    """
    with reading(file, *ARRAY_DAMAGE), np.errstate(over="raise"):
        open_file(file).close()
        return np.lib.format.open_memmap(file, mode="r")


def read_json(file: pathlib.Path) -> dict:
    """Reads a dictionary from a JSON file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    with reading(file, ValueError, RecursionError):
        values = json.loads(read_text(file))
        if not isinstance(values, dict):
            raise ValueError("expected a dictionary")
    return values


def is_number(value: object) -> bool:
    """Whether a value from JSON is a finite number, and not true or false."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max  # an integer may be larger than any float


def is_count(value: object) -> bool:
    """Whether a value from JSON is an integer from 1 to 2**31 - 1."""
    return is_number(value) and isinstance(value, int) and 1 <= value < 2**31


def execute_module(file: pathlib.Path) -> types.ModuleType:
    """Executes a Python file of a user; what its own code raises keeps its traceback.

    Raises:
      InputError: if the file is no Python, or something that it imports is missing.
    """
    name = f"_mixmo_jax_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise InputError(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    with reading(file, SyntaxError, UnicodeDecodeError):
        code = spec.loader.get_code(name)
    try:
        exec(code, module.__dict__)
    except ImportError as error:
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    return module


@contextlib.contextmanager
def writing(what: object, *failures: type[Exception]) -> Iterator[None]:
    """Names the file or folder that cannot be written.

    Args:
      what: The file or folder, as the message is to name it.
      *failures: The exceptions, beside `OSError`, that mean that it could not be written.

    Raises:
      InputError: if an `OSError` or one of `failures` was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, *failures) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"{what}: cannot be written: {reason}") from error


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: a reader finds the old content or the new, never a part.

    Raises:
      InputError: if it cannot be written; then it is as it was.
    """
    target = pathlib.Path(os.path.realpath(file))  # of a link, not the link
    part = target.with_name(f".{target.name}.part")
    with writing(file):
        try:
            part.write_bytes(content)
            os.replace(part, target)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def write_text(file: pathlib.Path, text: str) -> None:
    """Replaces a text file atomically."""
    write_bytes(file, text.encode(errors="replace"))


def write_json(file: pathlib.Path, values: dict) -> None:
    """Replaces a JSON file atomically; see `jsonable` for numbers that JSON cannot hold."""
    write_text(file, json.dumps(jsonable(values), indent=2, ensure_ascii=False) + "\n")


def write_arrays(file: pathlib.Path, **arrays: np.ndarray) -> None:
    """Replaces a compressed file of arrays (`.npz`) atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(file, content.getvalue())


def jsonable(value: object) -> object:
    """Returns nested values with "inf", "-inf" and "nan" for the floats that JSON cannot hold.

    `float` reads these texts back.
    """
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
