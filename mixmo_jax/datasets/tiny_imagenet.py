"""Tiny ImageNet: 64x64 images of 200 ImageNet classes (or of as many as the files have).

Class k is the k-th WordNet ID in alphabetical order, as in torchvision's `ImageFolder`. The images
of the official validation split, which are labeled, are the test split.
"""

import collections
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.cache import Arrays
from mixmo_jax.datasets.decode import decode_images
from mixmo_jax.datasets.source import Official, Source
from mixmo_jax.errors import InputError, open_file, reading

SIZE = 64
VERSION = "2.0.0"  # of the folder that tensorflow-datasets prepares

Entries = list[tuple[str, int]]  # names and labels of image files


def read_wnids(files: Files) -> list[str]:
    """Returns the WordNet IDs of the classes, which `wnids.txt` names, in the order of the labels.

    Raises:
      InputError: if there is no `wnids.txt`, or if it names a class twice.
    """
    wnids = files.read_lines(files.folder_of("wnids.txt") + "wnids.txt")
    if len(set(wnids)) < len(wnids):
        raise InputError(f"{files.path}: wnids.txt names a class twice")
    return sorted(wnids)


def read_index(files: Files) -> tuple[list[str], dict[str, Entries]]:
    """Reads what is in the official archive or folder.

    Args:
      files: The files of the archive or folder.

    Returns:
      The class names in the order of the labels; and for the splits "train" and "test" the names
      and labels of all image files.

    Raises:
      InputError: if images, annotations and classes do not fit together.
    """
    root, wnids = files.folder_of("wnids.txt"), read_wnids(files)
    words = dict(line.partition("\t")[::2] for line in files.read_lines(root + "words.txt"))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    names = [name.removeprefix(root) for name in files.names if name.startswith(root)]
    splits = {
        "train": _train_images(names, labels, files),
        "test": _annotated_images(names, labels, files, root),
    }
    absolute = {k: [(root + name, label) for name, label in v] for k, v in splits.items()}
    return [words.get(wnid) or wnid for wnid in wnids], absolute


def _train_images(names, labels, files):
    """Finds train/<wnid>/images/<wnid>_<i>.JPEG, ordered by class and by number."""
    found = collections.defaultdict(list)
    for name in names:
        parts = name.split("/")
        if parts[0] == "train" and parts[2:3] == ["images"]:
            found[parts[1]].append(name)
    for wnid in found.keys() - labels.keys():
        raise InputError(f"{files.path}: train/{wnid}: the class is not in wnids.txt")
    for wnid in labels:
        if not found[wnid]:
            raise InputError(f"{files.path}: train/{wnid}: no images")
    return [
        (name, label)
        for wnid, label in labels.items()
        for name in sorted(found[wnid], key=lambda name: (len(name), name))
    ]


def _annotated_images(names, labels, files, root):
    """Finds val/images/<name>, in the order of val/val_annotations.txt."""
    present = {name for name in names if name.startswith("val/images/")}
    images = []
    for line in files.read_lines(root + "val/val_annotations.txt"):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise InputError(f"{files.path}: {name}: its class {wnid!r} is not in wnids.txt")
        if f"val/images/{name}" not in present:
            raise InputError(f"{files.path}: val_annotations.txt names {name}, which is not there")
        images.append((f"val/images/{name}", labels[wnid]))
    unlabeled = present - {name for name, _ in images}
    if unlabeled or len(images) != len(present):
        name = min(unlabeled, default="an image")
        raise InputError(f"{files.path}: {name}: not annotated just once in val_annotations.txt")
    return images


def read_prepared(
    folder: pathlib.Path,
) -> tuple[list[str], dict[str, Entries], Callable[[str], bytes]]:
    """Reads a dataset that tensorflow-datasets has prepared.

    Args:
      folder: The folder of the prepared version.

    Returns:
      The class names; for each split the names and labels of the images, in the order of the
      archive; and a function that returns the content of an image's file by its name.

    Raises:
      InputError: if it is damaged, or if it is of another version.
    """
    import tensorflow_datasets as tfds  # takes a second
    from google.protobuf import json_format

    for file in folder.iterdir():
        if not file.is_dir():
            with reading(file):
                open_file(file).close()  # refuses what may have no end
    advice = "prepare it again"
    damage = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError)
    with reading(folder, *damage, json_format.Error, advice=advice):
        builder = tfds.builder_from_directory(folder)
        if str(builder.info.version) != VERSION:
            reason = f"its labels are not those of version {VERSION}"
            raise InputError(f"{folder}: version {builder.info.version}: {reason}; {advice}")
        contents, splits = {}, {}
        for split in builder.info.splits:
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            examples = sorted((e["file_name"].decode(), e["label"], e["image"]) for e in source)
            splits[split] = [(f"{split}/{name}", int(label)) for name, label, _ in examples]
            contents.update({f"{split}/{name}": image for name, _, image in examples})
        return builder.info.metadata["class_names"], splits, contents.__getitem__


def _is_needed(name):
    """Whether a file is a list of names or an image that has a label."""
    return name.endswith(".txt") or "train/" in name or "val/" in name


def _build(path: pathlib.Path, config: ml_collections.ConfigDict, arrays: Arrays) -> None:
    if (path / "dataset_info.json").is_file():
        class_names, splits, read = read_prepared(path)
    else:
        files = Files(path, max_bytes=config.max_file_bytes, wanted=_is_needed)
        class_names, splits = read_index(files)
        read = files.read
    for split, entries in splits.items():
        images = arrays.create(f"{split}_images", (len(entries), SIZE, SIZE, 3), np.uint8)
        names = [name for name, _ in entries]
        limit = config.max_image_pixels
        decode_images(read, names, images, resize=False, where=path, max_pixels=limit)
        labels = np.array([label for _, label in entries])
        arrays.create(f"{split}_labels", labels.shape, np.int32)[:] = labels
    arrays.meta = {"class_names": class_names}


TINY_IMAGENET = Source(
    build=_build,
    candidates=(f"tiny_imagenet/{VERSION}", "tiny-imagenet-200.zip", "tiny-imagenet-200"),
    markers=("wnids.txt", "dataset_info.json"),
    archived=(("wnids.txt", "words.txt"),),
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    official=(Official(248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),),
)
