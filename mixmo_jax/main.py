"""Trains and evaluates MixMo.

python -m mixmo_jax.main --config=configs/digits.py
python -m mixmo_jax.main --config=cifar100:cut_mixmo+cutmix --config.seed=1
python -m mixmo_jax.main --mode=evaluate --workdir=runs/digits-cut_mixmo-s0
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from mixmo_jax import config as config_lib
from mixmo_jax import runs, workdir
from mixmo_jax.commands import run_command
from mixmo_jax.errors import InputError, unknown


def main(argv: Sequence[str]) -> int:
    """Runs a command line.

    Returns:
      The exit status: 0, 2 for wrong input, 1 if the training diverged, 130 if interrupted.
    """
    try:
        return run_command(lambda: _run(argv))
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from the last checkpoint, if there is one"
        print(message, file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> None:
    known = _define_flags()
    if "--help" in argv:
        print(f"{__doc__}\n{known.get_help()}")
        return
    try:
        _, *overrides = known(config_lib.join_flags(argv), known_only=True)
    except flags.Error as error:
        raise InputError(str(error)) from None
    for flag in overrides:
        if not config_lib.FIELD_FLAG.match(flag):
            raise _unknown_flag(flag, known)
    if known.mode == "evaluate":
        _evaluate(known, overrides)
    else:
        _train(known, overrides)


def _unknown_flag(flag: str, known: flags.FlagValues) -> InputError:
    """The error for a flag, which may stand for the one of a field: --seed for --config.seed."""
    name = flag.partition("=")[0].lstrip("-").rpartition(".")[2]
    if name == "method":
        return InputError(f"{flag}: no such flag; a method is chosen by --config=FILE:METHOD")
    fields = [field for field in config_lib.field_names() if field.rpartition(".")[2] == name]
    if fields and flag.startswith("-"):
        meant = " or ".join(f"--config.{field}" for field in fields)
        return InputError(f"{flag}: no such flag; did you mean {meant}?")
    return unknown("flag", flag, [f"--{name}" for name in known], where="--help")


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config",
        None,
        "FILE[:METHOD]; FILE is a path or one of the package's configs: "
        f"{', '.join(config_lib.names())}. --config.FIELD=VALUE sets a field.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run; runs/CONFIG-METHOD-sSEED by default. To evaluate the ensemble of "
        "several runs: A,B,C.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "evaluate"],
        "Train, or go on training, then evaluate; or evaluate a finished run.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "corruptions",
        None,
        "With --mode=evaluate: folder of corrupted images as in CIFAR-10-C to evaluate on.",
        flag_values=values,
    )
    return values


def _train(known: flags.FlagValues, overrides: Sequence[str]) -> None:
    if known.corruptions is not None:
        raise InputError("corruptions: only with --mode=evaluate")
    if known.config is None:
        raise InputError("config: missing; for example --config=digits")
    name, config = config_lib.parse(known.config, overrides)
    default = f"runs/{name}-{config.method}-s{config.seed}"
    runs.train(config, pathlib.Path(known.workdir or default).expanduser())


def _evaluate(known: flags.FlagValues, overrides: Sequence[str]) -> None:
    folders = workdir.split_folders(known.workdir or "")
    if known.config is not None:
        raise InputError("config: --mode=evaluate takes it from the run in --workdir")
    if overrides and known.corruptions is not None:
        raise InputError(f"{overrides[0]}: no field matters with --corruptions")
    if known.corruptions is not None:
        runs.evaluate_corruptions(folders, pathlib.Path(known.corruptions).expanduser())
    elif len(folders) > 1:
        runs.evaluate_ensemble(folders, overrides)
    else:
        runs.evaluate(folders[0], overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
