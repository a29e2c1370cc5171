"""Tiny ImageNet: 64x64 images of 200 ImageNet classes (or of as many as the files have).

Class k is the k-th WordNet ID in alphabetical order, as in torchvision's `ImageFolder`. The images
of the official validation split, which are labeled, are the test split.
"""

import collections
import pathlib

import ml_collections

from mixmo_jax.datasets.dataset import Split
from mixmo_jax.datasets.files import Files, create_split, decode_images, load_cached, locate
from mixmo_jax.errors import InputError, reading

_SHAPE = (64, 64, 3)


def load(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the splits and class names; a loader of `DATASETS`.

    Raises:
      InputError: if the files are missing, or if images, annotations and classes do not fit.
    """
    path = locate(
        config.data_dir,
        names=["tiny-imagenet-200.zip", "tiny-imagenet-200"],
        markers=["wnids.txt"],
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        known_hash="md5:90528d7ca1a48142e341f4ef8d21d0de",
    )
    return load_cached(path, config, _decode)


def _decode(path: pathlib.Path, cache: pathlib.Path) -> list[str]:
    """Decodes both splits into the cache; returns the class names."""
    files = Files(path)
    root = files.folder_of("wnids.txt")
    wnids = sorted(files.read_lines(f"{root}wnids.txt"))
    words = dict(line.partition("\t")[::2] for line in files.read_lines(f"{root}words.txt"))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    splits = {
        "train": _list_train_images(files, root, labels),
        "test": _list_annotated_images(files, root, labels),
    }
    for split, images in splits.items():
        out = create_split(cache, split, [label for _, label in images], _SHAPE)
        decode_images(files.read, [name for name, _ in images], out, path)
    return [words.get(wnid) or wnid for wnid in wnids]


def _list_train_images(files, root, labels):
    """Returns names and labels of train/<wnid>/images/<wnid>_<i>.JPEG, by class and by i."""
    images = collections.defaultdict(list)
    for name in files.names:
        parts = name.removeprefix(root).split("/")
        if parts[0] == "train" and parts[2:3] == ["images"]:
            images[parts[1]].append(name)
    if different := images.keys() ^ labels.keys():
        place = f"train/{min(different)}"
        raise InputError(f"{files.path}: {place}: no images, or the class is not in wnids.txt")
    return [
        (name, label)
        for wnid, label in labels.items()
        for name in sorted(images[wnid], key=lambda name: (len(name), name))
    ]


def _list_annotated_images(files, root, labels):
    """Returns names and labels of val/images/<name>, in the order of val/val_annotations.txt."""
    annotations, folder = f"{root}val/val_annotations.txt", f"{root}val/images/"
    rows = [line.split("\t") for line in files.read_lines(annotations)]
    with reading(f"{files.path}: {annotations}", LookupError):  # an unknown class, or none
        images = [(folder + row[0], labels[row[1]]) for row in rows]
    present = {name for name in files.names if name.startswith(folder)}
    if different := present ^ {name for name, _ in images}:
        reason = "has no annotation, or an annotation but no file"
        raise InputError(f"{files.path}: {min(different)}: {reason}")
    return images
