"""Feeds: the training images on their way to the training steps.

A feed is a function `feed(key, epoch, steps_done=0)`. It yields the arguments of each call of the
update function, on the host. Inside the compiled step, `fetch` returns the images of a plan.

Shapes: M members, B batch size, N training images, [H, W, C] image.
"""

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.datasets import Split
from mixmo_jax.input_pipeline.plan import BatchPlan, epoch_order, steps_per_epoch

_STEPS_PER_CALL = 100  # at most, on an accelerator
_BYTES_PER_CALL = 64 << 20  # streamed images of a call, per device
_CALLS_AHEAD = 2  # calls whose images are gathered in advance

Feed = Callable[..., Iterator["Call"]]


class Resident(NamedTuple):
    """The training split on the device."""

    # Flat images: a TPU would copy [N, H, W, C] into a padded layout at every call.
    images: jax.Array  # [N, H * W * C] uint8
    labels: jax.Array  # [N] int32


class RawBatch(NamedTuple):
    """The images of a plan, before augmentation. Partners are None without mixing of pixels."""

    images: jax.Array  # [M, B, H, W, C] uint8
    labels: jax.Array  # [M, B] int32
    partner_images: jax.Array | None  # [M, B, H, W, C] uint8
    partner_labels: jax.Array | None  # [M, B] int32


class Call(NamedTuple):
    """The arguments of one call of the update function, see `training.step.make_update_fn`."""

    resident: Resident | None
    streamed: RawBatch | None  # [devices, num_steps, M, B / devices, …]
    order: jax.Array  # [N] int32
    num_steps: int


def fetch(
    data: Resident | RawBatch, plan: BatchPlan, image_shape: tuple[int, int, int]
) -> RawBatch:
    """Returns the images of a plan, inside the compiled step.

    Args:
      data: The training split, from which images are gathered; or the images of the plan, if they
        were streamed to the device.
      plan: The plan.
      image_shape: (H, W, C).
    """
    if isinstance(data, RawBatch):
        return data
    return gather(data.images, data.labels, *planned_indices(plan), image_shape)


def planned_indices(plan: BatchPlan) -> tuple[jax.Array, jax.Array | None]:
    """Returns the indices of a plan's images and of their partners, [M, B] int32 each."""
    return plan.view.index, None if plan.msda is None else plan.msda.partner.index


def gather(images, labels, index, partner_index, image_shape: tuple[int, int, int]) -> RawBatch:
    """Gathers images from the training split, on the device or on the host.

    Args:
      images: [N, H, W, C] or [N, H * W * C] uint8.
      labels: [N] int32.
      index: [M, B] int32, or [S, M, B] for S steps; the result has the same leading axes.
      partner_index: The same for the partners; None without mixing of pixels.
      image_shape: (H, W, C).
    """

    def take(index):
        if index is None:
            return None, None
        return images[index].reshape(*index.shape, *image_shape), labels[index]

    return RawBatch(*take(index), *take(partner_index))


def create_feed(
    config: ml_collections.ConfigDict, plan_fn: Callable[..., BatchPlan], split: Split
) -> Feed:
    """Creates the feed for the placement of `config.dataset.placement`.

    Args:
      config: The config.
      plan_fn: `plan_fn(key, step, order) -> BatchPlan` of the whole batch.
      split: The training split.
    """
    steps = steps_per_epoch(config, len(split))
    if is_streamed(config.dataset.placement, split.nbytes):
        return streamed_feed(plan_fn, split, steps, config.steps_per_call)
    return resident_feed(split, steps, config.steps_per_call)


def is_streamed(placement: str, num_bytes: int) -> bool:
    """Returns whether the training images stay on the host.

    Args:
      placement: "host", "device", or "auto": on the device if the images take at most a quarter of
        its memory.
      num_bytes: The size of the images.
    """
    if placement != "auto":
        return placement == "host"
    memory = jax.local_devices()[0].memory_stats() or {}
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return num_bytes > memory.get("bytes_limit", host_memory) / 4


def resident_feed(split: Split, steps: int, steps_per_call: int = 0) -> Feed:
    """Places all training images on the devices. Each step gathers its own there.

    Args:
      split: The training split.
      steps: The number of steps of an epoch.
      steps_per_call: 0 for 1 on CPU and up to 100 elsewhere.
    """
    images = np.asarray(split.images).reshape(len(split), -1)
    resident = distributed.replicate(Resident(images, np.asarray(split.labels)))
    draw_order = jax.jit(lambda key, epoch: epoch_order(key, epoch, len(split)))
    lengths = call_lengths(steps, steps_per_call or _default_steps_per_call())

    def feed(key: jax.Array, epoch: int, steps_done: int = 0) -> Iterator[Call]:
        order = distributed.replicate(draw_order(key, epoch))
        for length in remaining_lengths(lengths, steps_done):
            yield Call(resident, None, order, length)

    return feed


def streamed_feed(
    plan_fn: Callable[..., BatchPlan], split: Split, steps: int, steps_per_call: int = 0
) -> Feed:
    """Keeps the training images on the host and sends each call its own ahead of time.

    The plan is drawn twice: on the host for the indices, which are integers and therefore the same
    on every backend, and on the device for everything else.

    Args:
      plan_fn: `plan_fn(key, step, order) -> BatchPlan` of the whole batch.
      split: The training split.
      steps: The number of steps of an epoch.
      steps_per_call: 0 for 1 on CPU and up to 100 elsewhere, within 64 MiB per device.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        host = jax.local_devices()[0]
    positions = distributed.axis_positions()
    image_shape = tuple(split.images.shape[1:])

    @jax.jit
    def draw_indices(key, epoch):
        """Returns the order of an epoch and the indices of its steps: [N], [steps, M, B] each."""
        order = epoch_order(key, epoch, len(split))
        step = (epoch - 1) * steps + jnp.arange(steps, dtype=jnp.int32)
        return order, jax.vmap(lambda step: planned_indices(plan_fn(key, step, order)))(step)

    def by_device(index):
        """Slices for the local devices: [S, M, B] → [devices, S, M, B / devices]."""
        count = jax.device_count()
        parts = index.reshape(*index.shape[:2], count, index.shape[2] // count)
        return np.moveaxis(parts, 2, 0)[positions]

    def steps_that_fit(indices):
        images = sum(index[0].size for index in jax.tree.leaves(indices))
        step_bytes = images * split.nbytes // len(split) // jax.device_count()
        return max(1, min(_default_steps_per_call(), _BYTES_PER_CALL // step_bytes))

    def feed(key: jax.Array, epoch: int, steps_done: int = 0) -> Iterator[Call]:
        key, epoch = jax.device_put((key, np.int32(epoch)), host)
        order, indices = jax.device_get(draw_indices(key, epoch))
        order = distributed.replicate(order)
        start = steps_done
        lengths = call_lengths(steps, steps_per_call or steps_that_fit(indices))
        for length in remaining_lengths(lengths, steps_done):
            part = [None if x is None else by_device(x[start : start + length]) for x in indices]
            raw = gather(split.images, split.labels, *part, image_shape)
            yield Call(None, distributed.shard(raw), order, length)
            start += length

    return lambda *args: _prefetch(feed(*args))


def call_lengths(steps: int, limit: int) -> list[int]:
    """Cuts an epoch into calls of at most `limit` steps.

    Every length is compiled. All calls are equal if the number of steps has a suitable divisor,
    from the limit down to a tenth of it (but at least 10, or the limit).
    """
    limit = min(limit, steps)
    minimum = max(limit // 10, min(limit, 10))
    divisors = [n for n in range(limit, minimum - 1, -1) if steps % n == 0]
    length = divisors[0] if divisors else limit
    whole, rest = divmod(steps, length)
    return [length] * whole + [rest] * (rest > 0)


def remaining_lengths(lengths: list[int], steps_done: int) -> list[int]:
    """Returns the lengths of the calls left after `steps_done` steps of an epoch."""
    remaining = []
    for length in lengths:
        left = min(length, length - steps_done)
        steps_done = max(0, steps_done - length)
        remaining += [left] if left > 0 else []
    return remaining


def _default_steps_per_call() -> int:
    # Convolutions inside a loop are 17 to 50 times slower on CPU.
    return 1 if jax.default_backend() == "cpu" else _STEPS_PER_CALL


def _prefetch(items: Iterator) -> Iterator:
    """Yields the items, computing the next ones in a thread."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = collections.deque(pool.submit(next, items, end) for _ in range(_CALLS_AHEAD))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
