"""Tests of AugMix: its operations against Pillow's, image by image, its plan, and its mixture."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from mixmo_jax.input_pipeline.augmix import IDENTITY, apply_operations, augmix
from mixmo_jax.input_pipeline.plan import AUGMIX_OPERATIONS, AugMixPlan

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
TOLERANCE = {"rotate": 1, "shear_x": 1, "shear_y": 1}


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


def test_autocontrast_equals_that_of_pillow_for_every_range():
    """Also where double precision ends just below an integer."""
    pairs = np.array([(low, high) for low in range(256) for high in range(low, 256)])
    low, high = pairs[..., None].repeat(256, -1).transpose(1, 0, 2)
    images = np.clip(np.arange(256), low, high).astype(np.uint8).reshape(-1, 16, 16, 1)
    name, levels = "autocontrast", np.ones(len(images))
    chex.assert_trees_all_equal(apply(name, images, levels), in_pillow(name, images, levels))


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
