"""Compiles the training program for a described TPU and prints its copies of the dataset.

Run by tpu_test.py in a process of its own: it takes the place of the default backend.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent / "experiments"))

import tpu_estimate
from benchmark import build, random_dataset
from compare import with_fields

import mixmo_jax


def main(name: str) -> None:
    """Compiles one step of WRN-10-1."""
    fields = {"name": "wide_resnet", "depth": 10, "width": 1, "dtype": "bfloat16"}
    config = mixmo_jax.get_config(f"{name}:cut_mixmo+cutmix")
    config = with_fields(config, {f"model.{field}": value for field, value in fields.items()})
    parts = build(config, random_dataset(config))
    compiled = tpu_estimate.compile_training(parts, tpu_estimate.describe_chips("v5e:2x2", 1), 1)
    print(tpu_estimate.dataset_copies(compiled.as_text(), len(parts.dataset.train)))


if __name__ == "__main__":
    main(*sys.argv[1:])
