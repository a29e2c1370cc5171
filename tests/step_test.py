"""The training step: the same on any number of devices and in calls of any length."""

import functools
import itertools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harm import free_port
from setups import make_inputs_fn, run_steps, set_up, tiny_config

from mixmo_jax import distributed
from mixmo_jax.config import get_config
from mixmo_jax.datasets import load_dataset
from mixmo_jax.mixing.unmix import unmix_features
from mixmo_jax.models import create_model
from mixmo_jax.training.losses import weighted_cross_entropy

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny_config().dataset)


def test_steps_equal_those_of_version_0_2():
    """Losses of 22 steps, and the inputs of the first, recorded before the code was rewritten."""
    golden = np.load(GOLDENS / "steps_v02.npz")
    config = get_config("digits:cut_mixmo+cutmix")
    fields = {"num_epochs": 2, "seed": 3, "batch_size": 192, "batch_repetitions": 2}
    fields |= {"model.width": 1, "optimizer.warmup_steps": 0, "dataset.validation_fraction": 0.2}
    config.update_from_flattened_dict(fields)
    setup = set_up(config, load_dataset(config.dataset))
    _, plan, inputs = make_inputs_fn(setup)(setup.state.key, 0)
    np.testing.assert_array_equal(plan.view.index, golden["index"][0])
    for name in ("images", "targets", "masks", "weights"):
        expected = golden[f"first_{name}"]
        found = np.broadcast_to(getattr(inputs, name)[:, :8], expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    key, losses = setup.state.key, []
    state = distributed.replicate_for_pmap(setup.state)
    for epoch in (1, 2):
        for call in setup.feed(key, epoch):
            state, loss = setup.update(state, *call)
            losses.append(loss[0, 0])
    # Bitwise equal on the machine of the recording; other CPUs differ by up to 3e-5, other seeds
    # by 1e-3 and more.
    np.testing.assert_allclose(np.stack(losses), golden["losses"], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        pytest.param("vanilla", {}, marks=pytest.mark.stress),
        pytest.param("mixup", {}, marks=pytest.mark.stress),
        pytest.param("mimo", {}, marks=pytest.mark.stress),
        ("cut_mixmo+cutmix", {}),
        pytest.param("cut_mixmo", {"model__num_members": 3}, marks=pytest.mark.stress),
    ],
)
def test_methods_learn(dataset, method, fields):
    """The loss falls from about log K per member; the step is traced once."""
    fast = {"optimizer__warmup_steps": 2, "optimizer__learning_rate": 0.5}
    setup = set_up(tiny_config(method, **fast, **fields), dataset, max_traces=1)
    members = setup.model.num_members
    state, losses = run_steps(setup, [1] * 90)
    assert int(state.step) == 90
    assert members * 1.8 < losses[0] < members * 4.5
    assert losses[-20:].mean() < 0.95 * losses[:4].mean()


def test_scan_equals_single_steps(dataset):
    setup = set_up(tiny_config(), dataset)
    single, single_losses = run_steps(setup, [1] * 4)
    scanned, scanned_losses = run_steps(setup, [3, 1])
    np.testing.assert_allclose(scanned_losses, single_losses, rtol=1e-5)
    chex.assert_trees_all_close(scanned.params, single.params, rtol=1e-4, atol=1e-6)


@pytest.mark.stress
def test_both_placements_train_the_same_network(dataset):
    """Resident with one step a call, and streamed with two."""
    losses = []
    for placement, steps in (("device", 1), ("host", 2)):
        config = tiny_config("cut_mixmo+cutmix", dataset__placement=placement, steps_per_call=steps)
        setup = set_up(config, dataset)
        state, values = distributed.replicate_for_pmap(setup.state), []
        for call in itertools.islice(setup.feed(setup.state.key, 1), 4 // steps):
            state, call_losses = setup.update(state, *call)
            values.append(call_losses[0])
        losses.append(np.concatenate(values))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_parameter_that_is_not_finite_makes_the_loss_nan(dataset):
    """The loss of the step itself is finite."""
    setup = set_up(tiny_config(), dataset, tx=optax.scale(-np.inf))
    assert np.isnan(run_steps(setup, [1])[1][0])


def test_moving_average(dataset):
    """It follows the parameters and does not change them."""
    raw, losses = run_steps(set_up(tiny_config(), dataset), [1] * 3)
    setup = set_up(tiny_config(optimizer__ema_decay=0.5), dataset)
    state, same_losses = run_steps(setup, [1] * 3)
    np.testing.assert_array_equal(losses, same_losses)
    chex.assert_trees_all_equal(state.replace(ema=None, key=None), raw.replace(key=None))
    average = setup.state.variables
    for steps in (1, 2, 3):
        now = run_steps(setup, [1] * steps)[0].variables
        decay = min(0.5, steps / (steps + 10))
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, now)  # noqa: B023
    chex.assert_trees_all_close(state.ema, average, rtol=1e-5, atol=1e-7)


def test_unmixing_reaches_the_loss(dataset):
    fields = {"mixmo__patch_prob": 1.0, "mixmo__unmix": True, "mixmo__unmix_normalize": True}
    config = tiny_config(**fields)
    setup = set_up(config, dataset)
    _, plan, inputs = make_inputs_fn(setup)(setup.state.key, 0)
    assert plan.unmix == 1
    model = create_model(config.model, dataset.num_classes)

    @functools.partial(jax.jit, static_argnames="normalize")
    def expected_loss(inputs, normalize):
        def pool(features):
            return unmix_features(features, inputs.masks, plan.unmix, normalize=normalize)

        logits, _ = model.apply(
            setup.state.variables,
            inputs.images,
            inputs.masks,
            train=True,
            pool=pool,
            mutable=["batch_stats"],
        )
        return weighted_cross_entropy(logits, inputs.targets, inputs.weights)

    (loss,) = run_steps(setup, [1])[1]
    np.testing.assert_allclose(loss, expected_loss(inputs, True), rtol=1e-5)
    assert abs(loss - expected_loss(inputs, False)) > 1e-4 * loss


def test_seed_decides_everything(dataset):
    first, again, other = (
        run_steps(set_up(tiny_config(seed=seed), dataset), [1] * 2)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_default_generator_of_jax_does_not_matter(dataset):
    state = set_up(tiny_config(), dataset).state
    with jax.default_prng_impl("rbg"):
        other = set_up(tiny_config(), dataset).state
    states = [s.replace(key=jax.random.key_data(s.key)) for s in (state, other)]
    chex.assert_trees_all_equal(*states)


def test_bfloat16_stays_close_to_float32(dataset):
    losses = []
    for dtype in ("float32", "bfloat16"):
        with jax.numpy_dtype_promotion("standard"):  # flax's BatchNorm mixes both
            setup = set_up(tiny_config(model__dtype=dtype), dataset)
            state, values = run_steps(setup, [1] * 3)
        losses.append(values)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.variables))
    # bfloat16 has 8 bits of mantissa: 4e-3 per rounding, averaged over a batch.
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_eight_devices_and_two_processes_train_the_same_network(tmp_path):
    """In float64 only rounding differs between 1 device, 8 devices, and 2 processes with 2 each."""
    script = pathlib.Path(__file__).with_name("device_steps.py")
    address = f"127.0.0.1:{free_port()}"
    runs = {
        "one": (1, ()),
        "eight": (8, ()),
        "first": (2, (address, "2", "0")),
        "second": (2, (address, "2", "1")),
    }
    started = []
    for name, (count, arguments) in runs.items():
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
        command = [sys.executable, str(script), str(tmp_path / name), *arguments]
        started.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=300) for process in started] == [0] * len(runs)
    one, *others = (dict(np.load(tmp_path / f"{name}.npz")) for name in runs)
    assert [arrays.pop("devices") for arrays in (one, *others)] == [1, 8, 4, 4]
    assert one["losses"][0] != one["losses"][-1]
    for arrays in others:
        chex.assert_trees_all_close(one, arrays, rtol=1e-9, atol=1e-11)
    chex.assert_trees_all_equal(*others[1:])
