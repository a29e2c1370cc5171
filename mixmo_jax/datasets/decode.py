"""Decoding of many image files, in parallel."""

import contextlib
import io
import logging
import os
import pathlib
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from mixmo_jax.errors import InputError, reading

MAX_PIXELS = 3 * 2**24  # of an image, before it is scaled; 8192x6144
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 256
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others may run programs
_LARGE_PIXELS = 2**24  # Larger images are decoded one at a time.
_LARGE = threading.Lock()
# What Pillow raises for damaged images, beside `OSError`.
_DAMAGE = (
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
)
# What Pillow logs of a damaged file would be printed beside the error that it raises.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_images(
    read: Callable[[str], bytes],
    names: Sequence[str],
    out: np.ndarray,
    *,
    resize: bool,
    where: pathlib.Path,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Decodes image files into an array.

    Args:
      read: A function that returns the content of a file.
      names: The names of N files.
      out: An array [N, H, W, C] uint8 to be filled in: images become RGB (C = 3) or gray (C = 1).
      resize: Whether to bring images to H x W by scaling and cropping the center; if not, an image
        of another size is an error.
      where: The folder or archive of the files, for messages.
      max_pixels: The most pixels that an image may have, `dataset.max_image_pixels`.

    Raises:
      InputError: if a file is not an image, is damaged or too large, or has another size.
    """

    def decode(start: int) -> int:
        """Decodes a chunk of images; returns their number."""
        chunk = names[start : start + _CHUNK]
        for i, name in enumerate(chunk, start):
            out[i] = _decode(read(name), out.shape[1:], resize, max_pixels, f"{where}: {name}")
        return len(chunk)

    title = f"decoding {where.name}"
    bar = tqdm.tqdm(total=len(names), desc=title, unit=" images", disable=None)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        warnings.filterwarnings("ignore", module="PIL")  # of odd files; it reads them all the same
        try:
            for done in pool.map(decode, range(0, len(names), _CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode(content, shape, resize, max_pixels, what):
    """Returns an image [H, W, C] uint8 of the given shape."""
    from PIL import Image, UnidentifiedImageError  # only where images are decoded

    too_large = f"more than dataset.max_image_pixels={max_pixels}"
    with reading(what, *_DAMAGE):
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError:  # its text is an address in memory
            raise InputError(f"{what}: not an image") from None
        except Image.DecompressionBombError:  # above a limit of Pillow's own
            raise InputError(f"{what}: {too_large}") from None
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise InputError(f"{what}: is {image.width}x{image.height}, {too_large}")
    with _LARGE if pixels > _LARGE_PIXELS else contextlib.nullcontext():
        return _load(image, shape, resize, what)


def _load(image, shape, resize, what):
    """Loads an opened image, with as few copies as possible."""
    from PIL import Image, ImageOps

    height, width, channels = shape
    with reading(what, *_DAMAGE, Image.DecompressionBombError):
        ImageOps.exif_transpose(image, in_place=True)
        image = _to_color(image, channels, what)
    if resize:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    elif image.size != (width, height):
        size = "x".join(map(str, image.size))
        raise InputError(f"{what}: is {size}, expected {width}x{height}")
    return np.asarray(image).reshape(shape)


def _to_color(image, channels, what):
    from PIL import Image

    # Pillow would clip these at 255. A PPM of 16 bits has them in 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(
            f"{what}: has the mode {image.mode}, expected 8 bits, or 16 without a sign"
        )
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)
