"""Draws every mixing block of the registry, for two, three and four roles and several ratios.

    python experiments/mask_gallery.py --output=mixing_blocks.png

Rows are blocks, columns the ratio of role 0; the other roles have equal parts of the rest. The
color is that of the role, or its mixture. Of masks that vary over the map and over the channels the
first channel is drawn; of those that vary over the channels only, the channels from left to right.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import plot_style
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mixmo_jax.commands import run_command
from mixmo_jax.errors import expand
from mixmo_jax.mixing import MASKS

SHAPE = (32, 32, 16)  # the encoders' output of a Wide ResNet on CIFAR
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of role 0
NUM_ROLES = (2, 3, 4)
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
GAP = 4  # white cells between two masks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=expand, required=True, metavar="FILE")
    plot_style.save(draw_gallery(), parser.parse_args().output, dpi=100)


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
    sys.exit(run_command(main))
