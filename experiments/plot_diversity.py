"""Draws accuracy against the diversity of the members, from the results of comparisons.

    python experiments/plot_diversity.py runs/studies/methods --output=diversity.png
    python experiments/plot_diversity.py runs/studies/blocks --measure="disagreement (%)"

A filled mark is an ensemble, a hollow one below it the mean of its single members: their distance
is what the ensemble gains. Bars are the ensembles' standard deviations over seeds.
"""

import sys

import numpy as np
import plot_style

from mixmo_jax.commands import run_command
from mixmo_jax.errors import InputError

_MEASURES = ("ratio error", "disagreement (%)")


def main() -> None:
    measure = {"choices": _MEASURES, "default": _MEASURES[0], "help": "%(default)s by default"}
    arguments = plot_style.parse(__doc__, "RESULTS", "diversity.png", measure=measure)
    entries = plot_style.read_results(arguments.inputs)
    plot_style.save(draw(entries, arguments.measure), arguments.output)


def draw(entries: list[dict], measure: str) -> plot_style.Figure:
    """A point for each label that has several members."""
    groups = {}
    for entry in entries:
        value = entry.get(measure)
        if value is not None:
            row = (float(value), entry["accuracy (%)"], entry["members (%)"])
            groups.setdefault(entry["label"], []).append(row)
    # A ratio error is infinite where the members have no error in common: without these runs, which
    # are the best ones, the mean accuracy of the others would be too low.
    groups = {label: rows for label, rows in groups.items() if np.isfinite(rows).all()}
    if not groups:
        other = next(name for name in _MEASURES if name != measure)
        raise InputError(
            f"{measure}: expected runs with several members, finite for all runs of a method; "
            f'else --measure="{other}"'
        )
    figure = plot_style.create()
    axes = figure.subplots()
    labels, styles = [], plot_style.styles(groups)
    for label, rows in groups.items():
        (x, y, members), (dx, dy, _) = plot_style.mean_and_deviation(rows)
        color, marker = styles[label].values()
        axes.plot([x, x], [members, y], color=color, lw=0.8, ls=":")
        axes.plot(x, members, marker, color=color, mfc="white", ms=7)
        plot_style.draw_point(axes, (x, dx), (y, dy), **styles[label])
        labels.append((x, y, label, color))
    name = "disagreement of two members (%)" if measure == _MEASURES[1] else "ratio error"
    plot_style.finish(axes, xlabel=name, ylabel="accuracy (%)")
    plot_style.label_right(figure, axes, labels)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(main))
