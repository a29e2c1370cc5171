"""Datasets that tensorflow-datasets has prepared."""

import io
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from setups import dataset_config

from mixmo_jax import datasets
from mixmo_jax.errors import InputError

COUNTS = {"train": 6, "test": 4, "validation": 2}
NAMES = ["disk", "square"]


def make_image(split: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, shape, dtype=np.uint8)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Noise, the class of which is the parity of its first value."""

    VERSION = tfds.core.Version("1.0.0")
    splits, shape = tuple(COUNTS), (8, 8, 3)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, description="", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            out = io.BytesIO()
            size = tuple(side or 12 for side in self.shape)
            image = make_image(split, i, size)
            Image.fromarray(image.squeeze()).save(out, "PNG")
            out.seek(0)
            yield i, {"image": out, "label": i % 2}


class Sizes(Shapes):
    """Gray images of any size; no split for testing."""

    splits, shape = ("train", "validation"), (None, None, 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """A folder with both datasets; the code that made them is forgotten."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    for builder in (Shapes, Sizes):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    registered = sys.modules["tensorflow_datasets.core.registered"]
    for builder in (Shapes, Sizes):
        registered._DATASET_REGISTRY.pop(builder.name)
    return folder


def load(folder: pathlib.Path, name: str, **fields) -> datasets.Dataset:
    config = dataset_config("image_folder", data_dir=folder, name=name)
    config.update(fields)
    return datasets.load_dataset(config)


def by_pixels(split: datasets.Split) -> dict[bytes, int]:
    return {split.images[i].tobytes(): int(k) for i, k in enumerate(split.labels)}


@pytest.mark.parametrize("name", ["tfds:shapes", "tfds:shapes:1.0.0"])
def test_prepared_dataset_has_its_images_labels_and_names(prepared, name):
    for _ in range(2):  # decoded, and from the cache
        data = load(prepared, name)
        assert data.class_names == tuple(NAMES) and data.num_images == COUNTS
        for split, count in COUNTS.items():
            images = [make_image(split, i, (8, 8, 3)) for i in range(count)]
            expected = {image.tobytes(): i % 2 for i, image in enumerate(images)}
            assert by_pixels(data.splits[split]) == expected
    assert [m for m in sys.modules if m.partition(".")[0] == "tensorflow"] == []


def test_images_of_any_size_are_scaled_and_validation_tests(prepared):
    data = load(prepared, "tfds:sizes", image_size=12)
    assert data.num_images == {"train": 6, "test": 2} and data.image_shape == (12, 12, 1)
    expected = {make_image("validation", i, (12, 12, 1)).tobytes(): i % 2 for i in range(2)}
    assert by_pixels(data.test) == expected
    assert load(prepared, "tfds:sizes", image_size=8).image_shape == (8, 8, 1)


def test_folder_of_tensorflow_datasets_is_the_default(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert load("", "tfds:shapes").num_images == COUNTS


@pytest.mark.parametrize("name", ["tfds", "tfds:", "tfds:mnist", "tfds:shapes:2.0.0", "tfds:a b"])
def test_dataset_that_is_not_prepared_is_one_line(prepared, name):
    with pytest.raises(InputError, match=f"^dataset.name='{name}': ") as error:
        load(prepared, name)
    assert "\n" not in str(error.value)


RECORDS = "shapes-train.array_record-00000-of-00001"
DAMAGES = [
    ("features.json", None),
    ("features.json", 50),
    ("dataset_info.json", None),
    ("dataset_info.json", 50),
    (RECORDS, None),
    (RECORDS, 0),
    (RECORDS, 65_500),
]


@pytest.mark.parametrize(("name", "size"), DAMAGES)
def test_damaged_dataset_is_one_line(prepared, tmp_path, name, size):
    folder = shutil.copytree(prepared, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    file = folder / "shapes" / "1.0.0" / name
    file.unlink() if size is None else os.truncate(file, size)
    with pytest.raises(InputError, match=r"^dataset\.name='tfds:shapes': ") as error:
        load(folder, "tfds:shapes")
    assert "\n" not in str(error.value)
