"""Anybody's images: a folder for each class."""

import os
import pathlib

import ml_collections
import numpy as np

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.cache import Arrays
from mixmo_jax.datasets.decode import ENDINGS, decode_images
from mixmo_jax.datasets.source import Source
from mixmo_jax.errors import InputError


def read_index(path: pathlib.Path) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Finds the images: train/<class>/… and test/<class>/… (or val/), or just <class>/….

    With both test/ and val/, val/ is the validation split.

    Args:
      path: of the folder.

    Returns:
      The class names in alphabetical order; and of the splits "train" and, if they are there,
      "test" and "validation" the names and labels of all image files.

    Raises:
      InputError: if there are no classes, or one has no images, or is not in the training split.
    """
    if not path.is_dir():
        raise InputError(f"dataset.data_dir={str(path)!r}: expected a folder with images")
    roots = {"train": path}
    if (path / "train").is_dir():
        roots["train"] = path / "train"
        held_out = [path / name for name in ("test", "val") if (path / name).is_dir()]
        roots.update(zip(("test", "validation"), held_out, strict=False))
    elif (path / "val").is_dir() or (path / "test").is_dir():
        raise InputError(f"{path}: a folder for testing, but no folder train")
    class_names = _class_folders(roots["train"])
    if len(class_names) < 2:
        raise InputError(f"{roots['train']}: expected a folder of images for each class, 2 or more")
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, root in roots.items():
        splits[split] = []
        folders = _class_folders(root)
        if not folders:
            raise InputError(f"{root}: expected a folder of images for each class")
        for name in folders:
            if name not in labels:
                raise InputError(f"{root / name}: there is no such class in {roots['train']}")
            images = [n for n in Files(root / name).names if n.lower().endswith(ENDINGS)]
            if not images:
                raise InputError(f"{root / name}: no images ({', '.join(ENDINGS)})")
            folder = (root / name).relative_to(path).as_posix()
            splits[split] += [(f"{folder}/{image}", labels[name]) for image in images]
    return class_names, splits


def _class_folders(root):
    return sorted(f.name for f in root.iterdir() if f.is_dir() and f.name[0] != ".")


def _build(path: pathlib.Path, config: ml_collections.ConfigDict, arrays: Arrays) -> None:
    class_names, splits = read_index(path)
    files = Files(path)
    for split, entries in splits.items():
        shape = (len(entries), config.image_size, config.image_size, 3)
        images = arrays.create(f"{split}_images", shape, np.uint8)
        names = [name for name, _ in entries]
        decode_images(files.read, names, images, resize=True, where=path)
        labels = np.array([label for _, label in entries])
        arrays.create(f"{split}_labels", labels.shape, np.int32)[:] = labels
    # Names that are not UTF-8 could be neither written nor printed.
    shown = [os.fsencode(name).decode(errors="replace") for name in class_names]
    arrays.meta = {"class_names": shown}


IMAGE_FOLDER = Source(build=_build, options=("image_size",))
