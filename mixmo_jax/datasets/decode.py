"""Decoding of many image files, in parallel."""

import io
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from PIL import Image, ImageOps, UnidentifiedImageError

from mixmo_jax.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 256
_UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def _to_colour(image, channels):
    if image.mode.startswith("I;16"):  # Pillow would cut it off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB" if channels == 3 else "L")


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
      read: returns the content of a file.
      names: of the files.
      out: [N, H, W, C] uint8, filled in: images become RGB (C = 3) or grey (C = 1).
      resize: whether to bring images to H x W, by scaling and cropping the centre; if not, an
        image of another size is an error.
      where: the source, for messages.

    Raises:
      InputError: if a file is not an image, or of another size.
    """
    height, width = out.shape[1:3]

    def decode(start: int) -> int:
        """Decodes a chunk; returns the number of its images."""
        for i in range(start, min(start + _CHUNK, len(names))):
            content = read(names[i])
            try:
                with Image.open(io.BytesIO(content)) as image:
                    image = _to_colour(ImageOps.exif_transpose(image), out.shape[-1])
            except UnidentifiedImageError:
                raise InputError(f"{where}: {names[i]}: not an image") from None
            except _UNDECODABLE as error:
                raise InputError(f"{where}: {names[i]}: not an image: {error}") from None
            if resize:
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
            elif image.size != (width, height):
                size = "x".join(map(str, image.size))
                raise InputError(f"{where}: {names[i]}: is {size}, expected {width}x{height}")
            out[i] = np.asarray(image).reshape(out.shape[1:])
        return min(_CHUNK, len(names) - start)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm.tqdm(
            total=len(names), desc=f"decoding {where.name}", unit=" images", disable=None
        ) as bar,
    ):
        try:
            for done in pool.map(decode, range(0, len(names), _CHUNK)):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
