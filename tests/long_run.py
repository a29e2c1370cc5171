"""Trains on digits by both placements; saves steps, memory and open files after each epoch.

Run by long_run_test.py.
"""

import ctypes
import gc
import json
import os
import pathlib
import sys

import chex
import numpy as np
import tiny  # noqa: F401

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import create_writers, started
from mixmo_jax.training import loop
from mixmo_jax.training.checkpoints import Checkpoints
from mixmo_jax.training.outputs import Outputs

FIELDS = {
    "model.name": "tiny",
    "batch_size": 36,  # 39 steps an epoch
    "batch_repetitions": 1,
    "checkpoint_every_epochs": 2,
    "optimizer.learning_rate": 0.01,
}


class Watch:
    """A progress display that takes the measurements at the end of each epoch."""

    def __init__(self, checkpoints: Checkpoints):
        self.measured, self._checkpoints, self._steps = [], checkpoints, 0

    def update(self, num_steps: int, losses: np.ndarray) -> None:
        self._steps += num_steps

    def end_epoch(self, epoch_metrics: dict) -> None:
        self._checkpoints.wait()  # else its files are open
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what is free counts, too
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        self.measured.append(
            {
                "steps": self._steps,
                "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                "files": len(os.listdir("/proc/self/fd")),
            }
        )


def main(folder: str, method: str, num_epochs: str, *placements: str) -> None:
    make_train_step = loop.make_train_step

    def make_watched_train_step(*arguments, **options):
        chex.clear_trace_counter()
        return chex.assert_max_traces(make_train_step(*arguments, **options), n=1)

    loop.make_train_step = make_watched_train_step
    for placement in placements:
        measured = train(pathlib.Path(folder) / placement, method, placement, num_epochs)
        (pathlib.Path(folder) / f"{placement}.json").write_text(json.dumps(measured))


def train(folder: pathlib.Path, method: str, placement: str, num_epochs: str) -> list[dict]:
    fields = {**FIELDS, "dataset.placement": placement, "num_epochs": num_epochs}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    _, config = config_lib.parse(f"digits:{method}", overrides)
    trainer = loop.Trainer(config, datasets.load_dataset(config.dataset))
    folder.mkdir()
    writers = create_writers(folder)
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints, started(writers, []):
        watch = Watch(checkpoints)
        outputs = Outputs(checkpoints, None, writers, watch)
        trainer.train(trainer.create_state(), outputs=outputs)
    return watch.measured


if __name__ == "__main__":
    main(*sys.argv[1:])
