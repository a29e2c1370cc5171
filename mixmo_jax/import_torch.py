"""Makes a run of a checkpoint of the MixMo authors' PyTorch program, and evaluates it.

python -m mixmo_jax.import_torch --checkpoint=FILE --config=cifar100:cut_mixmo --workdir=runs/theirs

Fields of the config are set as for training, `--config.dataset.data_dir=…`. The network computes in
float32 unless `--config.model.dtype` says otherwise. Evaluation, prediction and export take the
run as if it had been trained here.
"""

import argparse
import sys
from collections.abc import Sequence

from mixmo_jax import config as config_lib
from mixmo_jax.commands import create_parser, import_plugins, parse_with_fields, run_command
from mixmo_jax.errors import InputError, expand
from mixmo_jax.evaluation.evaluate import import_variables
from mixmo_jax.inference.torch_checkpoints import convert, read_state_dict


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit status, see `run_command`."""
    parser = create_parser("import_torch", __doc__)
    parser.add_argument("--checkpoint", required=True, type=expand)
    parser.add_argument("--config", required=True, help="as in training: FILE[:METHOD]")
    parser.add_argument("--workdir", required=True, type=expand)
    return run_command(lambda: _import(*parse_with_fields(parser, argv[1:])))


def run() -> None:
    """Runs the command line of this process, and ends it."""
    sys.exit(main(sys.argv))


def _import(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    import_plugins(arguments.plugin)
    _, config = config_lib.parse(arguments.config, overrides)
    if config.model.dtype == "auto":
        config.model.dtype = "float32"  # as it was trained
    model, variables, fields = convert(read_state_dict(arguments.checkpoint))
    for name, value in fields.items():
        if config.model[name] != value:
            raise InputError(f"model.{name}={config.model[name]!r}: the checkpoint has {value!r}")
    import_variables(config, variables, model.num_classes, arguments.workdir)


if __name__ == "__main__":
    run()
