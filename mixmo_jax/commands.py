"""What the command lines have in common."""

import argparse
import os
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
    """Runs a command; returns its exit status.

    That is 0; 2 for wrong input, after a line on stderr; 1 if nobody reads the output any more.
    """
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
