"""Makes corrupted test images of a dataset, in the layout of CIFAR-10-C.

    python experiments/corrupt.py --config=cifar100 --output=runs/cifar100-c
    python experiments/corrupt.py --config=digits --output=runs/digits-c --corruptions=fog,snow

It writes `labels.npy` and, for each corruption, `<name>.npy`: the test images at the severities 1
to 5, one after the other. The same command resumes: a corruption that is complete is not made
again. The images follow from the seed, whatever else is made. `corrupt.json` records what they were
made from; a folder with other images, such as the published ones, is left alone.
"""

import argparse
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import tqdm
from corruption_registry import CORRUPTIONS

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.commands import parse_with_fields, run_command
from mixmo_jax.datasets import Split
from mixmo_jax.errors import (
    InputError,
    expand,
    invalid,
    map_array,
    read_json,
    unknown,
    write_json,
    writing,
)
from mixmo_jax.evaluation.corruptions import SEVERITIES

FACTS = "corrupt.json"
_FORMAT = 1  # to be raised when other images are made
_BLOCK = 250  # images that are corrupted at once; the images depend on it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    parser.add_argument("--output", type=expand, required=True, metavar="DIR")
    parser.add_argument(
        "--corruptions", metavar="A,B,…", help=f"all by default: {', '.join(CORRUPTIONS)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="%(default)s by default")
    arguments, overrides = parse_with_fields(parser)
    if arguments.seed < 0:
        raise invalid("seed", arguments.seed, "at least 0")
    dataset = config_lib.parse(arguments.config, overrides)[1].dataset
    split = datasets.load_dataset(dataset).test
    names = parse_names(arguments.corruptions, split.images.shape[-1])
    corrupt(split, names, arguments.output, arguments.seed)


def parse_names(text: str | None, channels: int) -> list[str]:
    """Reads names separated by commas; None for all that images of so many channels can have."""
    if text is None:
        return [name for name, c in CORRUPTIONS.items() if channels == 3 or not c.needs_color]
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS, where="--help")
        if CORRUPTIONS[name].needs_color and channels != 3:
            raise invalid("corruptions", name, "others: it needs images of three channels")
    return names


def corrupt(split: Split, names: list[str], output: pathlib.Path, seed: int) -> None:
    """Writes the corruptions that are missing, with a bar.

    Args:
      split: The clean images [N, H, W, C] uint8 and their labels.
      names: The names of the corruptions.
      output: The folder to write to.
      seed: The seed of the images.

    Raises:
      InputError: if the folder has images that were made of something else, or cannot be written.
    """
    facts = {"test_digest": split.digest(), "images": len(split), "seed": seed, "format": _FORMAT}
    _prepare(output, facts)
    labels = np.tile(np.asarray(split.labels, np.int32), SEVERITIES)
    _write_array(output / "labels.npy", labels.shape, labels.dtype, [labels])
    shape = (len(labels), *split.images.shape[1:])
    with tqdm.tqdm(total=len(names) * len(labels), unit=" img", unit_scale=True) as bar:
        for name in names:
            bar.set_description_str(name)
            file = output / f"{name}.npy"
            if not _is_complete(file, shape):
                blocks = corrupted_blocks(name, split.images, seed)
                _write_array(file, shape, np.dtype(np.uint8), _counted(blocks, bar))
            else:
                bar.update(len(labels))


def corrupted_blocks(name: str, images: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yields the images [n, H, W, C] uint8 of a corruption, in the order of its file."""
    for severity in range(1, SEVERITIES + 1):
        for start in range(0, len(images), _BLOCK):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), severity, start])
            yield CORRUPTIONS[name](rng, np.asarray(images[start : start + _BLOCK]), severity)


def _prepare(output, facts):
    """Creates the folder, or checks that what is in it was made of the same."""
    if (output / FACTS).exists():
        found = read_json(output / FACTS)
        for name, value in facts.items():
            if found.get(name) != value:
                made = f"{name}={found.get(name)}, not {value}"
                raise InputError(f"output={output}: has images of {made}; choose another folder")
    elif output.is_dir() and any(output.glob("*.npy")):
        raise InputError(f"output={output}: has images from elsewhere; choose another folder")
    else:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        write_json(output / FACTS, facts)


def _is_complete(file, shape):
    return file.exists() and map_array(file).shape == shape


def _counted(blocks, bar):
    for block in blocks:
        yield block
        bar.update(len(block))


def _write_array(file, shape, dtype, blocks):
    """Writes an array in blocks of its rows; the file appears when it is complete."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")  # others may write to the folder, too
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with writing(file):
        try:
            with part.open("wb") as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for block in blocks:
                    stream.write(np.ascontiguousarray(block).data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; the same command resumes"))
