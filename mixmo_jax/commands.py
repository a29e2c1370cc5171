"""What the command lines have in common."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jaxlib

from mixmo_jax.errors import InputError, warn
from mixmo_jax.files import execute_module

DEFECTIVE_JAXLIB = ("0.10.2",)  # github.com/jax-ml/jax/issues/39103
PLUGIN_HELP = "Python file that registers mask functions, networks or datasets of your own"


def create_parser(name: str, description: str, **options) -> argparse.ArgumentParser:
    """Creates the parser of a module that is run as a command.

    Args:
      name: The name of the module, without the package.
      description: The module's docstring, shown as it is.
      **options: The options of `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m mixmo_jax.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    return parser


def import_plugins(files: Sequence[str]) -> None:
    """Executes Python files that register something.

    Raises:
      InputError: if there is no such file.
    """
    for file in files:
        path = pathlib.Path(file).expanduser()
        if path.suffix != ".py" or not path.is_file():
            raise InputError(f"plugin={file}: expected a Python file")
        execute_module(path)


def warn_if_uncalibrated(model, workdir: str) -> None:
    """Warns if nothing was fitted for a loaded `Model`."""
    if model.temperature is None:
        warn(
            f"no temperature was fitted for workdir={workdir}, probabilities are not calibrated: "
            "python -m mixmo_jax.main --mode=evaluate --workdir=… fits one"
        )


def run_command(command: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Runs a command and returns its exit status.

    That is 0; 2 for wrong input, and 130 after Ctrl-C, with a line on stderr; 1 if nobody reads
    the output any more.

    Args:
      command: The command.
      interrupted: The line after Ctrl-C.
    """
    if jaxlib.__version__ in DEFECTIVE_JAXLIB:
        warn(f"jaxlib {jaxlib.__version__} computes wrong results on CPU; install another version")
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
