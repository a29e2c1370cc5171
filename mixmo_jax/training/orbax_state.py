"""A state on the disk, as Orbax writes it: NumPy's arrays, and typed keys as their numbers."""

import pathlib
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mixmo_jax.errors import writing
from mixmo_jax.training import KEY_IMPL

State = TypeVar("State")


def write_state(folder: pathlib.Path, state: State) -> None:
    """Writes a state: a dataclass or dictionary of trees of arrays, those that are None left out.

    Raises:
      InputError: if the folder cannot be written.
    """
    with (
        writing(folder, ValueError),  # of TensorStore
        _checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
    ):
        # NumPy's arrays: Orbax does not take those of one process of several.
        arrays = jax.tree.map(lambda leaf: np.asarray(_without_key(leaf)), _fields(state))
        checkpointer.save(folder.absolute(), args=ocp.args.StandardSave(arrays))


def read_state(folder: pathlib.Path, like: State) -> State:
    """Reads a state to the first device.

    Args:
      folder: What `write_state` wrote.
      like: The form of the state: arrays or their shapes.

    Raises:
      ValueError, KeyError, TypeError: if the state on the disk is of another form.
    """
    arguments = ocp.args.StandardRestore(_on_first_device(_fields(like)))
    with _checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(folder.absolute(), args=arguments)
    found = jax.tree.map(_with_key, _fields(like), found)
    return found if isinstance(like, dict) else like.replace(**found)


def read_part(folder: pathlib.Path, like: dict) -> dict:
    """Reads some fields of a state to the first device; see `read_state`."""
    like = _on_first_device(like)
    restore_args = ocp.checkpoint_utils.construct_restore_args(like)
    arguments = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
    with _checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(folder.absolute(), args=arguments)
    for path, leaf in jax.tree.leaves_with_path(found):
        if not isinstance(leaf, jax.Array):  # Orbax leaves what is missing as it was
            raise KeyError(f"lacks {jax.tree_util.keystr(path)}")
    return found


def _checkpointer(handler: ocp.CheckpointHandler) -> ocp.Checkpointer:
    """Orbax's checkpointer for the first process alone, which waits for no other."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _fields(state) -> dict:
    """The fields of a state, without those that are None: other versions may not have them."""
    fields = state if isinstance(state, dict) else vars(state)
    return {name: value for name, value in fields.items() if value is not None}


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf):
    """The numbers of a typed key; any other array as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_key(like, leaf):
    """A typed key of its numbers where `like` has one; versions before 0.2 saved the key itself."""
    if not _is_key(like) or _is_key(leaf):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=KEY_IMPL)


def _on_first_device(like):
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like
    )
