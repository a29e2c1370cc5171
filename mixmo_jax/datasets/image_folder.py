"""Images of one's own: a folder for each class, in a folder or an archive."""

import os
import pathlib

import ml_collections
import numpy as np

from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.cache import Arrays
from mixmo_jax.datasets.decode import ENDINGS, decode_images
from mixmo_jax.datasets.source import Source
from mixmo_jax.errors import InputError, warn


def read_index(files: Files) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """Finds the images: train/<class>/… and test/<class>/… (or val/), or just <class>/….

    With both test/ and val/, val/ is the validation split. In an archive, all may lie in one
    folder at the top.

    Args:
      files: The files of the folder or archive.

    Returns:
      The class names in alphabetical order; and for the splits "train" and, if they are there,
      "test" and "validation" the names and labels of all image files.

    Raises:
      InputError: if there are no classes, or if a class has no images or is not in the training
        split.
    """
    roots = _split_folders(files)
    class_names = files.subfolders(roots["train"])
    if len(class_names) < 2:
        allowed = "expected a folder of images for each class, 2 or more"
        raise InputError(f"{files.path / roots['train']}: {allowed}")
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {}
    for split, root in roots.items():
        found = files.subfolders(root)
        if not found:
            raise InputError(f"{files.path / root}: expected a folder of images for each class")
        for name in found:
            if name not in labels:
                place = files.path / roots["train"]
                raise InputError(f"{files.path / root / name}: there is no such class in {place}")
        splits[split] = _images(files, root, labels)
        present = {label for _, label in splits[split]}
        for name in found:
            if labels[name] not in present:
                raise InputError(f"{files.path / root / name}: no images ({', '.join(ENDINGS)})")
    return class_names, splits


def _split_folders(files):
    """Returns the folder, "" or "…/", of each split that there is."""
    top, found = "", files.subfolders()
    if files.path.is_file() and len(found) == 1 and found[0] not in ("train", "test", "val"):
        top = f"{found[0]}/"
        found = files.subfolders(top)
    held_out = [f"{top}{name}/" for name in ("test", "val") if name in found]
    if "train" in found:
        for name in found:
            if name not in ("train", "test", "val"):
                warn(f"{files.path / top / name}: not used; expected train, test and val")
        return {
            "train": f"{top}train/",
            **dict(zip(("test", "validation"), held_out, strict=False)),
        }
    if held_out:
        raise InputError(f"{files.path / top}: a folder for testing, but no folder train")
    return {"train": top}


def _images(files, root, labels):
    """Returns the names and labels of the image files in a split's folder."""
    inside = [name for name in files.names if name.startswith(root)]
    images = [(name, name.removeprefix(root).partition("/")) for name in inside]
    found = [
        (name, labels[class_name]) for name, (class_name, _, rest) in images if _is_image(rest)
    ]
    return sorted(found, key=lambda entry: entry[0].split("/"))  # not as they lie in an archive


def _is_image(name):
    return name.lower().endswith(ENDINGS)


def _build(path: pathlib.Path, config: ml_collections.ConfigDict, arrays: Arrays) -> None:
    files = Files(path, max_bytes=config.max_file_bytes, wanted=_is_image)
    class_names, splits = read_index(files)
    for split, entries in splits.items():
        shape = (len(entries), config.image_size, config.image_size, 3)
        images = arrays.create(f"{split}_images", shape, np.uint8)
        names = [name for name, _ in entries]
        decode_images(
            files.read,
            names,
            images,
            resize=True,
            where=path,
            max_pixels=config.max_image_pixels,
        )
        labels = np.array([label for _, label in entries])
        arrays.create(f"{split}_labels", labels.shape, np.int32)[:] = labels
    # Names that are not UTF-8 could be neither written nor printed.
    shown = [os.fsencode(name).decode(errors="replace") for name in class_names]
    arrays.meta = {"class_names": shown}


IMAGE_FOLDER = Source(build=_build, options=("image_size",))
