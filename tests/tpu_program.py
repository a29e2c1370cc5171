"""Compiles the training program for a described TPU and prints its copies of the dataset.

Run by tpu_test.py in a process of its own: it takes the place of the default backend.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent / "experiments"))

import tpu_estimate
from benchmark import random_dataset

from mixmo_jax import config as config_lib
from mixmo_jax.training.loop import Trainer


def main(name: str, layout: str) -> None:
    """Compiles one step of WRN-10-1; layout is "flat" or "images"."""
    fields = ("name=wide_resnet", "depth=10", "width=1", "dtype=bfloat16")
    overrides = [f"--config.model.{field}" for field in fields]
    _, config = config_lib.parse(f"{name}:cut_mixmo+cutmix", overrides)
    trainer = Trainer(config, random_dataset(config))
    chips = tpu_estimate.describe_chips("v5e:2x2", 1)
    compiled = tpu_estimate.compile_training(trainer, chips, 1, flat=layout == "flat")
    print(tpu_estimate.dataset_copies(compiled.as_text(), len(trainer.dataset.train)))


if __name__ == "__main__":
    main(*sys.argv[1:])
