"""Draws accuracy against the width of the network, from the results of comparisons.

    python experiments/plot_width.py runs/studies/width --output=width.png
    python experiments/plot_width.py runs/studies/tiny_imagenet-w?

A line for each method, with standard deviations over seeds; crosses are the published accuracies.
"""

import re
import sys

import numpy as np
import plot_style
import published

from mixmo_jax.commands import run_command


def main() -> None:
    arguments = plot_style.parse(__doc__, "RESULTS", "width.png")
    plot_style.save(draw(plot_style.read_results(arguments.inputs)), arguments.output)


def draw(entries: list[dict]) -> plot_style.Figure:
    """A line for each label, of which "w = …" is no part."""
    found, known = {}, {}
    for entry in entries:
        label = re.sub(r", w = \d+$", "", entry["label"])
        width = entry["fields"]["model.width"]
        found.setdefault(label, {}).setdefault(width, []).append(entry["accuracy (%)"])
        networks = len(entry.get("seeds", [entry["seed"]]))
        known[label, width] = published.find(entry["fields"], networks) or ()
    figure = plot_style.create()
    axes = figure.subplots()
    widths = sorted({width for line in found.values() for width in line})
    styles = plot_style.styles(found)
    for (label, width), accuracies in known.items():
        for accuracy in accuracies:
            axes.plot(width, accuracy, "x", color=styles[label]["color"])
    lines = {}
    for label, line in found.items():
        own = sorted(line)
        rows = [plot_style.mean_and_deviation(line[width]) for width in own]
        lines[label] = (own, *zip(*rows, strict=True))
    axes.set_xticks(widths)
    plot_style.finish(axes, xlabel="width of the network", ylabel="accuracy (%)")
    plot_style.draw_lines(figure, axes, lines, gap=np.diff(widths).min(initial=1.0))
    return figure


if __name__ == "__main__":
    sys.exit(run_command(main))
