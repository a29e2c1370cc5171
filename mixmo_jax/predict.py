"""Predicts the classes of image files.

python -m mixmo_jax.predict --workdir=runs/digits-cut_mixmo-s0 image.png folder/
python -m mixmo_jax.predict --workdir=run0,run1 --format=csv folder/ > predictions.csv
"""

import argparse
import csv
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from mixmo_jax.commands import add_model_flags, create_parser, load_model, run_command
from mixmo_jax.datasets.archives import Files
from mixmo_jax.datasets.decode import ENDINGS
from mixmo_jax.errors import InputError, warn
from mixmo_jax.inference.model import Model


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns its exit status, see `run_command`."""
    parser = create_parser("predict", __doc__)
    add_model_flags(parser)
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table")
    parser.add_argument("images", nargs="+", type=pathlib.Path, help="files or folders of images")
    arguments = parser.parse_args(argv[1:])
    return run_command(lambda: _predict(arguments))


def run() -> None:
    """Runs the command line of this process, and ends it."""
    sys.exit(main(sys.argv))


def _predict(arguments: argparse.Namespace) -> None:
    files = _find(arguments.images)
    model = load_model(arguments)
    rows = predict_files(model, files)
    if arguments.format == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif arguments.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(["|".join(v) if isinstance(v, list) else v for v in row.values()])
    else:
        width = max(len(row["file"]) for row in rows)
        for row in rows:
            note = f"  members disagree: {', '.join(row['votes'])}" if row["disagree"] else ""
            print(f"{row['file']:<{width}}  {row['probability']:7.2%}  {row['class']}{note}")


def predict_files(model: Model, files: Sequence[pathlib.Path]) -> list[dict]:
    """Predicts the classes of image files, scaled and cropped to what the network takes.

    Args:
      model: The model, see `inference.loading.load`.
      files: One or more image files.

    Returns:
      For each file: `file`, `class`, its `probability`, the `votes` of the members, and whether
      they `disagree`: a sign that the prediction is uncertain.

    Raises:
      InputError: if a file is not an image.
    """
    logits = model.logits(model.read(files))
    rows = []
    for file, probs, votes in zip(files, model.probs(logits), logits.argmax(-1), strict=True):
        rows.append(
            {
                "file": os.fsencode(file).decode(errors="replace"),
                "class": model.class_names[probs.argmax()],
                "probability": round(float(probs.max()), 6),
                "votes": [model.class_names[vote] for vote in votes],
                "disagree": bool((votes != votes[0]).any()),
            }
        )
    return rows


def _find(paths):
    files = []
    for path in paths:
        if path.is_dir():
            files += _find_in(path)
        elif path.is_file():
            files.append(path)
        elif os.path.exists(path):
            raise InputError(f"{path}: neither a file nor a folder, but a pipe or a device")
        else:
            raise InputError(f"{path}: no such file or folder")
    return files


def _find_in(folder):
    """Returns the images in a folder, without hidden files and folders.

    It says which are none, such as links that lead nowhere.
    """
    names = Files(folder).names  # as for training: also those of linked folders
    found = [folder / name for name in names if name.lower().endswith(ENDINGS)]
    for file in found:
        if not file.is_file():
            warn(f"{file}: not a file; ignored")
    files = sorted(f for f in found if f.is_file())
    if not files:
        raise InputError(f"{folder}: no images ({', '.join(ENDINGS)})")
    return files


if __name__ == "__main__":
    run()
