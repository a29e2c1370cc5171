"""Trains on digits by both placements; saves steps, memory and open files after each epoch.

    long_run.py FOLDER METHOD NUM_EPOCHS PLACEMENT…

Run by long_run_test.py.
"""

import ctypes
import gc
import json
import os
import pathlib
import sys

import chex
import tiny  # noqa: F401
from setups import tiny_config

from mixmo_jax.runs.terminal import Progress
from mixmo_jax.training import train as train_lib
from mixmo_jax.training.checkpoints import Checkpoints

FIELDS = {
    "batch_size": 36,  # 39 steps an epoch
    "batch_repetitions": 1,
    "checkpoint_every_epochs": 2,
    "optimizer.learning_rate": 0.01,
}


class Watch(Progress):
    """Measures at the end of each epoch."""

    measured = []  # noqa: RUF012
    steps = 0

    def update(self, num_steps, losses):
        self.steps += num_steps
        super().update(num_steps, losses)

    def end_epoch(self, epoch_metrics):
        super().end_epoch(epoch_metrics)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # returns freed memory, which would count
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        self.measured.append(
            {
                "steps": self.steps,
                "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
                "files": len(os.listdir("/proc/self/fd")),
            }
        )


def main(folder: str, method: str, num_epochs: str, *placements: str) -> None:
    make_train_step, save = train_lib.make_train_step, Checkpoints.save

    def make_watched_train_step(*arguments):
        chex.clear_trace_counter()
        # Once for the picture of the training inputs, once for all steps.
        return chex.assert_max_traces(make_train_step(*arguments), n=2)

    def save_and_wait(self, *arguments, **options):
        save(self, *arguments, **options)
        self.wait()  # files of a save under way would count

    train_lib.make_train_step, train_lib.Progress = make_watched_train_step, Watch
    Checkpoints.save = save_and_wait
    for placement in placements:
        fields = {**FIELDS, "dataset.placement": placement, "num_epochs": int(num_epochs)}
        config = tiny_config(method, **fields)
        Watch.measured = []
        train_lib.train_and_evaluate(config, pathlib.Path(folder) / placement)
        (pathlib.Path(folder) / f"{placement}.json").write_text(json.dumps(Watch.measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
