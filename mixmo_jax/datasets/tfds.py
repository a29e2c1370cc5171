"""Any dataset that tensorflow-datasets has prepared; TensorFlow is not needed.

    python -m mixmo_jax.main --config=cifar100 --config.dataset.name=tfds:NAME

NAME is a name as `tfds.builder` takes it ("mnist", "my_dataset/config:1.0.0"), and
`dataset.data_dir` the folder in which it was prepared ("": that of tensorflow-datasets), with
`file_format="array_record"`. It has the features "image" and "label" and a split "train". Its
"validation" selects the best epoch; without a split "test", it becomes the test split.
Images of a fixed size stay as they are, others are scaled and center-cropped to
`dataset.image_size`. Labels and class names are those of the feature "label".
"""

import pathlib
import re

import ml_collections

from mixmo_jax.datasets.dataset import Split
from mixmo_jax.datasets.files import create_split, data_folder, decode_images, load_cached
from mixmo_jax.errors import InputError, invalid, reading


def load(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the splits and class names; a loader of `DATASETS`.

    Raises:
      InputError: if there is no such dataset, or if it is damaged, prepared in another file format,
        or without the features and split above.
    """
    name, folder = config.name.partition(":")[2], data_folder(config.data_dir)
    if not name or not (folder / re.split("[/:]", name)[0]).is_dir():
        raise invalid("dataset.name", config.name, f"tfds:NAME of a dataset prepared in {folder}")

    import tensorflow_datasets as tfds  # takes a second
    from google.protobuf import json_format

    damaged = (ValueError, TypeError, LookupError, RuntimeError, json_format.Error)
    with reading(f"dataset.name={config.name!r}", *damaged):
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        features, names = builder.info.features, set(builder.info.splits)
        if "train" not in names or not {"image", "label"} <= set(features):
            found = f"features {', '.join(features)} and splits {', '.join(names)}"
            raise InputError(f"dataset.name={config.name!r}: {found}: expected image, label, train")
        splits = {"train": "train", "test": "test", "validation": "validation"}
        if "test" not in names:
            splits = {"train": "train", "test": "validation"}
        sources = {
            ours: builder.as_data_source(theirs, decoders={"image": tfds.decode.SkipDecoding()})
            for ours, theirs in splits.items()
            if theirs in names
        }
        height, width, channels = features["image"].shape
        shape = (height or config.image_size, width or config.image_size, 1 if channels == 1 else 3)

        def decode(path: pathlib.Path, cache: pathlib.Path, shape: tuple[int, int, int]):
            """Decodes all splits into the cache; returns the class names."""
            for split, source in sources.items():
                images = create_split(cache, split, [int(e["label"]) for e in source], shape)

                def read(index, source=source):
                    return source[index]["image"]

                decode_images(read, range(len(source)), images, path / split)
            return features["label"].names

        return load_cached(pathlib.Path(builder.data_path), config, decode, shape=shape)
