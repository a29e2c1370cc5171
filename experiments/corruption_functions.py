"""What corrupts images: noise, blur, weather, digital artifacts.

The definitions are those of Hendrycks and Dietterich (2019), "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations" (arXiv 1903.12261), and of the programs that
made its images, CIFAR-10-C and Tiny-ImageNet-C. Those used other libraries; where more than that
differs, the docstring says so.

Every function takes a random generator, images [N, H, W, C] float32 in [0, 1] with C = 1 or 3, and
its parameters, with lengths in pixels. It returns such images, which may leave [0, 1].
"""

import io

import corruption_filters as filters
import corruption_textures as textures
import numpy as np
from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WATER, _MUD, _ICE = (175, 238, 238), (63, 42, 20), (215, 235, 255)


def gaussian_noise(rng, images, deviation):
    """Normal noise, as of weak light."""
    return images + np.float32(deviation) * rng.standard_normal(images.shape, np.float32)


def shot_noise(rng, images, photons):
    """Poisson noise, of a number of photons for white."""
    return rng.poisson(photons * images).astype(np.float32) / photons


def impulse_noise(rng, images, amount):
    """Salt and pepper: a fraction of the values becomes 0 or 1."""
    draws = rng.random(images.shape, np.float32)
    return np.where(draws < amount / 2, 0, np.where(draws > 1 - amount / 2, 1, images))


def speckle_noise(rng, images, deviation):
    """Noise in proportion to the brightness."""
    return images + images * gaussian_noise(rng, np.zeros_like(images), deviation)


def gaussian_blur(rng, images, sigma):
    """A Gaussian blur."""
    return filters.gaussian_blur(images, sigma)


def defocus_blur(rng, images, radius, softness):
    """A disk, as of a lens out of focus."""
    return filters.disk_blur(images, radius, softness)


def glass_blur(rng, images, sigma, reach, rounds):
    """Pixels are replaced by neighbors at random, as behind frosted glass, between two blurs.

    The offsets are -reach to reach - 1. Pixels are replaced all at once, not one after the other.
    """
    height, width = images.shape[1:3]
    blurred = filters.gaussian_blur(images, sigma)
    first = np.arange(len(images))[:, None, None]
    for _ in range(rounds):
        rows, columns = rng.integers(-reach, reach, (2, *images.shape[:3]))
        rows = (rows + np.arange(height)[:, None]).clip(0, height - 1)
        columns = (columns + np.arange(width)).clip(0, width - 1)
        blurred = blurred[first, rows, columns]
    return filters.gaussian_blur(blurred, sigma)


def motion_blur(rng, images, radius, sigma):
    """A line to the right, up to 45 degrees up or down."""
    angles = rng.uniform(-np.pi / 4, np.pi / 4, len(images))
    return filters.motion_blur(images, radius, sigma, angles)


def zoom_blur(rng, images, end):
    """The mean of the image and of itself enlarged in steps of 1 %."""
    factors = np.arange(1, end, 0.01)
    return (images + sum(filters.zoom(images, f) for f in factors)) / (len(factors) + 1)


def snow(rng, images, mean, deviation, size, threshold, radius, sigma, opacity):
    """Flakes that fall in a direction of their own in each image, and whiter surroundings."""
    flakes = rng.normal(mean, deviation, (*images.shape[:3], 1)).astype(np.float32)
    flakes = filters.zoom(flakes, size)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    angles = rng.uniform(-3 * np.pi / 4, -np.pi / 4, len(images))
    flakes = filters.motion_blur(flakes, radius, sigma, angles)
    whiter = np.maximum(images, 1.5 * _gray(images) + 0.5)
    return opacity * images + (1 - opacity) * whiter + flakes + flakes[:, ::-1, ::-1]


def frost(rng, images, opacity, amount):
    """Ice on a pane. The published images contain photographs of frost, these drawn patterns."""
    ice = textures.frost(rng, images.shape[:3])[..., None] * _color(_ICE, images)
    return opacity * images + amount * ice


def fog(rng, images, amount, decay):
    """Clouds; the contrast falls as they are added."""
    brightest = images.max((1, 2, 3), keepdims=True)
    clouds = textures.clouds(rng, images.shape[:3], decay)[..., None]
    return (images + amount * clouds) * brightest / (brightest + amount)


def spatter(rng, images, mean, deviation, sigma, threshold, strength, is_mud):
    """Drops of water, or splashes of mud, for which the strength is the blur of their edges."""
    drops = textures.drops(rng, images.shape[:3], mean, deviation, sigma, threshold)[..., None]
    if is_mud:
        mud = filters.gaussian_blur((drops > 0).astype(np.float32), strength)
        mud = np.where(mud < 0.8, 0, mud)
        return images * (1 - mud) + mud * _color(_MUD, images)
    light = strength * textures.light_on_drops(drops[..., 0])[..., None]
    return images + light * _color(_WATER, images)


def brightness(rng, images, amount):
    """A higher value in the HSV color space, of the same hue and saturation."""
    value = images.max(-1, keepdims=True)
    brighter = (value + amount).clip(0, 1)
    return np.where(value > 0, images / np.maximum(value, 1e-6), 1) * brighter


def saturate(rng, images, factor, offset):
    """Another saturation in the HSV color space, of the same hue; that of gray is red."""
    value, lowest = images.max(-1, keepdims=True), images.min(-1, keepdims=True)
    saturation = (value - lowest) / np.maximum(value, 1e-6)
    red = np.array([0, 1, 1], np.float32)
    missing = np.where(value > lowest, (value - images) / np.maximum(value - lowest, 1e-6), red)
    return value * (1 - missing * (factor * saturation + offset).clip(0, 1))


def contrast(rng, images, factor):
    """Values closer to the mean of their channel."""
    means = images.mean((1, 2), keepdims=True)
    return means + factor * (images - means)


def elastic_transform(rng, images, amplitude, sigma, shift):
    """A random affine map, then smooth random displacements; lengths in parts of the side."""
    n, height, width, _ = images.shape
    side = min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    # Three corners of a square around the center go elsewhere; this is the inverse map.
    middle, reach = np.array([height // 2, width // 2]), side // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])  # [3, 2]
    moved = corners + rng.uniform(-shift * side, shift * side, (n, 3, 2))
    moved = np.concatenate([moved, np.ones((n, 3, 1))], axis=-1)
    affine = np.linalg.solve(moved, np.broadcast_to(corners, (n, 3, 2)))  # [n, 3, 2]
    places = np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ affine[:, None]
    images = filters.sample(images, places[..., 0], places[..., 1])
    if not amplitude:
        return images
    noise = rng.uniform(-1, 1, (2 * n, height, width, 1)).astype(np.float32)
    offsets = amplitude * side * filters.gaussian_blur(noise, sigma * side)[..., 0]
    return filters.sample(images, rows + offsets[:n], columns + offsets[n:])


def pixelate(rng, images, factor):
    """Fewer pixels."""

    def pixelate_one(image):
        small = tuple(max(1, int(factor * side)) for side in image.size)
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _with_pillow(pixelate_one, images)


def jpeg_compression(rng, images, quality):
    """JPEG of Pillow's quality; the images depend on the version of its library."""

    def compress_one(image):
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        return Image.open(content)

    return _with_pillow(compress_one, images)


def _with_pillow(function, images):
    """Applies a function to every image as one of Pillow's."""
    levels = np.rint(255 * images).astype(np.uint8)
    levels = levels[..., 0] if levels.shape[-1] == 1 else levels
    done = np.stack([np.asarray(function(Image.fromarray(image))) for image in levels])
    return done.reshape(images.shape) / np.float32(255)


def _gray(images):
    """The luma [N, H, W, 1]."""
    return images if images.shape[-1] == 1 else (images @ _LUMA)[..., None]


def _color(levels, images):
    """A color [C], given as three levels of 0 to 255; its luma for images of one channel."""
    color = np.array(levels, np.float32) / 255
    return color if images.shape[-1] == 3 else (color @ _LUMA)[None]
