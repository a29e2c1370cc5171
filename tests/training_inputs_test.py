"""Properties of plans, training inputs, networks and whole runs, for sizes and methods drawn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from properties import draws, for_all, value_or_input_error
from setups import make_inputs_fn, set_up

from mixmo_jax.configs import common
from mixmo_jax.datasets import DATASETS, Dataset, Split
from mixmo_jax.errors import read_json
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import msda_methods
from mixmo_jax.models import NETWORKS, MixMoNet, create_model
from mixmo_jax.models.layers import stacked_init
from mixmo_jax.training.train import check_network, check_sizes, train_and_evaluate


class _Pool(nn.Module):
    """The least core there is."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


def small_network(*, depth, width, num_members, num_classes, dtype, axis_name=None):
    """A network that compiles at once; `depth` is the stride of its encoders."""
    return MixMoNet(_Pool(), num_members, num_classes, 4, depth, stacked_init, dtype)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Each draw has shapes of its own, so compiling takes longer than computing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(NETWORKS, "small", small_network)


_CHOICES = {
    "model.depth": (1, 2),
    "model.num_members": (1, 2, 3, 4, 5),
    "input_repetition": (0.0, 0.3, 1.0),
    "mixmo.block": tuple(MASKS),
    "mixmo.patch_prob": (0.0, 1.0),
    "mixmo.patch_prob_until": (0.0, 11 / 12),
    "mixmo.alpha": (0, 0.001, 0.5, 1.0, 2.0, 1e6),
    "mixmo.weight_root": (0.1, 1.0, 3.0, float("inf")),
    "msda.method": ("none", *msda_methods()),
    "msda.beta": (0.001, 1.0, 2.0),
    "msda.prob": (0.0, 0.5, 1.0),
    "augment.augmix": (False, True),
    "augment.augmix_width": (1, 3),
    "augment.augmix_depth": (0, 2),
    "augment.augmix_severity": (0.1, 10.0),
    "augment.augmix_alpha": (0.001, 1.0),
    "dataset.placement": ("device", "host"),
    "dataset.crop_padding": (0, 1, 4),
    "dataset.flip": (False, True),
    "evaluation.ensemble": ("logits", "probabilities"),
    "evaluation.members": ((), (0,)),
}


@st.composite
def configs(draw):
    """A config whose batch has an even number of positions, as there are two devices."""
    config = common.get_config("vanilla")
    config.update_from_flattened_dict({k: draw(st.sampled_from(v)) for k, v in _CHOICES.items()})
    config.model.name = "small"
    config.num_epochs = draw(st.integers(1, 2))
    config.batch_repetitions = draw(st.integers(1, 4))
    config.batch_size = config.batch_repetitions * draw(st.sampled_from((2, 4)))
    config.dataset.mean, config.dataset.std = (), ()
    return config


@st.composite
def datasets(draw, longest_side):
    """Images of noise; often few, of few classes."""
    side = st.sampled_from([n for n in (8, 9, 12, 17, 32, 64) if n <= longest_side])
    shape = (draw(side), draw(side), draw(st.sampled_from((1, 3))))
    num_classes = draw(st.sampled_from((1, 2, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def split(count):
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        return Split(images, np.arange(count, dtype=np.int32) % num_classes)

    return Dataset(
        train=split(draw(st.integers(max(2, num_classes), 12))),
        test=split(draw(st.integers(1, 3))),
        validation=None,
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        mean=(0.5,) * shape[-1],
        std=(0.25,) * shape[-1],
    )


def fields_of(message):
    """The field that an error names."""
    return message.partition("=")[0].partition(":")[0]


def check_plan(plan, order, config, step, steps_per_epoch):
    """The indices are those of the step's group of images, each b times for every member."""
    repetitions, group_size = (
        config.batch_repetitions,
        config.batch_size // config.batch_repetitions,
    )
    start = step % steps_per_epoch * group_size
    expected = np.sort(np.repeat(order[start : start + group_size], repetitions))
    for index in plan.view.index:
        np.testing.assert_array_equal(np.sort(index), expected)
    views = [plan.view] + ([] if plan.msda is None else [plan.msda.partner])
    for view in views:
        assert view.index.min() >= 0 and view.index.max() < len(order)
        assert view.offset.min() >= 0 and view.offset.max() <= 2 * config.dataset.crop_padding
    same = (plan.view.index == plan.view.index[:1]).all(0).mean()
    assert same >= round(config.input_repetition * config.batch_size) / config.batch_size
    np.testing.assert_allclose(plan.ratios.sum(0), 1, atol=1e-5)


def check_inputs(batch, plan, config, num_classes):
    """Masks, targets and weights are what the paper says."""
    num_members = config.model.num_members
    assert np.isfinite(batch.images).all()
    assert batch.masks.min() >= 0 and batch.masks.max() <= 1
    np.testing.assert_allclose(batch.masks.sum(0), 1, atol=1e-5)
    assert batch.targets.shape[-1] == num_classes and batch.targets.min() >= -1e-6
    np.testing.assert_allclose(batch.targets.sum(-1), 1, atol=1e-5)
    assert batch.weights.min() >= 0
    np.testing.assert_allclose(batch.weights.mean(0), 1, atol=1e-5)
    ratios = batch.masks.mean((2, 3, 4), dtype=np.float64)  # [M, B]
    if config.mixmo.block == "linear" or not plan.use_patch:
        np.testing.assert_allclose(ratios, plan.ratios[plan.mask_index], atol=1e-5)
    powers = ratios ** (1 / config.mixmo.weight_root)
    expected = num_members * powers / powers.sum(0)
    np.testing.assert_allclose(batch.weights, expected, rtol=1e-3, atol=1e-4)
    if config.msda.method == "none" or config.msda.prob == 0:
        assert set(np.unique(batch.targets)) <= {0, 1}
    if num_members > 1:  # an image keeps at least half of the target
        assert batch.targets.max(-1).min() >= 0.5 - 1e-5


def checked_setup(config, dataset):
    """What `train_and_evaluate` builds, after its checks."""
    check_network(config)
    check_sizes(config, dataset, len(dataset.train) * config.batch_repetitions // config.batch_size)
    return set_up(config, dataset)


@draws(3, 20)
def test_plans_and_inputs_hold_their_promises(count):
    @for_all(count, configs(), datasets(64), st.integers(0, 2**32 - 1))
    def _(config, dataset, seed):
        setup, message = value_or_input_error(checked_setup, config, dataset)
        if setup is None:
            assert fields_of(message) in ("batch_size", "images")
            return
        inputs_fn = make_inputs_fn(setup)
        for step in (0, setup.steps * config.num_epochs - 1):
            order, plan, inputs = inputs_fn(jax.random.key(seed), step)
            plan = plan.replace(
                mask_keys=None, msda=plan.msda and plan.msda.replace(mask_keys=None)
            )
            order, plan, inputs = jax.device_get((order, plan, inputs))
            check_plan(plan, order, config, step, setup.steps)
            check_inputs(inputs, plan, config, dataset.num_classes)


@draws(6, 40)
def test_networks_have_the_shapes_they_should(count):
    sizes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(8, 64), st.integers(8, 64))

    @for_all(count, sizes, st.sampled_from([("wide_resnet", 16), ("preact_resnet", 18)]))
    def _(sizes, network):
        num_members, num_classes, height, width = sizes
        config = common.get_config().model
        config.name, config.depth = network
        config.width, config.num_members = 1, num_members
        model = create_model(config, num_classes)
        stem = model.stem_shape(height, width)[:2]

        def logits(key):
            images = jnp.zeros((num_members, 2, height, width, 3))
            masks = jnp.zeros((num_members, 2, *stem, 1))
            variables = model.init(key, images[0], train=False)
            return model.apply(variables, images, masks, train=True, mutable=["batch_stats"])[0]

        assert jax.eval_shape(logits, jax.random.key(0)).shape == (num_members, 2, num_classes)


def train_on(monkeypatch, folder, config, dataset):
    """A whole run, from the data to the scores; its results."""
    splits = {"train": dataset.train, "test": dataset.test}
    monkeypatch.setitem(DATASETS, "digits", lambda _: (splits, list(dataset.class_names)))
    config.dataset.name = "digits"
    train_and_evaluate(config, folder)
    return read_json(folder / "results.json")


@draws(2, 8)
def test_runs_end_or_say_what_does_not_fit(monkeypatch, tmp_path_factory, count):
    @for_all(count, configs(), datasets(9))
    def _(config, dataset):
        folder = tmp_path_factory.mktemp("run")
        config.num_epochs = 1
        results, message = value_or_input_error(train_on, monkeypatch, folder, config, dataset)
        if results is None:
            assert fields_of(message) in ("batch_size", "images")
        else:
            assert np.isfinite(results["scores"]["nll"]) and results["temperature"] > 0


@pytest.mark.stress
def test_one_class_and_two_images_are_enough(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (2, 8, 8, 3), np.uint8), np.zeros(2, np.int32))
    dataset = Dataset(split, split, None, ("everything",), (0.5,) * 3, (0.25,) * 3)
    config = common.get_config("cut_mixmo+cutmix")
    config.model.name, config.model.depth, config.model.num_members = "small", 1, 2
    config.num_epochs, config.batch_size, config.dataset.mean, config.dataset.std = 2, 8, (), ()
    results = train_on(monkeypatch, tmp_path / "run", config, dataset)
    assert results["scores"]["accuracy"] == 1
    assert results["scores"]["nll"] == 0
