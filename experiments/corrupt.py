"""Writes corrupted test images in the layout of CIFAR-10-C, to evaluate runs on them.

    pip install -e ".[corruptions]"
    python experiments/corrupt.py --config=tiny_imagenet --output=tiny-c --images=1000

The corruptions are those of the package imagecorruptions-imaug, whose severities are the ones of
ImageNet-C (arXiv 1903.12261). Scores are comparable among runs evaluated on the same folder, not
with CIFAR-10-C's published ones: for these, download its files.
"""

import argparse

import numpy as np
import tqdm
from compare import command_line, parse_arguments, with_fields

import mixmo_jax
from mixmo_jax.datasets import load_dataset
from mixmo_jax.errors import InputError, expand

SEVERITIES = range(1, 6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10", help="%(default)s by default")
    parser.add_argument("--output", type=expand, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, default=0, help="of the test split; 0 for all")
    parser.add_argument("--corruptions", default="all", help="all, or names: fog,snow")
    arguments, fields = parse_arguments(parser)
    try:
        import imagecorruptions
    except ImportError:
        raise InputError('imagecorruptions is missing: pip install -e ".[corruptions]"') from None
    config = with_fields(mixmo_jax.get_config(arguments.config), fields)
    test = load_dataset(config.dataset).test
    count = arguments.images or len(test)
    images, labels = np.asarray(test.images[:count]), np.asarray(test.labels[:count])
    if images.shape[-1] != 3 or min(images.shape[1:3]) < 32:
        raise InputError(f"images: {images.shape[1:]}, expected color of 32x32 pixels or more")
    names = imagecorruptions.get_corruption_names("all")
    if arguments.corruptions != "all":
        names = arguments.corruptions.split(",")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in tqdm.tqdm(names):
        np.random.seed(0)  # the package draws from NumPy's global generator
        corrupted = [
            imagecorruptions.corrupt(image, corruption_name=name, severity=severity)
            for severity in SEVERITIES
            for image in images
        ]
        np.save(arguments.output / f"{name}.npy", np.stack(corrupted).astype(np.uint8))
    np.save(arguments.output / "labels.npy", np.tile(labels, len(SEVERITIES)))


if __name__ == "__main__":
    command_line(main)
