"""Tests of the mixing block: its schedule, the members' masks, features and loss weights."""

import fractions
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GOLDENS

from mixmo_jax import batches, config
from mixmo_jax.mixing.masks import cutmix_masks, linear_masks
from mixmo_jax.mixing.mixmo import loss_weights, mix_features, mixmo_masks, patch_probability
from mixmo_jax.sampling import BatchPlan

SHAPE = (8, 8)
BLOCKS = ("linear", "cutmix")

masks_of = jax.jit(mixmo_masks, static_argnames=("block", "shape"))


def make_plan(num_members, use_patch=True, roles=None):
    """A plan of 16 positions with ratios and centres drawn, and the roles given."""
    rng = np.random.default_rng(0)
    return BatchPlan(
        view=None,
        pixels=None,
        use_patch=jnp.array(use_patch),
        roles=jnp.arange(num_members) if roles is None else jnp.array(roles),
        ratios=jnp.asarray(rng.dirichlet([2] * num_members, 16).T, jnp.float32),
        centres=jnp.asarray(rng.uniform(size=(num_members, 16, 2)), jnp.float32),
    )


def random_features(*members):
    return jnp.asarray(np.random.default_rng(0).standard_normal((*members, 16, *SHAPE, 5)))


@pytest.fixture(scope="module")
def plans():
    """All plans of a training of 24 epochs of 32 steps, mixed by patches while that is possible."""
    _, settings = config.parse("cifar100:cut_mixmo")
    settings.update_from_flattened_dict(
        {"num_epochs": 24, "batch_size": 8, "mixmo.prob": 1.0, "mixmo.alpha": 0.0}
    )
    plan_fn = batches.make_plan_fn(settings, num_images=64)
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
    probs = np.asarray(jax.jit(patch_probability, static_argnums=1)(epochs, num_epochs, 0.5))
    assert probs[-1] == 0
    assert (probs[: num_epochs * 11 // 12] == 0.5).all()
    assert (np.diff(probs[num_epochs * 11 // 12 - 1 :]) < 0).all()


def test_plans_follow_the_schedule_of_their_epoch(plans):
    use_patch = np.asarray(plans.use_patch).reshape(24, 32)
    assert use_patch[:22].all()  # 22 / 24 = 11 / 12
    assert 0 < use_patch[22].mean() < 1
    assert not use_patch[23].any()


@pytest.mark.parametrize("root", [1, 2, 3, 4])
@pytest.mark.parametrize("num_members", [2, 3])
def test_loss_weights_equal_reference(num_members, root):
    table = np.load(GOLDENS / "target_weights.npz")
    masks = linear_masks(jnp.asarray(table[f"M{num_members}/lams"].T), SHAPE)[..., None]
    expected = table[f"M{num_members}/root{root}/weights"].T
    weights = np.asarray(loss_weights(masks, root), np.float64)
    # The reference computed in float32 too.
    chex.assert_trees_all_close(weights, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("root", [1.0, 3.0, float("inf")])
@pytest.mark.parametrize("num_members", [1, 2, 3, 4])
def test_loss_weights_average_to_one(num_members, root):
    weights = loss_weights(masks_of(make_plan(num_members), "cutmix", SHAPE), root)
    chex.assert_shape(weights, (num_members, 16))
    chex.assert_trees_all_close(weights.mean(0), jnp.ones(16), atol=1e-6)


def test_loss_weights_of_an_infinite_root_are_equal():
    """Also where a member's mask is empty."""
    masks = jnp.stack([jnp.zeros((4, *SHAPE, 1)), jnp.ones((4, *SHAPE, 1))])
    chex.assert_trees_all_equal(loss_weights(masks, float("inf")), jnp.ones((2, 4)))
    chex.assert_trees_all_equal(
        loss_weights(masks, 3.0), jnp.broadcast_to(jnp.array([[0.0], [2.0]]), (2, 4))
    )


def test_loss_weights_of_a_tiny_root_go_to_the_largest_ratio():
    masks = linear_masks(jnp.array([[0.2, 0.5], [0.3, 0.5], [0.5, 0.0]]), SHAPE)[..., None]
    expected = jnp.array([[0.0, 1.5], [0.0, 1.5], [3.0, 0.0]])
    chex.assert_trees_all_close(loss_weights(masks, 0.005), expected, atol=1e-6)


@pytest.mark.parametrize("until", [0.0, 0.5])
def test_patch_probability_falls_from_where_it_shall(until):
    probs = [float(patch_probability(epoch, 8, 0.4, until)) for epoch in range(1, 9)]
    left = 1 - np.arange(1, 9) / 8
    chex.assert_trees_all_close(probs, list(0.4 * np.minimum(1, left / (1 - until))), atol=1e-6)


@pytest.mark.parametrize("use_patch", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_single_member_has_masks_of_ones(block, use_patch):
    masks = masks_of(make_plan(1, use_patch), block, SHAPE)
    chex.assert_trees_all_equal(masks, jnp.ones((1, 16, *SHAPE, 1)))


@pytest.mark.parametrize("num_members", [2, 3])
def test_linear_block_never_uses_patches(num_members):
    masks = [masks_of(make_plan(num_members, use), "linear", SHAPE) for use in (False, True)]
    chex.assert_trees_all_equal(*masks)
    expected = linear_masks(make_plan(num_members).ratios, SHAPE)[..., None]
    chex.assert_trees_all_equal(masks[0], expected)


@pytest.mark.parametrize("num_members", [2, 3])
def test_cutmix_block_uses_patches_when_the_plan_does(num_members):
    plan = make_plan(num_members)
    patches = cutmix_masks(plan.ratios, plan.centres[0], SHAPE)[..., None]
    chex.assert_trees_all_close(masks_of(plan, "cutmix", SHAPE), patches, atol=1e-6)
    chex.assert_trees_all_equal(
        masks_of(make_plan(num_members, use_patch=False), "cutmix", SHAPE),
        masks_of(plan, "linear", SHAPE),
    )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("roles", list(itertools.permutations(range(3))))
def test_members_get_the_masks_of_their_roles(block, roles):
    masks = masks_of(make_plan(3), block, SHAPE)
    permuted = masks_of(make_plan(3, roles=roles), block, SHAPE)
    for member, role in enumerate(roles):
        chex.assert_trees_all_equal(permuted[member], masks[role])


def test_both_members_get_the_box_equally_often(plans):
    plans = jax.tree.map(lambda leaf: leaf[: 22 * 32], plans)  # all by patches
    masks = jax.jit(jax.vmap(lambda plan: masks_of(plan, "cutmix", SHAPE)))(plans)
    means = np.asarray(masks.mean((2, 3, 4, 5)))  # [steps, M]
    # A box and its rest have different means, so it shows when a member is preferred. Five
    # standard errors, of independent steps.
    assert abs(means[:, 0].mean() - 0.5) < 5 * means[:, 0].std() / np.sqrt(len(means))
    boxes = np.asarray(plans.roles[:, 0] == 0)
    assert abs(boxes.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(boxes))
    assert means[boxes, 0].mean() < 0.4 < 0.6 < means[~boxes, 0].mean()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("num_members", [1, 2, 3])
def test_mixing_equal_features_gives_them_times_the_members(num_members, block):
    """At every position: because masks sum to 1."""
    feature = random_features()
    features = jnp.broadcast_to(feature, (num_members, *feature.shape))
    mixed = mix_features(features, masks_of(make_plan(num_members), block, SHAPE))
    chex.assert_trees_all_close(mixed, num_members * feature, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mix_features_equals_loops_and_keeps_the_dtype(dtype):
    masks = masks_of(make_plan(3), "cutmix", SHAPE)
    features = random_features(3).astype(dtype)
    mixed = mix_features(features, masks)
    assert mixed.dtype == dtype
    f, m = np.asarray(features, np.float64), np.asarray(masks, np.float64)
    expected = 3 * (m[0] * f[0] + m[1] * f[1] + m[2] * f[2])
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1  # three roundings of values up to about 10
    chex.assert_trees_all_close(np.asarray(mixed, np.float64), expected, atol=tolerance)
