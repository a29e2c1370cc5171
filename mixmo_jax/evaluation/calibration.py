"""Calibration: temperature scaling, and metrics after it.

Shapes: N samples, M members, K classes.
"""

import numpy as np
from scipy import optimize

from mixmo_jax.evaluation.metrics import check_logits, ensemble_log_probs, ensemble_metrics

_BOUNDS = (0.01, 100.0)  # of temperatures


def fit_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> float:
    """Fits the temperature T in [0.01, 100] that minimizes the NLL of logits / T.

    T is 1 if there is no minimum. The NLL of mean logits falls without end as T falls if every
    prediction is right; for mean probabilities, if every member is right.

    Args:
      logits: [N, M, K] float.
      labels: [N] int.
      ensemble: See `metrics.ensemble_log_probs`.
      weights: See `metrics.ensemble_log_probs`.

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
    bounds, options = np.log(_BOUNDS), {"xatol": 1e-6}
    found = optimize.minimize_scalar(nll, bounds=bounds, method="bounded", options=options)
    return float(np.exp(found.x))


def cross_fit_temperatures(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Splits the samples into two fixed halves and fits the temperature of each on the other.

    Returns:
      The indices of the halves (the second is empty for N = 1), and their temperatures.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = np.array_split(order, 2)
    fitted = [
        fit_temperature(logits[half], labels[half], ensemble, weights) for half in (second, first)
    ]
    return [first, second], tuple(fitted)


def scaled_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
    *,
    pooled: bool = True,
) -> tuple[dict[str, float], tuple[float, float]]:
    """Computes the metrics after temperature scaling, by two-fold cross-fitting.

    Args:
      logits: [N, M, K] numbers.
      labels: [N] int.
      ensemble: See `metrics.ensemble_log_probs`.
      weights: See `metrics.ensemble_log_probs`.
      pooled: Whether to score all scaled samples together. If False, the metrics of the two halves
        are averaged, as the MixMo authors' program does. This inflates ECE and TACE, which are
        biased for few samples.

    Returns:
      The metrics, see `metrics.ensemble_metrics`; and the temperatures of the two halves.

    Raises:
      InputError: see `metrics.ensemble_metrics`.
    """
    logits, labels = check_logits(logits, labels)
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


def compute_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    ensemble: str = "logits",
    weights: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes all metrics, plain and with temperature scaling.

    Args:
      logits: [N, M, K] numbers from any source.
      labels: [N] int.
      ensemble: See `metrics.ensemble_log_probs`.
      weights: See `metrics.ensemble_log_probs`.

    Returns:
      The metrics of `ensemble_metrics`; those of `scaled_metrics` with the prefix "scaled_"; and
      the temperatures of the two halves, `temperature0` and `temperature1`.

    Raises:
      InputError: see `metrics.ensemble_metrics`.
    """
    scaled, temperatures = scaled_metrics(logits, labels, ensemble, weights)
    return {
        **ensemble_metrics(logits, labels, ensemble, weights),
        **{f"scaled_{name}": value for name, value in scaled.items()},
        **{f"temperature{i}": temperature for i, temperature in enumerate(temperatures)},
    }
