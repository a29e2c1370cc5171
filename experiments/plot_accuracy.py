"""Draws the accuracies of a comparison: of the ensembles, of single members, and as published.

python experiments/plot_accuracy.py runs/compare
"""

import pathlib
import sys

import numpy as np
import plot_style

from mixmo_jax.commands import run_command
from mixmo_jax.errors import InputError, read_json


def main() -> None:
    arguments = plot_style.parse(__doc__, "RESULTS", "accuracy.png")
    if len(arguments.inputs) != 1:
        raise InputError("RESULTS: expected one file or folder; a picture has one table")
    plot_style.save(draw(read_rows(*arguments.inputs)), arguments.output)


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a table, from results.json or its folder."""
    file = path / "results.json" if path.is_dir() else path
    rows = read_json(file).get("rows")
    if not isinstance(rows, list):
        raise InputError(f"{file}: expected the results of a comparison")
    return rows


def draw(rows: list[dict]) -> plot_style.Figure:
    """Draws means and standard deviations over seeds, a row below the other."""
    figure = plot_style.create(7, 1.4 + 0.4 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    black, orange, blue, *_ = plot_style.COLORS
    kinds = {
        "ensemble": ("accuracy (%)", 0.12, {"fmt": "o", "color": black}),
        "single members": ("members (%)", -0.12, {"fmt": "o", "color": blue, "mfc": "white"}),
    }
    for label, (name, shift, style) in kinds.items():
        drawn = [(row[name], place) for row, place in zip(rows, places, strict=True) if name in row]
        means = [mean for (mean, _), _ in drawn]
        deviations = [deviation or 0 for (_, deviation), _ in drawn]
        at = [place + shift for _, place in drawn]
        axes.errorbar(means, at, xerr=deviations, capsize=3, label=label, **style)
    known = [(row["published"], p) for row, p in zip(rows, places, strict=True) if row["published"]]
    if known:
        means = [np.mean(accuracy) for accuracy, _ in known]
        axes.plot(means, [p for _, p in known], "x", color=orange, label="published")
    axes.set_yticks(places, [f"{row['label']} (n = {row['n']})" for row in rows])
    label = "accuracy (%), mean ± standard deviation over seeds"
    plot_style.finish(axes, xlabel=label, ylim=(-0.5, len(rows) - 0.5))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(main))
