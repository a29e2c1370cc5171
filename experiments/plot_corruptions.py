"""Draws accuracy against the severity of corruptions, from folders of runs.

    python experiments/plot_corruptions.py runs/studies/robustness/*-s? --output=corruptions.png

Every run was evaluated with `--corruptions=DIR`. A line is the mean over the corruptions and the
seeds, bars are standard deviations over the seeds; severity 0 is the test images as they are.
"""

import pathlib
import sys

import plot_style

from mixmo_jax.commands import run_command
from mixmo_jax.errors import read_json, reading
from mixmo_jax.evaluation.corruptions import SEVERITIES
from mixmo_jax.runs.metric_writer import CORRUPTIONS, RESULTS


def main() -> None:
    arguments = plot_style.parse(__doc__, "RUN", "corruptions.png")
    plot_style.save(draw(plot_style.by_label(arguments.inputs)), arguments.output)


def draw(groups: dict[str, list[pathlib.Path]]) -> plot_style.Figure:
    """A line for each label."""
    figure = plot_style.create()
    axes = figure.subplots()
    lines = {
        label: (range(SEVERITIES + 1), *plot_style.mean_and_deviation(map(accuracies, folders)))
        for label, folders in groups.items()
    }
    plot_style.finish(axes, xlabel="severity of the corruptions", ylabel="accuracy (%)")
    plot_style.draw_lines(figure, axes, lines)
    return figure


def accuracies(folder: pathlib.Path) -> list[float]:
    """The accuracies in % of a run at the severities from 0."""
    clean, corrupted = read_json(folder / RESULTS), read_json(folder / CORRUPTIONS)
    with reading(folder / CORRUPTIONS, KeyError, TypeError):
        scores = [corrupted["scores"]["mean"][str(i)] for i in range(1, SEVERITIES + 1)]
        return [100 * score["accuracy"] for score in (clean["scores"], *scores)]


if __name__ == "__main__":
    sys.exit(run_command(main))
