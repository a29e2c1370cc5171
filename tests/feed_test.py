"""Feeds: both placements give the steps the same images."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from setups import inputs_of, set_up, tiny_config

from mixmo_jax.datasets import Split, load_dataset
from mixmo_jax.input_pipeline import feed as feed_lib
from mixmo_jax.input_pipeline.feed import fetch


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny_config().dataset)


def read_epoch(setup, epoch):
    """The inputs of every step of an epoch, as the feed delivers them."""
    key = jax.random.key(0)

    @jax.jit
    def inputs(resident, streamed, order, step):
        plan = setup.plan_fn(key, step, order)
        if streamed is not None:  # [devices, 1, M, B / devices, …] → [M, B, …]
            streamed = jax.tree.map(lambda x: jnp.concatenate(list(x[:, 0]), axis=1), streamed)
        raw = fetch(resident or streamed, plan, setup.dataset.image_shape)
        return inputs_of(setup, raw, plan)

    for i, (resident, streamed, order, num_steps) in enumerate(setup.feed(key, epoch)):
        assert num_steps == 1
        yield inputs(resident, streamed, order, (epoch - 1) * setup.steps + i)


@pytest.mark.parametrize(
    "method", [pytest.param("vanilla", marks=pytest.mark.stress), "cut_mixmo+cutmix"]
)
def test_both_placements_feed_the_same(dataset, method):
    """Images, masks and targets are bitwise equal, step by step."""
    feeds = [
        read_epoch(set_up(tiny_config(method, dataset__placement=placement), dataset), 2)
        for placement in ("device", "host")
    ]
    count = 0
    for device, host in zip(*feeds, strict=True):
        chex.assert_trees_all_equal(device, host)
        count += 1
    assert count == 1437 * (1 if method == "vanilla" else 4) // 192


@pytest.mark.parametrize(
    ("placement", "num_bytes", "expected"),
    [("device", 1 << 60, False), ("host", 1, True), ("auto", 1, False), ("auto", 1 << 60, True)],
)
def test_placement(placement, num_bytes, expected):
    assert feed_lib.is_streamed(placement, num_bytes) == expected


@pytest.mark.parametrize("side", [32, 224])
def test_streamed_calls_are_bounded_by_bytes(dataset, monkeypatch, side):
    """As on an accelerator, where calls have many steps."""
    monkeypatch.setattr(feed_lib, "_default_steps_per_call", lambda: 100)
    count = len(dataset.train)
    images = np.broadcast_to(np.zeros((), np.uint8), (count, side, side, 3))
    setup = set_up(tiny_config("cut_mixmo+cutmix", batch_size=32), dataset)
    split = Split(images, dataset.train.labels)
    feed = feed_lib.streamed_feed(setup.plan_fn, split, 7 * 20)
    # Two members and their partners; each device has its slice.
    step_bytes = 2 * 2 * 32 * side * side * 3 // jax.local_device_count()
    with contextlib.closing(feed(jax.random.key(0), 1)) as calls:
        call = next(calls)
    assert call.streamed.images.shape[1] == call.num_steps
    most = min(100, (64 << 20) // step_bytes)
    assert most / 2 <= call.num_steps <= most


@pytest.mark.parametrize("placement", ["device", "host"])
def test_feed_continues_inside_an_epoch(dataset, placement):
    config = tiny_config(dataset__placement=placement, steps_per_call=2)
    feed = set_up(config, dataset).feed
    whole = list(feed(jax.random.key(0), 2))
    parts = list(feed(jax.random.key(0), 2, 4))
    assert len(parts) == len(whole) - 2
    for part, call in zip(parts, whole[2:], strict=True):
        chex.assert_trees_all_equal(part, call)


@pytest.mark.parametrize(("done", "expected"), [(0, [3, 3, 2]), (2, [1, 3, 2]), (6, [2]), (8, [])])
def test_remaining_lengths(done, expected):
    assert feed_lib.remaining_lengths([3, 3, 2], done) == expected


@pytest.mark.parametrize(
    ("steps", "limit", "expected"),
    [
        (3125, 100, [25] * 125),
        (4000, 100, [100] * 40),
        (781, 100, [71] * 11),
        (7, 100, [7]),
        (5, 1, [1] * 5),
        (997, 100, [100] * 9 + [97]),
    ],
)
def test_call_lengths(steps, limit, expected):
    """Equal calls where the number of steps has a suitable divisor; each length is compiled."""
    assert feed_lib.call_lengths(steps, limit) == expected
