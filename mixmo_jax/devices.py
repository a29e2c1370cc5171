"""Device placement: shared arrays, sharded batches, and a state replicated for pmap."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "device"


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


def unreplicate(tree):
    """Returns the first device's copy of a tree that was replicated for pmap."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
