"""Scores of an ensemble's logits [N, M, K]: NumPy in, NumPy out. Public as `mixmo_jax.metrics`."""

from mixmo_jax.evaluation.calibration import (
    compute_metrics,
    cross_fit_temperatures,
    fit_temperature,
    scaled_metrics,
)
from mixmo_jax.evaluation.metrics import (
    auroc,
    disagreement,
    ensemble_log_probs,
    ensemble_metrics,
    expected_calibration_error,
    ratio_error,
    reliability_bins,
    thresholded_adaptive_calibration_error,
    top_k_accuracy,
)

__all__ = [
    "auroc",
    "compute_metrics",
    "cross_fit_temperatures",
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
