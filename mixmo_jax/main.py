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
from mixmo_jax import runs
from mixmo_jax.errors import InputError

_FLAGS = flags.FlagValues()
_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "FILE[:METHOD], a path or one of the package's configs; --config.FIELD=VALUE sets a field.",
    flag_values=_FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; runs/CONFIG-METHOD-sSEED by default.",
    flag_values=_FLAGS,
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "Train, or go on training, then evaluate; or evaluate a finished run.",
    flag_values=_FLAGS,
)


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns 0, or 2 for wrong input, or 1 if the training diverged."""
    try:
        _run(argv)
    except (InputError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _run(argv: Sequence[str]) -> None:
    if "--help" in argv:
        print(f"{__doc__}\n{_FLAGS.get_help()}")
        return
    try:
        _, *overrides = _FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise InputError(str(error)) from None
    if _MODE.value == "evaluate":
        _evaluate(overrides)
    elif _CONFIG.value is None:
        raise InputError("config: missing; for example --config=digits")
    else:
        name, config = config_lib.parse(_CONFIG.value, overrides)
        default = f"runs/{name}-{config.method}-s{config.seed}"
        runs.train(config, pathlib.Path(_WORKDIR.value or default))


def _evaluate(overrides: Sequence[str]) -> None:
    if _WORKDIR.value is None:
        raise InputError("workdir: missing; --mode=evaluate takes the folder of a finished run")
    if _CONFIG.value is not None or overrides:
        raise InputError("config: --mode=evaluate takes it from the run in --workdir")
    runs.evaluate(pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
