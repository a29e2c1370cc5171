"""Robustness: metrics on corrupted test images in the layout of CIFAR-10-C, arXiv 1903.12261."""

import pathlib
from collections.abc import Callable

import numpy as np

from mixmo_jax.errors import InputError, reading
from mixmo_jax.evaluation import metrics

SEVERITIES = 5
_LABELS = "labels.npy"


def score_corruptions(
    logits_fn: Callable[[np.ndarray], np.ndarray],
    folder: pathlib.Path,
    image_shape: tuple[int, int, int],
    ensemble: str,
    weights: np.ndarray | None = None,
) -> dict[str, dict]:
    """Computes the metrics of every corruption at every severity.

    Args:
      logits_fn: A function from images [N, H, W, C] uint8 to logits [N, M, K].
      folder: A folder with `labels.npy` [5 n] int and, for each corruption, `<name>.npy`
        [5 n, H, W, C] uint8: n images for each of the severities 1 to 5.
      image_shape: (H, W, C).
      ensemble: See `metrics.ensemble_log_probs`.
      weights: See `metrics.ensemble_log_probs`.

    Returns:
      For each corruption, and for their "mean": the metrics (see `metrics.ensemble_metrics`) at the
      severities "1" to "5" and their "mean". A mean is not finite if one of its numbers is not.

    Raises:
      InputError: if a file is missing or damaged, or has another shape or dtype.
    """
    labels, arrays = _read_folder(folder, image_shape)
    results = {}
    for name, images in arrays.items():
        scores = [
            metrics.ensemble_metrics(logits_fn(x), y, ensemble, weights)
            for x, y in zip(np.split(images, SEVERITIES), np.split(labels, SEVERITIES), strict=True)
        ]
        results[name] = {str(i): score for i, score in enumerate(scores, 1)}
        results[name]["mean"] = _mean(scores)
    results["mean"] = {key: _mean([r[key] for r in results.values()]) for key in results[name]}
    return results


def _read_folder(folder, image_shape):
    """Returns the labels and the memory-mapped images of each corruption."""
    if not (folder / _LABELS).is_file():
        raise InputError(f"corruptions={folder}: expected a folder with {_LABELS}")
    labels = _read_array(folder / _LABELS)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) % SEVERITIES:
        found = f"{labels.dtype} {labels.shape}"
        raise InputError(f"{folder / _LABELS}: {found}, expected integers [{SEVERITIES} n]")
    files = [f for f in sorted(folder.glob("*.npy")) if f.name != _LABELS]
    if not files:
        raise InputError(f"corruptions={folder}: no files besides {_LABELS}")
    arrays, expected = {f.stem: _read_array(f) for f in files}, (len(labels), *image_shape)
    for name, images in arrays.items():
        if images.shape != expected or images.dtype != np.uint8:
            found = f"{images.dtype} {images.shape}"
            raise InputError(f"{folder / name}.npy: {found}, expected uint8 {expected}")
    return labels.astype(np.int64), arrays


def _read_array(file):
    with reading(file, ValueError, EOFError):
        return np.load(file, mmap_mode="r", allow_pickle=False)


def _mean(scores):
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
