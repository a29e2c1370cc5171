"""The error, and the warning, for everything a user can get wrong."""

import difflib
import signal
import sys
from collections.abc import Iterable


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


def shown(value: object) -> str:
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
    return InputError(f"{field}={shown(value)}: expected {allowed}")


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
