"""Data sources."""

import numpy as np
import pytest

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.augment import normalize
from mixmo_jax.errors import InputError


@pytest.fixture
def config():
    return config_lib.parse("digits")[1].dataset


def test_digits(config):
    data = datasets.load(config)
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    assert data.train.images.dtype == np.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")
    # Stratified: every class has a fifth of its images in the test split.
    train, test = np.bincount(data.train.labels), np.bincount(data.test.labels)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.004)
    # Disjoint: no image is lost or doubled.
    both = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797


def test_digits_are_always_split_alike(config):
    first, second = datasets.load(config), datasets.load(config)
    np.testing.assert_array_equal(first.test.images, second.test.images)


def test_measured_statistics(config):
    data = datasets.load(config)
    images = np.asarray(normalize(data.train.images, data.mean, data.std))
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_given_statistics(config):
    config.mean, config.std = (0.5,), (0.25,)
    data = datasets.load(config)
    assert (data.mean, data.std) == ((0.5,), (0.25,))


def test_wrong_number_of_channels(config):
    config.std = (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match=r"dataset.std=.*: expected 1 values, one per channel"):
        datasets.load(config)


def test_unknown_source(config):
    config.name = "imagenet"
    with pytest.raises(InputError, match=r"dataset.name='imagenet': expected one of digits"):
        datasets.load(config)
