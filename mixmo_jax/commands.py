"""What the command lines have in common."""

import argparse
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jaxlib

from mixmo_jax.errors import InputError, warn
from mixmo_jax.files import reading

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
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        with reading(f"plugin={file}", SyntaxError, ImportError):
            spec.loader.exec_module(module)


def run_command(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status.

    That is 0; 2 for wrong input, after a line on stderr; 1 if nobody reads the output any more.
    """
    if jaxlib.__version__ in DEFECTIVE_JAXLIB:
        warn(f"jaxlib {jaxlib.__version__} computes wrong results on CPU; install another version")
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough of it
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
