"""Scores of an ensemble's logits, on the host, exact over the whole set.

Glossary: N samples, M members, K classes.
"""

import itertools

import numpy as np
from scipy import optimize, special, stats

from mixmo_jax.errors import InputError, invalid

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
    if ensemble not in ("logits", "probabilities"):
        raise invalid("ensemble", ensemble, "logits or probabilities")
    if ensemble == "logits":
        return special.log_softmax(logits.mean(1), axis=-1)
    log_probs = special.log_softmax(logits, axis=-1)
    return special.logsumexp(log_probs, axis=1) - np.log(logits.shape[1])


def score(logits: np.ndarray, labels: np.ndarray, ensemble: str = "logits") -> dict[str, float]:
    """All scores of an ensemble and its members, before and after temperature scaling.

    Args:
      logits: [N, M, K] of the members, from wherever they come.
      labels: [N] int.
      ensemble: see `ensemble_log_probs`.

    Returns:
      The scores of `plain_scores`; those of `scaled_scores` with "scaled_" before their names;
      and the two temperatures, `temperature0` and `temperature1`.

    Raises:
      InputError: if the arrays do not fit together, are empty, or not finite.
    """
    scaled, temperatures = scaled_scores(logits, labels, ensemble)
    return {
        **plain_scores(logits, labels, ensemble),
        **{f"scaled_{name}": value for name, value in scaled.items()},
        **{f"temperature{i}": temperature for i, temperature in enumerate(temperatures)},
    }


def plain_scores(
    logits: np.ndarray, labels: np.ndarray, ensemble: str = "logits"
) -> dict[str, float]:
    """The scores of an ensemble and its members.

    Args:
      logits: [N, M, K] of the members.
      labels: [N] int.
      ensemble: see `ensemble_log_probs`.

    Returns:
      As shares of 1: `accuracy`, `top5_accuracy`, `accuracy_member{i}` for i < M,
      `accuracy_members_mean`. Of the probabilities: `nll` in nats, `brier` (summed over classes),
      `brier_per_class` (averaged over them), `ece`, `tace`, `auroc` (of the top probability as a
      detector of right answers). With several members: `ratio_error` and `disagreement`.

    Raises:
      InputError: see `score`.

    References:
      ECE: arXiv 1706.04599; TACE: arXiv 1904.01685; ratio error: Aksela 2003, as in the MixMo
      paper.
    """
    logits, labels = _checked(logits, labels)
    log_probs = ensemble_log_probs(logits, ensemble)
    probs = np.exp(log_probs)
    correct = log_probs.argmax(-1) == labels
    member_correct = logits.argmax(-1) == labels[:, None]
    squares = (probs**2).sum(1) - 2 * np.take_along_axis(probs, labels[:, None], 1)[:, 0] + 1
    scores = {
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
        scores[f"accuracy_member{member}"] = right.mean()
    if logits.shape[1] > 1:
        scores["ratio_error"] = ratio_error(member_correct)
        scores["disagreement"] = disagreement(logits.argmax(-1))
    return {name: float(value) for name, value in scores.items()}


def fit_temperature(logits: np.ndarray, labels: np.ndarray, ensemble: str = "logits") -> float:
    """The temperature T from 0.01 to 100 at which the logits / T have the least NLL.

    It is 1 where there is none: if every answer is right, the NLL falls without end as T does.

    Args:
      logits: [N, M, K] of the members.
      labels: [N] int.
      ensemble: see `ensemble_log_probs`.

    References:
      Temperature scaling, arXiv 1706.04599.
    """
    logits = np.asarray(logits, np.float64)

    def nll(log_temperature: float) -> float:
        log_probs = ensemble_log_probs(logits / np.exp(log_temperature), ensemble)
        return -np.take_along_axis(log_probs, labels[:, None], axis=1).mean()

    low, high = np.log([0.01, 100])
    if (ensemble_log_probs(logits / np.exp(low), ensemble).argmax(-1) == labels).all():
        return 1.0
    found = optimize.minimize_scalar(
        nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def scaled_scores(
    logits: np.ndarray, labels: np.ndarray, ensemble: str = "logits"
) -> tuple[dict[str, float], tuple[float, float]]:
    """Scores after temperature scaling, by two-fold cross-validation.

    The samples are cut into two halves, always the same. The temperature fitted on each is
    applied to the other, and the scores of the two are averaged (of those that are defined).

    Args:
      logits: [N, M, K] of the members.
      labels: [N] int.
      ensemble: see `ensemble_log_probs`.

    Returns:
      The scores, see `plain_scores`; and the two temperatures.

    Raises:
      InputError: see `score`.
    """
    logits, labels = _checked(logits, labels)
    order = np.random.default_rng(0).permutation(len(labels))
    halves = np.array_split(order, 2)
    temperatures = tuple(fit_temperature(logits[h], labels[h], ensemble) for h in halves)
    parts = [
        plain_scores(logits[half] / temperature, labels[half], ensemble)
        for half, temperature in zip(reversed(halves), temperatures, strict=True)
        if len(half)  # the second is empty if N = 1
    ]
    values = {name: [part[name] for part in parts] for name in parts[0]}
    defined = {name: [v for v in values[name] if not np.isnan(v)] for name in values}
    return {name: float(np.mean(v)) if v else np.nan for name, v in defined.items()}, temperatures


def _checked(logits, labels):
    """Both as NumPy arrays, the logits float64, if they can be scored."""
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


def thresholded_adaptive_calibration_error(
    probs: np.ndarray, labels: np.ndarray, threshold: float = 1e-3
) -> float:
    """Distance of confidence and frequency over bins of equal mass, class by class.

    Of each class the probabilities above the threshold are sorted and cut into 15 bins of the same
    size, the last of which takes what remains (and all, of fewer than 15). The distances are
    weighted by the bins' sizes, over all N * K.

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


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of [N] values as a detector of [N] bool; nan if all are the same."""
    count = positive.sum()
    if count in (0, len(positive)):
        return float("nan")
    ranks = stats.rankdata(values)[positive].sum() - count * (count + 1) / 2
    return float(ranks / (count * (len(positive) - count)))


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
