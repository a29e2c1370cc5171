"""Checkpoints of the train state: written by Orbax, verified by checksums.

A checkpoint is the folder of its step:

    58/state/         the train state, written by Orbax
    58/epoch.json     progress within an unfinished epoch, and the score in validation
    58/SHA256SUMS     the checksums of these files

It is written under another name and renamed when it is complete.
"""

# Orbax's CheckpointManager (0.12.8) would replace `save` and the retention. Measured:
# - It publishes a step before checksums can be added: 10 of 11 processes killed then left only a
#   checkpoint without them.
# - It cannot save a step again, as needed after a stop at the end of an epoch.
# - Its BestN deletes the best state when a better one is saved. If that is damaged, both are lost.
# - After a byte was flipped in the metrics of a step, its constructor raises JSONDecodeError.

import concurrent.futures
import contextlib
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mixmo_jax.errors import (
    InputError,
    read_json,
    reading,
    sha256_of,
    warn,
    write_json,
    write_text,
    writing,
)
from mixmo_jax.runs.workdir import METRICS, require_space
from mixmo_jax.training.step import KEY_IMPL

T = TypeVar("T")

_STATE, _EPOCH, _CHECKSUMS = "state", "epoch.json", "SHA256SUMS"
_OLD_STATE = "default"  # of version 0.1, without checksums
_OLD_BEST = "best_checkpoint"  # versions 0.1 and 0.2 had the best states in a folder of their own


class EpochProgress(NamedTuple):
    """Progress within an unfinished epoch."""

    losses: np.ndarray = np.zeros(0, np.float32)  # [S], of the steps that are done
    seconds: float = 0.0


_NO_PROGRESS = EpochProgress()


class Checkpoints:
    """The checkpoints of a run, for process 0 alone; a context manager.

    `save` continues in the background, and leaving the context waits for it. The two newest
    checkpoints are kept. For each of them, so is the best one up to its step: a run that resumes
    from the older one still has its best state.

    Args:
      folder: The folder of the checkpoints, created by the first `save`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
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
        """The steps of all checkpoints, in increasing order."""
        return sorted(int(f.name) for f in self._folder.glob("*") if f.name.isdigit())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None without one."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, the later of equals; None without a score."""
        return self._best_until(math.inf)

    @property
    def best_score(self) -> float | None:
        """The score of the best checkpoint, None without one."""
        return self._scores.get(self.best_step)

    def save(
        self,
        step: int,
        state: T,
        epoch_progress: EpochProgress = _NO_PROGRESS,
        score: float | None = None,
    ) -> None:
        """Saves a state (a pytree of arrays, not replicated) under its step.

        Args:
          step: The training step.
          state: The state.
          epoch_progress: Progress within the epoch, if the step is not the last of one.
          score: The score by which the best state is chosen; higher is better.

        Raises:
          InputError: if this checkpoint or the one before could not be written.
        """
        self.wait()
        if score is not None:
            self._scores[step] = score
        self._pending = self._thread.submit(self._write, step, state, epoch_progress, score)

    def wait(self) -> None:
        """Waits for the checkpoint that is being saved.

        Raises:
          InputError: if it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, like_state: T) -> tuple[T, EpochProgress]:
        """Restores the newest intact state to the first device; warns of damaged newer ones.

        Args:
          like_state: Arrays or `jax.ShapeDtypeStruct`s with the structure of the state.

        Raises:
          InputError: if no checkpoint is intact, or they are of a different model.
        """
        like = _fields(like_state)

        def read(folder: Path) -> tuple[T, EpochProgress]:
            found = jax.tree.map(
                lambda like, leaf: (
                    jax.random.wrap_key_data(leaf, impl=KEY_IMPL)
                    if _is_key(like) and not _is_key(leaf)  # version 0.1 saved the key itself
                    else leaf
                ),
                like,
                _read_state(folder, like),
            )
            state = found if isinstance(like_state, dict) else like_state.replace(**found)
            return state, _read_progress(folder)

        return self._first_intact(reversed(self.steps), read)

    def restore_variables(self, like: dict, *, best: bool, ema: bool = False) -> tuple[int, dict]:
        """Restores the variables of the network without the state of the optimizer.

        Args:
          like: Arrays or `jax.ShapeDtypeStruct`s, `{"params": …, "batch_stats": …}`.
          best: Whether to prefer the best score, if there are scores, to the newest step.
          ema: Whether to take the moving average of the variables.

        Returns:
          The last step of the last finished epoch, and the variables.

        Raises:
          InputError: if no checkpoint is intact, or they are of a different model.
        """
        steps = sorted(self.steps, reverse=True)
        if best and self._scores:
            steps = sorted(self._scores, key=lambda step: (self._scores[step], step), reverse=True)

        def read(folder: Path) -> tuple[int, dict]:
            found = _read_state(folder, {"ema": like} if ema else like, partial=True)
            finished = int(folder.name) - len(_read_progress(folder).losses)
            return finished, found["ema"] if ema else found

        return self._first_intact(steps, read)

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps and, with a warning, damaged earlier ones."""
        for found, folder in self._folders().items():
            try:
                if found < step:
                    _verify(folder)
            except InputError as error:
                warn(f"{error}; it is deleted")
                self._delete(found)
            if found > step:
                self._delete(found)

    def _folders(self) -> dict[int, Path]:
        """The folders of all checkpoints by step, and those of older versions' best ones."""
        roots = (self._folder, self._folder.with_name(_OLD_BEST))
        return {int(f.name): f for root in roots for f in root.glob("*") if f.name.isdigit()}

    @functools.cached_property
    def _scores(self) -> dict[int, float]:
        scores = {step: _read_score(folder) for step, folder in self._folders().items()}
        return {step: score for step, score in scores.items() if score is not None}

    def _best_until(self, step: float) -> int | None:
        scored = [s for s in self._scores if s <= step]
        return max(scored, key=lambda s: (self._scores[s], s), default=None)

    def _first_intact(self, steps: Iterable[int], read: Callable[[Path], T]) -> T:
        """Reads the first checkpoint whose files are as they were written."""
        folders, damaged = self._folders(), []
        for step in steps:
            try:
                _verify(folders[step])
                found = read(folders[step])
            except InputError as error:
                damaged.append(error)
            except (ValueError, KeyError, TypeError) as error:  # Orbax's
                reason = "cannot be restored: corrupt, or saved by a different model"
                damaged.append(InputError(f"{folders[step]}: {reason}: {str(error)[:200]}"))
            else:
                for error in damaged:
                    warn(f"{error}; the checkpoint of step {step:,} is used instead")
                return found
        if damaged:
            raise InputError(f"{damaged[0]}; {self._folder} holds no intact checkpoint")
        raise InputError(f"{self._folder}: holds no checkpoint")

    def _write(self, step: int, state: T, progress: EpochProgress, score: float | None) -> None:
        """Writes a checkpoint, then deletes those that are not kept."""
        part, folder = self._folder / f".{step}.part", self._folder / str(step)
        with writing(folder, ValueError):  # TensorStore's error for a full disk
            self._folder.mkdir(parents=True, exist_ok=True)
            for abandoned in self._folder.glob(".*.part"):  # by a process that was killed
                shutil.rmtree(abandoned)
            # NumPy arrays: Orbax refuses those of one process of several.
            arrays = jax.tree.map(lambda x: np.asarray(_without_key(x)), _fields(state))
            # On a full disk Orbax prints 100 to 300 lines of tracebacks.
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
            require_space(self._folder, int(1.05 * size) + 2**20)
            part.mkdir()
            with _checkpointer() as checkpointer:
                checkpointer.save((part / _STATE).absolute(), args=ocp.args.PyTreeSave(arrays))
            values = {"losses": progress.losses.tolist(), "seconds": progress.seconds}
            write_json(part / _EPOCH, {**values, "score": score})
            _write_checksums(part)
            if folder.exists():  # saved before the end of its epoch was evaluated
                folder.rename(_aside(folder))
            part.rename(folder)
            shutil.rmtree(_aside(folder), ignore_errors=True)
            latest = self.steps[-2:]
            for unneeded in self._folders().keys() - {*latest, *map(self._best_until, latest)}:
                self._delete(unneeded)

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; no part of it is ever seen under its name."""
        folder = self._folders()[step]
        with writing(folder):
            shutil.rmtree(folder.rename(_aside(folder)))
        self._scores.pop(step, None)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.deleted.part")


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer for process 0, which does not wait for others."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone)


def _read_state(folder: Path, like: dict, partial: bool = False) -> dict:
    """Reads a state, or some fields of it, to the first device.

    Raises:
      ValueError, KeyError, TypeError: if the state has another structure.
    """
    device = SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    arguments = ocp.args.PyTreeRestore(
        like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=partial,
    )
    old = folder / _OLD_STATE
    with _checkpointer() as checkpointer:
        found = checkpointer.restore(
            (old if old.is_dir() else folder / _STATE).absolute(), args=arguments
        )
    for path, leaf in jax.tree.leaves_with_path(found):
        if not isinstance(leaf, jax.Array):  # Orbax leaves `like` where a field is missing
            raise KeyError(f"lacks {jax.tree_util.keystr(path)}")
    return found


def _fields(state) -> dict:
    """The fields of a state without those that are None, which other versions may not have."""
    fields = state if isinstance(state, dict) else vars(state)
    return {name: value for name, value in fields.items() if value is not None}


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf):
    """The numbers of a typed key; any other array unchanged."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _read_progress(folder: Path) -> EpochProgress:
    if (folder / _OLD_STATE).is_dir():
        return EpochProgress()
    values = read_json(folder / _EPOCH)
    return EpochProgress(np.asarray(values["losses"], np.float32), float(values["seconds"]))


def _read_score(folder: Path) -> float | None:
    """The score of a checkpoint; versions 0.1 and 0.2 have it in the metrics of the run."""
    with contextlib.suppress(InputError, KeyError):  # damage is found before it is restored
        return read_json(folder / _EPOCH)["score"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = map(json.loads, (folder.parents[1] / METRICS).read_text().splitlines())
        scored = {line["step"]: line["validation"] for line in lines if "validation" in line}
        return scored[int(folder.name)]["accuracy"]
    return math.inf if folder.parent.name == _OLD_BEST else None


def _write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder, in the format of `sha256sum`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{sha256_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_text(folder / _CHECKSUMS, "".join(lines))


def _verify(folder: Path) -> None:
    """Raises `InputError` if a file that was written is missing or has changed."""
    if (folder / _OLD_STATE).is_dir():
        return
    with reading(f"{folder}: damaged: {_CHECKSUMS}", ValueError):
        lines = (folder / _CHECKSUMS).read_text().splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    for name in expected or [_CHECKSUMS]:
        file = folder / name
        if not file.is_file() or sha256_of(file) != expected.get(name):
            state = "has changed" if file.is_file() else "is missing"
            raise InputError(f"{folder}: damaged: {name} {state}")
