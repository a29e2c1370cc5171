"""Tests of the training loss against a computation by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss

from mixmo_jax.training.losses import weighted_cross_entropy

M, B, K = 3, 8, 5


def random_inputs():
    """Logits, soft targets and weights, in float64."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((M, B, K))
    return logits, rng.dirichlet([0.5] * K, (M, B)), rng.uniform(0, 2, (M, B))


def loss(logits, targets, weights):
    arrays = (jnp.asarray(array, jnp.float32) for array in (logits, targets, weights))
    return float(weighted_cross_entropy(*arrays))


def test_two_samples_by_hand():
    logits = [[[0.0, np.log(3.0)], [0.0, 0.0]]]  # probabilities 1/4, 3/4 and 1/2, 1/2
    targets = [[[0.0, 1.0], [0.3, 0.7]]]
    expected = (2 * np.log(4 / 3) + 0.5 * np.log(2)) / 2
    chex.assert_trees_all_close(loss(logits, targets, [[2.0, 0.5]]), expected, rtol=1e-6)


def test_equals_loops_in_float64():
    logits, targets, weights = random_inputs()
    expected = 0.0
    for m in range(M):
        for b in range(B):
            log_probs = special.log_softmax(logits[m, b])
            expected += weights[m, b] * -(targets[m, b] * log_probs).sum() / B
    chex.assert_trees_all_close(loss(logits, targets, weights), expected, rtol=1e-6)


def test_equal_weights_and_hard_targets_give_the_sum_of_mean_cross_entropies():
    logits, _, _ = random_inputs()
    labels = np.random.default_rng(1).integers(K, size=(M, B))
    probs = special.softmax(logits, axis=-1)
    expected = sum(log_loss(labels[m], probs[m], labels=range(K)) for m in range(M))
    actual = loss(logits, np.eye(K)[labels], np.ones((M, B)))
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_sample_of_weight_zero_does_not_count():
    logits, targets, weights = random_inputs()
    weights[1, 3] = 0
    before = loss(logits, targets, weights)
    logits[1, 3] += 10 * np.arange(K)
    assert loss(logits, targets, weights) == before
    logits[1, 4] += 10 * np.arange(K)
    assert loss(logits, targets, weights) != before


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_loss_and_gradient_are_finite_and_exact_for_extreme_logits(scale):
    logits, targets, weights = (jnp.asarray(x, jnp.float32) for x in random_inputs())
    value, gradient = jax.value_and_grad(weighted_cross_entropy)(scale * logits, targets, weights)
    assert jnp.isfinite(value)
    # The gradient of the cross-entropy is the error of the probabilities.
    expected = weights[..., None] * (jax.nn.softmax(scale * logits) - targets) / B
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)


def test_label_smoothing_spreads_a_part_of_the_targets():
    logits, targets, weights = (jnp.asarray(array, jnp.float32) for array in random_inputs())
    smoothed = weighted_cross_entropy(logits, targets, weights, 0.3)
    expected = weighted_cross_entropy(logits, 0.7 * targets + 0.3 / K, weights)
    chex.assert_trees_all_close(smoothed, expected, rtol=1e-6)
