"""What the plots have in common: colors, labels beside what they name, reading, command lines.

The colors are those of Okabe and Ito, which people with any color vision can tell apart.
"""

import argparse
import math
import pathlib
import re
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from variants import all_fields

from mixmo_jax.errors import InputError, expand, read_json, writing
from mixmo_jax.runs.metric_writer import RESULTS
from mixmo_jax.runs.workdir import CONFIG

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = "osD^vP*X"
FONT = 10


def parse(doc: str, inputs: str, output: str, **options: dict) -> argparse.Namespace:
    """Reads the command line of a plot.

    Args:
      doc: The docstring of the script.
      inputs: The name of its arguments: RUN, or RESULTS.
      output: The file that it writes by default.
      **options: Further flags, with what `add_argument` takes.

    Returns:
      `inputs`, a list of paths; `output`; and the further flags.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=expand, metavar=inputs)
    for name, values in options.items():
        parser.add_argument(f"--{name}", **values)
    default = pathlib.Path(output)
    parser.add_argument("--output", type=expand, default=default, help="%(default)s by default")
    return parser.parse_args()


def read_results(paths: Iterable[pathlib.Path]) -> list[dict]:
    """The recorded runs of comparisons, each with all its `fields`.

    Args:
      paths: The files results.json, or their folders.

    Raises:
      InputError: if one is missing, or older than the record of what identifies a run.
    """
    entries = []
    for path in paths:
        file = path / "results.json" if path.is_dir() else path
        runs = read_json(file).get("runs")
        if not isinstance(runs, list) or not all("fields" in entry for entry in runs):
            raise InputError(f"{file}: expected the results of a comparison")
        entries += [{**entry, "fields": all_fields(entry)} for entry in runs]
    return entries


def by_label(folders: Iterable[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Finished runs by their folders' names without the seeds.

    Raises:
      InputError: if a folder holds no finished run.
    """
    groups = {}
    for folder in folders:
        if not ((folder / CONFIG).exists() and (folder / RESULTS).exists()):
            raise InputError(f"{folder}: expected the folder of a finished run")
        groups.setdefault(re.sub(r"-s\d+$", "", folder.name), []).append(folder)
    return groups


def styles(labels: Iterable[str]) -> dict[str, dict]:
    """A color and a marker for each label, as arguments of a plot."""
    names = list(dict.fromkeys(labels))
    return {
        name: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def mean_and_deviation(values: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis; the deviation of one value is 0."""
    values = np.asarray(list(values), float)
    ddof = 1 if len(values) > 1 else 0
    return values.mean(0), values.std(0, ddof=ddof)


def draw_lines(figure: Figure, axes: Axes, lines: dict[str, tuple], gap: float = 1.0) -> None:
    """Draws means with their deviations as lines, with labels at their ends.

    Args:
      figure: The figure.
      axes: Its axes.
      lines: For each label x, the means and the deviations, [n] each.
      gap: The distance of two values of x, a small part of which keeps the bars apart.
    """
    points, look = [], styles(lines)
    for i, (label, (x, means, deviations)) in enumerate(lines.items()):
        aside = 0.04 * gap * (i - (len(lines) - 1) / 2)
        x = np.asarray(x, float) + aside
        _draw_bars(axes, x, means, deviations, color=look[label]["color"])
        axes.plot(x, means, lw=1.2, ms=5, **look[label])
        points.append((x[-1], means[-1], label, look[label]["color"]))
    label_right(figure, axes, points)


def draw_point(axes: Axes, x: tuple, y: tuple, **style) -> None:
    """Draws a point, of two pairs of a mean and a deviation."""
    _draw_bars(axes, x[0], y[0], y[1], x[1], color=style["color"])
    axes.plot(x[0], y[0], ms=7, **style)


def _draw_bars(axes: Axes, *values, color: str) -> None:
    axes.errorbar(*values, fmt="none", color=color, capsize=2, elinewidth=0.8, alpha=0.5)


def label_right(figure: Figure, axes: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Writes labels right of the axes, at the heights of their points as far as there is room.

    Args:
      figure: The figure, on which all else is drawn.
      axes: Its axes.
      points: x and y in the data, the text, and its color.
    """
    figure.draw_without_rendering()  # fixes the limits
    height = axes.get_window_extent().height / figure.dpi * 72  # in points
    places = axes.transAxes.inverted().transform(
        axes.transData.transform([(x, y) for x, y, *_ in points])
    )
    for i, y in zip(*spread(places[:, 1], 1.3 * FONT / height), strict=True):
        x0, y0, text, color = points[i]
        arrow = {"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.5}
        axes.annotate(
            text,
            (x0, y0),
            (1.03, y),
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=FONT,
            arrowprops=arrow,
        )


def spread(heights: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Moves heights apart, as little as possible, until none are closer than a gap.

    Returns:
      The order of the heights from below, and the new ones in that order.
    """
    order = np.argsort(heights, kind="stable")
    blocks = []  # [sum of the wishes for the lowest one, number]: a block has one gap between all
    for height in np.asarray(heights)[order]:
        blocks.append([height, 1])
        while len(blocks) > 1:
            (low, n), (high, m) = blocks[-2:]
            if low / n + n * gap <= high / m:
                break
            blocks[-2:] = [[low + high - m * n * gap, n + m]]
    placed = [total / n + i * gap for total, n in blocks for i in range(n)]
    return order, np.array(placed)


def finish(axes: Axes, **properties) -> None:
    """Sets titles and the like, and removes what carries no information."""
    axes.set(**properties)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 1)


def create(width: float = 7.0, height: float = 4.0) -> Figure:
    """A figure that is readable at the width of a README."""
    return Figure(figsize=(width, height), layout="constrained")


def create_panels(titles: Iterable[str], xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, as square as can be, all on the same scales."""
    titles = list(titles)
    columns = math.ceil(math.sqrt(len(titles)))
    rows = math.ceil(len(titles) / columns)
    figure = create(0.6 + 3.0 * columns, 0.4 + 2.7 * rows)
    figure.get_layout_engine().set(wspace=0.08)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(titles) :]:
        axes.remove()
    for axes, title in zip(panels, titles, strict=False):
        finish(axes)
        axes.set_title(title, fontsize=FONT)
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=FONT)
    figure.supylabel(ylabel, fontsize=FONT)
    return figure, panels[: len(titles)]


def save(figure: Figure, file: pathlib.Path, dpi: int = 150) -> None:
    """Writes a figure and says where; an unknown format is an `InputError`."""
    with writing(file, ValueError):
        figure.savefig(file, dpi=dpi)
    print(file)
