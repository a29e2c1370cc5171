"""Draws the accuracy of ensembles and of their members over the epochs, from folders of runs.

    python experiments/plot_learning_curves.py runs/studies/methods/*-s? --output=curves.png

A panel for each method; lines are means over seeds, bands standard deviations. The scores are those
on the test images or, with a validation split, on the validation images.
"""

import pathlib
import sys

import numpy as np
import plot_style
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mixmo_jax.commands import run_command
from mixmo_jax.errors import InputError
from mixmo_jax.runs.metric_writer import read_metrics


def main() -> None:
    arguments = plot_style.parse(__doc__, "RUN", "learning_curves.png")
    plot_style.save(draw(plot_style.by_label(arguments.inputs)), arguments.output)


def draw(groups: dict[str, list[pathlib.Path]]) -> plot_style.Figure:
    """A panel for each label, all on the same scale."""
    figure, panels = plot_style.create_panels(groups, "epoch", "accuracy (%)")
    for axes, folders in zip(panels, groups.values(), strict=True):
        draw_panel(axes, folders)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    most = max(panels, key=lambda axes: len(axes.lines))
    most.legend(loc="lower right", fontsize=plot_style.FONT - 1, frameon=False)
    return figure


def draw_panel(axes: Axes, folders: list[pathlib.Path]) -> None:
    """The curves of the ensemble and of each member."""
    runs = [read_metrics(folder) for folder in folders]
    split = "validation" if "validation" in runs[0][-1] else "test"
    scored = [{m["epoch"]: m[split] for m in run if split in m} for run in runs]
    if any(list(run) != list(scored[0]) or not run for run in scored):
        raise InputError(f"{folders[0]}: expected runs that were scored after the same epochs")
    epochs, first = list(scored[0]), next(iter(scored[0].values()))
    members = [f"accuracy_member{i}" for i in range(len(first)) if f"accuracy_member{i}" in first]
    names = ["accuracy", *(members if len(members) > 1 else [])]
    for i, name in enumerate(names):
        values = [[100 * run[epoch].get(name, np.nan) for epoch in epochs] for run in scored]
        mean, deviation = plot_style.mean_and_deviation(values)
        color = plot_style.COLORS[i % len(plot_style.COLORS)]
        style = {"lw": 1, "ls": "--"} if i else {"lw": 2}
        text = f"member {i - 1}" if i else "ensemble"
        axes.plot(epochs, mean, color=color, label=text, **style)
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.12, lw=0)


if __name__ == "__main__":
    sys.exit(run_command(main))
