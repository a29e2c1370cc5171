"""Filters for batches of images, float32 [N, H, W, C]."""

import math

import numpy as np
from scipy import ndimage


def gaussian_blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs by a Gaussian of a standard deviation in pixels; the border is continued."""
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")


def disk_blur(images: np.ndarray, radius: float, softness: float) -> np.ndarray:
    """Blurs by a disk.

    Args:
      images: The images.
      radius: The radius of the disk in pixels; below 1 it is a single pixel.
      softness: The standard deviation in pixels of the Gaussian that softens the disk; it is cut
        off after one pixel.
    """
    reach = math.floor(radius) + 1
    distances = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    disk = (distances <= radius).astype(np.float32)
    kernel = ndimage.gaussian_filter(disk, softness, mode="constant", radius=1)
    return ndimage.correlate(images, (kernel / kernel.sum())[None, :, :, None], mode="mirror")


def motion_blur(images: np.ndarray, radius: int, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Blurs each image along a line that begins at the pixel, as ImageMagick does.

    Args:
      images: The images.
      radius: Half of the length of the line in pixels.
      sigma: The standard deviation in pixels of the Gaussian by which the weights decrease.
      angles: The direction [N] of each image's line in radians, 0 for horizontal.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    steps, weights = steps[weights > 1e-4], weights[weights > 1e-4]
    blurred = np.zeros_like(images)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        rows, columns = np.rint(step * np.sin(angles)), np.rint(step * np.cos(angles))
        blurred += np.float32(weight) * _shift(images, rows.astype(int), columns.astype(int))
    return blurred


def zoom(images: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the middle of the images by a factor of at least 1, by linear interpolation."""
    for axis in (1, 2):
        places = _zoomed_places(images.shape[axis], factor)
        low = np.floor(places).astype(np.intp)
        high = np.minimum(low + 1, images.shape[axis] - 1)
        part = (places - low).astype(np.float32)[:, *[None] * (3 - axis)]
        lower = images.take(low, axis)
        images = lower + part * (images.take(high, axis) - lower)
    return images


def sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Interpolates linearly at a row and a column [N, H, W] for each pixel.

    Outside of the image it is mirrored, without repetition of the border.
    """
    n, height, width, channels = images.shape
    rows, columns = _mirror(rows, height), _mirror(columns, width)
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    down = (rows - top).astype(np.float32)[..., None]
    right = (columns - left).astype(np.float32)[..., None]
    bottom, far = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    pixels = images.reshape(-1, channels)
    first = np.arange(n)[:, None, None] * height

    def take(row, column):
        return pixels.take((first + row) * width + column, axis=0)

    upper = take(top, left) * (1 - right) + take(top, far) * right
    lower = take(bottom, left) * (1 - right) + take(bottom, far) * right
    return upper * (1 - down) + lower * down


def _shift(images, rows, columns):
    """Moves each image [N] by whole pixels; the border is continued."""
    height, width = images.shape[1:3]
    row = np.clip(np.arange(height) + rows[:, None], 0, height - 1)
    column = np.clip(np.arange(width) + columns[:, None], 0, width - 1)
    return images[np.arange(len(images))[:, None, None], row[:, :, None], column[:, None, :]]


def _zoomed_places(size, factor):
    """The place [size] in the old row of each pixel of the enlarged one."""
    cropped = math.ceil(size / factor)
    enlarged = round(cropped * factor)
    trimmed = (enlarged - size) // 2
    places = np.linspace(0, cropped - 1, enlarged)[trimmed : trimmed + size]
    return places + (size - cropped) // 2


def _mirror(places, size):
    """Folds coordinates into 0 to size - 1."""
    last = max(size - 1, 1)
    return np.minimum(last - np.abs(places % (2 * last) - last), size - 1)
