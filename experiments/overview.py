"""Draws what MixMo is, with real images, masks and mixtures: `experiments/figures/overview.png`.

python experiments/overview.py
"""

import pathlib

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.mixing.masks import box_mask

OUTPUT = pathlib.Path(__file__).parent / "figures" / "overview.png"
BLUE, ORANGE, GRAY = "tab:blue", "tab:orange", "0.35"


def main() -> None:
    _, config = config_lib.parse("digits")
    data = datasets.load_dataset(config.dataset)
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
    figure.savefig(OUTPUT, dpi=110)


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


if __name__ == "__main__":
    main()
