"""Trains and evaluates MixMo.

python -m mixmo_jax.main --config=configs/digits.py
python -m mixmo_jax.main --config=cifar100:cut_mixmo+cutmix --config.seed=1
python -m mixmo_jax.main --mode=evaluate --workdir=runs/digits-cut_mixmo-s0
"""

import collections
import sys
from collections.abc import Sequence

from absl import flags

from mixmo_jax import config as config_lib
from mixmo_jax import distributed
from mixmo_jax.commands import PLUGIN_HELP, check_field_flags, import_plugins, run_command
from mixmo_jax.configs.common import METHODS
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, expand
from mixmo_jax.evaluation.ensemble import ENSEMBLES

_ONLY_EVALUATE = ("corruptions", "ensemble", "allow_unfinished")
_PROCESSES = ("coordinator_address", "num_processes", "process_id")
_OWN_FLAGS = ("config", "workdir", "mode", "plugin", *_ONLY_EVALUATE, *_PROCESSES)


def main(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Runs a command line.

    Args:
      argv: The name of the program, and its arguments.
      own_process: Whether the process is that of the command, which a second signal may end.

    Returns:
      The exit status: 0, 2 for wrong input, 1 if the training diverged, 130 or 143 if
        interrupted.
    """
    message = "interrupted; the same command resumes from the last checkpoint, if there is one"
    try:
        return run_command(lambda: _run(argv, own_process), message)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run() -> None:
    """Runs the command line of this process, and ends it."""
    with distributed.ending_without_others():
        sys.exit(main(sys.argv, own_process=True))


def _run(argv: Sequence[str], own_process: bool) -> None:
    known = _define_flags()
    if {"--help", "-h", "-help"} & set(argv):
        print(_help(known))
        return
    argv = config_lib.join_flags(argv)
    counts = collections.Counter(a.partition("=")[0].lstrip("-") for a in argv[1:] if a[0:1] == "-")
    for name, count in counts.items():
        if count > 1 and name != "plugin":
            raise InputError(f"--{name}: given {count} times")
    try:
        _, *overrides = known(argv, known_only=True)
    except flags.Error as error:
        raise InputError(str(error)) from None
    check_field_flags(overrides, [f"--{name}" for name in known])
    import_plugins(known.plugin)
    if known.mode == "evaluate":
        _evaluate(known, overrides)
    else:
        _train(known, overrides, own_process)


def _help(known: flags.FlagValues) -> str:
    methods = f"Methods: {', '.join(METHODS)}"
    configs = f"Configs of the package: {', '.join(config_lib.names())}"
    fields = (
        f"Fields, set by --config.FIELD=VALUE, and their defaults:\n{config_lib.describe_fields()}"
    )
    own = [f"  --{name}\n      {known[name].help.splitlines()[0]}" for name in _OWN_FLAGS]
    return "\n\n".join([__doc__.strip(), "Flags:\n" + "\n".join(own), configs, methods, fields])


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config",
        None,
        "FILE[:METHOD]; FILE is a path or one of the package's configs.",
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
        "Train, or resume training, then evaluate; or evaluate a finished run.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "corruptions",
        None,
        "With --mode=evaluate: folder of corrupted images as in CIFAR-10-C to evaluate on.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "ensemble",
        None,
        list(ENSEMBLES),
        "With --mode=evaluate: how the members are combined, if not as the run's config says.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "allow_unfinished",
        False,
        "With --mode=evaluate: take the best or newest checkpoint of a run that is not finished.",
        flag_values=values,
    )
    flags.DEFINE_multi_string("plugin", [], PLUGIN_HELP, flag_values=values)
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of the first of several processes that train together, each with this command.",
        flag_values=values,
    )
    for name, text in {
        "num_processes": "The number of processes that train together.",
        "process_id": "The number of this process, from 0.",
    }.items():
        flags.DEFINE_integer(name, None, text, flag_values=values)
    return values


def _train(known: flags.FlagValues, overrides: Sequence[str], own_process: bool) -> None:
    from mixmo_jax import distributed
    from mixmo_jax.train import train  # Orbax takes time to import

    for name in _ONLY_EVALUATE:
        if known[name].value != known[name].default:
            raise InputError(f"{name}: only with --mode=evaluate")
    if known.config is None:
        raise InputError("config: missing; for example --config=digits")
    name, config = config_lib.parse(known.config, overrides)
    default = f"runs/{name}-{config.method}-s{config.seed}"
    distributed.use_compilation_cache(config.compilation_cache)
    distributed.connect(*(known[flag].value for flag in _PROCESSES))
    train(config, expand(known.workdir or default), signals=StopSignals(own_process))


def _evaluate(known: flags.FlagValues, overrides: Sequence[str]) -> None:
    from mixmo_jax import distributed
    from mixmo_jax.evaluation import evaluate
    from mixmo_jax.runs.lock import lock
    from mixmo_jax.runs.workdir import read_config, split_folders

    folders = split_folders(known.workdir or "")
    if known.config is not None:
        raise InputError("config: --mode=evaluate takes it from the run in --workdir")
    for flag in _PROCESSES:
        if known[flag].value is not None:
            raise InputError(f"{flag}: only for training; one process evaluates")
    if known.corruptions is not None and overrides:
        raise InputError(f"{overrides[0]}: no field matters with --corruptions")
    distributed.use_compilation_cache(read_config(folders[0], overrides).compilation_cache)
    options = {"ensemble": known.ensemble, "allow_unfinished": known.allow_unfinished}
    with lock(folders[0]):
        if known.corruptions is not None:
            evaluate.evaluate_corruptions(folders, expand(known.corruptions), **options)
        elif len(folders) > 1:
            evaluate.evaluate_ensemble(folders, overrides, **options)
        else:
            evaluate.evaluate_run(folders[0], overrides, **options)


if __name__ == "__main__":
    run()
