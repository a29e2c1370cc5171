"""Makes a run of a checkpoint of the MixMo authors' PyTorch program, and evaluates it.

python -m mixmo_jax.import_torch --checkpoint=FILE --config=cifar100:cut_mixmo --workdir=runs/theirs

Fields of the config are set as for training, `--config.dataset.data_dir=…`. Evaluation, prediction
and export take the run as if it had been trained here.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from mixmo_jax import config as config_lib
from mixmo_jax import runs, torch_import
from mixmo_jax.commands import create_parser, run_command
from mixmo_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns 0, or 2 for wrong input."""
    parser = create_parser("import_torch", __doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path)
    parser.add_argument("--config", required=True, help="as in training: FILE[:METHOD]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    arguments, overrides = parser.parse_known_args(config_lib.join_flags(argv[1:]))
    return run_command(lambda: _import(arguments, overrides))


def _import(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    _, config = config_lib.parse(arguments.config, overrides)
    model, variables, fields = torch_import.convert(
        torch_import.read_state_dict(arguments.checkpoint)
    )
    for name, value in fields.items():
        if config.model[name] != value:
            raise InputError(f"model.{name}={config.model[name]!r}: the checkpoint has {value!r}")
    runs.import_variables(config, variables, model.num_classes, arguments.workdir.expanduser())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
