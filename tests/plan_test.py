"""Tests of the plan of a batch: who sees which image when, and how all that is random is spread."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mixmo_jax.input_pipeline.plan import (
    epoch_order,
    local_part,
    sample_augmix,
    sample_batch_plan,
)

NUM_IMAGES = 43
BATCH = 16
STEPS = 400
# The least p-value of a goodness-of-fit test. The keys are fixed, so a test passes always or never.
MIN_P = 1e-4
AUGMIX_FN = functools.partial(sample_augmix, width=3, depth=0, severity=3.0, alpha=1.0)
# A mean may be this many standard errors from its expectation: less than one in a million.
MAX_ERRORS = 5


@functools.cache
def draw(seed=0, steps=range(STEPS), **settings):
    """The plans of the first 400 steps, or of others, stacked."""
    defaults = {
        "patch_prob": 0.5,
        "num_members": 2,
        "batch_size": BATCH,
        "batch_repetitions": 4,
        "alpha": 0.0,
        "crop_padding": 2,
        "flip": True,
    }
    settings = {**defaults, **settings}
    steps_per_epoch = NUM_IMAGES * settings["batch_repetitions"] // BATCH
    sample = functools.partial(sample_batch_plan, steps_per_epoch=steps_per_epoch, **settings)
    # Not jitted as a whole: the operations compile once for all settings.
    many = jax.vmap(sample, in_axes=(None, 0, None))
    return many(jax.random.key(seed), jnp.array(steps), order())


def at_step(plans, step):
    """The plan of one step."""
    return jax.tree.map(lambda leaf: leaf[step], plans)


def raw(leaf):
    """The numbers of an array of keys, and any other array itself."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def order():
    """The order of the images in the epoch of all tests."""
    return epoch_order(jax.random.key(1), 1, NUM_IMAGES)


@jax.jit
@jax.vmap
def centers_of(key):
    """The center that `cutmix_mask` draws from a key."""
    return jax.random.uniform(key, (2,))


def uses(index):
    """How often each image stands in an array of indices."""
    return np.bincount(np.ravel(index), minlength=NUM_IMAGES)


def assert_uniform(values, count):
    """Asserts that integers are spread evenly over 0 … count - 1."""
    values = np.ravel(values)
    assert values.min() >= 0
    assert values.max() < count
    assert stats.chisquare(np.bincount(values, minlength=count)).pvalue > MIN_P


def assert_share(flags, prob):
    """Asserts that independent flags are set with a probability."""
    flags = np.ravel(flags)
    assert abs(flags.mean() - prob) < MAX_ERRORS * np.sqrt(prob * (1 - prob) / flags.size)


def test_epoch_order_is_a_permutation_that_depends_on_key_and_epoch():
    orders = np.stack([epoch_order(jax.random.key(k), e, 100) for k in (0, 1) for e in (1, 2)])
    chex.assert_trees_all_equal(np.sort(orders), np.broadcast_to(np.arange(100), (4, 100)))
    for first, second in itertools.combinations(orders, 2):
        assert (first != second).mean() > 0.8
    chex.assert_trees_all_equal(np.asarray(epoch_order(jax.random.key(0), 1, 100)), orders[0])


@pytest.mark.parametrize(
    ("num_members", "repetitions", "input_repetition"),
    [(1, 1, 0.0), (2, 2, 0.0), (2, 4, 1.0), (3, 4, 0.5)],
)
def test_an_epoch_uses_its_images_as_often_as_they_are_repeated(
    num_members, repetitions, input_repetition
):
    group = BATCH // repetitions
    steps = NUM_IMAGES * repetitions // BATCH
    plans = draw(
        num_members=num_members,
        batch_repetitions=repetitions,
        input_repetition=input_repetition,
    )
    # The second epoch begins again with the first group.
    index = np.asarray(plans.view.index)[: 2 * steps].reshape(2, steps, num_members, BATCH)
    groups = np.asarray(order())[: steps * group].reshape(steps, group)
    for epoch, step, member in np.ndindex(index.shape[:3]):
        expected = repetitions * uses(groups[step])
        chex.assert_trees_all_equal(uses(index[epoch, step, member]), expected)
    unused = np.asarray(order())[steps * group :]
    assert len(unused) == NUM_IMAGES - NUM_IMAGES * repetitions // BATCH * group > 0
    assert uses(index)[unused].sum() == 0


def test_plans_of_many_steps_are_those_of_each_step():
    """A call draws all of its plans at once."""
    settings = {"alpha": 2.0, "msda_beta": 1.0, "msda_prob": 0.5}
    alone, many = draw(steps=range(57, 58), **settings), draw(**settings)
    parts = [jax.tree.map(raw, at_step(*pair)) for pair in ((alone, 0), (many, 57))]
    chex.assert_trees_all_equal(*parts)


def test_members_have_orders_of_their_own():
    index = np.asarray(draw(num_members=3).view.index)
    for first, second in itertools.combinations(range(3), 2):
        same = (index[:, first] == index[:, second]).mean(1)
        assert (same < 1).all()
        # Of 4 images, each at a quarter of the positions, a quarter meets itself on average.
        assert abs(same.mean() - 0.25) < MAX_ERRORS * same.std() / np.sqrt(len(same))


@pytest.mark.parametrize("input_repetition", [0.5, 1.0])
def test_input_repetition_shows_all_members_the_same_image(input_repetition):
    index = np.asarray(draw(num_members=3, input_repetition=input_repetition).view.index)
    same = (index == index[:, :1]).all(1)
    assert (same.sum(1) >= input_repetition * BATCH).all()
    # The other positions differ in most batches.
    assert (same.mean() == 1) == (input_repetition == 1)
    assert same.mean() < input_repetition + 0.1


def test_copies_of_an_image_are_augmented_independently():
    """Two copies have the same crop or flip as often as two images drawn at random."""
    view = draw().view
    index, flip = np.asarray(view.index), np.asarray(view.flip)
    corner = np.asarray(view.offset) @ [5, 1]  # padding 2: 5 * 5 crops
    position = np.argsort(index[:, 0], axis=1, kind="stable")
    corner, flip = (
        np.take_along_axis(x[:, 0], position, axis=1)[:, [0, 1, 4, 5, 8, 9, 12, 13]].reshape(-1, 2)
        for x in (corner, flip)
    )
    assert_share(corner[:, 0] == corner[:, 1], 1 / 25)
    assert_share(flip[:, 0] == flip[:, 1], 1 / 2)


def test_members_that_see_the_same_image_augment_it_independently():
    view = draw(input_repetition=1.0).view
    same = (view.offset[:, 0] == view.offset[:, 1]).all(-1)
    assert_share(same, 1 / 25)
    assert_share(view.flip[:, 0] == view.flip[:, 1], 1 / 2)


@pytest.mark.parametrize("padding", [1, 4])
def test_crops_and_flips_are_uniform(padding):
    plans = draw(crop_padding=padding, msda_beta=1.0, msda_prob=0.5)
    side = 2 * padding + 1
    for view in (plans.view, plans.msda.partner):
        assert view.offset.max() < side
        assert_uniform(view.offset @ jnp.array([side, 1]), side**2)
        assert_share(view.flip, 0.5)


def test_no_crop_without_padding():
    assert not draw(crop_padding=0).view.offset.any()


def test_no_image_is_flipped_where_flips_are_off():
    plans = draw(flip=False, msda_beta=1.0, msda_prob=0.5)
    assert not plans.view.flip.any()
    assert not plans.msda.partner.flip.any()


@pytest.mark.parametrize("num_members", [1, 2, 3])
def test_equal_ratios_without_concentration(num_members):
    ratios = draw(num_members=num_members, alpha=0.0).ratios
    chex.assert_trees_all_equal(ratios, jnp.full((STEPS, num_members, BATCH), 1 / num_members))


def test_single_member_has_the_whole_ratio():
    ratios = draw(num_members=1, alpha=2.0).ratios
    chex.assert_trees_all_equal(ratios, jnp.ones((STEPS, 1, BATCH)))


@pytest.mark.parametrize("num_members", [2, 3])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_ratios_are_dirichlet(num_members, alpha):
    ratios = np.asarray(draw(num_members=num_members, alpha=alpha).ratios)
    chex.assert_trees_all_close(ratios.sum(1), np.ones((STEPS, BATCH), np.float32), atol=1e-6)
    mean = 1 / num_members
    variance = mean * (1 - mean) / (num_members * alpha + 1)
    for role in range(num_members):
        values = ratios[:, role].ravel()
        squares = (values - mean) ** 2
        for x, expected in ((values, mean), (squares, variance)):
            assert abs(x.mean() - expected) < MAX_ERRORS * x.std() / np.sqrt(x.size)
        marginal = stats.beta(alpha, alpha * (num_members - 1))
        assert stats.kstest(values, marginal.cdf).pvalue > MIN_P


def test_partners_come_from_the_whole_training_set():
    """Also from those images that no group of the epoch holds."""
    partners = draw(msda_beta=1.0, msda_prob=0.5).msda.partner.index
    assert_uniform(partners, NUM_IMAGES)
    # Independent of the image, of which there are 4 in a batch.
    assert_share(partners == draw().view.index, 1 / NUM_IMAGES)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_pixel_ratios_are_beta(beta):
    plans = draw(msda_beta=beta, msda_prob=0.5)
    for member in range(2):
        ratios = np.ravel(plans.msda.ratios[:, member])
        assert stats.kstest(ratios, stats.beta(beta, beta).cdf).pvalue > MIN_P


def test_centers_that_the_mask_keys_give_are_uniform():
    plans = draw(msda_beta=1.0, msda_prob=0.5)
    for keys in (plans.msda.mask_keys, plans.mask_keys):
        centers = centers_of(keys.ravel())
        for axis in range(2):
            assert stats.kstest(centers[:, axis], "uniform").pvalue > MIN_P
        y, x = centers.T
        assert abs(np.corrcoef(y, x)[0, 1]) < MAX_ERRORS / np.sqrt(x.size)


def test_every_mask_has_a_key_of_its_own():
    plans = draw(msda_beta=1.0, msda_prob=0.5)
    keys = [plans.msda.mask_keys, plans.mask_keys]
    chex.assert_shape(keys, [(STEPS, 2, BATCH), (STEPS, BATCH)])
    data = np.concatenate([np.reshape(jax.random.key_data(key), (-1, 2)) for key in keys])
    assert len(np.unique(data, axis=0)) == STEPS * 3 * BATCH


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_share_of_mixed_images(prob):
    mixed = np.asarray(draw(msda_beta=1.0, msda_prob=prob).msda.mixed)
    if prob in (0.0, 1.0):
        assert (mixed == prob).all()
    else:
        assert_share(mixed, prob)


@pytest.mark.parametrize("msda_beta", [None, 1.0])
def test_augmix_leaves_the_rest_of_the_plan_as_it_is(msda_beta):
    settings = {"alpha": 2.0, "msda_beta": msda_beta, "msda_prob": 0.5}
    plans = draw(**settings, augmix_fn=AUGMIX_FN)
    views = [plans.view] + ([] if msda_beta is None else [plans.msda.partner])
    levels = np.stack([view.augmix.levels for view in views])  # [views, steps, M, B, J, D]
    assert len(np.unique(levels)) > 0.99 * levels.size  # none is used twice, but by chance
    plans = plans.replace(view=plans.view.replace(augmix=None))
    if msda_beta is not None:
        partner = plans.msda.partner.replace(augmix=None)
        plans = plans.replace(msda=plans.msda.replace(partner=partner))
    chex.assert_trees_all_equal(plans, draw(**settings))


def test_no_msda_plan_without_pixel_mixing():
    assert draw(msda_beta=None).msda is None


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_share_of_batches_mixed_by_patches(prob):
    use_patch = np.asarray(draw(patch_prob=prob).use_patch)
    if prob in (0.0, 1.0):
        assert (use_patch == prob).all()
    else:
        assert_share(use_patch, prob)


def test_mask_index_is_uniform_over_permutations():
    mask_index = np.asarray(draw(num_members=3).mask_index)
    permutations = [list(p) for p in itertools.permutations(range(3))]
    assert_uniform([permutations.index(p) for p in mask_index.tolist()], 6)


def test_plans_follow_from_key_and_step_alone():
    settings = {"alpha": 2.0, "msda_beta": 1.0, "msda_prob": 0.5}
    plans = draw(**settings)
    chex.assert_trees_all_equal(draw.__wrapped__(**settings), plans)
    plan = at_step(plans, 3)
    # Ten steps are an epoch, so that step 13 has the same group of images.
    for other in (at_step(plans, 4), at_step(plans, 13), at_step(draw(seed=1, **settings), 3)):
        for name in ("view", "msda", "ratios", "mask_keys"):
            parts = zip(*(jax.tree.leaves(getattr(p, name)) for p in (plan, other)), strict=True)
            assert not any((a == b).all() for a, b in parts), name


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_local_parts_together_are_the_plan(count):
    plan = at_step(draw(alpha=2.0, msda_beta=1.0, msda_prob=0.5, augmix_fn=AUGMIX_FN), 0)
    parts = [local_part(plan, device, count) for device in range(count)]

    def join(path, leaf, *leaves):
        name = jax.tree_util.keystr(path)
        if name in (".use_patch", ".mask_index"):  # the whole batch's
            for part in leaves:
                chex.assert_trees_all_equal(part, leaf)
            return leaf
        axis = 0 if name == ".mask_keys" else 1
        assert {part.shape[axis] for part in leaves} == {BATCH // count}
        return jnp.concatenate(leaves, axis=axis)

    chex.assert_trees_all_equal(jax.tree.map_with_path(join, plan, *parts), plan)
