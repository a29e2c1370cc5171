"""Exports a model as StableHLO, to be used without this package.

The file holds a function of uint8 images [N, H, W, C], any N, that returns class probabilities
[N, K] float32. Normalization, network, temperature and averaging are inside. It runs on CPU, CUDA
and TPU:

    import jax.export  # pip install jax flatbuffers

    exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
    probs = exported.call(images)
"""

import pathlib

import jax
import jax.numpy as jnp

from mixmo_jax.errors import InputError, write_bytes, write_json
from mixmo_jax.inference.model import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def export(model: Model) -> bytes:
    """Serializes `predict_proba` with the weights inside, for `jax.export.deserialize`.

    It computes in float32, whatever dtype the network was trained in.

    Returns:
      The serialized function from [N, H, W, C] uint8 to [N, K] float32.
    """
    (batch,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    predict_fn = jax.jit(model.make_predict_fn())
    return bytes(jax.export.export(predict_fn, platforms=PLATFORMS)(images).serialize())


def export_model(model: Model, output: pathlib.Path, *, fold: bool = True) -> None:
    """Writes a model to a file, and the names of its classes to `<file>.json`.

    Args:
      model: The model.
      output: The file to write.
      fold: Whether to fold the members of a single network into one.

    Raises:
      InputError: if the model cannot be folded, or the file cannot be written.
    """
    if fold and len(model.networks) == 1:
        if model.ensemble != "logits":
            reason = "the run averages probabilities, which cannot be folded: use --nofold"
            raise InputError(f"output={output}: {reason}")
        model = model.fold()
    serialized = export(model)
    write_bytes(output, serialized)
    description = {
        "class_names": model.class_names,
        "image_shape": model.image_shape,
        "input": "uint8 [N, H, W, C]",
        "output": "class probabilities, float32 [N, K]",
    }
    write_json(output.with_name(f"{output.name}.json"), description)
    print(f"{output}: {len(serialized):,} bytes, for {', '.join(PLATFORMS)}")
