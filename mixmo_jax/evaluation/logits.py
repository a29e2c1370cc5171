"""Logits of any number of images, on all local devices."""

import collections
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.input_pipeline.augment import normalize
from mixmo_jax.models import MixMoNet

_BATCHES_IN_FLIGHT = 2  # left unfinished: the device never waits, and memory is bounded


@functools.lru_cache(maxsize=8)  # equal networks are compiled once
def make_logits_fn(
    model: MixMoNet,
    *,
    batch_size: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Callable[[dict, np.ndarray], np.ndarray]:
    """Returns `logits(variables, images)`: [N, H, W, C] → [N, M, K] float32, for any N >= 1.

    The variables are on all local devices, see `distributed.replicate`. Images pass in batches,
    sharded over these devices. The last batch is padded to a power of two, so that one image costs
    about one image and few sizes are compiled.

    Args:
      model: The network.
      batch_size: The number of images of a batch; rounded up to a multiple of the devices.
      mean: The mean of each channel, on the scale 0 to 1, by which uint8 images are normalized;
        None for float32 images that are normalized already.
      std: The standard deviation of each channel, on the same scale, or None.
    """
    count = jax.local_device_count()
    most = -(-batch_size // count) * count

    @jax.jit
    def eval_step(variables: dict, images: jax.Array) -> jax.Array:
        if mean is not None:
            images = normalize(images, mean, std)
        logits = model.apply(variables, images, train=False)
        return jnp.moveaxis(logits, 0, 1)  # [M, B, K] → [B, M, K]

    def logits(variables: dict, images: np.ndarray) -> np.ndarray:
        pending, outputs = collections.deque(), []
        for start in range(0, len(images), most):
            batch = images[start : start + most]
            power = 1 << (len(batch) - 1).bit_length()
            size = min(most, -(-power // count) * count)
            padding = [(0, size - len(batch))] + [(0, 0)] * 3
            pending.append(eval_step(variables, distributed.shard(np.pad(batch, padding))))
            if len(pending) > _BATCHES_IN_FLIGHT:
                outputs.append(np.asarray(pending.popleft()))
        outputs += map(np.asarray, pending)
        return np.concatenate(outputs)[: len(images)]

    return logits
