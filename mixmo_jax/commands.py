"""What the command lines have in common."""

import argparse
import contextlib
import difflib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import jaxlib

from mixmo_jax import config as config_lib
from mixmo_jax.errors import InputError, Interrupted, execute_module, expand, unknown, warn
from mixmo_jax.evaluation.ensemble import ENSEMBLES

DEFECTIVE_JAXLIB = ("0.10.2",)  # github.com/jax-ml/jax/issues/39103
PLUGIN_HELP = "Python file that registers mask functions, networks or datasets of your own"


def create_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Creates the parser of a module that is run as a command.

    Args:
      name: The name of the module, without the package.
      description: The module's docstring, shown as it is.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m mixmo_jax.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    return parser


def parse_with_fields(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Reads a command line that may also set fields of a config.

    Args:
      parser: The parser of the command's own flags, which have to be written out.
      argv: The arguments; by default those of this process.

    Returns:
      What the parser found, and the `--config.FIELD=VALUE` flags.

    Raises:
      InputError: if there is something else.
    """
    parser.allow_abbrev = False
    argv = config_lib.join_flags(sys.argv[1:] if argv is None else argv)
    arguments, overrides = parser.parse_known_args(argv)
    check_field_flags(overrides, [f"--{name}" for name in vars(arguments)])
    return arguments, overrides


def check_field_flags(overrides: Sequence[str], own: Sequence[str]) -> None:
    """Checks that what is left of a command line are flags of a config's fields.

    Args:
      overrides: What is left.
      own: The command's own flags, which may be meant.

    Raises:
      InputError: if there is something else. It may stand for a field's flag: --seed for
        --config.seed.
    """
    for flag in overrides:
        if config_lib.FIELD_FLAG.match(flag):
            continue
        name = flag.partition("=")[0]
        if name.lstrip("-").rpartition(".")[2] == "method":
            raise InputError(f"{flag}: no such flag; a method is chosen by --config=FILE:METHOD")
        if flag.startswith("-") and not difflib.get_close_matches(name, own, n=1, cutoff=0.8):
            field = str(config_lib.unknown_field(name.lstrip("-"), prefix="--config."))
            if "did you mean" in field:
                raise InputError(f"{flag}: no such flag; {field.partition('; ')[2]}")
        raise unknown("flag", flag, own, where="--help")


def import_plugins(files: Sequence[str]) -> None:
    """Executes Python files that register something.

    Raises:
      InputError: if there is no such file.
    """
    for file in files:
        path = expand(file)
        if path.suffix != ".py" or not path.is_file():
            raise InputError(f"plugin={file}: expected a Python file")
        execute_module(path)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which trained network, or ensemble, is loaded."""
    parser.add_argument(
        "--workdir", required=True, help="a finished run or pretrained network, or several: A,B,C"
    )
    parser.add_argument("--ensemble", choices=ENSEMBLES, help="default: as the run's config says")
    parser.add_argument(
        "--allow_unfinished",
        action="store_true",
        help="take the best or newest checkpoint of a run that is not finished",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the moving average of the weights, see optimizer.ema_decay",
    )


def load_model(arguments: argparse.Namespace):
    """Loads the `Model` that the flags name; warns if no temperature was fitted for it."""
    from mixmo_jax.inference.loading import load  # Orbax takes time to import
    from mixmo_jax.runs.workdir import split_paths

    import_plugins(arguments.plugin)
    model = load(
        split_paths(arguments.workdir),
        ensemble=arguments.ensemble,
        allow_unfinished=arguments.allow_unfinished,
        ema=arguments.ema,
    )
    if model.temperature is None:
        warn(
            f"no temperature was fitted for workdir={arguments.workdir}, probabilities are not "
            "calibrated: fit one with Model.calibrate or, for runs without --ema, with "
            "python -m mixmo_jax.main --mode=evaluate --workdir=…"
        )
    return model


def run_command(command: Callable[[], None], interrupted: str = "interrupted") -> int:
    """Runs a command and returns its exit status.

    That is 0; 2 for wrong input, 130 after SIGINT (Ctrl-C) and 143 after SIGTERM, with a line on
    stderr; 1 if nobody reads the output any more.

    Args:
      command: The command.
      interrupted: The line after a signal, unless the command ends with a better one.
    """
    for name in ("asyncio", "absl"):  # Orbax logs tracebacks there of what it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _hide_closed_loops
    if jaxlib.__version__ in DEFECTIVE_JAXLIB:
        warn(f"jaxlib {jaxlib.__version__} computes wrong results on CPU; install another version")
    try:
        with _sigterm_raises():
            command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        print(str(error) or interrupted, file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _hide_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints what could not be raised, but not what TensorStore's threads leave after an error."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Ends the command by `Interrupted` on SIGTERM, as Python does by itself on SIGINT."""

    def interrupt(signum, frame):
        raise Interrupted("", signum)

    if threading.current_thread() is not threading.main_thread():  # has no signals
        yield
        return
    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
