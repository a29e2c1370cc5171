"""Files: what is wrong with one that is read, and writing one at once."""

import contextlib
import importlib.util
import io
import json
import math
import os
import pathlib
import sys
import types
from collections.abc import Iterator

import numpy as np

from mixmo_jax.errors import InputError


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


def read_json(file: pathlib.Path) -> dict:
    """Reads a dictionary from a JSON file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    with reading(file, ValueError, RecursionError):
        values = json.loads(file.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("expected a dictionary")
    return values


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
    with reading(file, SyntaxError, ImportError, UnicodeDecodeError):
        spec.loader.exec_module(module)
    return module


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: a reader finds the old content or the new, never a part."""
    file = pathlib.Path(os.path.realpath(file))  # the target of a link, not the link
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
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
    """Returns a nested dictionary with "inf", "-inf" and "nan" for the floats JSON cannot hold.

    `float` reads these texts back.
    """
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
