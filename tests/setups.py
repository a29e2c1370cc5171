"""Tiny training setups for the tests."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import distributed
from mixmo_jax.input_pipeline.feed import create_feed, gather, planned_indices
from mixmo_jax.input_pipeline.plan import epoch_order, make_plan_fn, steps_per_epoch
from mixmo_jax.models import create_model
from mixmo_jax.training.optimizers import create_optimizer
from mixmo_jax.training.step import create_train_state, make_train_step, make_update_fn

TINY = {
    "model.name": "tiny",
    "model.dtype": "float32",
    "num_epochs": 3,
    "batch_size": 192,
    "optimizer.decay_epochs": (3,),
}


def tiny_config(method="cut_mixmo", **fields):
    """The config of digits with the tiny network; fields as `model__depth=3`."""
    config = config_lib.get_config(f"digits:{method}")
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict({**TINY, **fields})
    config_lib.check_config(config)
    return config


def dataset_config(spec, **fields):
    """The fields of `config.dataset`."""
    config = config_lib.get_config(spec).dataset
    config.update({name: str(v) if name == "data_dir" else v for name, v in fields.items()})
    return config


def set_up(config, dataset, model=None, tx=None, max_traces=None):
    """What `train_and_evaluate` builds from config and dataset."""
    steps = steps_per_epoch(config, len(dataset.train))
    model = model or create_model(config.model, dataset.num_classes, distributed.AXIS)
    own_tx, schedule = create_optimizer(config, steps)
    tx = tx or own_tx
    plan_fn = make_plan_fn(config, len(dataset.train))
    train_step = make_train_step(config, model, tx, dataset)
    if max_traces:
        chex.clear_trace_counter()
        train_step = chex.assert_max_traces(train_step, n=max_traces)
    ema = config.optimizer.ema_decay > 0
    return types.SimpleNamespace(
        config=config,
        dataset=dataset,
        steps=steps,
        model=model,
        schedule=schedule,
        plan_fn=plan_fn,
        train_step=train_step,
        update=make_update_fn(train_step, plan_fn),
        feed=create_feed(config, plan_fn, dataset.train),
        state=create_train_state(config.seed, model, tx, dataset.image_shape, ema=ema),
    )


def run_steps(setup, call_sizes):
    """Trains from the start in calls of the given sizes; returns state and losses."""
    call = next(setup.feed(setup.state.key, 1))
    state, losses = distributed.replicate_for_pmap(setup.state), []
    for size in call_sizes:
        state, call_losses = setup.update(state, call.resident, None, call.order, size)
        losses.append(np.asarray(call_losses[0]))  # waits: too many calls in flight may deadlock
    return distributed.unreplicate(state), np.concatenate(losses)


def make_inputs_fn(setup):
    """Returns `inputs(key, step) -> (order, plan, TrainingInputs)` of one device."""
    split = setup.dataset.train
    images, labels = jnp.asarray(np.asarray(split.images)), jnp.asarray(split.labels)

    @jax.jit
    def inputs(key, step):
        order = epoch_order(key, step // setup.steps + 1, len(split))
        plan = setup.plan_fn(key, step, order)
        indices = planned_indices(plan)
        raw = gather(images, labels, *indices, setup.dataset.image_shape)
        return order, plan, inputs_of(setup, raw, plan)

    return inputs


def inputs_of(setup, raw, plan):
    """The `TrainingInputs` of a step on one device."""
    batched = jax.tree.map(lambda x: jnp.asarray(x)[None], (raw, plan))
    mapped = jax.vmap(setup.train_step, in_axes=(None, 0, 0), axis_name=distributed.AXIS)
    return jax.tree.map(lambda x: x[0], mapped(setup.state, *batched)[2])
