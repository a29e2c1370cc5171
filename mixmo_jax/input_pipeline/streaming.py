"""Training images on their way to the steps: resident on the devices, or streamed to them.

Both feeds have the same two parts. `calls(key, epoch)` yields, on the host, the arguments of each
call of the update function. `fetch(resident, streamed, plan)` returns, inside the compiled step,
the `RawBatch` of the step's plan.
"""

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.datasets import Split
from mixmo_jax.input_pipeline.batch import RawBatch, gather, planned_indices
from mixmo_jax.input_pipeline.plan import BatchPlan, epoch_order

_STEPS_PER_CALL = 100  # at most, on an accelerator
_BYTES_PER_CALL = 64 << 20  # of streamed images, on each device
_CALLS_AHEAD = 2  # calls whose images are gathered while others are computed


class Call(NamedTuple):
    """The arguments of one call of the update function, see `training.step.make_update_fn`."""

    resident: tuple[jax.Array, jax.Array] | None  # images [N, H * W * C] uint8, labels [N] int32
    streamed: RawBatch | None  # [devices, steps, M, B / devices, …]
    order: jax.Array  # [N] int32
    num_steps: int


def is_streamed(placement: str, num_bytes: int) -> bool:
    """Decides whether the training images stay on the host.

    Args:
      placement: "host", "device", or "auto": on the device if they take at most a quarter of its
        memory.
      num_bytes: The size of the images.
    """
    if placement != "auto":
        return placement == "host"
    memory = jax.local_devices()[0].memory_stats() or {}
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return num_bytes > memory.get("bytes_limit", host_memory) / 4


def call_lengths(steps: int, limit: int) -> list[int]:
    """Cuts an epoch into calls of at most `limit` steps.

    Each length is compiled, so all calls are equal if the number of steps has a divisor between
    the limit and a tenth of it (but not below 10, or the limit).
    """
    limit = min(limit, steps)
    least = max(limit // 10, min(limit, 10))
    lengths = [n for n in range(limit, least - 1, -1) if steps % n == 0]
    length = lengths[0] if lengths else min(limit, steps)
    whole, rest = divmod(steps, length)
    return [length] * whole + [rest] * (rest > 0)


def remaining_lengths(lengths: list[int], done: int) -> list[int]:
    """Returns the lengths of the calls that are left in an epoch of which `done` steps are done."""
    remaining = []
    for length in lengths:
        left = min(length, length - done)
        done = max(0, done - length)
        remaining += [left] if left > 0 else []
    return remaining


class ResidentFeed:
    """All training images lie on the devices, where each step gathers its own.

    Args:
      split: The training split.
      steps_per_epoch: The number of steps of an epoch.
      steps_per_call: The number of steps of a call; 0 for 1 on CPU, else up to 100.
    """

    def __init__(self, split: Split, steps_per_epoch: int, steps_per_call: int = 0):
        self._lengths = call_lengths(steps_per_epoch, steps_per_call or _default_steps_per_call())
        self._image_shape = tuple(split.images.shape[1:])
        # Flat: a TPU would copy and pad [N, H, W, C] at every call.
        images = np.asarray(split.images).reshape(len(split), -1)
        self._resident = distributed.replicate((images, np.asarray(split.labels)))
        self._order_fn = jax.jit(lambda key, epoch: epoch_order(key, epoch, len(split)))

    def fetch(self, resident: tuple, streamed: None, plan: BatchPlan) -> RawBatch:
        """Gathers the images of a plan on the device."""
        return gather(*resident, *planned_indices(plan), self._image_shape)

    def calls(self, key: jax.Array, epoch: int, done: int = 0) -> Iterator[Call]:
        """Yields the arguments of each call of an epoch of which `done` steps are done."""
        order = distributed.replicate(self._order_fn(key, epoch))
        for length in remaining_lengths(self._lengths, done):
            yield Call(self._resident, None, order, length)


class StreamedFeed:
    """The training images lie on the host, which sends each call its own ahead of time.

    The plan is drawn twice: on the host for the numbers of the images, which are integers and so
    the same on every backend, and by the step itself for all that it does with them.

    Args:
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.
      split: The training split.
      steps_per_epoch: The number of steps of an epoch.
      steps_per_call: The number of steps of a call; 0 for 1 on CPU, else up to 100 and no more
        images than take 64 MiB on a device.
    """

    def __init__(
        self,
        plan_fn: Callable[..., BatchPlan],
        split: Split,
        steps_per_epoch: int,
        steps_per_call: int = 0,
    ):
        self._plan_fn, self._split, self._steps = plan_fn, split, steps_per_epoch
        self._steps_per_call = steps_per_call
        try:
            self._host = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX was told to use nothing but the accelerator
            self._host = jax.local_devices()[0]
        self._indices_fn = jax.jit(self._epoch_indices)
        self._positions = distributed.axis_positions()

    def fetch(self, resident: None, streamed: RawBatch, plan: BatchPlan) -> RawBatch:
        """Returns the images that were sent."""
        return streamed

    def calls(self, key: jax.Array, epoch: int, done: int = 0) -> Iterator[Call]:
        """Yields the arguments of each call of an epoch of which `done` steps are done.

        The images of the next ones are gathered in a thread.
        """
        return _prefetch(self._calls(key, epoch, done))

    def _calls(self, key, epoch, done):
        key, epoch = jax.device_put((key, np.int32(epoch)), self._host)
        order, indices = jax.device_get(self._indices_fn(key, epoch))  # [N]; [S, M, B] each
        order = distributed.replicate(order)
        lengths = call_lengths(self._steps, self._steps_per_call or self._most_steps(indices))
        start = done
        for length in remaining_lengths(lengths, done):
            part = jax.tree.map(lambda x: x[start : start + length], indices)  # noqa: B023
            part = jax.tree.map(self._by_device, part)  # [devices, S, M, B / devices]
            shape = tuple(self._split.images.shape[1:])
            raw = gather(self._split.images, self._split.labels, *part, shape)
            yield Call(None, distributed.shard(raw), order, length)
            start += length

    def _epoch_indices(self, key, epoch):
        """The order of an epoch, and the images that each of its steps takes."""
        order = epoch_order(key, epoch, len(self._split))
        steps = (epoch - 1) * self._steps + jnp.arange(self._steps, dtype=jnp.int32)
        return order, jax.vmap(lambda step: planned_indices(self._plan_fn(key, step, order)))(steps)

    def _by_device(self, index: np.ndarray) -> np.ndarray:
        """What the local devices take of a batch: [S, M, B] → [devices, S, M, B / devices]."""
        steps, members, batch = index.shape
        parts = index.reshape(steps, members, jax.device_count(), batch // jax.device_count())
        return np.moveaxis(parts, 2, 0)[self._positions]

    def _most_steps(self, indices):
        """The number of steps whose images take the bytes of a call."""
        images = sum(x[0].size for x in jax.tree.leaves(indices))
        step_bytes = images * self._split.nbytes // len(self._split) // jax.device_count()
        return max(1, min(_default_steps_per_call(), _BYTES_PER_CALL // step_bytes))


def create_feed(
    placement: str,
    plan_fn: Callable[..., BatchPlan],
    split: Split,
    steps_per_epoch: int,
    steps_per_call: int,
) -> ResidentFeed | StreamedFeed:
    """Returns the feed for a placement, see `is_streamed`; the other arguments as of the feeds."""
    if is_streamed(placement, split.nbytes):
        return StreamedFeed(plan_fn, split, steps_per_epoch, steps_per_call)
    return ResidentFeed(split, steps_per_epoch, steps_per_call)


def _default_steps_per_call():
    """The number of steps of a call where nothing else limits it."""
    # Convolutions inside a loop are many times slower on CPU.
    return 1 if jax.default_backend() == "cpu" else _STEPS_PER_CALL


def _prefetch(items: Iterator) -> Iterator:
    """Yields the items, computing the next ones in a thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = collections.deque(pool.submit(next, items, end) for _ in range(_CALLS_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
