"""What the training loop is handed to leave its results with."""

from typing import NamedTuple, Protocol

import jax

from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints


class MetricWriter(Protocol):
    """Takes the metrics of each epoch, a nested dictionary of numbers."""

    def write(self, epoch_metrics: dict) -> None: ...


class ProgressDisplay(Protocol):
    """Shows how far the training run is."""

    def update(self, num_steps: int, losses: jax.Array) -> None:
        """Counts finished steps; losses are [devices, steps] and there already."""

    def end_epoch(self, epoch_metrics: dict) -> None: ...


class Outputs(NamedTuple):
    """Where a training run leaves what comes of it."""

    checkpoints: Checkpoints  # of the run
    best: BestCheckpoint | None  # takes the best state in validation; None without such a split
    writer: MetricWriter  # takes the metrics of each epoch
    progress: ProgressDisplay  # shows them, and the steps as they finish
