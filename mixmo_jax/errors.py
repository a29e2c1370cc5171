"""The error, and the warning, for everything a user can get wrong."""

import difflib
import sys
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or folder from outside that cannot be used.

    The message is one line: what it is, its value, and what is allowed. The commands print that
    line and exit with 2; any other exception is a defect and keeps its traceback.
    """


def invalid(field: str, value: object, allowed: str) -> InputError:
    """Returns the error for a field whose value is not allowed."""
    return InputError(f"{field}={value!r}: expected {allowed}")


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
