"""Trains and evaluates MixMo, and uses trained networks.

python -m mixmo_jax.main --config=configs/digits.py
python -m mixmo_jax.main --config=cifar100:cut_mixmo+cutmix --config.seed=1
python -m mixmo_jax.main --mode=evaluate --workdir=runs/digits-cut_mixmo-s0
python -m mixmo_jax.main --mode=predict --workdir=runs/digits-cut_mixmo-s0 image.png folder/
python -m mixmo_jax.main --mode=export --workdir=runs/digits-cut_mixmo-s0 --output=model.stablehlo
python -m mixmo_jax.main --mode=import_torch --config=cifar100:cut_mixmo --checkpoint=FILE
"""

import contextlib
import csv
import json
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from absl import flags

from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, Interrupted, execute_module, expand, unknown, warn

MODES = {
    "train": "Train, or resume training, then evaluate.",
    "evaluate": "Evaluate a finished run, or an ensemble of runs: --workdir=A,B,C.",
    "predict": "Predict the classes of image files and folders.",
    "export": "Write the network as StableHLO, which needs only jax to run.",
    "import_torch": "Make a run of a checkpoint of the MixMo authors' PyTorch program.",
}
_DEFECTIVE_JAXLIB = ("0.10.2",)  # computes wrong sums: github.com/jax-ml/jax/issues/39103
_HELP = {"--help", "-h", "--helpfull"}
_FIELD = re.compile(r"--?(?:no)?config\.([\w.]+)")


def run() -> None:
    """Runs the command line of this process, and ends it."""
    if _HELP & set(sys.argv):
        sys.exit(main(sys.argv))  # without importing jax
    from mixmo_jax import distributed

    with distributed.ending_without_others():
        sys.exit(main(sys.argv, own_process=True))


def main(argv: Sequence[str], *, own_process: bool = False) -> int:
    """Runs a command line.

    Args:
      argv: The name of the program, and its arguments.
      own_process: Whether a second signal may end the process.

    Returns:
      The exit status: 0; 1 if training diverged or nobody reads the output any more; 2 for wrong
      input; 130 after SIGINT and 143 after SIGTERM.
    """
    import jaxlib

    if jaxlib.__version__ in _DEFECTIVE_JAXLIB:
        warn(f"jaxlib {jaxlib.__version__} computes wrong results on CPU; install another version")
    for name in ("asyncio", "absl"):  # Orbax logs tracebacks there of errors that it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        if _HELP & set(argv):
            print(_help())
        else:
            with _sigterm_raises():
                _run(argv, own_process)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        message = "interrupted; the same command resumes from the last checkpoint, if there is one"
        print(str(error) or message, file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _help() -> str:
    modes = [f"  {name:<14}{text}" for name, text in MODES.items()]
    names = (f"  --{f.name:<22}{f.help}" for f in map(_define_flags().__getitem__, _FLAGS))
    configs = sorted(f.stem for f in pathlib.Path(common.__file__).parent.glob("*.py"))
    configs = [name for name in configs if name not in ("__init__", "common")]
    return "\n".join(
        [
            __doc__,
            "Modes (--mode=train by default):",
            *modes,
            "\nFlags:",
            *names,
            "\nConfigs (--config=NAME or --config=FILE, then :METHOD):",
            f"  {', '.join(configs)}",
            "Methods:",
            f"  {', '.join(common.METHODS)}",
            "Fields (--config.FIELD=VALUE):",
            f"  all fields, with comments, are in {common.__file__}",
        ]
    )


_FLAGS = [
    "config",
    "mode",
    "workdir",
    "plugin",
    "ensemble",
    "allow_unfinished",
    "ema",
    "corruptions",
    "format",
    "output",
    "fold",
    "checkpoint",
    "coordinator_address",
    "num_processes",
    "process_id",
]


# Flags that would be ignored in other modes.
_ONLY_IN = {
    "ensemble": ("evaluate", "predict", "export"),
    "allow_unfinished": ("evaluate", "predict", "export"),
    "ema": ("predict", "export"),
    "corruptions": ("evaluate",),
    "format": ("predict",),
    "output": ("export",),
    "fold": ("export",),
    "checkpoint": ("import_torch",),
    "coordinator_address": ("train",),
    "num_processes": ("train",),
    "process_id": ("train",),
}


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow image files
    string = flags.DEFINE_string
    string("config", None, "FILE[:METHOD], a path or a name.", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, f"{', '.join(MODES)}.", flag_values=values)
    string("workdir", None, "Run folder; runs/CONFIG-METHOD-sSEED by default.", flag_values=values)
    flags.DEFINE_multi_string(
        "plugin",
        [],
        "Python file that registers masks, networks or datasets of your own.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "ensemble",
        None,
        ["logits", "probabilities"],
        "How members are averaged; by default as in the run's config.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "allow_unfinished", False, "Use the newest checkpoint of a run.", flag_values=values
    )
    flags.DEFINE_boolean("ema", False, "Use the moving average of the weights.", flag_values=values)
    string("corruptions", None, "evaluate: folder in CIFAR-10-C's layout.", flag_values=values)
    formats = ["table", "csv", "json"]
    flags.DEFINE_enum(
        "format", "table", formats, "predict: table, csv or json.", flag_values=values
    )
    string("output", None, "export: file to write.", flag_values=values)
    flags.DEFINE_boolean(
        "fold", True, "export: fold the members into one network.", flag_values=values
    )
    string("checkpoint", None, "import_torch: file of torch.save, or .npz.", flag_values=values)
    string("coordinator_address", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Index of this process.", flag_values=values)
    return values


def _run(argv: Sequence[str], own_process: bool) -> None:
    from mixmo_jax import config as config_lib

    argv, spec = _split_config(argv)
    values = _define_flags()
    plugins = [a.partition("=")[2] for a in argv if a.startswith(("--plugin=", "-plugin="))]
    for file in plugins:  # first: the config may use what they register
        if not expand(file).is_file():
            raise InputError(f"plugin={file}: no such file")
        execute_module(expand(file))
    config = common.get_config() if spec is None else config_lib.get_config(spec)
    overrides, arguments = _parse(values, config, argv)
    mode = values.mode
    for name, modes in _ONLY_IN.items():
        if values[name].value != values[name].default and mode not in modes:
            raise InputError(f"{name}: only with --mode={' or --mode='.join(modes)}")
    if mode in ("train", "import_torch") and spec is None:
        raise InputError("config: missing; for example --config=digits")
    if mode not in ("train", "import_torch") and spec is not None:
        raise InputError(f"config: --mode={mode} takes it from the run in --workdir")
    if mode != "predict" and arguments:
        raise InputError(f"{arguments[0]}: unexpected argument; flags begin with --")
    if mode != "train" and not values.workdir:
        raise InputError("workdir: missing; expected the folder of a run")
    config_lib.check_config(config)
    for name in ("data_dir", "cache_dir"):  # the same from every working directory
        if config.dataset[name]:
            config.dataset[name] = str(expand(config.dataset[name]).absolute())
    if mode == "train":
        name = f"{config_lib.find_config(spec)[0].stem}-{config.method}-s{config.seed}"
        _train(values, config, values.workdir or f"runs/{name}", own_process)
    elif mode == "evaluate":
        _evaluate(values, {field: config_lib.flatten(config)[field] for field in overrides})
    elif mode == "predict":
        _predict(values, arguments)
    elif mode == "export":
        _export(values)
    else:
        _import_torch(values, config, overrides)


def _split_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Takes `--config=SPEC` or `--config SPEC` out of the arguments."""
    rest, spec, arguments = [], None, iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            spec = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    return rest, spec


def _parse(values: flags.FlagValues, config, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parses the flags, and sets the fields of the config that they override.

    Returns:
      The names of these fields, and the positional arguments.
    """
    from ml_collections import config_flags

    from mixmo_jax import config as config_lib

    fields = [match[1] for match in map(_FIELD.match, argv) if match]
    for field in fields:
        if field == "method":
            raise InputError("method: cannot be set alone; choose it by --config=FILE:METHOD")
        if field not in config_lib.flatten(config):
            raise config_lib.unknown_field(field, "--config.")
    del values.config
    # Not DEFINE_config_file, which hides the errors of a config file until a field is read.
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
    try:
        return fields, values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        hint = str(config_lib.unknown_field(error.flagname, "--config.")).partition("; ")[2]
        if "did you mean" in hint:
            raise InputError(f"--{error.flagname}: no such flag; {hint}") from None
        raise unknown("flag", f"--{error.flagname}", [f"--{f}" for f in _FLAGS], "--help") from None
    except (flags.Error, ValueError, TypeError, SyntaxError) as error:
        reason = " ".join(str(error).split()).removeprefix("flag --").removeprefix("config.")
        if (match := re.match(r"([\w.]+)=(.*?): ", reason)) and match[1] in fields:
            kind = type(config_lib.flatten(config)[match[1]])
            reason = f"{match[1]}={match[2]}: expected {config_lib.KINDS[kind]}"
        raise InputError(reason) from None


def _train(values: flags.FlagValues, config, workdir: str, own_process: bool) -> None:
    from mixmo_jax import distributed
    from mixmo_jax.training.train import train_and_evaluate  # Orbax takes time to import

    distributed.use_compilation_cache(config.compilation_cache)
    distributed.connect(values.coordinator_address, values.num_processes, values.process_id)
    train_and_evaluate(config, workdir, signals=distributed.StopSignals(own_process))


def _evaluate(values: flags.FlagValues, overrides: dict[str, object]) -> None:
    from mixmo_jax import distributed
    from mixmo_jax.evaluation import evaluate
    from mixmo_jax.runs.workdir import Workdir

    workdirs = [Workdir(path) for path in values.workdir.split(",")]
    config = workdirs[0].read_config(overrides)
    distributed.use_compilation_cache(config.compilation_cache)
    options = {"ensemble": values.ensemble, "allow_unfinished": values.allow_unfinished}
    with workdirs[0].lock():
        if values.corruptions is not None:
            evaluate.evaluate_corruptions(workdirs, expand(values.corruptions), **options)
        elif len(workdirs) > 1:
            evaluate.evaluate_ensemble(workdirs, overrides=overrides, **options)
        else:
            evaluate.evaluate_run(workdirs[0], overrides=overrides, **options)


def _load(values: flags.FlagValues):
    """Loads the model of --workdir; warns if it has no temperature."""
    from mixmo_jax import distributed
    from mixmo_jax.inference.load import load

    distributed.use_compilation_cache(common.get_config().compilation_cache)
    model = load(
        values.workdir.split(","),
        ensemble=values.ensemble,
        allow_unfinished=values.allow_unfinished,
        ema=values.ema,
    )
    if model.temperature is None:
        warn(
            f"workdir={values.workdir}: no temperature was fitted, so probabilities are not "
            "calibrated: use --mode=evaluate or Model.calibrate"
        )
    return model


def _predict(values: flags.FlagValues, images: Sequence[str]) -> None:
    from mixmo_jax.datasets.files import find_images
    from mixmo_jax.inference.model import predict_files

    if not images:
        raise InputError("images: missing; expected image files or folders after the flags")
    files = find_images(images)
    rows = predict_files(_load(values), files)
    if values.format == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif values.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(["|".join(v) if isinstance(v, list) else v for v in row.values()])
    else:
        width = max(len(row["file"]) for row in rows)
        for row in rows:
            note = f"  members disagree: {', '.join(row['votes'])}" if row["disagree"] else ""
            print(f"{row['file']:<{width}}  {row['probability']:7.2%}  {row['class']}{note}")


def _export(values: flags.FlagValues) -> None:
    from mixmo_jax.inference.export import export_model

    if not values.output:
        raise InputError("output: missing; for example --output=model.stablehlo")
    export_model(_load(values), expand(values.output), fold=values.fold)


def _import_torch(values: flags.FlagValues, config, overrides: Sequence[str]) -> None:
    from mixmo_jax.evaluation.evaluate import import_variables
    from mixmo_jax.inference.torch_checkpoints import convert, read_state_dict
    from mixmo_jax.runs.workdir import Workdir

    if not values.checkpoint:
        raise InputError("checkpoint: missing; expected a file of torch.save, or .npz")
    if config.model.dtype == "auto":
        config.model.dtype = "float32"  # as it was trained
    module, variables, fields = convert(read_state_dict(expand(values.checkpoint)))
    for name, value in fields.items():
        if config.model[name] != value:
            raise InputError(f"model.{name}={config.model[name]!r}: the checkpoint has {value!r}")
    import_variables(config, variables, module.num_classes, Workdir(values.workdir))


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


if __name__ == "__main__":
    run()
