"""Compiles the training program for a described TPU and prints its copies of the dataset.

Run by tpu_test.py in a process of its own: it takes the place of the default backend.
"""

import functools
import os
import re
import sys

os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", TPU_WORKER_HOSTNAMES="localhost")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mixmo_jax import config as config_lib
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.devices import AXIS
from mixmo_jax.input_pipeline.batch import gather, planned_indices
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.step import make_call_fn, make_train_step


def main(num_images: int, side: int, flat: bool) -> None:
    """Compiles one step of WRN-10-1 on images of a size; `flat` is how the dataset lies there."""
    fields = ("model.depth=10", "model.width=1", "model.dtype=bfloat16")
    overrides = [f"--config.{field}" for field in fields]
    _, config = config_lib.parse("cifar100:cut_mixmo+cutmix", overrides)
    shape = (side, side, 3)
    rows = np.broadcast_to(np.zeros((), np.uint8), (num_images, *shape))
    split = Split(rows, np.broadcast_to(np.int32(0), (num_images,)))
    names = tuple(map(str, range(100)))
    trainer = Trainer(config, Dataset(split, split, None, names, (0.5,) * 3, (0.5,) * 3))

    def fetch(resident, streamed, plan):
        return gather(*resident, *planned_indices(plan), shape)

    step = make_train_step(
        trainer.model,
        trainer.tx,
        plan_fn=trainer.plan_fn,
        fetch_fn=fetch,
        batch_fn=trainer.batch_fn,
    )
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = Mesh(np.array(topology.devices[:1]), (AXIS,))
    placed = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P()))
    size = (side * side * 3,) if flat else shape
    state = jax.eval_shape(trainer.create_state)
    arguments = (
        jax.tree.map(lambda x: placed(x.shape, x.dtype), state),
        (placed((num_images, *size), jnp.uint8), placed((num_images,), jnp.int32)),
        placed((num_images,), jnp.int32),
    )
    call = make_call_fn(step)
    mapped = jax.shard_map(
        lambda state, resident, order: call(state, resident, None, order, 1),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    text = jax.jit(mapped).lower(*arguments).compile().as_text()
    produced = re.findall(rf"%(\S+) = u8\[{num_images},[\d,]+\]\S* (\S+?)\(", text)
    assert any(kind == "parameter" for _, kind in produced), "no dataset in the program"
    print([name for name, kind in produced if kind != "parameter"])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "flat")
