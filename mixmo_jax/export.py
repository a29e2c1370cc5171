"""Exports a trained network as StableHLO, to be used without this package.

python -m mixmo_jax.export --workdir=runs/digits-cut_mixmo-s0 --output=model.stablehlo

The file holds a function of uint8 images [N, H, W, C], any N, that returns class probabilities
[N, K] float32: normalization, network, the fitted temperature and averaging are inside. It runs on
cpu, cuda and tpu:

    import jax.export  # pip install jax flatbuffers

    exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
    probs = exported.call(images)

Beside it, model.stablehlo.json names the classes.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mixmo_jax.commands import add_model_flags, create_parser, load_model, run_command
from mixmo_jax.errors import InputError, expand, write_bytes, write_json
from mixmo_jax.inference.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit status, see `run_command`."""
    parser = create_parser("export", __doc__)
    add_model_flags(parser)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--no_fold", action="store_true", help="keep the members apart")
    arguments = parser.parse_args(argv[1:])
    return run_command(lambda: _export(arguments))


def run() -> None:
    """Runs the command line of this process, and ends it."""
    sys.exit(main(sys.argv))


def _export(arguments: argparse.Namespace) -> None:
    output = expand(arguments.output)
    side = output.with_name(f"{output.name}.json") if output.name else output
    for file in (output, side):
        if file.exists() and not file.is_file():
            raise InputError(f"output={output}: {file} is not a file that could be replaced")
    model = load_model(arguments)
    # Several runs have several cores, and averaged probabilities are not linear: neither folds.
    if len(model.networks) == 1 and not arguments.no_fold:
        if model.ensemble != "logits":
            reason = "the run averages probabilities, which cannot be folded: use --no_fold"
            raise InputError(f"workdir={arguments.workdir}: {reason}")
        model = model.fold()
    serialized = export(model)
    description = {
        "class_names": model.class_names,
        "image_shape": model.image_shape,
        "input": "uint8 [N, H, W, C]",
        "output": "class probabilities, float32 [N, K]",
    }
    write_bytes(output, serialized)
    write_json(side, description)
    print(f"{output}: {len(serialized):,} bytes, for {', '.join(PLATFORMS)}")


def export(model: Model) -> bytes:
    """Serializes `predict_proba` with the weights inside, for `jax.export.deserialize`.

    It computes in float32, whatever dtype the network was trained in.

    Args:
      model: The model, see `inference.loading.load`.

    Returns:
      The serialized function of [N, H, W, C] uint8 that returns [N, K] float32.
    """
    (batch,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    predict_fn = jax.jit(model.make_predict_fn())
    return bytes(jax.export.export(predict_fn, platforms=PLATFORMS)(images).serialize())


if __name__ == "__main__":
    run()
