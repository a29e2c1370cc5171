"""Inference over a whole split, and its scores."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import devices, metrics
from mixmo_jax.augment import normalize
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.models import MixMoNet


def make_logits_fn(
    model: MixMoNet, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int
) -> Callable[[dict, np.ndarray], np.ndarray]:
    """Returns `logits(variables, images)`: [N, H, W, C] uint8 → [N, M, K] float32, for any N.

    The images go through in batches of one size, padded at the end, spread over the local
    devices; the padding's logits are dropped.

    Args:
      model: the network.
      mean: per channel, on the scale 0 to 1.
      std: likewise.
      batch_size: images a call; rounded up to a multiple of the devices.
    """
    count = jax.local_device_count()
    batch_size = -(-batch_size // count) * count

    @jax.jit
    def eval_step(variables: dict, images: jax.Array) -> jax.Array:
        logits = model.apply(variables, normalize(images, mean, std), train=False)
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


def make_score_fn(
    model: MixMoNet, dataset: Dataset, *, batch_size: int, ensemble: str
) -> Callable[[dict, Split], tuple[dict[str, float], np.ndarray]]:
    """Returns `score(variables, split)`: the scores (see `metrics.score`) and logits [N, M, K]."""
    compute = make_logits_fn(model, dataset.mean, dataset.std, batch_size)

    def score(variables: dict, split: Split) -> tuple[dict[str, float], np.ndarray]:
        logits = compute(variables, split.images)
        return metrics.score(logits, split.labels, ensemble), logits

    return score
