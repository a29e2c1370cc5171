"""Tests of the masks: boxes cell by cell, their distribution, and what holds for all that exist."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GOLDENS
from scipy import stats

from mixmo_jax.errors import InputError
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import CHANNEL_MASKS, MSDA_ALIASES, box_mask, msda_methods
from mixmo_jax.mixing.mixing_block import mixmo_masks
from mixmo_jax.mixing.msda import msda_masks

SIZE = 32
SHAPE = (12, 20, 3)
# A difference of two samples may be this many of its standard errors: less than one in a million.
MAX_ERRORS = 5
# The least p-value of a goodness-of-fit test. The keys are fixed, so a test passes always or never.
MIN_P = 1e-4


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def boxes(ratios, centers, shape, dtype=jnp.float32):
    """The boxes [N, h, w] of ratios [N] and centers [N, 2]."""
    return jax.vmap(functools.partial(box_mask, shape=shape, dtype=dtype))(ratios, centers)


@functools.partial(jax.jit, static_argnames=("name", "shape"))
def masks_of(name, keys, ratios, shape):
    """The masks [M, N, h, w, F] of a registered function for keys [N] and ratios [M, N]."""
    mask_fn = functools.partial(MASKS[name], shape=shape)
    masks = jax.vmap(mask_fn, in_axes=(0, 1), out_axes=1)(keys, ratios)
    return jnp.broadcast_to(masks, (*ratios.shape, *shape))


def golden(name):
    return np.load(GOLDENS / f"{name}.npz")


def cell_center(cell, size):
    """The middle of a cell, in units of the map's side."""
    return (np.asarray(cell) + 0.5) / size


@functools.cache
def random_masks(name, num_members):
    """Masks of random ratios, among them those where one role has all, and the ratios."""
    rng = np.random.default_rng(0)
    ratios = np.concatenate([rng.dirichlet([2] * num_members, 40), np.eye(num_members)]).T
    ratios = jnp.asarray(ratios, jnp.float32)
    keys = jax.random.split(jax.random.key(0), ratios.shape[1])
    return masks_of(name, keys, ratios, SHAPE), ratios


def stripes(key, ratios, shape):
    """A mask function of a user: each role has some of the columns, from a random one on."""
    shift = jax.random.randint(key, (), 0, shape[1])
    ends = jnp.round(jnp.cumsum(ratios) * shape[1]).astype(jnp.int32)
    role = jnp.searchsorted(ends[:-1], jnp.roll(jnp.arange(shape[1]), shift), side="right")
    masks = role[None] == jnp.arange(len(ratios))[:, None]  # [M, w]
    return masks[:, None, :, None].astype(ratios.dtype)


@pytest.fixture(scope="module")
def draws():
    """200,000 boxes: the ratios, the masks' means, and the share of boxes over each cell."""

    def draw(key):
        ratio_key, mask_key = jax.random.split(key)
        ratios = jax.random.dirichlet(ratio_key, jnp.full(2, 2.0), (2000,)).T
        keys = jax.random.split(mask_key, 2000)
        masks = masks_of("cutmix", keys, ratios, (SIZE, SIZE, 1))[0, ..., 0]
        return ratios[0], masks.mean((1, 2)), masks.mean(0)

    keys = jax.random.split(jax.random.key(0), 100)
    ratios, means, coverage = jax.jit(lambda keys: jax.lax.map(draw, keys))(keys)
    return (
        np.asarray(ratios, np.float64).ravel(),
        np.asarray(means, np.float64).ravel(),
        np.asarray(coverage, np.float64).mean(0),
    )


@pytest.mark.parametrize("size", [32, 64])
def test_box_equals_reference_cell_by_cell(size):
    rows = golden("cutmix_given_centre_boxes")["W_lam_cx_cy_x1_y1_x2_y2"]
    rows = rows[rows[:, 0] == size]
    assert len(rows) == 80
    expected = np.zeros((len(rows), size, size), np.float32)
    for mask, (x1, y1, x2, y2) in zip(expected, rows[:, 4:].astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    centers = cell_center(rows[:, [3, 2]], size)
    masks = boxes(jnp.asarray(rows[:, 1]), jnp.asarray(centers), (size, size))
    chex.assert_trees_all_equal(np.asarray(masks), expected)


def test_box_of_a_map_that_is_not_square():
    # Half sides floor(8 * 0.7) // 2 = 2 and floor(20 * 0.7) // 2 = 7.
    expected = np.zeros((8, 20), bool)
    expected[3:7, 0:10] = True
    center = jnp.array([cell_center(5, 8), cell_center(3, 20)])
    mask = box_mask(jnp.array(0.49 + 1e-4), center, (8, 20), dtype=bool)
    chex.assert_trees_all_equal(np.asarray(mask), expected)


def test_unclipped_area_equals_reference_for_every_ratio():
    exact = golden("cutmix_exact_32")
    centers = jnp.full((len(exact["lam"]), 2), 0.5)
    masks = boxes(jnp.asarray(exact["lam"]), centers, (SIZE, SIZE))
    areas = np.asarray(masks, np.float64).mean((1, 2))
    chex.assert_trees_all_equal(areas, exact["full_box_area_fraction"])


def test_expected_mean_over_all_centers_is_exact():
    """One ratio of each half side; with the areas above that covers every ratio."""
    exact = golden("cutmix_exact_32")
    halves, first = np.unique(exact["half_width"], return_index=True)
    chex.assert_trees_all_equal(halves, np.arange(SIZE // 2 + 1))
    cells = np.stack(np.mgrid[:SIZE, :SIZE], axis=-1).reshape(-1, 2)
    centers = jnp.asarray(cell_center(cells, SIZE))
    masks = jax.vmap(
        lambda ratio: boxes(jnp.full(len(cells), ratio), centers, (SIZE, SIZE), dtype=bool)
    )(jnp.asarray(exact["lam"][first]))
    means = np.asarray(masks).mean((1, 2, 3))
    chex.assert_trees_all_close(means, exact["expected_mask_mean"][first], rtol=1e-12)


def test_mean_and_variance_of_the_covered_share(draws):
    _, means, _ = draws
    expected = golden("cutmix_alpha2_32")
    # Standard errors of a mean and of a variance; twice the squares, as both samples are finite.
    mean_error = np.sqrt(2 * means.var() / means.size)
    var_error = np.sqrt(2 * ((means - means.mean()) ** 2).var() / means.size)
    assert int(expected["n"]) == means.size
    assert abs(means.mean() - expected["mask_mean_mean"]) < MAX_ERRORS * mean_error
    assert abs(means.var() - expected["mask_mean_var"]) < MAX_ERRORS * var_error


def test_histogram_of_the_covered_share(draws):
    _, means, _ = draws
    expected = golden("cutmix_alpha2_32")
    counts = np.histogram(means, expected["edges50"])[0]
    table = np.stack([counts, expected["mask_mean_hist"]])
    # Some bins lie where no box has its mean, in either sample.
    assert stats.chi2_contingency(table[:, table.any(0)]).pvalue > MIN_P


def test_correlation_of_covered_share_and_ratio(draws):
    ratios, means, _ = draws
    expected = golden("cutmix_alpha2_32")
    x, y = stats.zscore(ratios), stats.zscore(means)
    correlation = (x * y).mean()
    # The influence of each sample on the correlation gives its standard error.
    influence = x * y - correlation * (x**2 + y**2) / 2
    error = np.sqrt(2 * influence.var() / means.size)
    assert abs(correlation - expected["corr_lam_maskmean"]) < MAX_ERRORS * error


def test_covered_share_given_the_ratio(draws):
    ratios, means, _ = draws
    expected = golden("cutmix_alpha2_32")
    bins = np.digitize(ratios, expected["edges20"]) - 1
    counts = np.bincount(bins, minlength=20)
    given = np.bincount(bins, means, 20) / counts
    variances = expected["maskmean_given_lambin20_std"] ** 2
    squares = variances * (1 / counts + 1 / expected["joint_hist20"].sum(1))
    chi_square = ((given - expected["maskmean_given_lambin20_mean"]) ** 2 / squares).sum()
    assert stats.chi2.sf(chi_square, df=20) > MIN_P


def test_coverage_of_every_cell(draws):
    ratios, _, coverage = draws
    expected = golden("cutmix_alpha2_32")["coverage"]
    errors = np.sqrt(2 * expected * (1 - expected) / ratios.size)
    assert (abs(coverage - expected) / errors).max() < MAX_ERRORS


@pytest.mark.parametrize(
    "num_members", [3, *(pytest.param(m, marks=pytest.mark.stress) for m in (2, 4))]
)
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_shares_that_sum_to_one(name, num_members):
    """Of every registered function, also where a ratio is 0 or 1."""
    masks, ratios = random_masks(name, num_members)
    chex.assert_shape(masks, (*ratios.shape, *SHAPE))
    assert masks.dtype == ratios.dtype
    chex.assert_tree_all_finite(masks)
    assert masks.min() >= 0
    assert masks.max() <= 1
    chex.assert_trees_all_close(masks.sum(0), jnp.ones(masks.shape[1:]), atol=1e-6)


@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_linear_masks_are_the_ratios_everywhere(num_members):
    masks, ratios = random_masks("linear", num_members)
    chex.assert_trees_all_equal(masks.min((2, 3, 4)), ratios)
    chex.assert_trees_all_equal(masks.max((2, 3, 4)), ratios)


@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_cutmix_masks_share_what_is_outside_the_box_in_proportion(num_members):
    masks, ratios = (np.asarray(array) for array in random_masks("cutmix", num_members))
    box = masks[0]
    assert set(np.unique(box)) == {0, 1}
    sampled = ratios[0] < 1
    shares = ratios[1:, sampled] / ratios[1:, sampled].sum(0)
    expected = shares[..., None, None, None] * (1 - box[sampled])
    chex.assert_trees_all_close(masks[1:, sampled], expected, atol=1e-6)


@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_box_with_the_whole_ratio_leaves_equal_shares(num_members):
    """Clipped, a box of ratio 1 leaves a rest of which no ratio says whose it is."""
    masks, ratios = random_masks("cutmix", num_members)
    assert ratios[0, -num_members] == 1
    clipped = masks[:, -num_members]
    assert 0 < clipped[0].mean() < 1
    expected = jnp.broadcast_to((1 - clipped[0]) / (num_members - 1), clipped[1:].shape)
    chex.assert_trees_all_close(clipped[1:], expected, atol=1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_masks_follow_from_their_key(name):
    """Every sample's masks are drawn from its own key alone, whatever the batch around it."""
    masks, ratios = random_masks(name, 3)
    keys = jax.random.split(jax.random.key(0), ratios.shape[1])
    part = masks_of(name, keys[5:8], ratios[:, 5:8], SHAPE)
    chex.assert_trees_all_equal(part, masks[:, 5:8])


def draw_mixmo_masks(block, num_members=3, use_patch=True):
    """MixMo's masks of 16 positions, and their ratios."""
    ratios = jax.random.dirichlet(jax.random.key(0), jnp.full(num_members, 2.0), (16,)).T
    keys = jax.random.split(jax.random.key(1), 16)
    order = jnp.arange(num_members)
    masks = mixmo_masks(ratios, keys, order, jnp.array(use_patch), block=block, shape=SHAPE)
    return masks, ratios


def draw_msda_masks(method):
    """Pixel mixing's masks of 2 members and 16 positions, half of them mixed; and their ratios."""
    ratios = jax.random.uniform(jax.random.key(0), (2, 16))
    keys = jax.random.split(jax.random.key(1), (2, 16))
    mixed = jnp.broadcast_to(jnp.arange(16) % 2 == 0, (2, 16))
    return msda_masks(ratios, keys, mixed, method=method, shape=(12, 20)), ratios


@pytest.mark.parametrize("use_patch", [False, True])
@pytest.mark.parametrize("num_members", [1, 2])
@pytest.mark.parametrize("name", ["none", "cutmx", "Linear", ""])
def test_unknown_block_is_an_input_error(name, num_members, use_patch):
    """Also where it would not be drawn."""
    with pytest.raises(InputError, match=f"^{name}: no such mask function"):
        draw_mixmo_masks(name, num_members, use_patch)


@pytest.mark.parametrize("name", ["none", "cutmx", "Mixup", ""])
def test_unknown_method_is_an_input_error(name):
    with pytest.raises(InputError, match=f"^{name}: no such mask function"):
        draw_msda_masks(name)


def test_a_registered_function_serves_both_kinds_of_mixing(monkeypatch):
    monkeypatch.setitem(MASKS, "stripes", stripes)
    assert "stripes" in msda_methods()
    masks, ratios = draw_mixmo_masks("stripes")
    assert set(np.unique(masks)) == {0, 1}
    chex.assert_trees_all_equal(masks.sum(0), jnp.ones((16, 1, 20, 1)))
    chex.assert_trees_all_close(masks.mean((2, 3, 4)), ratios, atol=1 / 20)
    pixel_masks, ratios = draw_msda_masks("stripes")
    assert set(np.unique(pixel_masks)) == {0, 1}
    means = pixel_masks.mean((2, 3, 4))
    chex.assert_trees_all_close(means[:, ::2], ratios[:, ::2], atol=1 / 40 + 1e-6)
    chex.assert_trees_all_equal(means[:, 1::2], jnp.ones((2, 8)))


@pytest.mark.stress
def test_every_function_but_those_of_channels_is_a_method_of_pixel_mixing():
    names = {MSDA_ALIASES.get(name, name) for name in msda_methods()}
    assert names == set(MASKS) - CHANNEL_MASKS
    for name in msda_methods():
        masks, ratios = draw_msda_masks(name)
        assert (masks[:, 1::2] == 1).all()
        means = masks[:, ::2].mean((2, 3, 4))
        assert (means[ratios[:, ::2] < 1 - 1 / 12] < 1).all()  # else it may be all of 12 rows


@pytest.mark.parametrize("name", sorted(CHANNEL_MASKS))
def test_channels_are_no_method_of_pixel_mixing(name):
    with pytest.raises(InputError, match=f"^{name}: it cuts only channels"):
        draw_msda_masks(name)


def test_mixup_is_the_constant_mask():
    masks, ratios = draw_msda_masks("mixup")
    chex.assert_trees_all_equal(masks[:, ::2].min((2, 3, 4)), ratios[:, ::2])
    chex.assert_trees_all_equal(masks[:, ::2].max((2, 3, 4)), ratios[:, ::2])
