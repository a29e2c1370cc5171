"""Tests of the mixing blocks of the study: what their masks are, and show in expectation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from properties import draws, for_all

from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import blob_mask, block_mask, cut

# A mean may differ from its expectation by this many standard errors: less than one in a million.
MAX_ERRORS = 5
# Blocks whose expected ratios are those of the roles, to the last bit but one.
TIED = ("linear", "rows", "columns", "channels", "random_channels", "noise")
# Of two, three and five roles; some ratios are 0, and one is 1.
RATIOS = (
    (0.3, 0.7),
    (0.05, 0.95),
    (0.0, 1.0),
    (0.62, 0.21, 0.17),
    (0.5, 0.0, 0.5),
    (0.13, 0.07, 0.4, 0.1, 0.3),
)


@functools.partial(jax.jit, static_argnames=("name", "shape"))
def ratios_of(name, keys, ratios, shape):
    """The means [N, M] of the masks of N keys."""
    draw = jax.vmap(lambda key: MASKS[name](key, ratios, shape).mean((1, 2, 3)))
    return draw(keys)


def assert_expectation(values, expected, atol=1e-6):
    """That values [N, …] have a mean, by their own standard errors; and for rounding `atol`."""
    values = np.asarray(values, np.float64)
    errors = values.std(0) / np.sqrt(len(values))
    differences = abs(values.mean(0) - expected)
    assert (differences <= MAX_ERRORS * errors + atol).all(), (differences, errors)


def coverage(shape, ratio, block=7):
    """The expected part of a map inside of PatchUp's blocks, from counting the places."""
    side = min(block, *shape)
    places = [n - side + 1 for n in shape]
    gamma = ratio * np.prod(shape) / (side**2 * np.prod(places))
    counts = np.zeros(shape)
    for y, x in np.ndindex(*places):
        counts[y : y + side, x : x + side] += 1
    return (1 - (1 - gamma) ** counts).mean()


@st.composite
def requests(draw):
    """Ratios, among them 0 and 1, of a dtype, and a shape."""
    num_members = draw(st.integers(2, 5))
    parts = st.sampled_from((0.0, 1e-30, 1e-3, 1.0, 1000.0)) | st.floats(0.01, 1)
    ratios = np.array([draw(parts) for _ in range(num_members)])
    ratios = ratios / ratios.sum() if ratios.sum() else np.eye(num_members)[-1]
    dtype = draw(st.sampled_from((jnp.float32, jnp.bfloat16)))
    shape = (draw(st.integers(4, 64)), draw(st.integers(4, 64)), draw(st.integers(1, 8)))
    return jnp.asarray(ratios, dtype), shape


# At the edges: five roles, odd sides that differ, ratios of 0 and 1; and next to 0, in bfloat16.
EDGES = (
    (np.array([0, 0, 1, 0, 0], np.float32), (63, 5, 3)),
    (np.array([1e-30, 0.25, 0.75], jnp.bfloat16), (4, 64, 8)),
)


@pytest.fixture
def _compile_quickly():
    """Each draw has shapes of its own, so compiling takes longer than computing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@draws(3, 60)
@pytest.mark.usefixtures("_compile_quickly")
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_shares_of_any_size_and_dtype(name, count):
    @for_all(count, requests(), st.integers(0, 2**32 - 1), examples=[(edge, 0) for edge in EDGES])
    def _(request, seed):
        ratios, shape = request
        masks = jax.jit(MASKS[name], static_argnums=2)(jax.random.key(seed), ratios, shape)
        assert masks.dtype == ratios.dtype
        assert all(n in (1, full) for n, full in zip(masks.shape[1:], shape, strict=True))
        masks = np.asarray(masks, np.float64)
        assert np.isfinite(masks).all() and masks.min() >= 0 and masks.max() <= 1
        # M summands are rounded to half a unit in the last place each, and so were M ratios.
        tolerance = len(ratios) * float(jnp.finfo(ratios.dtype).eps)
        np.testing.assert_allclose(masks.sum(0), 1, atol=tolerance)
        if name in TIED:  # a role without a ratio has an empty mask
            assert (masks[np.asarray(ratios) == 0] == 0).all()


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
@pytest.mark.parametrize("name", TIED)
def test_expected_ratios_are_those_of_the_roles(name, ratios):
    keys = jax.random.split(jax.random.key(0), 20_000)
    means = ratios_of(name, keys, jnp.array(ratios), (3, 5, 7))
    assert_expectation(means, ratios)


@pytest.mark.parametrize("name", ["rows", "columns", "channels", "random_channels"])
def test_pieces_have_the_lengths_of_the_ratios_to_one_place(name):
    ratios = jnp.array([0.22, 0.33, 0.45])
    shape = (5, 11, 16)
    side = {"rows": 5, "columns": 11}.get(name, 16)
    means = ratios_of(name, jax.random.split(jax.random.key(0), 200), ratios, shape)
    assert abs(np.asarray(means) - np.asarray(ratios)).max() < 1 / side + 1e-6


def test_pieces_are_in_the_order_of_the_roles():
    roles = cut(jax.random.key(0), jnp.array([0.2, 0.3, 0.0, 0.5]), 64)
    assert (np.diff(roles) >= 0).all()
    assert set(np.unique(roles)) == {0, 1, 3}
    for name, axis in (("rows", 1), ("columns", 2), ("channels", 3)):
        mask = MASKS[name](jax.random.key(0), jnp.array([0.2, 0.3, 0.0, 0.5]), (64, 64, 64))
        chex.assert_trees_all_equal(mask.argmax(0).reshape(-1), roles)
        assert mask.shape[axis] == 64 and mask.size == 4 * 64


def test_random_channels_give_every_channel_every_role_equally_often():
    ratios = jnp.array([0.5, 0.2, 0.3])
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda key: MASKS["random_channels"](key, ratios, (4, 4, 6)))
    shown = draw(keys)[:, :, 0, 0]  # [N, M, F]
    assert_expectation(shown, np.broadcast_to(np.asarray(ratios)[:, None], (3, 6)))


def test_noise_varies_independently_over_positions_and_channels():
    mask = MASKS["noise"](jax.random.key(0), jnp.array([0.5, 0.5]), (64, 64, 8))[0]
    chex.assert_shape(mask, (64, 64, 8))
    for axis in range(3):
        equal = mask == jnp.roll(mask, 1, axis)
        # Two independent bits are equal in half of the cases.
        assert abs(equal.mean() - 0.5) < MAX_ERRORS * 0.5 / np.sqrt(mask.size)


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_half_of_a_map_is_inside_of_cowmix_blobs_whatever_the_ratio(ratio):
    keys = jax.random.split(jax.random.key(0), 4000)
    ratios = jnp.array([ratio, (1 - ratio) / 4, (1 - ratio) * 3 / 4])
    means = ratios_of("cow", keys, ratios, (32, 32, 4))
    assert_expectation(means, (0.5, 0.125, 0.375))
    assert 0.1 < np.quantile(means[:, 0], 0.05) < 0.3 < 0.7 < np.quantile(means[:, 0], 0.95) < 0.9


@pytest.mark.parametrize("fraction", [0.2, 0.35, 0.5, 0.8])
def test_the_fraction_inside_of_blobs_is_about_the_one_asked_for(fraction):
    """For blobs that are small against the map, so that there are many of them."""
    noise = jax.random.normal(jax.random.key(0), (60, 64, 64))
    blobs = jax.jit(jax.vmap(blob_mask, in_axes=(0, None, None)))
    inside = blobs(noise, jnp.array(2.0), jnp.array(fraction)).mean((1, 2))
    # A map has about 64² / (4 π 2²) = 80 independent places, which bends its quantiles by some
    # 1 / 80.
    assert_expectation(inside, fraction, atol=1 / 80)


def test_blobs_have_the_width_of_the_blur():
    """Neighbors of a blurred map correlate by exp(-d² / 4 σ²), and signs as its arcsine does."""
    noise = jax.random.normal(jax.random.key(0), (200, 64, 48))
    blobs = jax.jit(jax.vmap(blob_mask, in_axes=(0, None, None)))(noise, jnp.array(4.0), 0.5)
    for axis in (1, 2):
        moved = jnp.roll(blobs, 4, axis)
        equal = (blobs == moved).swapaxes(1, axis)[:, 4:].mean((1, 2))
        expected = 0.5 + np.arcsin(np.exp(-(4**2) / (4 * 4.0**2))) / np.pi
        assert abs(equal.mean() - expected) < 0.02  # the map's own mean takes some correlation


def test_blobs_are_as_frequent_at_edges_as_inside():
    noise = jax.random.normal(jax.random.key(0), (4000, 16, 12))
    sigmas = jnp.linspace(4.0, 16.0, 4000)
    inside = jax.jit(jax.vmap(blob_mask, in_axes=(0, 0, None)))(noise, sigmas, jnp.array(0.5))
    assert_expectation(inside, np.full((16, 12), 0.5))


@functools.cache
def draw_blocks(shape):
    """Blocks of two channels for many keys, compiled once for all ratios."""
    draw = functools.partial(block_mask, shape=(*shape, 2))
    return jax.jit(jax.vmap(draw, in_axes=(0, None)))


@pytest.mark.parametrize("shape", [(32, 32), (9, 16), (7, 7), (4, 12), (5, 4)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_coverage_of_patchup_is_that_of_the_formula(shape, ratio):
    keys = jax.random.split(jax.random.key(0), 1500)
    means = draw_blocks(shape)(keys, jnp.array(ratio)).mean((1, 2, 3))
    assert coverage(shape, ratio) <= ratio
    assert_expectation(means, coverage(shape, ratio))


@pytest.mark.parametrize("ratios", [(0.3, 0.7), (0.25, 0.15, 0.6)], ids=str)
def test_expected_ratios_of_patchup(ratios):
    keys = jax.random.split(jax.random.key(0), 1500)
    first, others, c = ratios[0], np.array(ratios[1:]), coverage((16, 20), ratios[0])
    shares = (1 - c) * others / others.sum()
    expected = {
        "patchup_hard": (c, *shares),
        "patchup_2d": (c, *shares),
        "patchup_soft": (c + (1 - c) * first, *(1 - c) * others),
    }
    for name, values in expected.items():
        assert_expectation(ratios_of(name, keys, jnp.array(ratios), (16, 20, 2)), values)


def test_patchup_has_blocks_of_seven_in_every_channel_others():
    hard = np.asarray(MASKS["patchup_hard"](jax.random.key(3), jnp.array([0.1, 0.9]), (32, 32, 8)))
    assert set(np.unique(hard)) == {0, 1}
    assert len({channel.tobytes() for channel in np.moveaxis(hard[0], -1, 0)}) == 8
    for mask in np.moveaxis(hard[0], -1, 0):
        blocks = np.lib.stride_tricks.sliding_window_view(mask, (7, 7)).min((2, 3))
        covered = np.zeros_like(mask)
        for y, x in np.argwhere(blocks):
            covered[y : y + 7, x : x + 7] = 1
        np.testing.assert_array_equal(covered, mask)  # whole blocks, and nothing else
    soft = MASKS["patchup_soft"](jax.random.key(3), jnp.array([0.1, 0.9]), (32, 32, 8))
    np.testing.assert_allclose(soft[0], np.where(hard[0] == 1, 1, 0.1))


@pytest.mark.parametrize("name", MASKS)
def test_one_trace_serves_a_batch_and_all_its_ratios(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(key, ratios):
        keys = jax.random.split(key, 6)
        return jax.vmap(functools.partial(MASKS[name], shape=(8, 9, 4)), (0, 1), 1)(keys, ratios)

    for seed, ratios in enumerate(([0.2, 0.5, 0.3], [0.0, 0.0, 1.0])):
        chex.assert_tree_all_finite(
            draw(jax.random.key(seed), jnp.tile(jnp.array(ratios)[:, None], 6))
        )
