"""Training images that stay on the host: gathered and sent ahead of the steps that need them."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import batches, devices, sampling
from mixmo_jax.batches import RawBatch
from mixmo_jax.datasets import Split

_AHEAD = 2  # calls whose images are on their way while one is computed


def is_streamed(placement: str, num_bytes: int) -> bool:
    """Decides whether the training images stay on the host.

    Args:
      placement: "host", "device", or "auto": on the device below a quarter of its memory.
      num_bytes: size of the images.
    """
    if placement != "auto":
        return placement == "host"
    memory = jax.local_devices()[0].memory_stats() or {}
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return num_bytes > memory.get("bytes_limit", host_memory) / 4


def make_stream_fn(
    plan_fn: Callable, data: Split, steps_per_epoch: int
) -> Callable[[jax.Array, int, Iterable[int]], Iterator[RawBatch]]:
    """Returns `stream(key, epoch, lengths)`, which yields the images of each call of an epoch.

    The plan is drawn twice: on the host for the numbers of the images, which are integers and so
    the same on every backend, and by the step itself for all that it does with them.

    Args:
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.
      data: the training set.
      steps_per_epoch: steps of an epoch; the lengths of its calls sum up to it.

    Returns:
      The function. Its `RawBatch`es are [devices, steps of the call, M, B / devices, …], on their
      devices.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use nothing but the accelerator
        host = jax.local_devices()[0]

    @jax.jit
    def epoch_indices(key: jax.Array, epoch: jax.Array):
        order = sampling.epoch_order(key, epoch, len(data))
        steps = (epoch - 1) * steps_per_epoch + jnp.arange(steps_per_epoch)
        return jax.vmap(lambda step: batches.indices(plan_fn(key, step, order)))(steps)

    def stream(key: jax.Array, epoch: int, lengths: Iterable[int]) -> Iterator[RawBatch]:
        arguments = jax.device_put((key, jnp.int32(epoch)), host)
        indices = jax.device_get(epoch_indices(*arguments))  # [S, M, B] each
        start = 0
        for length in lengths:
            part = jax.tree.map(lambda x: x[start : start + length], indices)  # noqa: B023
            yield devices.spread(jax.tree.map(_by_device, batches.gather(data, *part)))
            start += length

    return lambda *arguments: _prefetch(stream(*arguments))


def _by_device(array: np.ndarray) -> np.ndarray:
    """[S, M, B, …] → [devices, S, M, B / devices, …]."""
    steps, members, batch, *rest = array.shape
    count = jax.local_device_count()
    parts = array.reshape(steps, members, count, batch // count, *rest)
    return np.ascontiguousarray(np.moveaxis(parts, 2, 0))


def _prefetch(items: Iterator) -> Iterator:
    """Yields the items, computing the next ones in a thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = collections.deque(pool.submit(next, items, end) for _ in range(_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
