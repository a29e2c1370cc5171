"""Scores of an ensemble's logits, on the host, exact over the whole set.

Glossary: N samples, M members, K classes.
"""

import itertools

import numpy as np
from scipy import special

NUM_BINS = 15


def ensemble_log_probs(logits: np.ndarray, ensemble: str = "logits") -> np.ndarray:
    """The ensemble's log probabilities.

    Args:
      logits: [N, M, K] of the members.
      ensemble: "logits": the softmax of the members' mean logits; "probabilities": the mean of
        the members' softmax.

    Returns:
      [N, K] float64.
    """
    logits = np.asarray(logits, np.float64)
    if ensemble == "logits":
        return special.log_softmax(logits.mean(1), axis=-1)
    log_probs = special.log_softmax(logits, axis=-1)
    return special.logsumexp(log_probs, axis=1) - np.log(logits.shape[1])


def score(logits: np.ndarray, labels: np.ndarray, ensemble: str = "logits") -> dict[str, float]:
    """All scores of an ensemble and its members.

    Args:
      logits: [N, M, K] of the members.
      labels: [N] int.
      ensemble: see `ensemble_log_probs`.

    Returns:
      `accuracy`, `top5_accuracy`, `accuracy_member{i}` for i < M, `accuracy_members_mean` as
      shares of 1; `nll` in nats; `ece`; with several members `ratio_error` and `disagreement`.

    References:
      ECE: arXiv 1706.04599; ratio error: Aksela 2003, as in the MixMo paper.
    """
    log_probs = ensemble_log_probs(logits, ensemble)
    member_correct = logits.argmax(-1) == labels[:, None]
    scores = {
        "accuracy": (log_probs.argmax(-1) == labels).mean(),
        "top5_accuracy": top_k_accuracy(log_probs, labels, 5),
        "accuracy_members_mean": member_correct.mean(),
        "nll": -np.take_along_axis(log_probs, labels[:, None], axis=1).mean(),
        "ece": expected_calibration_error(np.exp(log_probs), labels),
    }
    for member, correct in enumerate(member_correct.T):
        scores[f"accuracy_member{member}"] = correct.mean()
    if logits.shape[1] > 1:
        scores["ratio_error"] = ratio_error(member_correct)
        scores["disagreement"] = disagreement(logits.argmax(-1))
    return {name: float(value) for name, value in scores.items()}


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of the samples whose label is among the k highest of [N, K] scores."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return float(((scores > own).sum(1) < k).mean())


def reliability_bins(
    probs: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples in equal-width bins (low, high] of the top probability.

    Args:
      probs: [N, K].
      labels: [N] int.
      num_bins: number of bins between 0 and 1.

    Returns:
      For each bin, [num_bins] each: number of samples, mean top probability, accuracy (both 0
      where the bin is empty).
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
    """Mean distance of confidence and accuracy over 15 equal-width bins, weighted by their size."""
    counts, confidence, accuracy = reliability_bins(probs, labels)
    return float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())


def ratio_error(correct: np.ndarray) -> float:
    """Samples where just one of a pair errs per sample where both do, averaged over the pairs.

    Args:
      correct: [N, M] bool, whether each member is right.

    Returns:
      At least 0; infinite where no sample has both wrong (nan if there are no errors at all).
    """
    ratios = []
    for first, second in itertools.combinations(correct.T, 2):
        one, both = (first != second).sum(), (~first & ~second).sum()
        ratios.append(one / both if both else (np.inf if one else np.nan))
    return float(np.mean(ratios))


def disagreement(predictions: np.ndarray) -> float:
    """Share of the samples on which a pair of members differs, averaged over pairs: [N, M] int."""
    pairs = itertools.combinations(predictions.T, 2)
    return float(np.mean([(first != second).mean() for first, second in pairs]))
