"""Random textures for batches of images: clouds, frost and drops."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

_NUM_FROSTS = 5  # patterns from which every image gets a part
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)


def clouds(rng: np.random.Generator, shape: tuple[int, int, int], decay: float) -> np.ndarray:
    """Draws plasma fractals by the diamond-square algorithm on a torus.

    Args:
      rng: The source of randomness.
      shape: The shape (N, H, W).
      decay: The factor by which the random offsets decrease from one scale to the next is its
        inverse square.

    Returns:
      float32 [N, H, W], each with minimum 0 and maximum 1 over the square that it is cut from.
    """
    side = 1 << (max(*shape[1:], 2) - 1).bit_length()
    maps = np.zeros((shape[0], side, side), np.float32)
    step, offset = side, 1.0
    while step >= 2:
        half = step // 2

        def wobbled(mean, offset=offset):
            return mean + rng.uniform(-offset, offset, mean.shape)

        corners = maps[:, ::step, ::step]
        sums = corners + np.roll(corners, -1, axis=1)
        centers = wobbled((sums + np.roll(sums, -1, axis=2)) / 4)
        across, down = corners + np.roll(corners, -1, axis=2), sums
        above, beside = centers + np.roll(centers, 1, axis=1), centers + np.roll(centers, 1, axis=2)
        maps[:, half::step, half::step] = centers
        maps[:, ::step, half::step] = wobbled((across + above) / 4)
        maps[:, half::step, ::step] = wobbled((down + beside) / 4)
        step, offset = half, offset / decay**2
    maps -= maps.min((1, 2), keepdims=True)
    maps /= maps.max((1, 2), keepdims=True)
    return maps[:, : shape[1], : shape[2]]


def frost(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Cuts parts (N, H, W) out of patterns of frost, each turned or mirrored; float32, 0 to 1."""
    _, height, width = shape
    side = 128 + max(height, width)
    patterns = [_frost_pattern(i, side) for i in range(_NUM_FROSTS)]
    parts = np.empty(shape, np.float32)
    for part in parts:
        pattern = np.rot90(patterns[rng.integers(_NUM_FROSTS)], rng.integers(4))
        pattern = pattern[:: rng.choice([-1, 1])]
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        part[:] = pattern[top : top + height, left : left + width]
    return parts


def drops(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
) -> np.ndarray:
    """Draws blurred noise [N, H, W] and sets it to 0 below a threshold."""
    noise = rng.normal(mean, deviation, shape).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="nearest")
    return np.where(noise < threshold, 0, noise)


def light_on_drops(layers: np.ndarray) -> np.ndarray:
    """The light [N, H, W], 0 to 1, on drops of water: brighter away from their edges."""
    inside = layers > 0
    edges = inside & ~ndimage.binary_erosion(inside, np.ones((1, 3, 3)), border_value=1)
    # An image without an edge finds the nearest one in another image, beyond all that counts.
    distances = np.minimum(ndimage.distance_transform_edt(~edges, sampling=(1000, 1, 1)), 20)
    relief = _equalize(ndimage.uniform_filter(distances, (0, 3, 3), mode="mirror").astype(int))
    relief = ndimage.correlate(relief, _EMBOSS[None], mode="mirror").clip(0, 1)
    light = layers * ndimage.uniform_filter(relief, (0, 3, 3), mode="mirror")
    return light / np.maximum(light.max((1, 2), keepdims=True), 1e-6)


def _equalize(levels):
    """Gives each image [N, H, W] of small integers an even histogram, on a scale of 0 to 1."""
    n, *_ = levels.shape
    flat = levels.reshape(n, -1)
    counts = np.stack([(flat == level).sum(1) for level in range(flat.max() + 1)], axis=1)
    below = counts.cumsum(1) - np.take_along_axis(counts, flat.min(1)[:, None], 1)
    even = below.clip(0) / np.maximum(below[:, -1:], 1)
    return np.take_along_axis(even, flat, 1).reshape(levels.shape).astype(np.float32)


@functools.cache
def _frost_pattern(index, side):
    """One of the patterns [side, side], 0 to 1: ferns of ice on a misty pane."""
    rng = np.random.default_rng([index, side])
    mist = _fractal_noise(rng, side)
    ridges = 1 - np.abs(_fractal_noise(rng, side)) / 0.6
    ice = _ferns(rng, side)
    pattern = 0.3 + 0.12 * mist + 0.25 * ridges.clip(0) ** 3 + 0.6 * ice
    return pattern.clip(0, 1).astype(np.float32)


def _fractal_noise(rng, side):
    """Noise [side, side] of mean 0 and deviation 1 whose amplitude falls with the frequency."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    amplitudes = np.hypot(rows, columns) + 2 / side
    noise = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(side, side))) / amplitudes**1.6, s=(side,) * 2
    )
    return (noise - noise.mean()) / noise.std()


def _ferns(rng, side):
    """Stems with needles at 60 degrees on both sides, drawn at four times the size."""
    canvas = Image.new("L", (4 * side, 4 * side))
    pen = ImageDraw.Draw(canvas)
    for _ in range(side * side // 150):
        start = rng.uniform(0, 4 * side, 2)
        angle, length = rng.uniform(0, 2 * np.pi), 4 * rng.uniform(6, 24)
        bend = rng.normal(0, 0.04)
        for reached in np.arange(0, length, 5):
            angle += bend
            end = start + 5 * np.array([np.cos(angle), np.sin(angle)])
            shade = int(rng.integers(120, 256))
            pen.line([*start, *end], shade, 3)
            for turn in (-np.pi / 3, np.pi / 3):
                needle = (length - reached) * rng.uniform(0.1, 0.4)
                tip = start + needle * np.array([np.cos(angle + turn), np.sin(angle + turn)])
                pen.line([*start, *tip], shade, 2)
            start = end
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255
