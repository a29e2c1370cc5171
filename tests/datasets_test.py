"""The registry, what all datasets have in common, and the digits."""

import collections
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from setups import dataset_config

from mixmo_jax import datasets
from mixmo_jax.datasets.dataset import Rows, Split, stratified_split
from mixmo_jax.errors import InputError
from mixmo_jax.input_pipeline.augment import normalize


@pytest.fixture
def config():
    return dataset_config("digits")


def make_split(counts: list[int], shape: tuple[int, ...] = (2, 2, 1), seed: int = 0) -> Split:
    """Images of noise, `counts[k]` of class k, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    return Split(rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels)


@pytest.fixture
def source(monkeypatch):
    """Makes the digits something else."""

    def replace(splits: dict[str, Split], class_names: list[str]) -> None:
        monkeypatch.setitem(datasets.DATASETS, "digits", lambda config: (splits, class_names))

    return replace


def test_digits(config):
    data = datasets.load_dataset(config)
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    assert data.validation is None
    assert data.train.images.dtype == np.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")
    assert (data.num_classes, data.image_shape) == (10, (8, 8, 1))
    # Stratified: every class has a fifth of its images in the test split.
    train, test = np.bincount(data.train.labels), np.bincount(data.test.labels)
    np.testing.assert_allclose(test / (train + test), 0.2, atol=0.004)
    # Disjoint: no image is lost or doubled.
    both = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797


def test_measured_statistics(config):
    data = datasets.load_dataset(config)
    images = np.asarray(normalize(jnp.asarray(data.train.images), data.mean, data.std))
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


@pytest.mark.parametrize("count", [3, 4096, 5000])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_each_channel(config, source, count, channels):
    train = make_split([count], (2, 3, channels))
    train.images[..., 0] //= 3
    source({"train": train, "test": make_split([2], (2, 3, channels))}, ["a"])
    data = datasets.load_dataset(config)
    pixels = train.images / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-12)
    assert all(type(number) is float for number in data.mean + data.std)


def test_statistics_are_of_the_images_that_train(config):
    config.validation_fraction = 0.5
    data = datasets.load_dataset(config)
    pixels = np.asarray(data.train.images) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_given_statistics(config):
    config.mean, config.std = (0.5,), (0.25,)
    data = datasets.load_dataset(config)
    assert (data.mean, data.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize("field", ["mean", "std"])
def test_wrong_number_of_channels(config, field):
    config[field] = (0.5, 0.5, 0.5)
    message = rf"^dataset\.{field}=\(0\.5, 0\.5, 0\.5\): expected 1 values, one per channel, or "
    with pytest.raises(InputError, match=message):
        datasets.load_dataset(config)


def test_flat_images_have_no_deviation(config, source):
    train = make_split([4, 4])
    train.images[:] = 7
    source({"train": train, "test": make_split([1, 1])}, ["a", "b"])
    with pytest.raises(InputError, match="a channel of the training images is flat"):
        datasets.load_dataset(config)
    config.std = (1.0,)
    assert datasets.load_dataset(config).mean == (pytest.approx(7 / 255),)  # one may be given


def test_an_unknown_name(config, monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "mine", None)
    config.name = "imagenet"
    known = "digits, cifar10, cifar100, tiny_imagenet, image_folder, tfds, arrays, mine"
    with pytest.raises(InputError, match=rf"^dataset\.name='imagenet': expected one of {known}$"):
        datasets.load_dataset(config)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("has_test", [False, True])
def test_a_loader_of_ones_own(config, monkeypatch, dtype, has_test):
    asked = []

    def load_mine(fields):
        asked.append((fields.name, fields.data_dir))
        images, labels = GOOD.images, GOOD.labels.astype(dtype)
        names = ("train", "test") if has_test else ("train",)
        return {name: datasets.Split(images, labels) for name in names}, ["cat", "dog"]

    monkeypatch.setitem(datasets.DATASETS, "mine", load_mine)
    config.name, config.data_dir, config.test_fraction = "mine", "somewhere", 0.3
    data = datasets.load_dataset(config)
    assert asked == [("mine", "somewhere")]
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == ((6, 6) if has_test else (4, 2))
    assert data.train.labels.dtype == data.test.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("names", "found"), [([], ""), (["test"], "test"), (["train", "val"], "train, val")]
)
def test_a_loader_of_other_splits(config, source, names, found):
    source(dict.fromkeys(names, GOOD), ["a", "b"])
    expected = rf"^digits: splits {found}: expected train and perhaps test and validation$"
    with pytest.raises(InputError, match=expected):
        datasets.load_dataset(config)


GOOD = make_split([3, 3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD.images.astype(np.float32), GOOD.labels, r"images are float32\(6, 2, 2, 1\)"),
        (GOOD.images[..., 0], GOOD.labels, r"images are uint8\(6, 2, 2\)"),
        (GOOD.images.repeat(2, -1), GOOD.labels, r"images are uint8\(6, 2, 2, 2\)"),
        (GOOD.images, GOOD.labels[:5], r"6 images, but labels \(5,\)"),
        (GOOD.images, GOOD.labels[:, None], r"6 images, but labels \(6, 1\)"),
        (GOOD.images[:0], GOOD.labels[:0], r"0 images, but labels \(0,\)"),
        (
            GOOD.images,
            GOOD.labels / 2,
            "labels are float64, expected integers",
        ),
        (GOOD.images, GOOD.labels - 1, "a label -1, but 2 classes"),
        (GOOD.images, GOOD.labels + 1, "a label 2, but 2 classes"),
    ],
)
@pytest.mark.parametrize("name", ["train", "test"])
def test_what_a_source_must_not_give(config, source, name, images, labels, message):
    source({"train": GOOD, "test": GOOD, name: Split(images, labels)}, ["a", "b"])
    with pytest.raises(InputError, match=f"^digits: {name}: {message}"):
        datasets.load_dataset(config)


def test_a_class_that_is_never_trained(config, source):
    source({"train": make_split([3, 0, 3, 0]), "test": GOOD}, list("abcd"))
    with pytest.raises(InputError, match=r"^digits: train: no image of 2 of the classes$"):
        datasets.load_dataset(config)


def identities(split: Split) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(split.images)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_a_stratified_split_takes_a_fraction_of_every_class(fraction):
    split = make_split([40, 7, 2, 100])
    stays, taken = stratified_split(split, fraction, 0)
    total, taken_counts = np.bincount(split.labels), np.bincount(taken.labels, minlength=4)
    np.testing.assert_array_equal(taken_counts + np.bincount(stays.labels), total)
    expected = np.clip([round(fraction * n) for n in total], 1, total - 1)
    np.testing.assert_array_equal(taken_counts, expected)


def test_a_stratified_split_uses_every_image_once_in_order():
    split = make_split([30, 20])
    everything = identities(split)
    places = [[everything.index(i) for i in identities(s)] for s in stratified_split(split, 0.3, 0)]
    assert [sorted(p) for p in places] == places
    assert sorted(place for part in places for place in part) == list(range(50))
    for part, place in zip(stratified_split(split, 0.3, 0), places, strict=True):
        np.testing.assert_array_equal(part.labels, split.labels[place])


def test_the_seed_decides_what_is_taken():
    split = make_split([30, 20])
    taken = [identities(stratified_split(split, 0.3, seed)[1]) for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2]


def test_a_single_image_of_a_class_stays():
    stays, taken = stratified_split(make_split([1, 5]), 0.9, 0)
    assert np.bincount(stays.labels).tolist() == [1, 1]
    assert np.bincount(taken.labels).tolist() == [0, 4]


def test_a_part_of_the_images_for_training_can_be_set_apart(config):
    whole = datasets.load_dataset(config)
    config.validation_fraction = 0.1
    data = datasets.load_dataset(config)
    np.testing.assert_array_equal(data.test.images, whole.test.images)
    parts = collections.Counter(identities(data.train) + identities(data.validation))
    assert parts == collections.Counter(identities(whole.train))
    fraction = np.bincount(data.validation.labels) / np.bincount(whole.train.labels)
    np.testing.assert_allclose(fraction, 0.1, atol=0.005)


def test_the_first_training_images_alone(config):
    whole = datasets.load_dataset(config)
    config.num_train_images = 100
    data = datasets.load_dataset(config)
    np.testing.assert_array_equal(data.train.images, whole.train.images[:100])
    np.testing.assert_array_equal(data.train.labels, whole.train.labels[:100])
    np.testing.assert_array_equal(data.test.images, whole.test.images)
    config.num_train_images = len(whole.train) + 1
    with pytest.raises(InputError, match=r"num_train_images=1438: expected at most the 1,437"):
        datasets.load_dataset(config)


def test_training_validation_and_test_are_disjoint_when_all_are_split(config, source):
    whole = make_split([50, 30])
    source({"train": whole}, ["a", "b"])
    config.validation_fraction = config.test_fraction = 0.2
    data = datasets.load_dataset(config)
    parts = [identities(s) for s in (data.train, data.validation, data.test)]
    assert [len(p) for p in parts] == [51, 13, 16]
    assert sorted(image for part in parts for image in part) == sorted(identities(whole))


def test_validation_does_not_change_the_test_split(config, source):
    source({"train": make_split([50, 30])}, ["a", "b"])
    before = identities(datasets.load_dataset(config).test)
    config.validation_fraction = 0.3
    assert identities(datasets.load_dataset(config).test) == before


ARRAY = np.arange(5 * 2 * 3).reshape(5, 2, 3).astype(np.uint8)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(2),
        slice(None),
        slice(1, 3),
        slice(2, 100),
        slice(0, 0),
        np.array([2, 0, 0]),
        np.array([[0, 1], [2, 3]]),
        np.array([], int),
    ],
    ids=str,
)
@pytest.mark.parametrize("numbers", [[3, 0, 4, 4], [0, 1, 2, 3]], ids=str)
def test_rows_are_indexed_like_an_array(numbers, index):
    rows = Rows(ARRAY, np.array(numbers))
    np.testing.assert_array_equal(rows[index], ARRAY[numbers][index])


def test_rows_look_like_an_array():
    rows = Rows(ARRAY, np.array([3, 0, 4, 4]))
    assert (len(rows), rows.shape, rows.dtype) == (4, (4, 2, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(rows), ARRAY[[3, 0, 4, 4]])
    assert np.asarray(rows, np.float32).dtype == np.float32
    assert [row.tolist() for row in rows] == ARRAY[[3, 0, 4, 4]].tolist()


def test_an_index_beyond_the_rows():
    with pytest.raises(IndexError):
        Rows(ARRAY, np.array([3, 0]))[2]


def test_a_subset_of_a_subset_shares_the_images():
    split = Split(ARRAY[..., None], np.arange(5, dtype=np.int32))
    subset = split.subset(np.array([4, 2, 0])).subset(np.array([2, 0]))
    assert len(subset) == 2 and subset.nbytes == 12
    assert subset.labels.tolist() == [0, 4]
    np.testing.assert_array_equal(subset.images, ARRAY[[0, 4], ..., None])
    split.images[4] = 99  # no copy was made
    assert np.asarray(subset.images)[1].tolist() == np.full((2, 3, 1), 99).tolist()


def test_a_digest_tells_splits_apart():
    split = make_split([1500, 20])
    digest = split.digest()
    assert len(digest) == 64 and digest == split.subset(np.arange(1520)).digest()
    other_images = Split(255 - split.images, split.labels)
    other_labels = Split(split.images, 1 - split.labels)
    fewer = split.subset(np.arange(1519))
    assert len({s.digest() for s in (split, other_images, other_labels, fewer)}) == 4


def test_importing_is_cheap():
    """What only some datasets need is imported with them."""
    code = (
        "import sys, mixmo_jax.datasets; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    imported = set(output.split())
    assert "mixmo_jax" in imported
    assert not imported & {"PIL", "pooch", "sklearn", "tensorflow", "tensorflow_datasets"}


def test_validation_needs_images_to_spare(config, source):
    splits, names = datasets.digits.load(config)
    first = [int(np.flatnonzero(splits["train"].labels == k)[0]) for k in range(10)]
    source({**splits, "train": splits["train"].subset(np.array(first))}, names)
    config.validation_fraction = 0.2
    with pytest.raises(InputError, match="validation: no class has a training image to spare"):
        datasets.load_dataset(config)
