"""Tests of AugMix: its operations against Pillow's, image by image, its plan, and its mixture."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import stats
from setups import inputs_of, set_up, tiny_config

from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.input_pipeline.augmix import (
    apply_operations,
    augmix,
    dot_histograms,
    histograms,
    scatter_histograms,
)
from mixmo_jax.input_pipeline.feed import gather, planned_indices
from mixmo_jax.input_pipeline.plan import AUGMIX_OPERATIONS, local_part, sample_augmix
from mixmo_jax.training.train import train_and_evaluate

# The least p-value of a goodness-of-fit test. The keys are fixed, so a test passes always or never.
MIN_P = 1e-4

# None of them moves a source just to an edge: there float32 and Pillow's float64 may disagree.
LEVELS = (0.1, 0.5, 1.3, 2.9, 3.0, 4.7, 7.3, 9.99)
SHAPES = ((32, 32, 3), (17, 23, 3), (9, 8, 1), (64, 48, 1))


def affine(image, matrix):
    return image.transform(image.size, Image.AFFINE, matrix, resample=Image.BILINEAR)


# Each operation of the authors' program: Pillow's image and a level with a sign → Pillow's image.
PILLOW = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(abs(level) * 4 / 10)),
    "rotate": lambda image, level: image.rotate(int(level * 30 / 10), resample=Image.BILINEAR),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(abs(level) * 256 / 10)),
    "shear_x": lambda image, level: affine(image, (1, level * 0.3 / 10, 0, 0, 1, 0)),
    "shear_y": lambda image, level: affine(image, (1, 0, 0, level * 0.3 / 10, 1, 0)),
    "translate_x": lambda image, level: affine(
        image, (1, 0, int(level * (image.width / 3) / 10), 0, 1, 0)
    ),
    "translate_y": lambda image, level: affine(
        image, (1, 0, 0, 0, 1, int(level * (image.height / 3) / 10))
    ),
}
# What interpolates may round to the neighboring gray level; all others are exact.
TOLERANCE = {"autocontrast": 1, "rotate": 1, "shear_x": 1, "shear_y": 1}


def sample_images(shape):
    """Images [N, H, W, C] of noise, gradients, few and close values, and one value."""
    rng = np.random.default_rng(0)
    height, width, _ = shape
    rows, columns = np.mgrid[:height, :width]
    gradients = [
        rows * 255 // (height - 1),
        columns * 255 // (width - 1),
        60 + (rows + columns) % 90,
    ]
    images = [
        rng.integers(0, 256, shape),
        rng.integers(40, 171, shape),
        rng.integers(0, 2, shape) * 255,
        rng.integers(99, 102, shape),
        rng.integers(0, 256, shape) ** 4 // 255**3,
        np.where(rng.random(shape) < 0.02, rng.integers(0, 256, shape), 37),
        *(np.broadcast_to(g[..., None], shape) for g in gradients),
        *(np.full(shape, value) for value in (0, 128, 255)),
    ]
    return np.stack(images).astype(np.uint8)


def apply(name, images, levels):
    op = jnp.full(len(images), [*AUGMIX_OPERATIONS, "identity"].index(name))
    return np.asarray(
        jax.jit(apply_operations)(jnp.asarray(images), op, jnp.asarray(levels, jnp.float32))
    )


def in_pillow(name, images, levels):
    results = []
    for image, level in zip(images, np.asarray(levels, np.float32), strict=True):
        picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
        results.append(np.asarray(PILLOW[name](picture, float(level))).reshape(image.shape))
    return np.stack(results)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AUGMIX_OPERATIONS)
def test_operations_equal_those_of_pillow(name, shape):
    images = sample_images(shape)
    levels = np.ravel([LEVELS, np.negative(LEVELS)])
    images, levels = np.repeat(images, len(levels), 0), np.tile(levels, len(images))
    expected = in_pillow(name, images, levels).astype(int)
    difference = np.abs(apply(name, images, levels) - expected)
    assert difference.max() <= TOLERANCE.get(name, 0)
    assert (difference > 0).mean() < 0.02


@pytest.mark.stress
@pytest.mark.parametrize("size", [(16, 16), (23, 24), (32, 48), (64, 64)])
def test_equalize_equals_that_of_pillow_for_many_histograms(size):
    rng = np.random.default_rng(1)
    images = np.clip(
        rng.normal(
            rng.uniform(0, 255, (200, 1, 1, 1)),
            10 ** rng.uniform(0, 2, (200, 1, 1, 1)),
            (200, *size, 1),
        ),
        0,
        255,
    ).astype(np.uint8)
    levels = np.ones(len(images))
    chex.assert_trees_all_equal(
        apply("equalize", images, levels), in_pillow("equalize", images, levels)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_to_count_values_agree(shape):
    images = sample_images(shape)
    expected = [
        [np.bincount(channel, minlength=256) for channel in image.reshape(-1, shape[2]).T]
        for image in images
    ]
    for count in (scatter_histograms, dot_histograms, histograms):
        chex.assert_trees_all_equal(np.asarray(count(jnp.asarray(images))), np.array(expected))


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometric_operations_without_strength_change_nothing(name):
    images = sample_images((17, 23, 3))
    chex.assert_trees_all_equal(apply(name, images, np.zeros(len(images))), images)


def test_the_identity_changes_nothing():
    images = sample_images((17, 23, 3))
    chex.assert_trees_all_equal(apply("identity", images, np.full(len(images), 9.0)), images)


def draw(shape=(2, 12), **settings):
    settings = {"width": 3, "depth": 0, "severity": 3.0, "alpha": 1.0, **settings}
    return sample_augmix(jax.random.key(0), shape, **settings)


def random_images(shape=(2, 12, 16, 16, 3)):
    return jnp.asarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))


def in_pillow_mixed(images, plan):
    """AugMix as in the authors' program: image by image, chain by chain."""
    mixed = np.zeros(images.shape)
    for m, b in np.ndindex(images.shape[:2]):
        for chain, weight in enumerate(plan.weights[m, b]):
            image = images[m, b]
            for slot in range(plan.depth[m, b, chain]):
                name = AUGMIX_OPERATIONS[plan.ops[m, b, chain, slot]]
                image = in_pillow(name, image[None], plan.levels[m, b, chain, slot][None])[0]
            mixed[m, b] += weight * image.astype(float)
        ratio = plan.ratios[m, b]
        mixed[m, b] = ratio * images[m, b] + (1 - ratio) * mixed[m, b]
    return mixed


@pytest.mark.parametrize("settings", [{}, {"width": 2, "depth": 2, "severity": 10.0}])
def test_mixture_equals_that_of_the_authors_program(settings):
    images, plan = random_images(), draw(**settings)
    actual = jax.jit(augmix)(images, plan)
    assert actual.dtype == jnp.float32
    expected = in_pillow_mixed(np.asarray(images), jax.device_get(plan))
    # A gray level off may be stretched by the operations after it.
    difference = np.abs(actual - expected)
    assert (difference > 0.01).mean() < 0.02
    assert difference.max() < 12


@pytest.mark.parametrize(
    ("channels", "alpha", "width"),
    [(1, 1.0, 3), pytest.param(3, 0.001, 1, marks=pytest.mark.stress), (3, 0.001, 3)],
)
def test_mixture_is_an_image(channels, alpha, width):
    images = random_images((2, 12, 9, 14, channels))
    mixed = jax.jit(augmix)(images, draw(width=width, alpha=alpha, severity=10.0))
    chex.assert_shape(mixed, images.shape)
    assert np.isfinite(mixed).all()
    assert mixed.min() >= -1e-3 and mixed.max() <= 255.001


def test_mixture_that_is_all_image():
    plan, images = draw(), random_images()
    mixed = augmix(images, plan.replace(ratios=jnp.ones((2, 12))))
    chex.assert_trees_all_equal(mixed, images.astype(jnp.float32))


def test_mixture_of_unused_chains():
    """The weights sum to 1."""
    plan, images = draw(), random_images()
    mixed = augmix(images, plan.replace(depth=jnp.zeros((2, 12, 3), jnp.int32)))
    chex.assert_trees_all_close(mixed, images.astype(jnp.float32), rtol=1e-5)


def test_plan_is_spread_as_in_the_authors_program():
    plan = jax.device_get(draw((2, 3000), severity=4.0))
    chex.assert_shape([plan.ops, plan.levels], (2, 3000, 3, 3))
    for integers, first in ((plan.ops, 0), (plan.depth, 1)):
        counts = np.bincount(integers.ravel() - first)
        assert len(counts) == (9 if first == 0 else 3)
        assert stats.chisquare(counts).pvalue > MIN_P
    assert abs((plan.levels > 0).mean() - 0.5) < 0.01
    assert stats.kstest(np.abs(plan.levels).ravel(), stats.uniform(0.1, 3.9).cdf).pvalue > MIN_P
    assert stats.kstest(plan.ratios.ravel(), "uniform").pvalue > MIN_P
    chex.assert_trees_all_close(plan.weights.sum(-1), np.ones((2, 3000), np.float32), atol=1e-6)
    for weights in np.moveaxis(plan.weights, -1, 0):  # Dirichlet(1, 1, 1): the mean is 1 / 3
        assert stats.kstest(weights.ravel(), stats.beta(1, 2).cdf).pvalue > MIN_P


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_concentration_of_weights_and_ratios(alpha):
    plan = jax.device_get(draw((2, 3000), alpha=alpha))
    assert stats.kstest(plan.ratios.ravel(), stats.beta(alpha, alpha).cdf).pvalue > MIN_P
    for weights in np.moveaxis(plan.weights, -1, 0):
        marginal = stats.beta(alpha, 2 * alpha)
        assert stats.kstest(weights.ravel(), marginal.cdf).pvalue > MIN_P


def test_plan_of_a_fixed_depth():
    plan = draw(width=2, depth=5, severity=0.1)
    chex.assert_shape(plan.ops, (2, 12, 2, 5))
    assert (plan.depth == 5).all()
    chex.assert_trees_all_close(jnp.abs(plan.levels), jnp.full(plan.levels.shape, 0.1))


@pytest.mark.stress
def test_two_devices_compute_the_batch_of_one():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (32, 8, 8, 1), np.uint8), np.arange(32, dtype=np.int32) % 2)
    dataset = Dataset(split, split, None, ("even", "odd"), (0.5,), (0.25,))

    def images(augmix, count):
        fields = {"batch_size": 8, "augment__augmix": augmix}
        setup = set_up(tiny_config("cut_mixmo+cutmix", **fields), dataset)
        plan = setup.plan_fn(jax.random.key(0), 1, jnp.arange(32, dtype=jnp.int32))
        parts = []
        for index in range(count):
            part = local_part(plan, index, count)
            raw = gather(split.images, split.labels, *planned_indices(part), (8, 8, 1))
            parts.append(inputs_of(setup, raw, part).images)
        return jnp.concatenate(parts, axis=1)

    one, two = images(True, 1), images(True, 2)
    chex.assert_trees_all_close(one, two, rtol=1e-6, atol=1e-6)
    assert (jnp.abs(one - images(False, 1)) > 0.01).mean() > 0.5


@pytest.mark.stress
def test_a_run_with_augmix(tmp_path):
    """The images come from the host."""
    fields = {"num_epochs": 1, "augment__augmix": True, "dataset__placement": "host"}
    scores = train_and_evaluate(tiny_config("cut_mixmo+cutmix", **fields), tmp_path)
    assert (tmp_path / "training_inputs.png").exists()
    assert np.isfinite(scores["nll"])
