"""Plots of a run, as functions of arrays."""

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixmo_jax.errors import write_bytes

_MEMBER_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def learning_curves(file: Path, metrics: Sequence[dict]) -> None:
    """Draws loss and validation (or test) accuracy over the epochs, see `Workdir.read_metrics`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [m["loss"] for m in metrics]
    left.plot([m["epoch"] for m in metrics], losses, marker=".", color="black")
    held_out = "validation" if any("validation" in m for m in metrics) else "test"
    scored = [m for m in metrics if held_out in m]
    epochs = [m["epoch"] for m in scored]
    first = scored[0][held_out] if scored else {}
    members = [f"accuracy_member{i}" for i in range(len(first)) if f"accuracy_member{i}" in first]
    curves = {"accuracy": ("ensemble", {"lw": 2, "color": "black"})}
    for i, name in enumerate(members if len(members) > 1 else []):
        color = _MEMBER_COLORS[i % len(_MEMBER_COLORS)]
        curves[name] = (f"member {i}", {"lw": 1, "ls": "--", "color": color})
    for name, (label, style) in curves.items():
        values = [100 * m[held_out].get(name, np.nan) for m in scored]
        right.plot(epochs, values, marker=".", label=label, **style)
    if len(curves) > 1:
        right.legend()
    unit = "sum over members, nats" if len(curves) > 1 else "nats"
    left.set(xlabel="epoch", ylabel=f"training loss ({unit})")
    right.set(xlabel="epoch", ylabel=f"{held_out} accuracy (%)")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_xlim(0.5, metrics[-1]["epoch"] + 0.5)
    _save(figure, file, dpi=120)


def reliability_diagram(
    file: Path,
    title: str,
    counts: np.ndarray,
    confidence: np.ndarray,
    accuracy: np.ndarray,
    ece: float,
) -> None:
    """Draws accuracy against confidence, and how often each confidence occurs.

    Args:
      file: The PNG to write.
      title: The title of the picture.
      counts: [bins] int, the number of images whose top probability lies in each bin of [0, 1].
      confidence: [bins] float, the mean top probability of these images.
      accuracy: [bins] float, their accuracy.
      ece: The expected calibration error.
    """
    centers = (np.arange(len(counts)) + 0.5) / len(counts)
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = counts > 0
    top.plot([0, 1], [0, 1], color="gray", ls="--", label="perfectly calibrated")
    top.bar(centers[filled], accuracy[filled], 1 / len(counts), edgecolor="white", label="accuracy")
    marks = {"ls": "", "marker": ".", "color": "black", "clip_on": False}
    top.plot(confidence[filled], accuracy[filled], label="mean confidence of the bin", **marks)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"{title}\nECE {ece:.4f}")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    bottom.bar(centers, counts, 1 / len(counts), edgecolor="white")
    bottom.set(xlabel="confidence (top probability)", ylabel="test images")
    _save(figure, file, dpi=120)


def training_inputs(
    file: Path,
    batches: Mapping[str, object],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
) -> None:
    """Draws the inputs of the network: each member's image and mask, and the mixed images.

    A mask that varies over the channels is drawn as its mean over them. For a network with one
    member, the images are drawn.

    Args:
      file: The PNG to write.
      batches: Batches by the name of their mixing ("patches"), with the arrays `images`
        [M, B, H, W, C] normalized, `masks` [M, B, h, w, F], `targets` [M, B, K] and `weights`
        [M, B].
      mean: [C], of the normalization.
      std: [C], of the normalization.
      class_names: The names of the K classes.
    """
    rows = []  # each a list of (image, title, color)
    for kind, batch in batches.items():
        num_members = len(batch.images)
        count = 4 if num_members > 1 else 24
        images, masks, targets, weights = (
            np.asarray(values)[:, :count]
            for values in (batch.images, batch.masks, batch.targets, batch.weights)
        )
        images = np.clip(images * np.asarray(std) + np.asarray(mean), 0, 1)
        masks = masks.mean(-1, keepdims=True)  # [M, count, h, w, 1]
        for axis in (2, 3):
            masks = masks.repeat(images.shape[axis] // masks.shape[axis], axis)
        for i in range(images.shape[1]):
            row = []
            for member in range(num_members):
                color = _MEMBER_COLORS[member % len(_MEMBER_COLORS)]
                weight = f"mask: {masks[member, i].mean():.2f}, weight {weights[member, i]:.2f}"
                row.append((images[member, i], _describe(targets[member, i], class_names), color))
                row.append((masks[member, i], weight, color))
            rows.append([*row, ((masks * images)[:, i].sum(0), f"mixed by {kind}", "black")])
    if num_members == 1:  # a sheet of its images
        cells = [row[0] for row in rows]
        rows = [cells[i : i + 6] for i in range(0, len(cells), 6)]
    columns = len(rows[0])
    figure = Figure(figsize=(1.9 * columns, 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for axis, cell in itertools.zip_longest(axes, row):
            _show(axis, *cell) if cell else axis.axis("off")
    _save(figure, file, dpi=80)


def _save(figure, file, dpi):
    with warnings.catch_warnings():
        # Class names may have letters that matplotlib's font lacks: it draws boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        content = io.BytesIO()
        figure.savefig(content, dpi=dpi)
    write_bytes(file, content.getvalue())


def _describe(target: np.ndarray, class_names: Sequence[str]) -> str:
    classes = [k for k in np.argsort(-target)[:2] if target[k] > 0.005]
    names = [class_names[k].partition(",")[0][:16] for k in classes]  # the first synonym
    return "\n".join(f"{name}: {target[k]:.2f}" for name, k in zip(names, classes, strict=True))


def _show(axis, image: np.ndarray, title: str, color: str) -> None:
    image = np.clip(image, 0, 1)
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], vmin=0, vmax=1, cmap="gray")
    axis.set_title(title, fontsize=8, color=color, parse_math=False)  # a class may be called $$
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color(color)
