"""Tests of the augmentation against numpy, image by image."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from mixmo_jax.input_pipeline import augment
from mixmo_jax.input_pipeline.augment import crop_and_flip, normalize
from mixmo_jax.input_pipeline.plan import View

# [M, B, H, W, C], not square so that rows and columns cannot be confused.
SHAPE = (2, 9, 8, 12, 3)


def random_images():
    return np.random.default_rng(0).integers(256, size=SHAPE, dtype=np.uint8)


def make_view(offset, flip):
    """A view with crops and flips; scalars are for all images."""
    return View(
        index=None,
        offset=jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (*SHAPE[:2], 2)),
        flip=jnp.broadcast_to(jnp.asarray(flip), SHAPE[:2]),
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_crop_and_flip_equal_padding_and_slicing(monkeypatch, platform):
    if platform == "tpu":  # what a TPU would compute
        monkeypatch.setattr(augment, "pick", augment.pick_by_product)
    rng = np.random.default_rng(1)
    images, padding = random_images(), 4
    offset = rng.integers(2 * padding + 1, size=(*SHAPE[:2], 2))
    offset[0, :4] = [[0, 0], [0, 8], [8, 0], [8, 8]]  # the corners
    flip = rng.integers(2, size=SHAPE[:2]).astype(bool)
    expected = np.empty_like(images)
    for m, b in np.ndindex(SHAPE[:2]):
        padded = np.pad(images[m, b], ((padding, padding), (padding, padding), (0, 0)))
        y, x = offset[m, b]
        crop = padded[y : y + SHAPE[2], x : x + SHAPE[3]]
        expected[m, b] = crop[:, ::-1] if flip[m, b] else crop
    actual = crop_and_flip(jnp.asarray(images), make_view(offset, flip), padding)
    assert actual.dtype == jnp.uint8
    chex.assert_trees_all_equal(np.asarray(actual), expected)


@pytest.mark.parametrize("padding", [0, 4])
def test_crop_from_the_middle_is_the_image(padding):
    images = random_images()
    view = make_view(padding, flip=False)
    actual = crop_and_flip(jnp.asarray(images), view, padding)
    chex.assert_trees_all_equal(np.asarray(actual), images)


def test_flip_mirrors_columns_and_twice_is_the_image():
    images = jnp.asarray(random_images())
    view = make_view(4, flip=True)
    flipped = crop_and_flip(images, view, 4)
    chex.assert_trees_all_equal(flipped, images[..., ::-1, :])
    chex.assert_trees_all_equal(crop_and_flip(flipped, view, 4), images)


def test_padding_is_black():
    """It is so before the normalization, which makes it the most negative value."""
    white = jnp.full(SHAPE, 255, jnp.uint8)
    cropped = crop_and_flip(white, make_view([1, 6], flip=False), 4)
    expected = np.full(SHAPE, 255, np.uint8)
    expected[:, :, :3] = 0  # three rows above the image
    expected[:, :, :, -2:] = 0  # two columns on the right of it
    chex.assert_trees_all_equal(np.asarray(cropped), expected)
    normalized = normalize(cropped, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    chex.assert_trees_all_close(normalized[0, 0, 0, 0], jnp.array([-2.5, -2.0, -1.5]))


def test_normalize_equals_float64_for_every_value():
    mean, std = (0.4913725490196078, 0.4823529411764706, 0.4466666666666667), (0.2023, 0.1994, 0.2)
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    expected = (values / 255 - np.array(mean)) / np.array(std)
    actual = normalize(jnp.asarray(values), mean, std)
    assert actual.dtype == jnp.float32
    chex.assert_trees_all_close(np.asarray(actual, np.float64), expected, atol=1e-6)
