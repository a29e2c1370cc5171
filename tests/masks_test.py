"""Tests of the masks: boxes cell by cell, their distribution, and what holds for all masks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GOLDENS
from scipy import stats

from mixmo_jax.mixing.masks import box_mask, cutmix_masks, linear_masks

SIZE = 32
KINDS = ("linear", "cutmix")
# A difference of two samples may be this many of its standard errors: less than one in a million.
MAX_ERRORS = 5
# The least p-value of a goodness-of-fit test. The keys are fixed, so a test passes always or never.
MIN_P = 1e-4

box_of = jax.jit(box_mask, static_argnames=("shape", "dtype"))


def golden(name):
    return np.load(GOLDENS / f"{name}.npz")


def cell_centre(cell, size):
    """The middle of a cell, in units of the map's side."""
    return (np.asarray(cell) + 0.5) / size


@functools.cache
def random_masks(kind, num_members):
    """Masks of random ratios, among them those where one role has all, and the ratios."""
    rng = np.random.default_rng(0)
    ratios = np.concatenate([rng.dirichlet([2] * num_members, 40), np.eye(num_members)]).T
    centres = rng.uniform(size=(ratios.shape[1], 2))
    centres[-num_members] = 0  # the corner of the map clips every box, that of ratio 1 too
    ratios, centres = jnp.asarray(ratios, jnp.float32), jnp.asarray(centres, jnp.float32)
    if kind == "linear":
        return linear_masks(ratios, (12, 20)), ratios
    return jax.jit(cutmix_masks, static_argnums=2)(ratios, centres, (12, 20)), ratios


@pytest.fixture(scope="module")
def draws():
    """200,000 boxes: the ratios, the masks' means, and the share of boxes over each cell."""

    def draw(key):
        ratio_key, centre_key = jax.random.split(key)
        ratios = jax.random.dirichlet(ratio_key, jnp.full(2, 2.0), (2000,))[:, 0]
        masks = box_of(ratios, jax.random.uniform(centre_key, (2000, 2)), (SIZE, SIZE))
        return ratios, masks.mean((1, 2)), masks.mean(0)

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
    centres = cell_centre(rows[:, [3, 2]], size)
    masks = box_of(jnp.asarray(rows[:, 1]), jnp.asarray(centres), (size, size))
    chex.assert_trees_all_equal(np.asarray(masks), expected)


def test_box_of_a_map_that_is_not_square():
    # Half sides floor(8 * 0.7) // 2 = 2 and floor(20 * 0.7) // 2 = 7.
    expected = np.zeros((8, 20), bool)
    expected[3:7, 0:10] = True
    centre = jnp.array([cell_centre(5, 8), cell_centre(3, 20)])
    mask = box_of(jnp.array(0.49 + 1e-4), centre, (8, 20), dtype=bool)
    chex.assert_trees_all_equal(np.asarray(mask), expected)


def test_unclipped_area_equals_reference_for_every_ratio():
    exact = golden("cutmix_exact_32")
    centres = jnp.full((len(exact["lam"]), 2), 0.5)
    masks = box_of(jnp.asarray(exact["lam"]), centres, (SIZE, SIZE))
    areas = np.asarray(masks, np.float64).mean((1, 2))
    chex.assert_trees_all_equal(areas, exact["full_box_area_fraction"])


def test_expected_mean_over_all_centres_is_exact():
    """One ratio of each half side; with the areas above that covers every ratio."""
    exact = golden("cutmix_exact_32")
    halves, first = np.unique(exact["half_width"], return_index=True)
    chex.assert_trees_all_equal(halves, np.arange(SIZE // 2 + 1))
    cells = np.stack(np.mgrid[:SIZE, :SIZE], axis=-1).reshape(-1, 2)
    masks = jax.vmap(
        lambda ratio: box_of(ratio, cell_centre(cells, SIZE), (SIZE, SIZE), dtype=bool)
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


@pytest.mark.parametrize("num_members", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_shares_that_sum_to_one(kind, num_members):
    masks, ratios = random_masks(kind, num_members)
    chex.assert_shape(masks, (*ratios.shape, 12, 20))
    chex.assert_tree_all_finite(masks)
    assert masks.min() >= 0
    assert masks.max() <= 1
    chex.assert_trees_all_close(masks.sum(0), jnp.ones(masks.shape[1:]), atol=1e-6)


@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_linear_masks_are_the_ratios_everywhere(num_members):
    masks, ratios = random_masks("linear", num_members)
    chex.assert_trees_all_equal(masks.min((2, 3)), ratios)
    chex.assert_trees_all_equal(masks.max((2, 3)), ratios)


@pytest.mark.parametrize("num_members", [2, 3, 4])
def test_cutmix_masks_share_what_is_outside_the_box_in_proportion(num_members):
    masks, ratios = (np.asarray(array) for array in random_masks("cutmix", num_members))
    box = masks[0]
    assert set(np.unique(box)) == {0, 1}
    sampled = ratios[0] < 1
    shares = ratios[1:, sampled] / ratios[1:, sampled].sum(0)
    expected = shares[..., None, None] * (1 - box[sampled])
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
