"""Checkpoints of the training state, by orbax."""

import math
import pathlib
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mixmo_jax.errors import InputError

State = TypeVar("State")


class Checkpoints:
    """The checkpoints of one run, in one folder. Use it as a context manager.

    Saving goes on in the background; leaving the context waits for it.
    """

    def __init__(self, folder: pathlib.Path, max_to_keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The training step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Saves a state (a pytree of arrays, not replicated) under its training step."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: State) -> State:
        """Returns the newest state, in the form of `like` (arrays or their shapes).

        Raises:
          InputError: if there is none, or it is damaged or has another form.
        """
        if self.latest_step is None:
            raise InputError(f"{self._manager.directory}: holds no checkpoint")
        device = SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like
        )
        try:
            return self._manager.restore(self.latest_step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # whatever a damaged checkpoint leads to
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self._manager.directory}: cannot be read, or is of another network: {reason}"
            ) from error

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            self._manager.delete(later)


class BestCheckpoint(Checkpoints):
    """Keeps one state, that with the highest score, the later of equals.

    Attributes:
      score: of the state it holds.
    """

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, max_to_keep=1)
        self.score = -math.inf

    def offer(self, step: int, state: State, score: float) -> None:
        """Saves a state, unless its score is lower than that of the state held."""
        if score >= self.score:
            self.save(step, state)
            self.score = score
