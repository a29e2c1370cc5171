"""Calibration: how far confidence and accuracy are apart, and temperature scaling.

Glossary: N samples, M members, K classes.
"""

import numpy as np
from scipy import optimize

from mixmo_jax.evaluation.ensemble import ensemble_log_probs

NUM_BINS = 15
_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures


def fit_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> float:
    """Fits the temperature T from 0.01 to 100 at which the logits / T have the least NLL.

    It is 1 where there is no optimum: if every prediction is right, the NLL of mean logits falls
    with T without end, and that of mean probabilities if every member is right, too.

    Args:
      logits: [N, M, K] float, of the members.
      labels: [N] int.
      ensemble: How the members are combined, see `ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.

    References:
      Temperature scaling, arXiv 1706.04599.
    """
    logits = np.asarray(logits, np.float64)

    def nll(log_temperature: float) -> float:
        log_probs = ensemble_log_probs(logits / np.exp(log_temperature), ensemble, weights)
        return -np.take_along_axis(log_probs, labels[:, None], axis=1).mean()

    combined = ensemble_log_probs(logits, ensemble, weights)[:, None]  # [N, 1, K]
    deciding = combined if ensemble == "logits" else logits
    if (deciding.argmax(-1) == labels[:, None]).all():
        return 1.0
    found = optimize.minimize_scalar(
        nll, bounds=np.log([_LOWEST, _HIGHEST]), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def cross_fit_temperatures(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Cuts the samples into two halves and fits a temperature for each on the other.

    Args:
      logits: [N, M, K] float, of the members.
      labels: [N] int.
      ensemble: How the members are combined, see `ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.

    Returns:
      The indices of the two halves, always the same ones (the second is empty for N = 1); and the
      temperature for each.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = np.array_split(order, 2)
    fitted = [
        fit_temperature(logits[half], labels[half], ensemble, weights) for half in (second, first)
    ]
    return [first, second], tuple(fitted)


def reliability_bins(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the samples in equal-width bins (low, high] of the top probability.

    Args:
      probs: [N, K] float.
      labels: [N] int.
      num_bins: The number of bins between 0 and 1.

    Returns:
      For each bin, [num_bins] each: the number of samples, the mean top probability, and the
      accuracy (both 0 where the bin is empty).
    """
    top = probs.max(1)
    correct = probs.argmax(1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    filled = np.maximum(counts, 1)
    confidence = np.bincount(bins, top, num_bins) / filled
    accuracy = np.bincount(bins, correct, num_bins) / filled
    return counts, confidence, accuracy


def expected_calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean distance of confidence and accuracy over 15 equal-width bins.

    Args:
      probs: [N, K] float.
      labels: [N] int.

    References:
      arXiv 1706.04599, with the bins weighted by their size.
    """
    counts, confidence, accuracy = reliability_bins(probs, labels)
    return float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())


def thresholded_adaptive_calibration_error(
    probs: np.ndarray, labels: np.ndarray, threshold: float = 1e-3
) -> float:
    """Returns the distance of confidence and frequency over bins of equal mass, class by class.

    The probabilities of a class above the threshold are sorted and cut into 15 bins of the same
    size, the last of which takes the remainder (and all, if there are fewer than 15). The distances
    are weighted by the bins' sizes, over all N * K.

    Args:
      probs: [N, K] float.
      labels: [N] int.
      threshold: The probability above which a sample counts for a class.

    References:
      arXiv 1904.01685; cuts and weights are those of the MixMo authors' program.
    """
    total = 0.0
    for k in range(probs.shape[1]):
        above = np.flatnonzero(probs[:, k] > threshold)
        above = above[np.argsort(probs[above, k], kind="stable")]
        size = len(above) // NUM_BINS
        cuts = [size * i for i in range(1, NUM_BINS)]
        excess = probs[above, k] - (labels[above] == k)
        total += sum(abs(part.sum()) for part in np.split(excess, cuts))
    return float(total / probs.size)
