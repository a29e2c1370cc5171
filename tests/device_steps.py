"""Trains a few steps in float64 on all devices and saves the result; run by step_test.py.

Of several processes, each is sent its images; one process has them on its devices.

    device_steps.py OUTPUT [COORDINATOR_ADDRESS NUM_PROCESSES PROCESS_ID]
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny  # noqa: F401
from setups import set_up

from mixmo_jax import config as config_lib
from mixmo_jax import distributed
from mixmo_jax.datasets import load_dataset
from mixmo_jax.inference.model import make_logits_fn
from mixmo_jax.models import NETWORKS


def main(output: str, address: str | None = None, *numbers: str) -> None:
    if address is not None:
        distributed.connect(address, *map(int, numbers))
    config = config_lib.get_config("digits:cut_mixmo+cutmix")
    config.model.name, config.optimizer.warmup_steps = "tiny", 1
    config.dataset.placement, config.steps_per_call = "host" if address else "device", 1
    dataset = load_dataset(config.dataset)
    model = NETWORKS["tiny"](
        depth=10,
        width=config.model.width,
        num_members=2,
        num_classes=10,
        dtype=jnp.dtype("float64"),
        axis_name=distributed.AXIS,
    )
    setup = set_up(config, dataset, model)
    wide = {
        name: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype.kind == "f" else x, tree)
        for name, tree in vars(setup.state).items()
        if name in ("params", "batch_stats", "opt_state")
    }
    state = distributed.replicate_for_pmap(setup.state.replace(**wide))
    losses = []
    for call in itertools.islice(setup.feed(setup.state.key, 1), 6):
        state, loss = setup.update(state, *call)
        losses.append(loss[0, 0])
    end = distributed.unreplicate(state)
    arrays = {"devices": jax.device_count(), "losses": np.stack(losses)}
    for path, leaf in jax.tree.leaves_with_path(end.variables):
        arrays[jax.tree_util.keystr(path)] = leaf
    # 37 images: no number of devices divides them.
    images = dataset.test.images[:37]
    logits_fn = make_logits_fn(model, batch_size=10, mean=(0.0,), std=(1.0,))
    variables = distributed.replicate(end.variables)
    arrays["logits"] = distributed.map_rows(lambda rows: logits_fn(variables, rows), images)
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
