"""Inference over any number of images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import devices
from mixmo_jax.models import MixMoNet


def make_logits_fn(
    model: MixMoNet, preprocess: Callable[[jax.Array], jax.Array], batch_size: int
) -> Callable[[dict, np.ndarray], np.ndarray]:
    """Returns `logits(variables, images)`: [N, H, W, C] → [N, M, K] float32, for any N >= 1.

    The images go through in batches of one size, padded at the end, spread over the local
    devices; the padding's logits are dropped.

    Args:
      model: the network.
      preprocess: brings a batch of images to what the network takes.
      batch_size: images a call; rounded up to a multiple of the devices.
    """
    count = jax.local_device_count()
    batch_size = -(-batch_size // count) * count

    @jax.jit
    def eval_step(variables: dict, images: jax.Array) -> jax.Array:
        logits = model.apply(variables, preprocess(images), train=False)
        return jnp.moveaxis(logits, 0, 1)  # [M, B, K] → [B, M, K]

    def logits(variables: dict, images: np.ndarray) -> np.ndarray:
        variables = devices.place(variables)
        outputs = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
            outputs.append(eval_step(variables, devices.spread(np.pad(batch, padding))))
        return np.concatenate(jax.device_get(outputs))[: len(images)]

    return logits
