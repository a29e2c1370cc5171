"""Robustness: metrics on corrupted test images in the layout of CIFAR-10-C. (arXiv 1903.12261.)"""

import pathlib
from collections.abc import Callable

import numpy as np

from mixmo_jax.errors import InputError, map_array
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
      folder: The folder with `labels.npy` [5 n] int and for each corruption `<name>.npy`
        [5 n, H, W, C] uint8: n images for each of the severities 1 to 5, one after the other.
      image_shape: The shape (H, W, C) of an image.
      ensemble: How the members are combined, see `ensemble.ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.

    Returns:
      For each corruption, and for "mean" over them, the metrics (see `metrics.ensemble_metrics`)
      at the severities "1" to "5" and their "mean". A mean of numbers of which one is not finite is
      not finite either (`ratio_error`, or `auroc` where all is right).

    Raises:
      InputError: if a file is missing or damaged, or has another shape or dtype.
    """
    labels, arrays = _read_folder(folder, image_shape)
    results = {}
    for name, images in arrays.items():
        scores = []
        for x, y in zip(np.split(images, SEVERITIES), np.split(labels, SEVERITIES), strict=True):
            logits = logits_fn(x)
            _check_labels(folder / _LABELS, y, logits.shape[-1])
            scores.append(metrics.ensemble_metrics(logits, y, ensemble, weights))
        results[name] = {str(i): score for i, score in enumerate(scores, 1)}
        results[name]["mean"] = _mean(scores)
    results["mean"] = {key: _mean([r[key] for r in results.values()]) for key in results[name]}
    return results


def read_labels(folder: pathlib.Path) -> np.ndarray:
    """Reads the labels of the images in a folder, see `score_corruptions`.

    Raises:
      InputError: if there is no such folder or file, or it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"corruptions={folder}: no such folder")
    labels = map_array(folder / _LABELS)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{folder / _LABELS}: {labels.dtype}, expected integers")
    if labels.ndim != 1 or not len(labels) or len(labels) % SEVERITIES:
        raise InputError(f"{folder / _LABELS}: shape {labels.shape}, expected [{SEVERITIES} n]")
    return labels.astype(np.int64)


def _read_folder(folder, image_shape):
    """Returns the labels and the images of each corruption, all of which are checked."""
    labels = read_labels(folder)
    arrays = {f.stem: map_array(f) for f in sorted(folder.glob("*.npy")) if f.name != _LABELS}
    if not arrays:
        raise InputError(f"corruptions={folder}: no files besides {_LABELS}")
    if "mean" in arrays:
        raise InputError(f"{folder / 'mean.npy'}: expected another name; it is that of the mean")
    for name, images in arrays.items():
        expected = (len(labels), *image_shape)
        if images.shape != expected or images.dtype != np.uint8:
            found = f"{images.dtype} {images.shape}"
            raise InputError(f"{folder / name}.npy: {found}, expected uint8 {expected}")
    return labels, arrays


def _check_labels(file, labels, num_classes):
    if labels.min() < 0 or labels.max() >= num_classes:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"{file}: labels: {outside}, expected 0 to {num_classes - 1}")


def _mean(scores):
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
