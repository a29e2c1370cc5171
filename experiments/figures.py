"""Draws the figures of the documentation: what MixMo is, and every mixing block.

    python experiments/figures.py

It writes docs/figures/overview.png and docs/figures/mixing_blocks.png. In the gallery of mixing
blocks, rows are blocks and columns the ratio of role 0; the other roles have equal ratios. Colors
are roles, or their mixture. Masks that vary over space and channels show their first channel; masks
that vary over channels only show the channels from left to right.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

import mixmo_jax
from mixmo_jax.datasets import load_dataset
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import box_mask

OUTPUT = pathlib.Path(__file__).parent.parent / "docs" / "figures"
BLUE, ORANGE, GRAY = "tab:blue", "tab:orange", "0.35"
SHAPE = (32, 32, 16)  # the encoders' output of a Wide ResNet on CIFAR
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of role 0
NUM_ROLES = (2, 3, 4)
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
GAP = 4  # white cells between two masks


def main() -> None:
    draw_overview().savefig(OUTPUT / "overview.png", dpi=110)
    draw_gallery().savefig(OUTPUT / "mixing_blocks.png", dpi=100)


def draw_overview() -> Figure:
    """Training and inference, with real images, masks and mixtures."""
    data = load_dataset(mixmo_jax.get_config("digits").dataset)
    first, second = (np.flatnonzero(data.train.labels == digit)[4] for digit in (3, 6))
    images = data.train.images[[first, second], ..., 0] / 255
    mask = np.asarray(box_mask(jnp.float32(0.45), jnp.array([0.45, 0.6], jnp.float32), (8, 8)))
    figure = Figure(figsize=(11, 3.6))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 22), ylim=(0, 7.2))
    axis.axis("off")
    draw_training(axis, images, mask)
    draw_inference(axis, images[0])
    axis.plot([13.1, 13.1], [0.3, 6.9], color="0.8", lw=1)
    return figure


def draw_training(axis, images, mask) -> None:
    """M images, masks, one core, M predictions."""
    axis.text(6.4, 6.75, "training", ha="center", weight="bold")
    for y, image, color, name in ((4.9, images[0], BLUE, "0"), (1.7, images[1], ORANGE, "1")):
        picture(axis, 1.2, y, image, color)
        box(axis, 3.3, y, f"encoder {name}", color)
        arrow(axis, (2.2, y), (2.55, y))
        arrow(axis, (4.1, y), (4.7, y))
        picture(axis, 5.5, y, mask if color == BLUE else 1 - mask, color, size=1.4)
        arrow(axis, (6.25, y), (7.0, 3.3 + np.sign(y - 3.3) * 0.55))
        box(axis, 11.3, y, f"head {name}", color)
        arrow(axis, (9.7, 3.3 + np.sign(y - 3.3) * 0.5), (10.5, y))
        axis.text(12.25, y, {"0": '"3"', "1": '"6"'}[name], color=color, va="center", size=13)
    axis.text(5.5, 3.3, "masks,\nsum 1", ha="center", va="center", size=8, color=GRAY)
    mixed = images[0] * mask + images[1] * (1 - mask)
    picture(axis, 7.75, 3.3, mixed, GRAY, size=1.3)
    axis.text(7.75, 2.35, "mixed features", ha="center", va="center", size=8, color=GRAY)
    arrow(axis, (8.45, 3.3), (8.8, 3.3))
    box(axis, 9.3, 3.3, "core", GRAY, width=0.95, height=2.6)


def draw_inference(axis, image) -> None:
    """One image for all encoders, the predictions averaged."""
    axis.text(17.5, 6.75, "inference", ha="center", weight="bold")
    picture(axis, 14.3, 3.3, image, "black")
    for y, color, name in ((4.9, BLUE, "0"), (1.7, ORANGE, "1")):
        side = np.sign(y - 3.3)
        box(axis, 16.3, y, f"encoder {name}", color)
        arrow(axis, (15.25, 3.3 + side * 0.4), (15.55, y - side * 0.2))
        arrow(axis, (17.1, y), (17.75, 3.3 + side * 0.5))
        box(axis, 20.0, y, f"head {name}", color)
        arrow(axis, (18.75, 3.3 + side * 0.5), (19.25, y))
        arrow(axis, (20.4, y - side * 0.45), (20.8, 3.3 + side * 0.35))
    box(axis, 18.25, 3.3, "core", GRAY, width=0.95, height=2.6)
    axis.text(20.9, 3.3, 'mean: "3"', ha="center", va="center", size=13)


def picture(axis, x, y, image, color, size=1.9) -> None:
    """An image with a colored frame, centered."""
    half = size / 2
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(x - half, x + half, y - half, y + half))
    axis.plot(
        x + half * np.array([-1, 1, 1, -1, -1]),
        y + half * np.array([-1, -1, 1, 1, -1]),
        color=color,
        lw=2,
    )
    axis.set(xlim=(0, 22), ylim=(0, 7.2), aspect="equal")


def box(axis, x, y, text, color, width=1.5, height=0.8) -> None:
    """A labeled part of the network, centered."""
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=0.15", "facecolor": "white"}
    axis.add_patch(FancyBboxPatch(corner, width, height, edgecolor=color, lw=2, **style))
    axis.text(x, y, text, ha="center", va="center", size=9)


def arrow(axis, start, end) -> None:
    """An arrow from point to point."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GRAY})


def draw_gallery() -> Figure:
    """One panel for each number of roles."""
    height = 0.9 + 0.51 * len(MASKS)
    figure = Figure(figsize=(9, height), layout="constrained")
    side = SHAPE[0] + GAP
    for axis, num_roles in zip(figure.subplots(1, len(NUM_ROLES)), NUM_ROLES, strict=True):
        axis.imshow(draw_sheet(num_roles), interpolation="nearest")
        axis.set_title(f"M = {num_roles}, ratio of role 0:", fontsize=10)
        axis.xaxis.tick_top()
        axis.set_xticks(side * np.arange(len(RATIOS)) + SHAPE[1] / 2, map(str, RATIOS))
        names = MASKS if num_roles == NUM_ROLES[0] else [""] * len(MASKS)
        axis.set_yticks(side * np.arange(len(MASKS)) + SHAPE[0] / 2, names)
        axis.tick_params(length=0, labelsize=10)
        axis.spines[:].set_visible(False)
    roles = [Patch(color=color, label=f"role {i}") for i, color in enumerate(COLORS)]
    figure.legend(handles=roles, loc="outside lower center", ncols=len(roles), fontsize=10)
    return figure


def draw_sheet(num_roles: int) -> np.ndarray:
    """The masks of all blocks and ratios beside each other, [rows, columns, 3] in colors."""
    rows = []
    for mask_fn in MASKS.values():
        key = jax.random.fold_in(jax.random.key(0), num_roles)
        masks = [
            mask_fn(jax.random.fold_in(key, i), ratios_of(ratio, num_roles), SHAPE)
            for i, ratio in enumerate(RATIOS)
        ]
        rows.append(np.concatenate([color_of(mask) for mask in masks], axis=1))
    return np.concatenate(rows)[:-GAP, :-GAP]


def ratios_of(first: float, num_roles: int) -> jax.Array:
    """The ratios [M] with the first one given and equal other ones."""
    others = num_roles - 1
    return jnp.array([first] + others * [(1 - first) / others])


def color_of(masks: jax.Array) -> np.ndarray:
    """The roles' colors, mixed by the masks [M, h, w, F]; with a white gap below and right."""
    if masks.shape[1:3] == (1, 1) and masks.shape[3] > 1:
        masks = masks.swapaxes(2, 3)  # [M, 1, F, 1]
        masks = masks.repeat(SHAPE[1] // masks.shape[2], axis=2)
    masks = np.broadcast_to(masks[..., 0], (len(masks), *SHAPE[:2]))
    colors = np.array([to_rgb(color) for color in COLORS[: len(masks)]])
    image = np.einsum("mhw,mc->hwc", masks, colors)
    return np.pad(image, ((0, GAP), (0, GAP), (0, 0)), constant_values=1).clip(0, 1)


if __name__ == "__main__":
    main()
