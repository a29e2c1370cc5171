"""Plots of a run."""

import io
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixmo_jax.datasets import Dataset
from mixmo_jax.errors import write_bytes
from mixmo_jax.evaluation import calibration
from mixmo_jax.input_pipeline.batch import Batch

_MEMBER_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def learning_curves(file: pathlib.Path, metrics: Sequence[dict]) -> None:
    """Draws loss and test (or validation) accuracy over the epochs.

    Args:
      file: The PNG to write.
      metrics: The metrics of one or more epochs, see `metric_writer.read_metrics`.
    """
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
        curves[name] = (f"member {i}", {"lw": 1, "ls": "--", "color": _color(i)})
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
    file: pathlib.Path, title: str, probs: np.ndarray, labels: np.ndarray
) -> None:
    """Draws accuracy against confidence, and how often each confidence occurs.

    Args:
      file: The PNG to write.
      title: The title of the picture.
      probs: [N, K] float.
      labels: [N] int.
    """
    counts, confidence, accuracy = calibration.reliability_bins(probs, labels)
    ece = calibration.expected_calibration_error(probs, labels)
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


def training_inputs(file: pathlib.Path, batches: Mapping[str, Batch], dataset: Dataset) -> None:
    """Draws what the network sees: each member's image and mask, and the images mixed by them.

    A mask that varies over the channels is drawn as its mean over them. For a network with one
    member, the images are drawn.

    Args:
      file: The PNG to write.
      batches: One or more batches, by what mixes them ("patches").
      dataset: The dataset, for its class names and normalization.
    """
    num_members = len(next(iter(batches.values())).images)
    draw = _draw_images if num_members == 1 else _draw_mixing
    _save(draw(jax.device_get(dict(batches)), dataset), file, dpi=80)


def _save(figure, file, dpi):
    with warnings.catch_warnings():
        # Class names may have letters that matplotlib's font lacks: it draws boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        content = io.BytesIO()
        figure.savefig(content, dpi=dpi)
    write_bytes(file, content.getvalue())


def _draw_images(batches, dataset):
    """A sheet of the images of the only member."""
    (batch,) = batches.values()
    columns = 6
    count = min(4 * columns, batch.images.shape[1])
    rows = -(-count // columns)
    figure = Figure(figsize=(1.9 * columns, 2.2 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i < count:
            _show(axes, _pixels(batch, i, dataset)[0], _describe(batch.targets[0, i], dataset))
        else:
            axes.axis("off")
    return figure


def _draw_mixing(batches, dataset, rows_each=4):
    """A row for each of the first positions of every batch."""
    num_members, batch_size = next(iter(batches.values())).images.shape[:2]
    rows = [(kind, i) for kind in batches for i in range(min(rows_each, batch_size))]
    figure = Figure(figsize=(1.9 * (2 * num_members + 1), 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2 * num_members + 1, squeeze=False)
    for axes, (kind, i) in zip(grid, rows, strict=True):
        batch = batches[kind]
        pixels = _pixels(batch, i, dataset)
        masks = _at_size_of(pixels, batch.masks[:, i])
        for member in range(num_members):
            color = _color(member)
            image_axis, mask_axis = axes[2 * member : 2 * member + 2]
            _show(image_axis, pixels[member], _describe(batch.targets[member, i], dataset), color)
            weight = batch.weights[member, i]
            title = f"mask: {masks[member].mean():.2f}, weight {weight:.2f}"
            _show(mask_axis, masks[member], title, color)
        _show(axes[-1], np.clip((masks * pixels).sum(0), 0, 1), f"mixed by {kind}")
    return figure


def _pixels(batch, i, dataset):
    """The members' images at a position, on the scale 0 to 1: [M, H, W, C]."""
    return np.clip(batch.images[:, i] * dataset.std + dataset.mean, 0, 1)


def _at_size_of(pixels, masks):
    """The means of masks over their channels, enlarged: [M, h, w, F] → [M, H, W, 1]."""
    masks = masks.mean(-1, keepdims=True)
    rows, columns = (p // m for p, m in zip(pixels.shape[1:3], masks.shape[1:3], strict=True))
    return masks.repeat(rows, axis=1).repeat(columns, axis=2)


def _color(member):
    return _MEMBER_COLORS[member % len(_MEMBER_COLORS)]


def _describe(target, dataset):
    classes = [k for k in np.argsort(-target)[:2] if target[k] > 0.005]
    names = [dataset.class_names[k].partition(",")[0][:16] for k in classes]  # the first synonym
    return "\n".join(f"{name}: {target[k]:.2f}" for name, k in zip(names, classes, strict=True))


def _show(axis, image, title, color="black"):
    axis.imshow(image if image.shape[-1] == 3 else image[..., 0], vmin=0, vmax=1, cmap="gray")
    axis.set_title(title, fontsize=8, color=color, parse_math=False)  # a class may be called $$
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color(color)
