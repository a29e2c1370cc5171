"""The corruptions of CIFAR-10-C and Tiny-ImageNet-C, with the parameters of their severities.

    CORRUPTIONS["fog"](rng, images, severity=3)  # uint8 [N, H, W, C] to the same

The parameters are those of the programs that made the published images (arXiv 1903.12261).
"""

from collections.abc import Callable
from typing import NamedTuple

import corruption_functions as functions
import numpy as np

from mixmo_jax.errors import InputError

_SMALL_SIDE = 48  # pixels, between CIFAR's 32 and Tiny ImageNet's 64


class Corruption(NamedTuple):
    """A corruption, to be called.

    Attributes:
      function: One of `corruption_functions`.
      small: The parameters of the severities 1 to 5 for CIFAR's images.
      large: The same for Tiny ImageNet's, taken for images of more than 48 pixels a side.
      needs_color: Whether it is for three channels only.
    """

    function: Callable[..., np.ndarray]
    small: tuple[tuple, ...]
    large: tuple[tuple, ...]
    needs_color: bool = False

    def __call__(self, rng: np.random.Generator, images: np.ndarray, severity: int) -> np.ndarray:
        """Corrupts images.

        Args:
          rng: The source of randomness.
          images: The images [N, H, W, C] uint8, where C is 1 or 3.
          severity: The severity, 1 to 5.

        Returns:
          The corrupted images, of the same shape and dtype.

        Raises:
          InputError: if it needs color and C is 1.
        """
        if self.needs_color and images.shape[-1] == 1:
            raise InputError(f"{self.function.__name__}: needs images of three channels")
        parameters = self.large if max(images.shape[1:3]) > _SMALL_SIDE else self.small
        corrupted = self.function(rng, images / np.float32(255), *parameters[severity - 1])
        return np.rint(255 * corrupted.clip(0, 1)).astype(np.uint8)


def _each(*values):
    """The parameters of a corruption that has only one."""
    return tuple((value,) for value in values)


_ZOOMS = _each(1.06, 1.11, 1.16, 1.21, 1.26)

# From name to corruption, in the order of the paper; the last four are for validation there.
CORRUPTIONS = {
    "gaussian_noise": Corruption(
        functions.gaussian_noise,
        _each(0.04, 0.06, 0.08, 0.09, 0.10),
        _each(0.04, 0.08, 0.12, 0.15, 0.18),
    ),
    "shot_noise": Corruption(
        functions.shot_noise, _each(500, 250, 100, 75, 50), _each(250, 100, 50, 30, 15)
    ),
    "impulse_noise": Corruption(
        functions.impulse_noise,
        _each(0.01, 0.02, 0.03, 0.05, 0.07),
        _each(0.01, 0.02, 0.05, 0.08, 0.14),
    ),
    "defocus_blur": Corruption(
        functions.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    ),
    "glass_blur": Corruption(
        functions.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    ),
    "motion_blur": Corruption(
        functions.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    ),
    "zoom_blur": Corruption(functions.zoom_blur, _ZOOMS, _ZOOMS),
    "snow": Corruption(
        functions.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
    ),
    "frost": Corruption(
        functions.frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    ),
    "fog": Corruption(
        functions.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    ),
    "brightness": Corruption(
        functions.brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        functions.contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    "elastic_transform": Corruption(
        functions.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    ),
    "pixelate": Corruption(
        functions.pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.9, 0.8, 0.7, 0.6, 0.5)
    ),
    "jpeg_compression": Corruption(
        functions.jpeg_compression, _each(80, 65, 58, 50, 40), _each(65, 58, 50, 40, 25)
    ),
    "speckle_noise": Corruption(
        functions.speckle_noise,
        _each(0.06, 0.1, 0.12, 0.16, 0.2),
        _each(0.15, 0.2, 0.25, 0.3, 0.35),
    ),
    "gaussian_blur": Corruption(
        functions.gaussian_blur, _each(0.4, 0.6, 0.7, 0.8, 1), _each(0.5, 0.75, 1, 1.25, 1.5)
    ),
    "spatter": Corruption(
        functions.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.6, False),
            (0.65, 0.1, 0.8, 0.7, 0.6, False),
            (0.65, 0.3, 1, 0.69, 0.6, False),
            (0.65, 0.1, 0.7, 0.68, 0.6, True),
            (0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
    ),
    "saturate": Corruption(
        functions.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        needs_color=True,
    ),
}
