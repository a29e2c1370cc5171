"""Device placement: shared arrays, sharded batches, and a state replicated for pmap."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixmo_jax.errors import warn
from mixmo_jax.files import expand

AXIS = "device"


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder for the next start; "" for none.

    A folder that JAX has been told already, such as by `JAX_COMPILATION_CACHE_DIR`, stays.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    path = expand(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warn(f"compilation_cache={folder!r}: cannot be written: {error.strerror}")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree):
    """Puts the same arrays on all local devices, once, for arguments that are not mapped."""
    return jax.device_put(tree, _sharding())


def shard(tree):
    """Cuts arrays along their first axis, a multiple of the local devices, one part for each."""
    return jax.device_put(tree, _sharding(AXIS))


def replicate_for_pmap(tree):
    """Copies a tree to all local devices, stacked along a leading axis as pmap takes it."""
    # Not flax.jax_utils.replicate, whose other mesh axis makes pmap compile twice.
    count = jax.local_device_count()

    def copy(leaf):
        return jax.device_put(jnp.broadcast_to(leaf, (count, *leaf.shape)), _sharding(AXIS))

    return jax.tree.map(copy, tree)


def axis_positions() -> np.ndarray:
    """Returns the places of the local devices on the mapped axis, which spans all processes."""
    if jax.process_count() == 1:
        return np.arange(jax.local_device_count())
    count = jax.local_device_count()
    positions = jax.pmap(lambda _: jax.lax.axis_index(AXIS), AXIS)(shard(np.zeros(count)))
    return np.asarray(positions)


def fetch_first(array: jax.Array) -> np.ndarray:
    """Waits for an array with a leading axis of the devices; returns the first local one's part.

    Unlike `array[0]` it starts no program, which would wait for all that were started since.
    """
    return np.asarray(array.addressable_shards[0].data)[0]


def unreplicate(tree):
    """Returns the first device's copy of a tree that was replicated for pmap."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
