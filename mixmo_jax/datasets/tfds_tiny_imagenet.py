"""Tiny ImageNet for tensorflow-datasets, without TensorFlow.

    from mixmo_jax.datasets.tfds_tiny_imagenet import TinyImagenet
    builder = TinyImagenet(data_dir="…", file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")

A dataset prepared in this way is used by `--config=tiny_imagenet` in preference to the archive.
The module is imported only where it is needed: tensorflow-datasets takes a second to import.
"""

import io
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.tiny_imagenet import SIZE, TINY_IMAGENET, VERSION, read_index, read_wnids


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """64x64 images of ImageNet classes; the labeled images for validation are "test".

    Reads `tiny-imagenet-200.zip`, or its extracted folder, in the data folder or in the folder for
    manual downloads of tensorflow-datasets; otherwise downloads it.
    """

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "Labels in the order of wnids.txt.",
        "2.0.0": "Labels in the alphabetical order of the WordNet IDs.",
    }

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
        self.info.features["label"].names = read_wnids(files)
        return {split: self._generate_examples(files, entries) for split, entries in splits.items()}

    def _generate_examples(
        self, files: Files, entries: list[tuple[str, int]]
    ) -> Iterator[tuple[str, dict]]:
        for i, (name, label) in enumerate(entries):
            image = io.BytesIO(files.read(name))
            # The number keeps the order, which the shuffling of the records would lose.
            file_name = f"{i:06d}/{name.rpartition('/')[2]}"
            yield file_name, {"image": image, "label": label, "file_name": file_name}
