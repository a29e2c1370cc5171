"""Metrics of an ensemble's logits, exact over a whole split.

Shapes: N samples, M members, K classes.
"""

import itertools

import numpy as np
from scipy import special, stats

from mixmo_jax.errors import InputError, invalid

ENSEMBLES = ("logits", "probabilities")
NUM_BINS = 15  # of the calibration errors


def ensemble_log_probs(
    logits: np.ndarray, ensemble: str = "logits", weights: np.ndarray | None = None
) -> np.ndarray:
    """Computes the log of the ensemble's class probabilities.

    Args:
      logits: [N, M, K] float.
      ensemble: "logits" for the softmax of the mean logits, "probabilities" for the mean softmax.
      weights: [M] float, weight of each member, sum to 1; None for equal weights.

    Returns:
      [N, K] float64.

    Raises:
      InputError: if `ensemble` is neither.
    """
    if ensemble not in ENSEMBLES:
        raise invalid("ensemble", ensemble, " or ".join(ENSEMBLES))
    logits = np.asarray(logits, np.float64)
    num_members = logits.shape[1]
    weights = np.full(num_members, 1 / num_members) if weights is None else np.asarray(weights)
    if ensemble == "logits":
        return special.log_softmax(np.einsum("nmk,m->nk", logits, weights), axis=-1)
    log_probs = special.log_softmax(logits, axis=-1)
    return special.logsumexp(log_probs, axis=1, b=weights[:, None])


def ensemble_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes the metrics of an ensemble and its members.

    Args:
      logits: [N, M, K] numbers.
      labels: [N] int.
      ensemble: See `ensemble_log_probs`.
      weights: See `ensemble_log_probs`.

    Returns:
      Fractions: `accuracy`, `top5_accuracy`, `accuracy_member{i}`, `accuracy_members_mean`. Of the
      class probabilities: `nll` in nats, `brier` (summed over classes), `brier_per_class` (averaged
      over classes), `ece`, `tace`, and `auroc` of the top probability as a detector of correct
      predictions. For M > 1: `ratio_error`, `disagreement`.

    Raises:
      InputError: if the arrays do not fit together, are empty or not finite.

    References:
      ECE: arXiv 1706.04599; TACE: arXiv 1904.01685; ratio error: Aksela 2003, as in MixMo.
    """
    logits, labels = check_logits(logits, labels)
    log_probs = ensemble_log_probs(logits, ensemble, weights)  # [N, K]
    probs = np.exp(log_probs)
    correct = log_probs.argmax(-1) == labels  # [N]
    member_correct = logits.argmax(-1) == labels[:, None]  # [N, M]
    squares = (probs**2).sum(1) - 2 * np.take_along_axis(probs, labels[:, None], 1)[:, 0] + 1
    values = {
        "accuracy": correct.mean(),
        "top5_accuracy": top_k_accuracy(log_probs, labels, 5),
        "accuracy_members_mean": member_correct.mean(),
        "nll": -np.take_along_axis(log_probs, labels[:, None], axis=1).mean(),
        "brier": squares.mean(),
        "brier_per_class": squares.mean() / probs.shape[1],
        "ece": expected_calibration_error(probs, labels),
        "tace": thresholded_adaptive_calibration_error(probs, labels),
        "auroc": auroc(probs.max(1), correct),
    }
    for member, right in enumerate(member_correct.T):
        values[f"accuracy_member{member}"] = right.mean()
    if logits.shape[1] > 1:
        values["ratio_error"] = ratio_error(member_correct)
        values["disagreement"] = disagreement(logits.argmax(-1))
    return {name: float(value) for name, value in values.items()}


def check_logits(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits [N, M, K] as float64 and labels [N] as an array.

    Raises:
      InputError: if they do not fit together, are empty or not finite.
    """
    try:
        logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"logits and labels: expected arrays [N, M, K] and [N]: {error}") from None
    if logits.ndim != 3 or labels.shape != logits.shape[:1] or not logits.size:
        shapes = f"{logits.shape} and {labels.shape}"
        raise InputError(f"logits and labels: shapes {shapes}, expected [N, M, K] and [N], N >= 1")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels: {labels.dtype}, expected integers")
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"labels: {outside}, expected 0 to {logits.shape[2] - 1}")
    if not np.isfinite(logits).all():
        raise InputError("logits: some are not finite")
    return logits, labels


def reliability_bins(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts samples in equal-width bins (low, high] of the top probability.

    Args:
      probs: [N, K] float.
      labels: [N] int.
      num_bins: Number of bins on [0, 1].

    Returns:
      Number of samples, mean top probability and accuracy of each bin, [num_bins] each; the latter
      two are 0 for an empty bin.
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
    """Computes ECE: the mean gap of confidence and accuracy over 15 equal-width bins.

    Args:
      probs: [N, K] float.
      labels: [N] int.

    References:
      arXiv 1706.04599; bins are weighted by their size.
    """
    counts, confidence, accuracy = reliability_bins(probs, labels)
    return float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())


def thresholded_adaptive_calibration_error(
    probs: np.ndarray, labels: np.ndarray, threshold: float = 1e-3
) -> float:
    """Computes TACE: the mean gap of confidence and frequency over equal-mass bins of each class.

    Of each class, the probabilities above the threshold are sorted and cut into 15 bins of equal
    size. The last bin takes the remainder, and everything if there are fewer than 15. Gaps are
    weighted by the size of the bin, relative to N * K.

    Args:
      probs: [N, K] float.
      labels: [N] int.
      threshold: Smaller probabilities do not count.

    References:
      arXiv 1904.01685; cuts and weights as in the MixMo authors' program.
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


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the fraction of samples whose label is among the k highest of [N, K] scores."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return float(((scores > own).sum(1) < k).mean())


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve of [N] values as a detector of [N] bool.

    NaN if all samples are positive, or all negative.
    """
    count = positive.sum()
    if count in (0, len(positive)):
        return float("nan")
    ranks = stats.rankdata(values)[positive].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(positive) - count)))


def ratio_error(correct: np.ndarray) -> float:
    """Returns the samples where exactly one of two members is wrong, per sample where both are.

    Args:
      correct: [N, M] bool, whether each member is right.

    Returns:
      The mean over the pairs that make errors. Infinite if a pair never errs together, NaN if no
      member errs.
    """
    ratios = []
    for first, second in itertools.combinations(correct.T, 2):
        one, both = (first != second).sum(), (~first & ~second).sum()
        if one or both:
            ratios.append(one / both if both else np.inf)
    return float(np.mean(ratios)) if ratios else np.nan


def disagreement(predictions: np.ndarray) -> float:
    """Returns the fraction of samples on which two members differ, the mean over pairs.

    Args:
      predictions: [N, M] int.
    """
    pairs = itertools.combinations(predictions.T, 2)
    return float(np.mean([(first != second).mean() for first, second in pairs]))
