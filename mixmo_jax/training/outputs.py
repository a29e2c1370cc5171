"""What the training loop is handed to leave its results with."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints


class MetricWriter(Protocol):
    """Takes the metrics of each epoch, a nested dictionary of numbers: a line of `metrics.jsonl`.

    It records each epoch of a run once, even after an interruption, if it honors `start`.
    """

    def start(self, epochs: Sequence[dict]) -> None:
        """Called before training begins or resumes.

        Args:
          epochs: The metrics of the epochs that are done, in order. An earlier session may have
            written later ones, which are repeated now; what is there of them is to be discarded.
        """

    def write(self, epoch_metrics: dict) -> None:
        """Called at the end of each epoch."""

    def close(self) -> None:
        """Called in the end, also of a session that is interrupted."""


class ProgressDisplay(Protocol):
    """Shows how far the training run is."""

    def update(self, num_steps: int, losses: np.ndarray) -> None:
        """Counts finished steps, of which these are the losses, [steps]."""

    def end_epoch(self, epoch_metrics: dict) -> None: ...


class Outputs(NamedTuple):
    """Where a training run leaves what comes of it."""

    checkpoints: Checkpoints  # of the run
    best: BestCheckpoint | None  # takes the best state in validation; None without such a split
    writers: Sequence[MetricWriter]  # take the metrics of each epoch
    progress: ProgressDisplay  # shows them, and the steps as they finish

    def wait_for_best(self) -> None:
        """Waits for the best state, before a checkpoint is saved from which the run may resume.

        Else a crash could leave the later one without the best state before it.

        Raises:
          InputError: if it could not be written.
        """
        if self.best is not None:
            self.best.wait()
