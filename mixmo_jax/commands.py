"""What the command lines have in common."""

import argparse
import sys
from collections.abc import Callable

from mixmo_jax.errors import InputError


def create_parser(name: str, description: str, **options) -> argparse.ArgumentParser:
    """Returns the parser of a module that is run as a command.

    Args:
      name: of the module, without the package.
      description: its docstring, shown as it is.
      **options: of `argparse.ArgumentParser`.
    """
    return argparse.ArgumentParser(
        prog=f"python -m mixmo_jax.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def run_command(command: Callable[[], None]) -> int:
    """Runs a command; returns its exit status, 0, or 2 after a line on stderr for wrong input."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
