"""Tests of the mixing block: its schedule, the members' masks, features and loss weights."""

import fractions
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GOLDENS

from mixmo_jax import config
from mixmo_jax.input_pipeline.plan import make_plan_fn
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import box_mask, fill_complement
from mixmo_jax.mixing.mixing_block import mix_features, mixmo_masks, patch_probability
from mixmo_jax.training.losses import loss_weights

SHAPE = (8, 8, 5)

draw_masks = jax.jit(mixmo_masks, static_argnames=("block", "shape"))


def random_ratios(num_members):
    """The ratios [M, 16] of 16 positions."""
    ratios = np.random.default_rng(0).dirichlet([2] * num_members, 16).T
    return jnp.asarray(ratios, jnp.float32)


def mask_keys():
    """The keys of 16 positions."""
    return jax.random.split(jax.random.key(0), 16)


def masks_of(num_members, block, *, use_patch=True, mask_index=None):
    """The masks of 16 positions with ratios and keys drawn."""
    index = range(num_members) if mask_index is None else mask_index
    index, use_patch = jnp.array(index), jnp.array(use_patch)
    ratios = random_ratios(num_members)
    return draw_masks(ratios, mask_keys(), index, use_patch, block=block, shape=SHAPE)


def constant_masks(ratios):
    """Masks that are their ratios [M, B] everywhere."""
    return ratios[:, :, None, None, None]


def random_features(*members):
    return jnp.asarray(np.random.default_rng(0).standard_normal((*members, 16, *SHAPE)))


@pytest.fixture(scope="module")
def plans():
    """All plans of a training of 24 epochs of 32 steps, mixed by patches while that is possible."""
    settings = config.get_config("cifar100:cut_mixmo")
    settings.update_from_flattened_dict(
        {"num_epochs": 24, "batch_size": 8, "mixmo.patch_prob": 1.0, "mixmo.alpha": 0.0}
    )
    plan_fn = make_plan_fn(settings, num_images=64)
    draw = jax.jit(jax.vmap(plan_fn, in_axes=(None, 0, None)))
    return draw(jax.random.key(0), jnp.arange(24 * 32), jnp.arange(64))


@pytest.mark.parametrize(("name", "prob"), [("p05", 0.5), ("p1", 1.0), ("p02", 0.2)])
def test_patch_probability_equals_reference(name, prob):
    table = np.load(GOLDENS / "method_probability.npz")
    ratios = [fractions.Fraction(r).limit_denominator(1200) for r in table["ratio"].tolist()]
    assert len(ratios) == 27
    actual = [patch_probability(r.numerator, r.denominator, prob) for r in ratios]
    chex.assert_trees_all_close(np.array(actual), table[f"prob_{name}"], atol=1e-6)


@pytest.mark.parametrize("num_epochs", [1, 12, 20, 300, 1200])
def test_last_epoch_is_all_linear_and_the_first_eleven_twelfths_are_not(num_epochs):
    epochs = jnp.arange(1, num_epochs + 1)
    probs = np.asarray(patch_probability(epochs, num_epochs, 0.5))
    assert probs[-1] == 0
    assert (probs[: num_epochs * 11 // 12] == 0.5).all()
    assert (np.diff(probs[num_epochs * 11 // 12 - 1 :]) < 0).all()


def test_plans_follow_the_schedule_of_their_epoch(plans):
    use_patch = np.asarray(plans.use_patch).reshape(24, 32)
    assert use_patch[:22].all()  # 22 / 24 = 11 / 12
    assert 0 < use_patch[22].mean() < 1
    assert not use_patch[23].any()


@pytest.mark.parametrize("root", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("num_members", [2, 3])
def test_loss_weights_equal_reference(num_members, root):
    table = np.load(GOLDENS / "target_weights.npz")
    masks = constant_masks(jnp.asarray(table[f"M{num_members}/lams"].T))
    expected = table[f"M{num_members}/root{root:.0f}/weights"].T
    weights = np.asarray(loss_weights(masks, root), np.float64)
    # The reference computed in float32 too.
    chex.assert_trees_all_close(weights, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("root", [1.0, 3.0, float("inf")])
@pytest.mark.parametrize("num_members", [1, 2, 3, 4])
def test_loss_weights_average_to_one(num_members, root):
    weights = loss_weights(masks_of(num_members, "cutmix"), root)
    chex.assert_shape(weights, (num_members, 16))
    chex.assert_trees_all_close(weights.mean(0), jnp.ones(16), atol=1e-6)


def test_loss_weights_of_an_infinite_root_are_equal():
    """Also where a member's mask is empty."""
    masks = jnp.stack([jnp.zeros((4, *SHAPE)), jnp.ones((4, *SHAPE))])
    chex.assert_trees_all_equal(loss_weights(masks, float("inf")), jnp.ones((2, 4)))
    chex.assert_trees_all_equal(
        loss_weights(masks, 3.0), jnp.broadcast_to(jnp.array([[0.0], [2.0]]), (2, 4))
    )


def test_loss_weights_of_a_tiny_root_go_to_the_largest_ratio():
    masks = constant_masks(jnp.array([[0.2, 0.5], [0.3, 0.5], [0.5, 0.0]]))
    expected = jnp.array([[0.0, 1.5], [0.0, 1.5], [3.0, 0.0]])
    chex.assert_trees_all_close(loss_weights(masks, 0.005), expected, atol=1e-6)


@pytest.mark.parametrize("until", [0.0, 0.5])
def test_patch_probability_falls_from_where_it_shall(until):
    probs = [float(patch_probability(epoch, 8, 0.4, until)) for epoch in range(1, 9)]
    left = 1 - np.arange(1, 9) / 8
    chex.assert_trees_all_close(probs, list(0.4 * np.minimum(1, left / (1 - until))), atol=1e-6)


@pytest.mark.parametrize("use_patch", [False, True])
@pytest.mark.parametrize("block", MASKS)
def test_single_member_has_masks_of_ones(block, use_patch):
    masks = masks_of(1, block, use_patch=use_patch)
    chex.assert_trees_all_equal(masks, jnp.ones((1, 16, 1, 1, 1)))


@pytest.mark.parametrize("num_members", [2, 3])
def test_linear_block_never_uses_patches(num_members):
    masks = [masks_of(num_members, "linear", use_patch=use) for use in (False, True)]
    chex.assert_trees_all_equal(*masks)
    chex.assert_trees_all_equal(masks[0], constant_masks(random_ratios(num_members)))


@pytest.mark.parametrize("num_members", [pytest.param(2, marks=pytest.mark.stress), 3])
@pytest.mark.parametrize("block", MASKS)
def test_block_draws_each_sample_by_its_key_when_the_batch_is_mixed_by_patches(block, num_members):
    masks, draw = masks_of(num_members, block), jax.jit(MASKS[block], static_argnums=2)
    for b, (key, ratios) in enumerate(zip(mask_keys(), random_ratios(num_members).T, strict=True)):
        expected = draw(key, ratios, SHAPE)
        chex.assert_trees_all_close(masks[:, b], expected, atol=1e-6)
    linear = masks_of(num_members, block, use_patch=False)
    expected = jnp.broadcast_to(masks_of(num_members, "linear"), linear.shape)
    chex.assert_trees_all_equal(linear, expected)


@pytest.mark.parametrize("num_members", [2, 3])
def test_cutmix_block_shows_boxes_around_uniform_centers(num_members):
    masks = masks_of(num_members, "cutmix")
    for b, (key, ratios) in enumerate(zip(mask_keys(), random_ratios(num_members).T, strict=True)):
        box = box_mask(ratios[0], jax.random.uniform(key, (2,)), SHAPE[:2])
        expected = fill_complement(box[..., None], ratios)
        chex.assert_trees_all_close(masks[:, b], expected, atol=1e-6)


@pytest.mark.parametrize("block", MASKS)
@pytest.mark.parametrize("mask_index", list(itertools.permutations(range(3))))
def test_members_get_the_masks_of_their_roles(block, mask_index):
    masks = masks_of(3, block)
    permuted = masks_of(3, block, mask_index=mask_index)
    for member, role in enumerate(mask_index):
        chex.assert_trees_all_equal(permuted[member], masks[role])


def test_both_members_get_the_box_equally_often(plans):
    plans = jax.tree.map(lambda leaf: leaf[: 22 * 32], plans)  # all by patches
    draw = jax.vmap(functools.partial(draw_masks, block="cutmix", shape=SHAPE))
    masks = draw(plans.ratios, plans.mask_keys, plans.mask_index, plans.use_patch)
    means = np.asarray(masks.mean((2, 3, 4, 5)))  # [steps, M]
    # A box and its rest have different means, so it shows when a member is preferred. Five
    # standard errors, of independent steps.
    assert abs(means[:, 0].mean() - 0.5) < 5 * means[:, 0].std() / np.sqrt(len(means))
    boxes = np.asarray(plans.mask_index[:, 0] == 0)
    assert abs(boxes.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(boxes))
    assert means[boxes, 0].mean() < 0.4 < 0.6 < means[~boxes, 0].mean()


@pytest.mark.parametrize("block", MASKS)
@pytest.mark.parametrize("num_members", [1, 2, 3])
def test_mixing_equal_features_gives_them_times_the_members(num_members, block):
    """At every position: because masks sum to 1."""
    feature = random_features()
    features = jnp.broadcast_to(feature, (num_members, *feature.shape))
    mixed = mix_features(features, masks_of(num_members, block))
    chex.assert_trees_all_close(mixed, num_members * feature, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mix_features_equals_loops_and_keeps_the_dtype(dtype):
    masks = masks_of(3, "cutmix")
    features = random_features(3).astype(dtype)
    mixed = mix_features(features, masks)
    assert mixed.dtype == dtype
    f, m = np.asarray(features, np.float64), np.asarray(masks, np.float64)
    expected = 3 * (m[0] * f[0] + m[1] * f[1] + m[2] * f[2])
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1  # three roundings of values up to about 10
    chex.assert_trees_all_close(np.asarray(mixed, np.float64), expected, atol=tolerance)
