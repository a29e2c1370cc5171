"""Tests of the learning rate against the reference's traces, and of SGD against torch's rule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import GOLDENS

from mixmo_jax import config
from mixmo_jax.input_pipeline import plan
from mixmo_jax.training import optimizers

TRACES = {
    "cifar_bar1": ("cifar100:vanilla", 50_000),
    "cifar_bar4": ("cifar100:cut_mixmo", 50_000),
    "tiny_bar1": ("tiny_imagenet:vanilla", 100_000),
    "tiny_bar4": ("tiny_imagenet:cut_mixmo", 100_000),
}


def load_trace(name):
    """The reference's numbers by name, the config, and the config's steps an epoch."""
    with np.load(GOLDENS / "lr_traces.npz") as table:
        prefix = f"{name}/"
        trace = {
            key.removeprefix(prefix): table[key] for key in table.files if key.startswith(prefix)
        }
    spec, num_images = TRACES[name]
    settings = config.get_config(spec)
    return trace, settings, plan.steps_per_epoch(settings, num_images)


def learning_rates(settings, steps_per_epoch, steps):
    """The learning rates at 1-based steps of the training run, as float64."""
    _, schedule = optimizers.create_optimizer(settings, steps_per_epoch)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps) - 1), np.float64)


def varying_learning_rate(count):
    return 1 / (10 * (count + 1))


@pytest.mark.parametrize("name", TRACES)
def test_length_of_training_equals_reference(name):
    trace, settings, steps_per_epoch = load_trace(name)
    assert steps_per_epoch == trace["steps_per_epoch"]
    assert steps_per_epoch * settings.num_epochs == trace["total_steps"]


@pytest.mark.parametrize("name", TRACES)
def test_learning_rate_equals_reference_at_listed_steps(name):
    trace, settings, steps_per_epoch = load_trace(name)
    actual = learning_rates(settings, steps_per_epoch, trace["step"])
    chex.assert_trees_all_close(actual, trace["lr"], rtol=1e-6)


@pytest.mark.parametrize("name", TRACES)
def test_learning_rate_equals_reference_from_each_change_to_the_next(name):
    trace, settings, steps_per_epoch = load_trace(name)
    first, _, _, expected = trace["changes_step_epoch_iter_lr"].T
    last = np.append(first[1:] - 1, trace["total_steps"])
    for steps in (first, last):
        actual = learning_rates(settings, steps_per_epoch, steps.astype(int))
        chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_warm_up_in_epochs():
    settings = config.get_config("digits")
    settings.optimizer.update(warmup_epochs=2.5, warmup_steps=7)
    assert optimizers.warmup_steps(settings, steps_per_epoch=10) == 7 * 4 + 25
    _, schedule = optimizers.create_optimizer(settings, steps_per_epoch=10)
    rates = np.array([float(schedule(step)) for step in range(60)])
    expected = 0.2 / 4 * np.minimum(1, np.arange(1, 61) / 53)
    chex.assert_trees_all_close(rates, expected, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 1, 2])
def test_short_warm_up(warmup_steps):
    schedule = optimizers.step_schedule(
        learning_rate=0.8,
        warmup_steps=2 * warmup_steps,
        decay_epochs=(3,),
        decay_factor=0.1,
        batch_repetitions=2,
        steps_per_epoch=5,
    )
    steps = np.arange(1, 16)
    expected = 0.4 * np.minimum(1, steps / max(1, 2 * warmup_steps)) * np.where(steps > 10, 0.1, 1)
    actual = np.array([float(schedule(step - 1)) for step in steps])
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_the_rule_of_torch(nesterov, weight_decay):
    """Momentum of the decayed gradients, times the step's learning rate; for all parameters."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "scale": (4,), "bias": (4,)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    buffers = {name: np.zeros(shape) for name, shape in shapes.items()}
    settings = config.get_config("digits")
    settings.optimizer.update(nesterov=nesterov, weight_decay=weight_decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "step_schedule", lambda **_: varying_learning_rate)
        tx, _ = optimizers.create_optimizer(settings, steps_per_epoch=10)
    actual = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = tx.init(actual)
    for step in range(3):
        grads = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, actual)
        actual = optax.apply_updates(actual, updates)
        for name, grad in grads.items():
            decayed = grad + weight_decay * params[name]
            buffers[name] = 0.9 * buffers[name] + decayed
            direction = decayed + 0.9 * buffers[name] if nesterov else buffers[name]
            params[name] = params[name] - varying_learning_rate(step) * direction
        chex.assert_trees_all_close(jax.tree.map(np.float64, actual), params, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "gradient"),
    [("cifar100:cut_mixmo", 6e-4), ("tiny_imagenet:cut_mixmo", 1e-4), ("digits", 6e-4)],
)
def test_configs_add_weight_decay_to_the_gradient(spec, gradient):
    """Without any gradient a parameter of 1 moves by learning rate * (1 + momentum) * decay."""
    settings = config.get_config(spec)
    tx, schedule = optimizers.create_optimizer(settings, steps_per_epoch=10)
    params = {"bias": jnp.ones(2)}
    updates, _ = tx.update({"bias": jnp.zeros(2)}, tx.init(params), params)
    expected = -schedule(0) * 1.9 * gradient * jnp.ones(2)
    chex.assert_trees_all_close(updates["bias"], expected, rtol=1e-6)


def test_cosine_starts_at_the_peak_and_ends_at_0():
    settings = config.get_config("digits:mimo")
    settings.num_epochs, settings.optimizer.schedule = 4, "cosine"
    settings.optimizer.warmup_steps = 1  # 4 with b = 4
    rates = learning_rates(settings, 25, np.arange(1, 102))
    peak = settings.optimizer.learning_rate / 4
    cosine = peak * (1 + np.cos(np.pi * np.arange(101) / 100)) / 2
    warmup = np.minimum(np.arange(1, 102) / 4, 1)
    np.testing.assert_allclose(rates, cosine * warmup, atol=1e-7)


def first_update(gradient, **fields):
    settings = config.get_config("digits")
    settings.optimizer.update(fields)
    tx, schedule = optimizers.create_optimizer(settings, steps_per_epoch=10)
    params = {"kernel": jnp.zeros(2)}
    updates, _ = tx.update({"kernel": jnp.asarray(gradient)}, tx.init(params), params)
    return np.asarray(updates["kernel"]) / float(schedule(0))


def test_gradients_are_clipped_by_their_norm():
    """Long ones keep their direction, short ones everything; 0 clips nothing."""
    plain = first_update([3.0, 4.0])
    np.testing.assert_allclose(first_update([3.0, 4.0], clip_norm=0.5), plain / 10, rtol=1e-6)
    np.testing.assert_array_equal(first_update([3.0, 4.0], clip_norm=6.0), plain)
    np.testing.assert_array_equal(first_update([3.0, 4.0], clip_norm=0.0), plain)


def test_adamw_moves_by_the_learning_rate_whatever_the_gradient():
    for gradient in ([1e-3, -5.0], [7.0, -1e-3]):
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes its count
            moved = first_update(gradient, name="adamw")
        np.testing.assert_allclose(moved, [-1, 1], rtol=1e-4)
