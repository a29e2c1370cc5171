"""Checkpoints of the train state: written by Orbax, verified by checksums of our own.

A checkpoint is the folder of its step:

    58/state/         the train state, as Orbax writes it
    58/epoch.json     what the unfinished epoch has come to, see `EpochProgress`
    58/SHA256SUMS     the checksums of all these files

It is written under another name and renamed when it is complete. Orbax does not notice when bytes
of an array change on the disk; the checksums do, before Orbax reads a file.
"""

import concurrent.futures
import errno
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from mixmo_jax.errors import InputError, read_json, reading, warn, write_json, writing
from mixmo_jax.training.checksums import verify_checksums, write_checksums
from mixmo_jax.training.orbax_state import read_part, read_state, write_state

State = TypeVar("State")

_STATE, _EPOCH = "state", "epoch.json"
_OLD_STATE = "default"  # where versions before 0.2 have it, without checksums


class EpochProgress(NamedTuple):
    """Progress within the epoch in which a run stopped."""

    losses: np.ndarray = np.zeros(0, np.float32)  # [S] of its steps that are done
    seconds: float = 0.0  # that they took


class Checkpoints:
    """The checkpoints of one run in one folder, as a context manager.

    Saving continues in the background; leaving the context waits for it.

    Args:
      folder: The folder, made if something is saved.
      max_to_keep: The number of checkpoints kept, the newest ones; None keeps all.
    """

    def __init__(self, folder: pathlib.Path, max_to_keep: int | None = 2):
        self._folder, self._max_to_keep = folder, max_to_keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exception) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    @property
    def steps(self) -> list[int]:
        """The training steps of all checkpoints, in rising order."""
        return sorted(int(f.name) for f in self._folder.glob("*") if f.name.isdigit())

    @property
    def latest_step(self) -> int | None:
        """The training step of the newest checkpoint, None without one."""
        return self.steps[-1] if self.steps else None

    def save(self, step: int, state: State, progress: EpochProgress | None = None) -> None:
        """Saves a state (a pytree of arrays, not replicated) under its training step.

        Args:
          step: The training step.
          state: The state.
          progress: What the epoch has come to, if the step is not the last of one.

        Raises:
          InputError: if this checkpoint or the one before could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, step, state, progress or EpochProgress())

    def wait(self) -> None:
        """Waits until what is being saved is there.

        Raises:
          InputError: if it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, like: State) -> tuple[State, EpochProgress]:
        """Restores the newest intact state; warns of newer ones that are damaged.

        Args:
          like: The form of the state: arrays or their shapes.

        Raises:
          InputError: if there is no intact checkpoint, or it is of another form.
        """

        def read(folder: pathlib.Path) -> tuple[State, EpochProgress]:
            return read_state(_state_folder(folder), like), _read_progress(folder)

        return self._newest_intact(read)

    def restore_variables(self, like: dict, *, ema: bool = False) -> tuple[int, dict]:
        """Restores the network's part of the newest intact state, without the optimizer's.

        Args:
          like: The form of the variables, `{"params": …, "batch_stats": …}`.
          ema: Whether to take their moving average.

        Returns:
          The training step at the end of the last epoch that was finished, and the variables. An
          epoch is finished when it was evaluated, too.

        Raises:
          InputError: if there is no intact checkpoint, or it is of another network.
        """
        like = {"ema": like} if ema else like

        def read(folder: pathlib.Path) -> tuple[int, dict]:
            variables = read_part(_state_folder(folder), like)
            finished = int(folder.name) - len(_read_progress(folder).losses)
            return finished, variables["ema"] if ema else variables

        return self._newest_intact(read)

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self.steps if s > step]:
            self._delete(later)

    def _newest_intact(self, read: Callable[[pathlib.Path], State]) -> State:
        """Reads the newest checkpoint of which all files are as they were written."""
        damaged = []
        for step in reversed(self.steps):
            folder = self._folder / str(step)
            try:
                if not (folder / _OLD_STATE).is_dir():
                    verify_checksums(folder)
                with reading(
                    folder, ValueError, KeyError, TypeError, advice="or it is of another network"
                ):
                    found = read(folder)
            except InputError as error:
                damaged.append(error)
                continue
            for error in damaged:
                warn(f"{error}; the checkpoint of step {step:,} is used instead")
            return found
        if damaged:
            raise InputError(f"{damaged[0]}; {self._folder} holds no intact checkpoint")
        raise InputError(f"{self._folder}: holds no checkpoint")

    def _write(self, step: int, state: State, progress: EpochProgress) -> None:
        """Writes a checkpoint and deletes those that are not kept any more."""
        part, folder = self._folder / f".{step}.part", self._folder / str(step)
        with writing(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for abandoned in self._folder.glob(".*.part"):
                shutil.rmtree(abandoned)
            try:
                _check_free_space(self._folder, state)
                part.mkdir()
                write_state(part / _STATE, state)
                values = {"losses": progress.losses.tolist(), "seconds": progress.seconds}
                write_json(part / _EPOCH, values)
                write_checksums(part)
            except (OSError, InputError):
                shutil.rmtree(part, ignore_errors=True)
                raise
            if folder.exists():  # a damaged one, or of the same step before the end of its epoch
                self._set_aside(step)
            os.replace(part, folder)
            shutil.rmtree(self._aside(step), ignore_errors=True)
        for old in self.steps[: -self._max_to_keep] if self._max_to_keep else []:
            self._delete(old)

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; no part of it is ever seen under its name."""
        with writing(self._folder / str(step)):
            self._set_aside(step)
            shutil.rmtree(self._aside(step))

    def _set_aside(self, step: int) -> None:
        shutil.rmtree(self._aside(step), ignore_errors=True)  # of a process that was killed
        os.replace(self._folder / str(step), self._aside(step))

    def _aside(self, step: int) -> pathlib.Path:
        return self._folder / f".{step}.deleted.part"


class BestCheckpoint(Checkpoints):
    """Keeps the state with the highest score, the later of equals.

    A run may resume from before the best epoch so far. Therefore the states that were best up to
    the checkpoints that it may resume from are kept, too, until `commit`.

    Attributes:
      score: The score of the best state.
    """

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, max_to_keep=None)
        self.score = -math.inf

    def offer(self, step: int, state: State, score: float) -> None:
        """Saves a state unless its score is lower than that of the best state."""
        if score >= self.score:
            self.save(step, state)
            self.score = score

    def verify(self) -> None:
        """Deletes damaged states, and warns of them, if there is an older one that is intact.

        Raises:
          InputError: if there are states, but none is intact.
        """
        intact = self._newest_intact(lambda folder: int(folder.name)) if self.steps else math.inf
        self.delete_after(intact)

    def commit(self, step: int) -> None:
        """Deletes what no run needs that resumes from this step or a later one."""
        self.wait()  # else the better one may not be there yet
        for earlier in [s for s in self.steps if s <= step][:-1]:
            self._delete(earlier)


def _state_folder(folder: pathlib.Path) -> pathlib.Path:
    old = folder / _OLD_STATE
    return old if old.is_dir() else folder / _STATE


def _read_progress(folder: pathlib.Path) -> EpochProgress:
    if (folder / _OLD_STATE).is_dir():
        return EpochProgress()
    values = read_json(folder / _EPOCH)
    return EpochProgress(np.asarray(values["losses"], np.float32), float(values["seconds"]))


def _check_free_space(folder: pathlib.Path, state) -> None:
    """Raises `OSError` early: where the disk is full, Orbax's threads leave tracebacks."""
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if shutil.disk_usage(folder).free < 1.05 * arrays + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
