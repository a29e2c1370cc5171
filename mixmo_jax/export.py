"""Exports a trained network as StableHLO, to be used without this package.

python -m mixmo_jax.export --workdir=runs/digits-cut_mixmo-s0 --output=model.stablehlo

The file holds a function of uint8 images [N, H, W, C], any N, that returns probabilities [N, K]
float32: normalisation, network, temperature and averaging are inside. It runs on cpu, cuda and tpu:

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

from mixmo_jax import inference, workdir
from mixmo_jax.augment import normalize
from mixmo_jax.commands import create_parser, run_command
from mixmo_jax.errors import InputError

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns 0, or 2 for wrong input."""
    parser = create_parser("export", __doc__)
    parser.add_argument("--workdir", required=True, help="a finished run")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--no_fold", action="store_true", help="keep the members apart")
    arguments = parser.parse_args(argv[1:])
    return run_command(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> None:
    output = arguments.output.expanduser()
    side = output.with_name(f"{output.name}.json") if output.name else output
    for file in (output, side):
        if file.exists() and not file.is_file():
            raise InputError(f"output={output}: {file} is not a file that could be replaced")
    folder, *others = workdir.split_folders(arguments.workdir)
    if others:
        raise InputError(f"workdir={arguments.workdir}: expected one run")
    model = inference.load(folder)
    if model.ensemble != "logits" and not arguments.no_fold:
        reason = "the run averages probabilities, which cannot be folded: use --no_fold"
        raise InputError(f"workdir={arguments.workdir}: {reason}")
    serialized = export(model if arguments.no_fold else model.fold())
    facts = {
        "class_names": model.class_names,
        "image_shape": model.image_shape,
        "input": "uint8 [N, H, W, C]",
        "output": "probabilities, float32 [N, K]",
    }
    try:
        workdir.write_bytes(output, serialized)
        workdir.write_json(side, facts)
    except OSError as error:
        raise InputError(f"output={output}: {error.strerror}") from None
    print(f"{output}: {len(serialized):,} bytes, for {', '.join(PLATFORMS)}")


def export(model: inference.Model) -> bytes:
    """Serialises `predict_proba` with the weights inside, for `jax.export.deserialize`.

    It computes in float32, whatever the network was trained in.
    """

    def predict_proba(images: jax.Array) -> jax.Array:
        parts = []
        for network in model.networks:
            float32 = network.model.in_dtype(jnp.dtype("float32"))
            inputs = normalize(images, network.mean, network.std)
            logits = float32.apply(network.variables, inputs, train=False)  # [M, N, K]
            parts.append(logits / network.temperature)
        logits = jnp.concatenate(parts)
        if model.ensemble == "logits":
            return jax.nn.softmax(logits.mean(0))
        return jax.nn.softmax(logits).mean(0)

    (batch,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    exported = jax.export.export(jax.jit(predict_proba), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
