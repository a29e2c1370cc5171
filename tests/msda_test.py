"""Tests of the pixel mixing, alone and together with the masks of MixMo."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GOLDENS
from scipy import stats

from mixmo_jax import config
from mixmo_jax.input_pipeline.plan import make_plan_fn
from mixmo_jax.mixing.masks import box_mask, msda_methods
from mixmo_jax.mixing.mixing_block import mixmo_masks
from mixmo_jax.mixing.msda import mix_pixels, msda_masks, visible_ratio
from mixmo_jax.training.losses import loss_weights

SIZE = 32
# A difference of two samples may be this many of its standard errors: less than one in a million.
MAX_ERRORS = 5
# The least p-value of a goodness-of-fit test. The keys are fixed, so a test passes always or never.
MIN_P = 1e-4

draw_masks = jax.jit(msda_masks, static_argnames=("method", "shape"))
visible_ratio_of = jax.jit(visible_ratio)


@jax.jit
def share_and_weight(pixels, masks):
    """The image's part of the target and of every pixel, after `mix_pixels`.

    Images of ones are mixed with partners of zeros, and the classes 0 and 1 with each other.
    """
    images = jnp.ones(pixels.shape)
    targets = jnp.stack([jnp.ones(pixels.shape[:2]), jnp.zeros(pixels.shape[:2])], axis=-1)
    mixed, mixed_targets = mix_pixels(
        images, targets, jnp.zeros_like(images), targets[..., ::-1], pixels, masks
    )
    return mixed_targets, mixed[..., 0]


def pixel_ratios(num_members, mixed=True):
    """Ratios and keys, drawn, of 20 positions that are all mixed or not at all."""
    rng = np.random.default_rng(0)
    return {
        "ratios": jnp.asarray(rng.uniform(size=(num_members, 20)), jnp.float32),
        "mask_keys": jax.random.split(jax.random.key(0), (num_members, 20)),
        "mixed": jnp.full((num_members, 20), mixed),
    }


def pixel_masks_of(num_members, method, shape=(16, 16)):
    """The masks of 20 positions that are all mixed."""
    return draw_masks(**pixel_ratios(num_members), method=method, shape=shape)


def random_batch(num_members, size=16, num_classes=5):
    """Images, targets, partners and their targets for 20 positions."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, num_members, 20, size, size, 3)).astype(np.float32)
    labels = rng.integers(num_classes, size=(2, num_members, 20))
    targets = np.eye(num_classes, dtype=np.float32)[labels]
    return tuple(jnp.asarray(x) for x in (images[0], targets[0], images[1], targets[1]))


def half_masks(num_members, size=8):
    """Masks that show the first member the left half of the map, and the others the right."""
    left = (jnp.arange(size) < size // 2).astype(jnp.float32)
    shown = [left] + [(1 - left) / (num_members - 1)] * (num_members - 1)
    shape = (num_members, 20, size, size, 1)
    return jnp.broadcast_to(jnp.stack(shown)[:, None, None, :, None], shape)


@pytest.fixture(scope="module")
def draws():
    """50,000 positions of batches that are all mixed by patches, from plan to targets.

    Arrays [2, 50000] of float64 for the two members.
    """
    settings = config.get_config("cifar100:cut_mixmo+cutmix")
    settings.update_from_flattened_dict({"mixmo.patch_prob": 1.0, "batch_size": 200})
    plan_fn = make_plan_fn(settings, num_images=50_000)

    def draw(step):
        plan = plan_fn(jax.random.key(0), step, jnp.arange(50_000))
        masks = mixmo_masks(
            plan.ratios,
            plan.mask_keys,
            plan.mask_index,
            plan.use_patch,
            block="cutmix",
            shape=(SIZE, SIZE, 1),
        )
        msda = plan.msda
        pixels = draw_masks(
            msda.ratios, msda.mask_keys, msda.mixed, method="cutmix", shape=(SIZE, SIZE)
        )
        targets, weights = share_and_weight(pixels, masks)
        return {
            "mixed": msda.mixed,
            "mask_mean": masks.mean((2, 3, 4)),
            "loss_weight": loss_weights(masks, 3.0),
            "raw": pixels.mean((2, 3, 4)),
            "raw_share": visible_ratio_of(pixels, masks),
            "share": targets[..., 0],
            "pixel_share": weights.mean((2, 3)),
        }

    arrays = jax.jit(lambda steps: jax.lax.map(draw, steps))(jnp.arange(250))
    return {
        name: np.asarray(array, np.float64).transpose(1, 0, 2).reshape(2, -1)
        for name, array in arrays.items()
    }


@pytest.fixture(scope="module")
def reference():
    """The reference's numbers with its two members pooled.

    In a batch one member has the boxes and the other their rests; which one varies by batch.
    Pooled, every position brings one of each, and what remains is free of that variation.
    """
    table = np.load(GOLDENS / "msda_cifar_cutmix_p1_alpha2_msdabeta1.npz")
    names = {key.split("/")[2] for key in table.files if key.startswith("all/")}
    pooled = {name: table[f"all/member0/{name}"] + table[f"all/member1/{name}"] for name in names}
    pooled = {name: v if "hist" in name else v / 2 for name, v in pooled.items()}
    # All but the masks and weights is of the mixed samples: about half of each member's.
    return {**pooled, "edges": table["edges50"], "count": pooled["adjlam_hist"].sum()}


def standard_error(values, reference_count):
    """Of the difference between the mean of pooled values and that of so many of the reference's.

    The two members' values at a position may depend on each other; at worst they are equal, so
    that half of all values count.
    """
    return np.sqrt(2 * values.var() * (1 / values.size + 1 / reference_count))


@pytest.mark.parametrize("stride", ["full", "half"])
def test_share_and_pixels_equal_reference(stride):
    table = np.load(GOLDENS / "msda_lambda_given_masks.npz")
    shown, pixels, expected_share, partner_weight = (
        table[f"{stride}/{name}"]
        for name in ("mixmo_mask", "msda_mask0", "target_lam01", "weight_of_index1_image")
    )
    # [B, 1, h, w] → [M, B, h, w, 1]: the masks of the measured member and of one that has the rest.
    masks = jnp.stack([shown, 1 - shown]).transpose(0, 1, 3, 4, 2)
    pixels = jnp.stack([pixels, pixels]).transpose(0, 1, 3, 4, 2)
    share, weight = (array[0] for array in share_and_weight(pixels, masks))
    assert len(share) == 40
    chex.assert_tree_all_finite((share, weight))
    # The last mask is empty, where the reference has no valid target.
    assert masks[0, 39].max() == 0
    # The reference computed in float16.
    chex.assert_trees_all_close(np.asarray(share)[:39], expected_share[:39], atol=1e-3)
    chex.assert_trees_all_equal(np.asarray(weight)[:39], 1 - partner_weight[:39, 0])


def test_share_is_finite_where_the_mixmo_mask_is_empty():
    pixels = pixel_masks_of(2, "cutmix")
    masks = jnp.stack([jnp.zeros((20, 8, 8, 1)), jnp.ones((20, 8, 8, 1))])
    chex.assert_trees_all_close(visible_ratio_of(pixels, masks)[0], pixels[0].mean((1, 2, 3)))
    chex.assert_tree_all_finite(share_and_weight(pixels, masks))
    assert share_and_weight(pixels, masks)[0][0, :, 0].min() >= 0.5


def test_visible_ratio_equals_loops():
    pixels = pixel_masks_of(2, "cutmix")
    masks = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 20, 8, 4, 1)), jnp.float32)
    expected = np.zeros((2, 20))
    for m, b in np.ndindex(2, 20):
        p, mask = np.asarray(pixels, np.float64)[m, b, ..., 0], np.asarray(masks)[m, b, ..., 0]
        cells = [p[2 * y : 2 * y + 2, 4 * x : 4 * x + 4].mean() for y, x in np.ndindex(8, 4)]
        expected[m, b] = (np.reshape(cells, (8, 4)) * mask).sum() / mask.sum()
    actual = np.asarray(visible_ratio_of(pixels, masks), np.float64)
    chex.assert_trees_all_close(actual, expected, atol=1e-6)


@pytest.mark.parametrize("axes", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("pixels", [(8, 16), (1, 16), (8, 1), (1, 1)])
def test_visible_ratio_of_masks_with_axes_of_one(pixels, axes):
    """It is that of the same masks in full: rows, columns, channels, constants, and images' too."""
    rng = np.random.default_rng(0)
    shape = [side if full else 1 for side, full in zip((4, 8, 3), axes, strict=True)]
    masks = jnp.asarray(rng.uniform(size=(2, 20, *shape)), jnp.float32).at[0, 0].set(0)
    pixels = jnp.asarray(rng.uniform(size=(2, 20, *pixels, 1)), jnp.float32)
    full = (jnp.broadcast_to(pixels, (2, 20, 8, 16, 1)), jnp.broadcast_to(masks, (2, 20, 4, 8, 3)))
    chex.assert_trees_all_close(visible_ratio(pixels, masks), visible_ratio(*full), atol=1e-6)


def test_mean_and_variance_of_the_share(draws, reference):
    share = draws["share"][draws["mixed"] == 1]
    assert share.size > 40_000
    squares = (share - share.mean()) ** 2
    error = standard_error(share, reference["count"])
    assert abs(share.mean() - reference["adjlam_mean"]) < MAX_ERRORS * error
    error = standard_error(squares, reference["count"])
    assert abs(squares.mean() - reference["adjlam_var"]) < MAX_ERRORS * error


def test_histogram_of_the_share(draws, reference):
    # Bins between multiples of 0.02 that few quotients of small areas fall on (not 0.5, 0.6, 0.8):
    # there it depends on rounding into which bin they go.
    edges = np.array([0, 27, 29, 31, 33, 37, 39, 41, 43, 47, 49, 50])
    share = draws["share"][draws["mixed"] == 1]
    counts = np.histogram(share, reference["edges"][edges])[0]
    expected = np.add.reduceat(reference["adjlam_hist"], edges[:-1])
    # Half of the counts, see `standard_error`.
    assert stats.chi2_contingency(np.stack([counts, expected]) / 2).pvalue > MIN_P


def test_share_before_the_swap(draws, reference):
    """The share of all pixels; and the part swapped, up to ties that rounding decides."""
    mixed = draws["mixed"] == 1
    raw, raw_share = draws["raw"][mixed], draws["raw_share"][mixed]
    error = standard_error(raw, reference["count"])
    assert abs(raw.mean() - reference["rawlam_mean"]) < MAX_ERRORS * error
    error = MAX_ERRORS * standard_error(raw_share < 0.5, reference["count"])
    least, most = (raw_share < 0.5).mean(), (raw_share <= 0.5).mean()
    assert most - least < 0.01
    assert least - error < reference["swap_fraction"] < most + error


def test_share_of_pixels_after_the_swap(draws, reference):
    mixed = draws["mixed"] == 1
    share = draws["pixel_share"][mixed]
    tied = draws["raw_share"][mixed] == 0.5
    error = MAX_ERRORS * standard_error(share, reference["count"])
    least, most = (
        np.where(tied, pick(share, 1 - share), share).mean() for pick in (np.minimum, np.maximum)
    )
    assert least - error < reference["pixel_share_of_index0_mean"] < most + error


def test_share_of_samples_that_show_one_image_only(draws, reference):
    whole = draws["share"][draws["mixed"] == 1] == 1
    error = standard_error(whole, reference["count"])
    assert abs(whole.mean() - reference["frac_adjlam_exact1"]) < MAX_ERRORS * error


def test_share_of_samples_that_are_mixed(draws):
    assert abs(draws["mixed"].mean() - 0.5) < MAX_ERRORS * 0.5 / np.sqrt(draws["mixed"].size)
    unmixed = draws["mixed"] == 0
    assert draws["mask_mean"][unmixed].min() < 0.01  # also under almost empty MixMo masks
    assert (draws["raw"][unmixed] == 1).all()
    assert (draws["share"][unmixed] == 1).all()
    assert (draws["pixel_share"][unmixed] == 1).all()


@pytest.mark.parametrize(
    ("name", "golden_name", "middle"),
    [("mask_mean", "mixmo_lam_hist", 0.5), ("loss_weight", "weight_hist_0_M", 1.0)],
)
def test_histograms_of_masks_and_loss_weights(draws, reference, name, golden_name, middle):
    """Of the larger of the two members' values: the smaller is what it lacks to the whole."""
    values = draws[name]
    chex.assert_trees_all_close(values.mean(0), np.full(values.shape[1], middle), atol=1e-6)
    edges = np.linspace(middle, 2 * middle, 26)
    # Equal masks have the first edge, on either side of which rounding puts them.
    counts = np.histogram(np.maximum(values.max(0), middle), edges)[0]
    expected = reference[golden_name]
    ties = expected[:25].sum() - expected[25:].sum()
    expected = np.r_[expected[25] + ties / 2, expected[26:]]
    table = np.stack([counts, expected])
    table = np.c_[table[:, :15], table[:, 15:].sum(1)]  # few samples in the last bins
    assert stats.chi2_contingency(table).pvalue > MIN_P


def test_mean_and_variance_of_the_loss_weights(draws, reference):
    weights = draws["loss_weight"]
    # Which member has the boxes varies by batch: the means of the 250 batches are independent.
    means = weights[0].reshape(250, -1).mean(1)
    assert abs(means.mean() - 1) < MAX_ERRORS * means.std() / np.sqrt(250)
    squares = (weights - 1) ** 2
    error = standard_error(squares, weights.size)
    assert abs(squares.mean() - reference["weight_var"]) < MAX_ERRORS * error


@pytest.mark.parametrize("method", msda_methods())
@pytest.mark.parametrize("num_members", [2, pytest.param(3, marks=pytest.mark.stress)])
def test_images_of_a_mixmo_keep_at_least_half_of_their_target(num_members, method):
    masks = half_masks(num_members)
    pixels = pixel_masks_of(num_members, method)
    targets, weight = share_and_weight(pixels, masks)
    before = visible_ratio_of(pixels, masks)
    swapped = before < 0.5
    assert 0 < swapped.mean() < 1
    assert targets[..., 0].min() >= 0.5
    chex.assert_trees_all_equal(targets[..., 0], jnp.where(swapped, 1 - before, before))
    # The pixels follow: what is shown of the image is its share of the target.
    after = visible_ratio_of(weight[..., None], masks)
    chex.assert_trees_all_close(after, targets[..., 0], atol=1e-6)


@pytest.mark.parametrize("method", msda_methods())
def test_plain_network_does_not_swap(method):
    pixels = pixel_masks_of(1, method)
    targets, weight = share_and_weight(pixels, jnp.ones((1, 20, 8, 8, 1)))
    expected = np.asarray(pixels, np.float64).mean((2, 3, 4))
    assert (expected < 0.5).any()
    np.testing.assert_allclose(targets[..., 0], expected, atol=1e-6)
    chex.assert_trees_all_equal(weight, pixels[..., 0])


@pytest.mark.parametrize("num_members", [1, 2])
def test_mix_pixels_mixes_images_and_targets_by_their_shares(num_members):
    masks = half_masks(num_members) if num_members > 1 else jnp.ones((1, 20, 8, 8, 1))
    pixels = pixel_masks_of(num_members, "cutmix")
    images, targets, partners, partner_targets = random_batch(num_members)
    mixed, mixed_targets = mix_pixels(images, targets, partners, partner_targets, pixels, masks)
    parts, weight = share_and_weight(pixels, masks)
    from_image = np.asarray(weight)[..., None] == 1
    chex.assert_trees_all_equal(np.asarray(mixed), np.where(from_image, images, partners))
    expected = parts[..., :1] * targets + parts[..., 1:] * partner_targets
    chex.assert_trees_all_close(mixed_targets, expected, atol=1e-6)
    chex.assert_trees_all_close(mixed_targets.sum(-1), jnp.ones((num_members, 20)), atol=1e-6)


@pytest.mark.parametrize("method", msda_methods())
@pytest.mark.parametrize("num_members", [pytest.param(1, marks=pytest.mark.stress), 3])
def test_unmixed_images_and_targets_are_unchanged(num_members, method):
    """Bit for bit, compiled or not."""
    masks = half_masks(num_members) if num_members > 1 else jnp.ones((1, 20, 8, 8, 1))
    images, targets, partners, partner_targets = random_batch(num_members)

    def mix(ratios):
        pixels = msda_masks(**ratios, method=method, shape=(16, 16))
        return mix_pixels(images, targets, partners, partner_targets, pixels, masks)

    ratios = pixel_ratios(num_members, mixed=False)
    if method == "cutmix":  # slow for all
        chex.assert_trees_all_equal(mix(ratios), (images, targets))
    chex.assert_trees_all_equal(jax.jit(mix)(ratios), (images, targets))


def test_only_the_samples_of_the_plan_are_mixed():
    ratios, keys, mixed = pixel_ratios(2).values()
    mixed = mixed.at[:, ::2].set(False)
    masks = draw_masks(ratios, keys, mixed, method="mixup", shape=(16, 16))
    chex.assert_trees_all_equal(masks[:, ::2], jnp.ones((2, 10, 1, 1, 1)))
    chex.assert_trees_all_equal(masks[:, 1::2].min((2, 3, 4)), ratios[:, 1::2])
    chex.assert_trees_all_equal(masks[:, 1::2].max((2, 3, 4)), ratios[:, 1::2])


def test_cutmix_masks_are_boxes_at_the_resolution_of_the_image():
    masks = pixel_masks_of(2, "cutmix", (16, 24))
    ratios, keys, _ = pixel_ratios(2).values()
    for m, b in np.ndindex(2, 20):
        box = box_mask(ratios[m, b], jax.random.uniform(keys[m, b], (2,)), (16, 24))
        chex.assert_trees_all_equal(masks[m, b, ..., 0], box)
