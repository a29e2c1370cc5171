"""Mistakes of users, as one line each; and the helpers that read and write files."""

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import math
import os
import pathlib
import signal
import sys
import types
from collections.abc import Iterable, Iterator

import numpy as np


class InputError(ValueError):
    """A value, file or folder of a user that cannot be used.

    The message is one line: what it is, its value, and what is allowed. The command prints it and
    exits with 2. Any other exception is a defect and keeps its traceback.
    """

    def __init__(self, message: object):
        super().__init__(" ".join(str(message).splitlines()))  # names may have line breaks


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
      kind: The kind of thing, such as "network".
      name: The name given.
      known: All names; similar ones are suggested.
      where: A place that lists them, shown if no name is similar.
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; see {where}" if where else ""
    if close:
        hint = f"; did you mean {' or '.join(close)}?"
    return InputError(f"{name}: no such {kind}{hint}")


def format_value(value: object, most: int = 200) -> str:
    """Returns the `repr` of a value, cut after some characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def warn(message: str) -> None:
    """Prints a warning as one line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def reading(what: object, *damage: type[Exception], advice: str = "") -> Iterator[None]:
    """Turns errors of reading a file into one line that names the file.

    Args:
      what: The file, folder or archive, as the message names it.
      *damage: The exceptions that mean damaged content. `OSError` always counts.
      advice: The end of the message, such as "download it again".

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
            detail = " ".join(str(error).split())[:200]
            kind = type(error).__name__
            reason = f"damaged: {kind}: {detail}" if detail else f"damaged: {kind}"
        raise InputError(f"{what}: {reason}{f'; {advice}' if advice else ''}") from error


@contextlib.contextmanager
def writing(what: object, *failures: type[Exception]) -> Iterator[None]:
    """Turns errors of writing a file into one line that names the file.

    Args:
      what: The file or folder, as the message names it.
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


def expand(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a path with ~ replaced by the user's folder, if that is known."""
    return pathlib.Path(os.path.expanduser(path))


def read_json(file: pathlib.Path) -> dict:
    """Reads a dictionary from a JSON file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    with reading(file, ValueError):
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("expected a dictionary")
    return values


def sha256_of(file: pathlib.Path) -> str:
    """Returns the SHA-256 digest of a file, in hexadecimal digits."""
    with reading(file), file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: a reader finds the old content or the new, never a part.

    Raises:
      InputError: if it cannot be written; then it is as it was.
    """
    target = pathlib.Path(os.path.realpath(file))  # a link stays a link
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
    """Replaces a JSON file atomically; see `jsonable` for floats that JSON cannot hold."""
    write_text(file, json.dumps(jsonable(values), indent=2, ensure_ascii=False) + "\n")


def write_arrays(file: pathlib.Path, **arrays: np.ndarray) -> None:
    """Replaces a compressed file of arrays (`.npz`) atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(file, content.getvalue())


def jsonable(value: object) -> object:
    """Returns nested values with "inf", "-inf" and "nan" for floats that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def execute_module(file: pathlib.Path) -> types.ModuleType:
    """Executes a Python file of the user; errors of its code keep their traceback."""
    name = f"_mixmo_jax_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise InputError(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
