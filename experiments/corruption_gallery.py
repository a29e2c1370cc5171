"""Draws an image with every corruption at every severity.

    python experiments/corruption_gallery.py --config=cifar100 --output=corruptions.png [--index=1]

The image is one of the dataset's test images.
"""

import argparse
import io
import sys

import numpy as np
from corrupt import corrupted_blocks, parse_names
from matplotlib.figure import Figure
from PIL import Image

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.commands import parse_with_fields, run_command
from mixmo_jax.errors import expand, invalid, writing
from mixmo_jax.evaluation.corruptions import SEVERITIES

INCHES = 0.72  # of an image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    parser.add_argument("--index", type=int, default=0, help="of the image, %(default)s by default")
    parser.add_argument("--output", type=expand, required=True, metavar="FILE.png")
    arguments, overrides = parse_with_fields(parser)
    images = datasets.load_dataset(
        config_lib.parse(arguments.config, overrides)[1].dataset
    ).test.images
    if not 0 <= arguments.index < len(images):
        raise invalid("index", arguments.index, f"0 to {len(images) - 1}")
    figure = draw_gallery(np.asarray(images[[arguments.index]]))
    content = io.BytesIO()
    figure.savefig(content, dpi=80)
    pixels = np.asarray(Image.open(content).convert("RGB"))
    with writing(arguments.output):
        # The lowest bits, which nobody sees, would take much of the file.
        Image.fromarray(pixels | 3).save(arguments.output, optimize=True)
    print(arguments.output)


def draw_gallery(image: np.ndarray) -> Figure:
    """Rows are corruptions of the image [1, H, W, C], columns the clean one and the severities."""
    names = parse_names(None, image.shape[-1])
    columns = ["clean", *range(1, SEVERITIES + 1)]
    figure = Figure(
        figsize=(INCHES * (len(columns) + 2), INCHES * len(names)), layout="constrained"
    )
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, shown in zip(row, [image, *corrupted_blocks(name, image, seed=0)], strict=True):
            axis.imshow(shown[0], "gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        label = name.replace("_", " ")
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(run_command(main))
