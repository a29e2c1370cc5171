"""Unmixing: what each head sees."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from setups import tiny_config

from mixmo_jax import config as config_lib
from mixmo_jax.errors import InputError
from mixmo_jax.input_pipeline.plan import make_plan_fn, steps_per_epoch
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.mixing_block import mixmo_masks
from mixmo_jax.mixing.unmix import resize_maps, unmix_features, unmix_strength
from mixmo_jax.models import create_model
from mixmo_jax.models.layers import global_average_pool

_draw = jax.jit(mixmo_masks, static_argnames=("block", "shape"))


def draw(block, members=3, shape=(12, 10, 4), features=(6, 5, 7)):
    keys = jax.random.split(jax.random.key(0), 4)
    ratios = jax.random.dirichlet(keys[0], jnp.ones(members), (8,)).T  # [M, B]
    masks = _draw(
        ratios,
        jax.random.split(keys[1], 8),
        jax.random.permutation(keys[2], members),
        jnp.asarray(True),
        block=block,
        shape=shape,
    )
    return masks, jax.random.normal(keys[3], (8, *features))


def test_strength_falls_linearly_to_0():
    strengths = [float(unmix_strength(p, 0.25)) for p in (0.0, 0.125, 0.25, 1.0)]
    np.testing.assert_allclose(strengths, [1, 0.5, 0, 0])
    assert float(unmix_strength(1.0, float("inf"))) == 1


@pytest.mark.parametrize("block", MASKS)
@pytest.mark.parametrize("resize", ["area", "nearest"])
def test_no_strength_is_the_average_of_all_bit_for_bit(block, resize):
    masks, features = draw(block)
    expected = np.broadcast_to(global_average_pool(features)[None], (3, 8, 7))
    for normalize in (False, True):
        unmixed = unmix_features(
            features, masks, jnp.float32(0), normalize=normalize, resize=resize
        )
        np.testing.assert_array_equal(unmixed, expected)


@pytest.mark.parametrize("block", MASKS)
def test_full_strength_divides_the_average_among_the_members(block):
    """Masks sum to 1, so the members' parts sum to the average over the map."""
    masks, features = draw(block)
    unmixed = unmix_features(features, masks, jnp.float32(1))
    chex.assert_trees_all_close(unmixed.sum(0), global_average_pool(features), atol=1e-6)


def test_head_sees_only_its_own_rows():
    masks = jnp.zeros((2, 1, 4, 1, 1)).at[0, :, :2].set(1).at[1, :, 2:].set(1)
    features = jnp.arange(4.0).reshape(1, 4, 1, 1)
    np.testing.assert_allclose(
        unmix_features(features, masks, jnp.float32(1))[..., 0, 0], [0.25, 1.25]
    )
    mean = unmix_features(features, masks, jnp.float32(1), normalize=True)
    np.testing.assert_allclose(mean[..., 0, 0], [0.5, 2.5])
    empty = jnp.stack([jnp.zeros((1, 4, 1, 1)), jnp.ones((1, 4, 1, 1))])
    nothing = unmix_features(features, empty, jnp.float32(1), normalize=True)
    np.testing.assert_allclose(nothing[..., 0, 0], [0, 1.5])


@pytest.mark.parametrize(("old", "new"), [((8, 6), (4, 3)), ((9, 7), (3, 7)), ((1, 1), (4, 5))])
def test_area_is_the_mean_of_blocks(old, new):
    maps = jax.random.uniform(jax.random.key(0), (2, 3, *old))
    with pytest.raises(InputError, match="areas: no such method; did you mean area"):
        resize_maps(maps, new, "areas")
    resized = resize_maps(maps, new)
    if old == (1, 1):
        expected = np.broadcast_to(maps, (2, 3, *new))
    else:
        shape = (2, 3, new[0], old[0] // new[0], new[1], old[1] // new[1])
        expected = maps.reshape(shape).mean((3, 5))
    chex.assert_trees_all_close(resized, expected, atol=1e-6)


def test_sizes_that_do_not_divide_keep_the_mean():
    maps = jax.random.uniform(jax.random.key(0), (2, 3, 15, 7))
    chex.assert_trees_all_close(
        resize_maps(maps, (4, 2)).mean((2, 3)), maps.mean((2, 3)), atol=1e-6
    )
    nearest = resize_maps(maps, (4, 2), "nearest")
    np.testing.assert_array_equal(nearest, maps[:, :, [1, 5, 9, 13]][..., [1, 5]])


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("wide_resnet", 10),
        pytest.param("preact_resnet", 18, marks=pytest.mark.stress),
    ],
)
def test_unmixed_network(name, depth):
    """Gradients reach every encoder through every head; strength 0 is the network without it.

    Up to rounding, as each head has features of its own. Without `mixmo.unmix` nothing is added.
    """
    config = config_lib.get_config("cifar100:cut_mixmo").model
    config.name, config.depth, config.width, config.num_members = name, depth, 1, 3
    model = create_model(config, 5)
    images = jax.random.normal(jax.random.key(1), (3, 2, 16, 16, 3))
    masks, _ = draw("cutmix", shape=model.stem_shape(16, 16))
    masks = masks[:, :2]
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(2), images[0])

    @jax.jit
    def logits(params, strength):
        pool = {}
        if strength is not None:
            pool["pool"] = lambda features: unmix_features(features, masks, strength)
        return model.apply({**variables, "params": params}, images, masks, train=False, **pool)

    without = logits(variables["params"], None)
    chex.assert_trees_all_close(
        logits(variables["params"], jnp.float32(0)), without, rtol=1e-5, atol=1e-5
    )
    assert np.abs(logits(variables["params"], jnp.float32(1)) - without).max() > 1e-3
    grads = jax.grad(lambda params: logits(params, jnp.float32(1)).sum())(variables["params"])
    assert (np.abs(grads["stem"]["kernel"]).sum((1, 2, 3, 4)) > 0).all()


def test_plan_says_how_much_is_unmixed():
    """Only batches mixed by patches are, and less from step to step; nothing else changes."""
    unmixed = {"mixmo__unmix": True, "mixmo__unmix_until": 0.5}
    plans, order = [], jnp.arange(1437, dtype=jnp.int32)
    for fields in ({}, unmixed):
        config = tiny_config(num_epochs=2, batch_size=64, **fields)
        plan_fn = make_plan_fn(config, len(order))
        plans.append([plan_fn(jax.random.key(0), s, order) for s in (0, 10, 50, 100)])
    steps = steps_per_epoch(config, len(order))
    for step, plain, plan in zip((0, 10, 50, 100), *plans, strict=True):
        expected = max(0, 1 - step / steps) * float(plan.use_patch)
        np.testing.assert_allclose(plan.unmix, expected, atol=1e-6)
        assert plain.unmix is None
        chex.assert_trees_all_equal(plan.replace(unmix=None), plain)
    linear = tiny_config("linear_mixmo", num_epochs=2, **unmixed)
    plan_fn = make_plan_fn(linear, len(order))  # has batches that a block would mix by patches
    assert plan_fn(jax.random.key(0), 0, order).unmix is None
