"""Trains a few steps in float64 on all devices and saves what came out.

Of several processes each is sent its images; one process has them on its devices.

    device_steps.py OUTPUT [COORDINATOR_ADDRESS NUM_PROCESSES PROCESS_ID]

Run by loop_test.py with different numbers of simulated devices and of processes.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tiny  # noqa: F401

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, distributed
from mixmo_jax.evaluation.logits import make_logits_fn
from mixmo_jax.input_pipeline.streaming import create_feed
from mixmo_jax.models import NETWORKS
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.step import make_train_step, make_update_fn


def main(output: str, address: str | None = None, *numbers: str) -> None:
    if address is not None:
        distributed.connect(address, *map(int, numbers))
    _, config = config_lib.parse(
        "digits:cut_mixmo+cutmix", ["--config.model.name=tiny", "--config.optimizer.warmup_steps=1"]
    )
    trainer = Trainer(config, datasets.load_dataset(config.dataset))
    model = NETWORKS["tiny"](
        depth=10,
        width=trainer.config.model.width,
        num_members=2,
        num_classes=10,
        dtype=jnp.dtype("float64"),
        axis_name=distributed.AXIS,
    )
    state = trainer.create_state()
    wide = {
        name: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype.kind == "f" else x, tree)
        for name, tree in vars(state).items()
        if name in ("params", "batch_stats", "opt_state")
    }
    arrays = {"devices": jax.device_count()}
    end, losses = train(trainer, model, state.replace(**wide), "host" if address else "device")
    arrays["losses"] = losses
    for path, leaf in jax.tree.leaves_with_path(end.variables):
        arrays[jax.tree_util.keystr(path)] = leaf
    # As many images as no number of devices divides.
    images = trainer.dataset.test.images[:37]
    logits_fn = make_logits_fn(model, batch_size=10, mean=(0.0,), std=(1.0,))
    variables = distributed.replicate(end.variables)
    arrays["logits"] = distributed.map_rows(lambda rows: logits_fn(variables, rows), images)
    np.savez(output, **arrays)


def train(trainer, model, state, placement: str):
    """Six steps, the images on the devices or streamed to them; returns state and losses."""
    split, steps = trainer.dataset.train, trainer.steps_per_epoch
    feed = create_feed(placement, trainer.plan_fn, split, steps, steps_per_call=1)
    step = make_train_step(
        model,
        trainer.tx,
        fetch_fn=feed.fetch,
        batch_fn=trainer.batch_fn,
    )
    update = make_update_fn(step, trainer.plan_fn)
    calls = feed.calls(state.key, 1)
    state, losses = distributed.replicate_for_pmap(state), []
    for call in itertools.islice(calls, 6):
        state, loss = update(state, *call)
        losses.append(loss[0, 0])
    return distributed.unreplicate(state), np.stack(losses)


if __name__ == "__main__":
    main(*sys.argv[1:])
