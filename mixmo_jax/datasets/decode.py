"""Decoding of many image files, in parallel."""

import io
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from mixmo_jax.errors import InputError
from mixmo_jax.files import reading

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 256


def decode_images(
    read: Callable[[str], bytes],
    names: Sequence[str],
    out: np.ndarray,
    *,
    resize: bool,
    where: pathlib.Path,
) -> None:
    """Decodes image files into an array.

    Args:
      read: A function that returns the content of a file.
      names: The names of N files.
      out: An array [N, H, W, C] uint8 to be filled in: images become RGB (C = 3) or gray (C = 1).
      resize: Whether to bring images to H x W by scaling and cropping the center; if not, an image
        of another size is an error.
      where: The folder or archive of the files, for messages.

    Raises:
      InputError: if a file is not an image, is damaged, or has another size.
    """

    def decode(start: int) -> int:
        """Decodes a chunk of images; returns their number."""
        chunk = names[start : start + _CHUNK]
        for i, name in enumerate(chunk, start):
            out[i] = _decode(read(name), out.shape[1:], resize, f"{where}: {name}")
        return len(chunk)

    title = f"decoding {where.name}"
    bar = tqdm.tqdm(total=len(names), desc=title, unit=" images", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        try:
            for done in pool.map(decode, range(0, len(names), _CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode(content, shape, resize, what):
    """Returns an image [H, W, C] uint8 of the given shape."""
    from PIL import Image, ImageOps, UnidentifiedImageError  # only where images are decoded

    height, width, channels = shape
    with reading(what, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:  # its text is an address in memory
            raise InputError(f"{what}: not an image") from None
        image = _to_color(ImageOps.exif_transpose(image), channels)
    if resize:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    elif image.size != (width, height):
        size = "x".join(map(str, image.size))
        raise InputError(f"{what}: is {size}, expected {width}x{height}")
    return np.asarray(image).reshape(shape)


def _to_color(image, channels):
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB" if channels == 3 else "L")
