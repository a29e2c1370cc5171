"""Trains a few steps in float64 on all devices of this process and saves what came out.

Run by train_test.py with different numbers of simulated devices.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, devices, sampling
from mixmo_jax.models import wide_resnet
from mixmo_jax.train import Trainer, make_train_step, make_update_fn


def main(output: str) -> None:
    cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    _, config = config_lib.parse(
        "digits:cut_mixmo+cutmix", ["--config.model.width=1", "--config.optimizer.warmup_steps=1"]
    )
    trainer = Trainer(config, datasets.load(config.dataset))
    model = wide_resnet(
        depth=10,
        width=1,
        num_members=2,
        num_classes=10,
        dtype=jnp.dtype("float64"),
        axis_name=devices.AXIS,
    )
    update = make_update_fn(make_train_step(model, trainer.tx, trainer.plan_fn, trainer.batch_fn))
    state = trainer.create_state()
    order = devices.place(sampling.epoch_order(state.key, 1, len(trainer.dataset.train)))
    data = devices.place(trainer.dataset.train)
    wide = {
        name: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype.kind == "f" else x, tree)
        for name, tree in vars(state).items()
        if name in ("params", "batch_stats", "opt_state")
    }
    state = devices.replicate(state.replace(**wide))
    losses = []
    for _ in range(6):
        state, loss = update(state, data, order, 1)
        losses.append(loss[0, 0])
    state = devices.unreplicate(state)
    arrays = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(state.variables)}
    np.savez(output, losses=np.stack(losses), devices=jax.device_count(), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
