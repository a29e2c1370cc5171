"""Draws recorded results and runs, one figure a function.

    python experiments/plots.py accuracy runs/compare
    python experiments/plots.py diversity runs/studies/methods --output=diversity.png
    python experiments/plots.py width runs/studies/tiny_imagenet-w?
    python experiments/plots.py learning_curves runs/studies/methods/*-s?

`accuracy`, `diversity` and `width` take results.json of comparisons, or their folders. The others
take folders of runs, grouped by their names without the seed.
Lines and marks are means over seeds, bars and bands standard deviations.
"""

import argparse
import math
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixmo_jax import metrics
from mixmo_jax.errors import InputError, expand, read_json
from mixmo_jax.runs.workdir import CORRUPTIONS, LOGITS, RESULTS, Workdir

# The colors of Okabe and Ito, distinguishable with any color vision.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = "osD^vP*X"
FONT = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("inputs", nargs="+", type=expand, metavar="RESULTS or RUN")
    parser.add_argument("--output", type=expand, help="FIGURE.png by default")
    arguments = parser.parse_args()
    output = arguments.output or pathlib.Path(f"{arguments.figure}.png")
    FIGURES[arguments.figure](arguments.inputs).savefig(output, dpi=150)
    print(output)


def accuracy(paths: Sequence[pathlib.Path]) -> Figure:
    """Accuracies of ensembles and of single members, and as published; a row each."""
    rows = [row for path in paths for row in read_results(path)["rows"]]
    figure = create(7, 1.4 + 0.4 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    kinds = {
        "ensemble": ("accuracy (%)", 0.12, {"fmt": "o", "color": COLORS[0]}),
        "single members": ("members (%)", -0.12, {"fmt": "o", "color": COLORS[2], "mfc": "white"}),
    }
    for label, (name, shift, style) in kinds.items():
        drawn = [(row[name], place) for row, place in zip(rows, places, strict=True) if name in row]
        means = [mean for (mean, _), _ in drawn]
        deviations = [deviation or 0 for (_, deviation), _ in drawn]
        at = [place + shift for _, place in drawn]
        axes.errorbar(means, at, xerr=deviations, capsize=3, label=label, **style)
    known = [(row["published"], p) for row, p in zip(rows, places, strict=True) if row["published"]]
    if known:
        means = [np.mean(numbers) for numbers, _ in known]
        axes.plot(means, [p for _, p in known], "x", color=COLORS[1], label="published")
    axes.set_yticks(places, [f"{row['label']} (n = {row['n']})" for row in rows])
    label = "accuracy (%), mean ± standard deviation over seeds"
    finish(axes, xlabel=label, ylim=(-0.5, len(rows) - 0.5))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def diversity(paths: Sequence[pathlib.Path], measure: str = "ratio error") -> Figure:
    """Accuracy against the diversity of the members, a mark for each method.

    A filled mark is an ensemble, the hollow one below it the mean of its members: their distance is
    the gain of the ensemble.
    """
    groups = {}
    for entry in (entry for path in paths for entry in read_results(path)["runs"]):
        if entry.get(measure) is not None:
            row = float(entry[measure]), entry["accuracy (%)"], entry["members (%)"]
            groups.setdefault(entry["label"], []).append(row)
    # A ratio error is infinite for members without a common error, the best ones: without such a
    # run, the mean accuracy of a method would be too low.
    groups = {label: rows for label, rows in groups.items() if np.isfinite(rows).all()}
    if not groups:
        raise InputError(f"{measure}: expected runs with several members")
    figure = create()
    axes, labels, look = figure.subplots(), [], styles(groups)
    for label, rows in groups.items():
        (x, y, members), (dx, dy, _) = mean_and_deviation(rows)
        color, marker = look[label].values()
        axes.plot([x, x], [members, y], color=color, lw=0.8, ls=":")
        axes.plot(x, members, marker, color=color, mfc="white", ms=7)
        _draw_bars(axes, x, y, dy, dx, color=color)
        axes.plot(x, y, ms=7, **look[label])
        labels.append((x, y, label, color))
    finish(axes, xlabel=measure, ylabel="accuracy (%)")
    label_right(figure, axes, labels)
    return figure


def width(paths: Sequence[pathlib.Path]) -> Figure:
    """Accuracy against the width of the network; crosses are published accuracies."""
    found, known = {}, {}
    for results in map(read_results, paths):
        numbers = {row["label"]: row["published"] or () for row in results["rows"]}
        for entry in results["runs"]:
            label = re.sub(r", w = \d+$", "", entry["label"])
            own = entry["fields"].get("model.width", 10)
            found.setdefault(label, {}).setdefault(own, []).append(entry["accuracy (%)"])
            known[label, own] = numbers.get(entry["label"], ())
    figure = create()
    axes, look = figure.subplots(), styles(found)
    widths = sorted({width for line in found.values() for width in line})
    for (label, own), numbers in known.items():
        axes.plot([own] * len(numbers), numbers, "x", color=look[label]["color"])
    lines = {}
    for label, line in found.items():
        rows = [mean_and_deviation(line[own]) for own in sorted(line)]
        lines[label] = (sorted(line), *zip(*rows, strict=True))
    axes.set_xticks(widths)
    finish(axes, xlabel="width of the network", ylabel="accuracy (%)")
    draw_lines(figure, axes, lines, gap=np.diff(widths).min(initial=1.0))
    return figure


def corruptions(folders: Sequence[pathlib.Path]) -> Figure:
    """Accuracy against the severity of corruptions, averaged over corruptions; 0 is clean."""

    def accuracies(folder):
        clean, corrupted = read_json(folder / RESULTS), read_json(folder / CORRUPTIONS)
        scores = [corrupted["scores"]["mean"][str(i)] for i in range(1, 6)]
        return [100 * score["accuracy"] for score in (clean["scores"], *scores)]

    figure = create()
    axes = figure.subplots()
    lines = {
        label: (range(6), *mean_and_deviation(map(accuracies, runs)))
        for label, runs in by_label(folders).items()
    }
    finish(axes, xlabel="severity of the corruptions", ylabel="accuracy (%)")
    draw_lines(figure, axes, lines)
    return figure


def learning_curves(folders: Sequence[pathlib.Path]) -> Figure:
    """Accuracy of ensembles and members over the epochs, a panel for each method."""
    groups = by_label(folders)
    figure, panels = create_panels(groups, "epoch", "accuracy (%)")
    for axes, runs in zip(panels, groups.values(), strict=True):
        lines = [Workdir(run).read_metrics() for run in runs]
        split = "validation" if "validation" in lines[0][-1] else "test"
        scored = [{m["epoch"]: m[split] for m in run if split in m} for run in lines]
        epochs = sorted(set.intersection(*map(set, scored)))
        members = sorted(
            name for name in scored[0][epochs[0]] if re.match(r"accuracy_member\d", name)
        )
        for i, name in enumerate(["accuracy", *(members if len(members) > 1 else [])]):
            values = [[100 * run[epoch].get(name, np.nan) for epoch in epochs] for run in scored]
            mean, deviation = mean_and_deviation(values)
            color = COLORS[i % len(COLORS)]
            style = {"lw": 1, "ls": "--"} if i else {"lw": 2}
            text = f"member {i - 1}" if i else "ensemble"
            axes.plot(epochs, mean, color=color, label=text, **style)
            band = mean - deviation, mean + deviation
            axes.fill_between(epochs, *band, color=color, alpha=0.12, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    most = max(panels, key=lambda axes: len(axes.lines))
    most.legend(loc="lower right", fontsize=FONT - 1, frameon=False)
    return figure


def reliability(folders: Sequence[pathlib.Path], num_bins: int = 10) -> Figure:
    """Accuracy against confidence, before and after temperature scaling; a panel for each method.

    Each half of the test images is scaled by the temperature fitted on the other. The area of a
    mark is the fraction of images in its bin; bins with less than 1 % are left out.
    """
    groups = by_label(folders)
    figure, panels = create_panels(groups, "confidence (top probability)", "accuracy")
    for axes, runs in zip(panels, groups.values(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, zorder=0)
        before, after = zip(*map(_probabilities, runs), strict=True)
        kinds = [("before", before, COLORS[1]), ("after", after, COLORS[2])]
        for i, (name, probs, color) in enumerate(kinds):
            bins = np.array([metrics.reliability_bins(*run, num_bins) for run in probs])
            counts, confidence, correct = bins.swapaxes(0, 1)  # [runs, bins] each
            total = counts.sum(0)
            shown = total >= 0.01 * total.sum()
            weights = counts[:, shown] / total[shown]
            x, y = (weights * confidence[:, shown]).sum(0), (weights * correct[:, shown]).sum(0)
            # Unbiased for equal weights: n - 1 for n runs.
            bias = np.maximum(1 - (weights**2).sum(0), 1e-9)
            deviation = np.sqrt((weights * (correct[:, shown] - y) ** 2).sum(0) / bias)
            axes.errorbar(x, y, deviation, color=color, lw=1, elinewidth=0.8, capsize=2)
            area = 8 + 120 * total[shown] / total.sum()
            axes.scatter(x, y, area, color=color, zorder=3, clip_on=False)
            errors = [metrics.expected_calibration_error(*run) for run in probs]
            text = f"{name}: ECE {100 * np.mean(errors):.1f} %"
            place = {"ha": "right", "fontsize": FONT - 1}
            axes.text(0.97, 0.13 - 0.09 * i, text, color=color, **place)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _probabilities(folder: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Class probabilities and labels of a run's test images, before and after scaling."""
    with np.load(folder / LOGITS) as file:
        logits, labels = file["logits"], file["labels"]
    ensemble, scaled = read_json(folder / RESULTS)["ensemble"], np.array(logits, np.float64)
    halves, temperatures = metrics.cross_fit_temperatures(logits, labels, ensemble)
    for half, temperature in zip(halves, temperatures, strict=True):
        scaled[half] /= temperature
    return [(np.exp(metrics.ensemble_log_probs(x, ensemble)), labels) for x in (logits, scaled)]


FIGURES = {
    function.__name__: function
    for function in (accuracy, diversity, width, corruptions, learning_curves, reliability)
}


# Reading and style


def read_results(path: pathlib.Path) -> dict:
    """Reads results.json of a comparison, or of its folder."""
    results = read_json(path / "results.json" if path.is_dir() else path)
    if "rows" not in results:
        raise InputError(f"{path}: expected the results of a comparison")
    return results


def by_label(folders: Iterable[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Groups folders of finished runs by their names without the seed."""
    groups = {}
    for folder in folders:
        if not (folder / RESULTS).exists():
            raise InputError(f"{folder}: expected the folder of a finished run")
        groups.setdefault(re.sub(r"-s\d+$", "", folder.name), []).append(folder)
    return groups


def styles(labels: Iterable[str]) -> dict[str, dict]:
    """Returns a color and a marker for each label."""
    return {
        name: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(dict.fromkeys(labels))
    }


def mean_and_deviation(values: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation over the first axis; the deviation of one value is 0."""
    values = np.asarray(list(values), float)
    return values.mean(0), values.std(0, ddof=1 if len(values) > 1 else 0)


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


if __name__ == "__main__":
    main()
