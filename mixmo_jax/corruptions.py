"""Robustness: scores on corrupted test images in the layout of CIFAR-10-C. (arXiv 1903.12261.)"""

import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from mixmo_jax import metrics
from mixmo_jax.errors import InputError

SEVERITIES = 5
_LABELS = "labels.npy"


def score_corruptions(
    logits_fn: Callable[[np.ndarray], np.ndarray],
    folder: pathlib.Path,
    image_shape: tuple[int, int, int],
    ensemble: str,
) -> dict[str, dict]:
    """Scores every corruption at every severity.

    Args:
      logits_fn: [N, H, W, C] uint8 → [N, M, K].
      folder: holds `labels.npy` [5 n] and for each corruption `<name>.npy` [5 n, H, W, C] uint8,
        n images for each of the severities 1 to 5, one after the other.
      image_shape: (H, W, C).
      ensemble: see `metrics.ensemble_log_probs`.

    Returns:
      Of each corruption, and of "mean" over them, the scores (see `metrics.plain_scores`) for "1"
      to "5" and their "mean".

    Raises:
      InputError: if a file is missing, damaged or of another shape.
    """
    if not folder.is_dir():
        raise InputError(f"corruptions={folder}: no such folder")
    labels = _read(folder / _LABELS)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{folder / _LABELS}: {labels.dtype}, expected integers")
    labels = labels.astype(np.int64)
    files = sorted(f for f in folder.glob("*.npy") if f.name != _LABELS)
    if not files:
        raise InputError(f"corruptions={folder}: no files besides {_LABELS}")
    if folder / "mean.npy" in files:
        raise InputError(f"{folder / 'mean.npy'}: expected another name; it is that of the mean")
    if labels.ndim != 1 or not len(labels) or len(labels) % SEVERITIES:
        raise InputError(f"{folder / _LABELS}: shape {labels.shape}, expected [{SEVERITIES} n]")
    arrays = {file.stem: _read(file) for file in files}
    for name, images in arrays.items():  # all, before the work begins
        expected = (len(labels), *image_shape)
        if images.shape != expected or images.dtype != np.uint8:
            found = f"{images.dtype} {images.shape}"
            raise InputError(f"{folder / name}.npy: {found}, expected uint8 {expected}")
    results = {}
    for name, images in arrays.items():
        parts = zip(np.split(images, SEVERITIES), np.split(labels, SEVERITIES), strict=True)
        scores = [metrics.plain_scores(logits_fn(x), y, ensemble) for x, y in parts]
        results[name] = {str(i): score for i, score in enumerate(scores, 1)}
        results[name]["mean"] = _mean(scores)
    results["mean"] = {key: _mean([r[key] for r in results.values()]) for key in results[name]}
    return results


def _read(file):
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{file}: cannot be read: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{file}: cannot be read: an archive, expected one array")
    return array


def _mean(scores):
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
