"""Tiny ImageNet for tensorflow-datasets, without TensorFlow.

    from mixmo_jax.datasets.tfds_tiny_imagenet import TinyImagenet
    builder = TinyImagenet(data_dir="…", file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")

A data set prepared so is used by `--config=tiny_imagenet` before the archive. The module is
imported only where it is needed: tensorflow-datasets takes a second.
"""

import io
import pathlib
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.tiny_imagenet import SIZE, TINY_IMAGENET, read_index
from mixmo_jax.errors import InputError


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """64x64 images of ImageNet classes; the labelled images for validation are "test".

    Takes `tiny-imagenet-200.zip`, or its extracted folder, from the data folder or tfds's folder
    for manual downloads; or downloads it.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(),  # the names are set with the files read
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        path = TINY_IMAGENET.locate(str(self._data_dir_root))
        TINY_IMAGENET.verify(path)
        files = Files(path)
        class_names, splits = read_index(files)
        self.info.metadata["class_names"] = class_names
        wnids = files.read_lines(files.folder_of("wnids.txt") + "wnids.txt")
        self.info.features["label"].names = wnids
        return {split: self._generate_examples(files, entries) for split, entries in splits.items()}

    def _generate_examples(
        self, files: Files, entries: list[tuple[str, int]]
    ) -> Iterator[tuple[str, dict]]:
        for i, (name, label) in enumerate(entries):
            image = io.BytesIO(files.read(name))
            # The number in front keeps the order, which the shuffling of the records loses.
            file_name = f"{i:06d}/{name.rpartition('/')[2]}"
            yield file_name, {"image": image, "label": label, "file_name": file_name}


def read_prepared(
    folder: pathlib.Path,
) -> tuple[list[str], dict[str, list[tuple[str, int]]], Callable[[str], bytes]]:
    """Reads a prepared data set.

    Args:
      folder: of its version.

    Returns:
      The class names; names and labels of the images of each split, in the order of the archive;
      and what reads an image's file by its name.
    """
    try:
        return _read_prepared(folder)
    except Exception as error:  # whatever damaged files lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split()).replace(f"{folder}/", "")
        raise InputError(f"{folder}: cannot be read ({reason}); prepare it again") from None


def _read_prepared(folder):
    builder = tfds.builder_from_directory(folder)
    contents, splits = {}, {}
    for split in builder.info.splits:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        examples = sorted((e["file_name"].decode(), e["label"], e["image"]) for e in source)
        splits[split] = [(f"{split}/{name}", int(label)) for name, label, _ in examples]
        contents.update({f"{split}/{name}": image for name, _, image in examples})
    class_names = builder.info.metadata["class_names"]
    return class_names, splits, contents.__getitem__
