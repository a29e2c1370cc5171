"""Metrics of an ensemble's logits, on the host, exact over the whole split.

Glossary: N samples, M members, K classes.
"""

import itertools

import numpy as np
from scipy import stats

from mixmo_jax.errors import InputError
from mixmo_jax.evaluation.calibration import (
    cross_fit_temperatures,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    thresholded_adaptive_calibration_error,
)
from mixmo_jax.evaluation.ensemble import ensemble_log_probs

__all__ = [
    "auroc",
    "compute_metrics",
    "disagreement",
    "ensemble_log_probs",
    "ensemble_metrics",
    "expected_calibration_error",
    "fit_temperature",
    "ratio_error",
    "reliability_bins",
    "scaled_metrics",
    "thresholded_adaptive_calibration_error",
    "top_k_accuracy",
]


def compute_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes all metrics of an ensemble and its members, plain and with temperature scaling.

    Args:
      logits: [N, M, K] numbers of the members, from whatever source.
      labels: [N] int.
      ensemble: How the members are combined, see `ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.

    Returns:
      The metrics of `ensemble_metrics`; those of `scaled_metrics` with "scaled_" before their
      names; and the two temperatures, `temperature0` and `temperature1`.

    Raises:
      InputError: if the arrays do not fit together, are empty, or not finite.
    """
    scaled, temperatures = scaled_metrics(logits, labels, ensemble, weights)
    return {
        **ensemble_metrics(logits, labels, ensemble, weights),
        **{f"scaled_{name}": value for name, value in scaled.items()},
        **{f"temperature{i}": temperature for i, temperature in enumerate(temperatures)},
    }


def ensemble_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes the metrics of an ensemble and its members.

    Args:
      logits: [N, M, K] numbers of the members.
      labels: [N] int.
      ensemble: How the members are combined, see `ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.

    Returns:
      As fractions of 1: `accuracy`, `top5_accuracy`, `accuracy_member{i}` for i < M,
      `accuracy_members_mean`. Of the class probabilities: `nll` in nats, `brier` (summed over
      classes), `brier_per_class` (averaged over them), `ece`, `tace`, `auroc` (of the top
      probability as a detector of correct predictions). With several members: `ratio_error` and
      `disagreement`.

    Raises:
      InputError: see `compute_metrics`.

    References:
      ECE: arXiv 1706.04599; TACE: arXiv 1904.01685; ratio error: Aksela 2003, as in the MixMo
      paper.
    """
    logits, labels = _checked(logits, labels)
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


def scaled_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
    *,
    pooled: bool = True,
) -> tuple[dict[str, float], tuple[float, float]]:
    """Computes the metrics after temperature scaling, by two-fold cross-fitting.

    The samples are cut into two halves, always the same ones; each is scaled by the temperature
    fitted on the other.

    Args:
      logits: [N, M, K] numbers of the members.
      labels: [N] int.
      ensemble: How the members are combined, see `ensemble_log_probs`.
      weights: [M] float, the members' weights in the ensemble; None for equal weights.
      pooled: Whether all scaled samples are scored together. If not, the metrics of the two halves
        are averaged (where they are defined), as the MixMo authors' program does: that inflates
        ECE and TACE, which are biased for few samples.

    Returns:
      The metrics, see `ensemble_metrics`; and the temperatures of the two halves.

    Raises:
      InputError: see `compute_metrics`.
    """
    logits, labels = _checked(logits, labels)
    halves, temperatures = cross_fit_temperatures(logits, labels, ensemble, weights)
    scaled = np.empty_like(logits)
    for half, temperature in zip(halves, temperatures, strict=True):
        scaled[half] = logits[half] / temperature
    if pooled:
        return ensemble_metrics(scaled, labels, ensemble, weights), temperatures
    parts = [ensemble_metrics(scaled[h], labels[h], ensemble, weights) for h in halves if len(h)]
    values = {name: [part[name] for part in parts] for name in parts[0]}
    defined = {name: [v for v in values[name] if not np.isnan(v)] for name in values}
    return {name: float(np.mean(v)) if v else np.nan for name, v in defined.items()}, temperatures


def _checked(logits, labels):
    """Both as NumPy arrays, the logits float64, if metrics can be computed."""
    try:
        logits = np.asarray(logits, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"logits: expected numbers [N, M, K]: {error}") from None
    try:
        labels = np.asarray(labels)
    except ValueError as error:
        raise InputError(f"labels: expected integers [N]: {error}") from None
    if logits.ndim != 3 or labels.shape != logits.shape[:1] or not logits.size:
        shapes = f"{logits.shape} and {labels.shape}"
        raise InputError(
            f"logits and labels: shapes {shapes}, expected [N, M, K] and [N], all >= 1"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels: {labels.dtype}, expected integers")
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"labels: {outside}, expected 0 to {logits.shape[2] - 1}")
    if not np.isfinite(logits).all():
        raise InputError("logits: some are not finite")
    return logits, labels


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the fraction of the samples whose label is among the k highest of [N, K] scores."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return float(((scores > own).sum(1) < k).mean())


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve of [N] values as a detector of [N] bool.

    It is nan if all are the same.
    """
    count = positive.sum()
    if count in (0, len(positive)):
        return float("nan")
    ranks = stats.rankdata(values)[positive].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(positive) - count)))


def ratio_error(correct: np.ndarray) -> float:
    """Returns the number of samples where just one of a pair errs per sample where both do.

    Args:
      correct: [N, M] bool, whether each member is right.

    Returns:
      The mean over the pairs that make errors, at least 0; infinite where one has no sample that
      both have wrong, nan if there are no errors at all.
    """
    ratios = []
    for first, second in itertools.combinations(correct.T, 2):
        one, both = (first != second).sum(), (~first & ~second).sum()
        if one or both:
            ratios.append(one / both if both else np.inf)
    return float(np.mean(ratios)) if ratios else np.nan


def disagreement(predictions: np.ndarray) -> float:
    """Returns the fraction of the samples on which a pair of members differs, averaged over pairs.

    Args:
      predictions: [N, M] int.
    """
    pairs = itertools.combinations(predictions.T, 2)
    return float(np.mean([(first != second).mean() for first, second in pairs]))
