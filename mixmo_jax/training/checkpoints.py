"""Checkpoints of the train state, by Orbax."""

import math
import pathlib
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mixmo_jax.errors import InputError
from mixmo_jax.files import reading

State = TypeVar("State")


class Checkpoints:
    """The checkpoints of one run in one folder, as a context manager.

    Saving continues in the background; leaving the context waits for it.

    Args:
      folder: The folder, made if it is not there.
      max_to_keep: The number of checkpoints kept, the newest ones; None keeps all.
    """

    def __init__(self, folder: pathlib.Path, max_to_keep: int | None = 2):
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

    @property
    def steps(self) -> list[int]:
        """The training steps of all checkpoints, in rising order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State) -> None:
        """Saves a state (a pytree of arrays, not replicated) under its training step."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: State) -> State:
        """Restores the newest state.

        Args:
          like: The form of the state: arrays or their shapes.

        Raises:
          InputError: if there is no checkpoint, or it is damaged or of another form.
        """
        return self._restore(lambda: ocp.args.StandardRestore(_on_first_device(like)))

    def restore_variables(self, like: dict) -> dict:
        """Restores the network's part of the newest state, without the optimizer's.

        Args:
          like: The form of the variables, `{"params": …, "batch_stats": …}`.

        Raises:
          InputError: if there is no checkpoint, or it is damaged or of another network.
        """
        like = _on_first_device(like)

        def arguments():
            restore_args = ocp.checkpoint_utils.construct_restore_args(like)
            return ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)

        return self._restore(arguments)

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self.steps if s > step]:
            self._manager.delete(later)

    def _restore(self, arguments):
        if self.latest_step is None:
            raise InputError(f"{self._manager.directory}: holds no checkpoint")
        damage = (ValueError, KeyError, TypeError)
        with reading(self._manager.directory, *damage, advice="or it is of another network"):
            return self._manager.restore(self.latest_step, args=arguments())


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

    def commit(self, step: int) -> None:
        """Deletes what no run needs that resumes from this step or a later one."""
        self._manager.wait_until_finished()  # else the better one may not be there yet
        for earlier in [s for s in self.steps if s <= step][:-1]:
            self._manager.delete(earlier)


def _on_first_device(like):
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like
    )
