"""Tests of every mixing block in training: gradients, members that differ, the drawn masks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.mixing_block import mix_features, mixmo_masks
from mixmo_jax.models import NETWORKS
from mixmo_jax.training.losses import loss_weights, weighted_cross_entropy

draw_masks = jax.jit(mixmo_masks, static_argnames=("block", "shape"))


@pytest.mark.parametrize("name", MASKS)
def test_gradients_reach_every_encoder_that_has_a_part(name):
    """A role with the whole ratio leaves empty masks: no gradient for the others, and no NaN."""
    ratios = jnp.array([[0.4, 0.3, 0.3], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).T  # [M, B]
    keys = jax.random.split(jax.random.key(1), 3)
    masks = draw_masks(ratios, keys, jnp.arange(3), jnp.array(True), block=name, shape=(8, 8, 6))
    images = jax.random.normal(jax.random.key(2), (3, 3, 8, 8, 2))

    @jax.jit
    def gradients(kernels, masks):
        def loss(kernels):  # [M, C, F]
            weights = loss_weights(masks, 3.0)  # [M, B]
            mixed = mix_features(jnp.einsum("mbhwc,mcf->mbhwf", images, kernels), masks)
            return (weights.sum(0) * (mixed**2).mean((1, 2, 3))).sum(), weights

        return jax.grad(loss, has_aux=True)(kernels)

    grads, weights = gradients(jnp.ones((3, 2, 6)), masks)
    chex.assert_tree_all_finite((grads, weights))
    chex.assert_trees_all_close(weights.mean(0), jnp.ones(3), atol=1e-6)
    assert (abs(grads).max((1, 2)) > 0).all()
    empty = masks.at[0].set(0).at[1].set(1).at[2].set(0)
    grads, weights = gradients(jnp.ones((3, 2, 6)), empty)
    chex.assert_tree_all_finite((grads, weights))
    chex.assert_trees_all_equal(abs(grads).max((1, 2)) > 0, jnp.array([False, True, False]))


@pytest.mark.parametrize(
    ("num_members", "blocks"),
    [
        (2, ("rows", "channels", "noise", "cow")),
        (4, ("cutmix", "patchup_soft")),
        *(pytest.param(m, tuple(MASKS), marks=pytest.mark.stress) for m in (2, 3, 4, 5)),
    ],
)
def test_blocks_train_members_that_differ(num_members, blocks):
    """A few steps of the tiny network lower the loss of every block; one program for all blocks."""
    model = NETWORKS["tiny"](depth=10, width=1, num_members=num_members, num_classes=2)
    images = jax.random.normal(jax.random.key(0), (num_members, 16, 8, 8, 1))
    targets = jax.nn.one_hot((images.mean((2, 3, 4)) > 0).astype(int), 2)  # [M, B, K]
    ratios = jax.random.dirichlet(jax.random.key(1), jnp.full(num_members, 2.0), (16,)).T
    start = jax.jit(functools.partial(model.init, train=False))(jax.random.key(2), images[0])
    tx = optax.sgd(0.05)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def step(params, masks):
        def loss_fn(params):
            variables = {**start, "params": params}
            logits, _ = model.apply(variables, images, masks, train=True, mutable=["batch_stats"])
            return weighted_cross_entropy(logits, targets, loss_weights(masks, 3.0))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, _ = tx.update(grads, tx.init(params))
        return optax.apply_updates(params, updates), loss

    @jax.jit
    def predict(params):
        return model.apply({**start, "params": params}, images[0], train=False)

    trained = {}
    for block in blocks:
        keys, index = jax.random.split(jax.random.key(3), 16), jnp.arange(num_members)
        shape = model.stem_shape(8, 8)
        masks = draw_masks(ratios, keys, index, jnp.array(True), block=block, shape=shape)
        masks = jnp.broadcast_to(masks, (num_members, 16, *shape))
        params, losses = start["params"], []
        for _ in range(6):
            params, loss = step(params, masks)
            losses.append(float(loss))
        assert np.isfinite(losses).all() and losses[-1] < losses[0], block
        logits = predict(params)  # [M, B, K]
        assert (np.ptp(np.asarray(logits), axis=0) > 1e-3).all(), block
        trained[block] = np.asarray(jax.tree.leaves(params)[0]).tobytes()
    assert len(set(trained.values())) == len(blocks)
