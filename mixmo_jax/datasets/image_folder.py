"""Your own images: a folder for each class, in a folder or an archive.

`dataset.data_dir` holds train/<class>/… and test/<class>/… (or val/), or just <class>/…. With both
test/ and val/, val/ is the validation split. In an archive, all of it may lie in one folder.
Class k is the k-th folder in alphabetical order. Images may lie in subfolders; they are scaled and
center-cropped to `dataset.image_size`.
"""

import collections
import os
import pathlib

import ml_collections

from mixmo_jax.datasets.dataset import Split
from mixmo_jax.datasets.files import (
    ENDINGS,
    Files,
    create_split,
    decode_images,
    is_image,
    load_cached,
    locate,
)
from mixmo_jax.errors import InputError, warn

_SPLIT_FOLDERS = ("train", "test", "val")


def load(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Loads the splits and class names; a loader of `DATASETS`.

    Raises:
      InputError: if there are no classes, if a class has no images or is not in the training split,
        or if a file is no image.
    """
    return load_cached(locate(config.data_dir), config, _decode, image_size=config.image_size)


def _decode(path: pathlib.Path, cache: pathlib.Path, image_size: int) -> list[str]:
    """Decodes all images into the cache; returns the class names."""
    files = Files(path)
    folders = _find_splits(files)
    class_names = files.folders(folders["train"])
    if len(class_names) < 2:
        allowed = "expected a folder of images for each class, 2 or more"
        raise InputError(f"{path / folders['train']}: {allowed}")
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {split: _list_images(files, root, labels) for split, root in folders.items()}
    for split, images in splits.items():
        shape = (image_size, image_size, 3)
        out = create_split(cache, split, [label for _, label in images], shape)
        decode_images(files.read, [name for name, _ in images], out, path)
    # Names that are not UTF-8 could neither be written nor printed.
    return [os.fsencode(name).decode(errors="replace") for name in class_names]


def _find_splits(files):
    """Returns the folder, "" or "…/", of each split."""
    top, found = "", files.folders()
    if files.path.is_file() and len(found) == 1 and found[0] not in _SPLIT_FOLDERS:
        top = f"{found[0]}/"
        found = files.folders(top)
    held_out = [f"{top}{name}/" for name in ("test", "val") if name in found]
    if "train" not in found and held_out:
        raise InputError(f"{files.path / top}: a folder for testing, but no folder train")
    if "train" not in found:
        return {"train": top}
    for name in set(found) - set(_SPLIT_FOLDERS):
        warn(f"{files.path / top / name}: not used; expected train, test and val")
    return {"train": f"{top}train/", **dict(zip(("test", "validation"), held_out, strict=False))}


def _list_images(files, root, labels):
    """Returns the names and labels of the images in the class folders of a split."""
    images = collections.defaultdict(list)
    for name in files.names:
        class_name, _, rest = name.removeprefix(root).partition("/")
        if name.startswith(root) and is_image(rest):
            images[class_name].append(name)
    for class_name in files.folders(root):
        if class_name not in labels:
            raise InputError(f"{files.path / root / class_name}: there is no such class in train")
        if class_name not in images:
            raise InputError(f"{files.path / root / class_name}: no images ({', '.join(ENDINGS)})")
    return [(name, labels[class_name]) for class_name in images for name in images[class_name]]
