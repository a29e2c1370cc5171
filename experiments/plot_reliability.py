"""Draws accuracy against confidence, before and after temperature scaling, from folders of runs.

    python experiments/plot_reliability.py runs/studies/methods/*-s? --output=reliability.png

A panel for each method. Each half of the test images is scaled by the temperature fitted on the
other, as in the scores. The area of a mark is the part of the images in its bin; bins with less
than 1 % are left out. Bars are standard deviations over the seeds.
"""

import pathlib
import sys

import numpy as np
import plot_style
from matplotlib.axes import Axes
from scores import read_logits

from mixmo_jax.commands import run_command
from mixmo_jax.errors import read_json
from mixmo_jax.evaluation import calibration
from mixmo_jax.evaluation.ensemble import ensemble_log_probs
from mixmo_jax.runs.metric_writer import RESULTS

_BINS = 10
_LEAST = 0.01


def main() -> None:
    arguments = plot_style.parse(__doc__, "RUN", "reliability.png")
    plot_style.save(draw(plot_style.by_label(arguments.inputs)), arguments.output)


def draw(groups: dict[str, list[pathlib.Path]]) -> plot_style.Figure:
    """A panel for each label."""
    figure, panels = plot_style.create_panels(groups, "confidence (top probability)", "accuracy")
    for axes, folders in zip(panels, groups.values(), strict=True):
        draw_panel(axes, folders)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def draw_panel(axes: Axes, folders: list[pathlib.Path]) -> None:
    """Both curves, each with its ECE."""
    _, orange, blue, *_ = plot_style.COLORS
    before, after = zip(*map(probabilities, folders), strict=True)
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
    for i, (name, runs, color) in enumerate([("before", before, orange), ("after", after, blue)]):
        bins = np.array([calibration.reliability_bins(*run, _BINS) for run in runs])
        counts, confidence, accuracy = bins.swapaxes(0, 1)  # [runs, bins] each
        total = counts.sum(0)
        shown = total >= _LEAST * total.sum()
        weights = counts[:, shown] / total[shown]
        x, y = (weights * confidence[:, shown]).sum(0), (weights * accuracy[:, shown]).sum(0)
        # Unbiased for equal weights: n - 1 for n runs.
        bias = np.maximum(1 - (weights**2).sum(0), 1e-9)
        deviation = np.sqrt((weights * (accuracy[:, shown] - y) ** 2).sum(0) / bias)
        axes.errorbar(x, y, deviation, color=color, lw=1, elinewidth=0.8, capsize=2)
        area = 8 + 120 * total[shown] / total.sum()
        axes.scatter(x, y, area, color=color, zorder=3, clip_on=False)
        errors = [calibration.expected_calibration_error(*run) for run in runs]
        text = f"{name}: ECE {100 * np.mean(errors):.1f} %"
        place = {"ha": "right", "fontsize": plot_style.FONT - 1}
        axes.text(0.97, 0.13 - 0.09 * i, text, color=color, **place)


def probabilities(folder: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Class probabilities and labels of a run's test images, before and after scaling."""
    logits, labels = read_logits(folder)
    ensemble = read_json(folder / RESULTS).get("ensemble", "logits")
    scaled = np.array(logits, np.float64)
    halves, temperatures = calibration.cross_fit_temperatures(logits, labels, ensemble)
    for half, temperature in zip(halves, temperatures, strict=True):
        scaled[half] /= temperature
    return [(np.exp(ensemble_log_probs(x, ensemble)), labels) for x in (logits, scaled)]


if __name__ == "__main__":
    sys.exit(run_command(main))
