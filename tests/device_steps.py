"""Trains a few steps in float64 on all devices of this process and saves what came out.

Run by train_test.py with different numbers of simulated devices.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, devices, sampling, streaming
from mixmo_jax.evaluate import make_logits_fn
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
    state = trainer.create_state()
    wide = {
        name: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype.kind == "f" else x, tree)
        for name, tree in vars(state).items()
        if name in ("params", "batch_stats", "opt_state")
    }
    arrays = {"devices": jax.device_count()}
    for streamed in (False, True) if jax.device_count() > 1 else (False,):
        end, losses = train(trainer, model, state.replace(**wide), streamed)
        where = "streamed" if streamed else "resident"
        arrays[f"{where}_losses"] = losses
        for path, leaf in jax.tree.leaves_with_path(end.variables):
            arrays[where + jax.tree_util.keystr(path)] = leaf
    # As many images as no number of devices divides.
    images = trainer.dataset.test.images[:37]
    arrays["logits"] = make_logits_fn(model, lambda x: x / 255.0, 10)(end.variables, images)
    np.savez(output, **arrays)


def train(trainer, model, state, streamed: bool):
    """Six steps, the images on the devices or streamed to them; returns state and losses."""
    step = make_train_step(model, trainer.tx, trainer.plan_fn, trainer.batch_fn, streamed=streamed)
    update = make_update_fn(step, streamed=streamed)
    split = trainer.dataset.train
    order = devices.place(sampling.epoch_order(state.key, 1, len(split)))
    if streamed:
        stream = streaming.make_stream_fn(trainer.plan_fn, split, trainer.steps_per_epoch)
        parts = stream(state.key, 1, [1] * 6)
    else:
        parts = [devices.place(split)] * 6
    state, losses = devices.replicate(state), []
    for data in parts:
        state, loss = update(state, data, order, 1)
        losses.append(loss[0, 0])
    return devices.unreplicate(state), np.stack(losses)


if __name__ == "__main__":
    main(sys.argv[1])
