"""The train state, the training step and its pmap.

Glossary: M members, B positions of the batch, [H, W, C] an image, N training images.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mixmo_jax.distributed import AXIS
from mixmo_jax.input_pipeline.batch import Batch, RawBatch
from mixmo_jax.input_pipeline.plan import BatchPlan, local_part
from mixmo_jax.mixing.unmix import unmix_features
from mixmo_jax.models import MixMoNet
from mixmo_jax.models.layers import global_average_pool
from mixmo_jax.training import KEY_IMPL
from mixmo_jax.training.losses import weighted_cross_entropy


@flax.struct.dataclass
class TrainState:
    """All that changes during training, and the key from which all randomness follows."""

    step: jax.Array  # [] int32, the number of steps done
    key: jax.Array  # [] typed key, constant
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None = None  # the moving average of the variables, if there is one

    @property
    def variables(self) -> dict:
        """The variables that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    seed: int,
    model: MixMoNet,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    ema: bool = False,
) -> TrainState:
    """Draws the initial parameters.

    Args:
      seed: The seed of the whole run.
      model: The network.
      tx: The optimizer.
      image_shape: (H, W, C).
      ema: Whether it has a moving average of the variables.
    """

    @jax.jit
    def create(key: jax.Array) -> TrainState:
        init_key, train_key = jax.random.split(key)
        variables = model.init(init_key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            key=train_key,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
        )
        return state.replace(ema=state.variables) if ema else state

    return create(jax.random.key(seed, impl=KEY_IMPL))


def make_train_step(
    model: MixMoNet,
    tx: optax.GradientTransformation,
    *,
    fetch_fn: Callable[..., RawBatch],
    batch_fn: Callable[[RawBatch, BatchPlan], Batch],
    loss_fn: Callable[..., jax.Array] = weighted_cross_entropy,
    unmix_fn: Callable[..., jax.Array] = unmix_features,
    ema_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Returns the training step of one device among those mapped over the axis `AXIS`.

    Args:
      model: The network, built with `axis_name=AXIS`.
      tx: The optimizer.
      fetch_fn: `(resident, streamed, plan) → RawBatch`, see `input_pipeline.streaming`.
      batch_fn: `(raw, plan) → Batch`.
      loss_fn: `(logits, targets, weights) → loss`, see `training.losses`.
      unmix_fn: `(features, masks, strength) → features`, see `mixing.unmix`; for batches with a
        strength of unmixing.
      ema_decay: The decay in each step of the moving average of the variables, if the state has
        one; less in the first steps.

    Returns:
      `train_step(state, resident, streamed, plan) → (state, loss)`: plan is the device's part of
      the step's; loss is the mean over the whole batch, [] float32.
    """

    def train_step(state: TrainState, resident, streamed, plan: BatchPlan):
        batch = batch_fn(fetch_fn(resident, streamed, plan), plan)

        def pool(features):  # [B, h', w', F'] → [B, F'] or [M, B, F']
            if batch.unmix is None:
                return global_average_pool(features)
            return unmix_fn(features, batch.masks, batch.unmix)

        def batch_loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = model.apply(  # [M, B, K]
                variables,
                batch.images,
                batch.masks,
                train=True,
                pool=pool,
                mutable=["batch_stats"],
            )
            loss = loss_fn(logits, batch.targets, batch.weights)
            return loss, updated.get("batch_stats", {})

        grad_fn = jax.value_and_grad(batch_loss, has_aux=True)
        (loss, batch_stats), grads = grad_fn(state.params)
        loss, grads = jax.lax.pmean((loss, grads), AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is not None:
            state = state.replace(ema=_moved(state.ema, state.variables, state.step, ema_decay))
        return state, loss

    return train_step


def _moved(average: dict, variables: dict, step: jax.Array, decay: float) -> dict:
    """The moving average after a step; the first variables count little."""
    decay = jnp.minimum(decay, step / (step + 10))
    return optax.incremental_update(variables, average, 1 - decay)


def make_call_fn(
    train_step: Callable, plan_fn: Callable[..., BatchPlan]
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Returns what one device computes in a call: several steps are one scan on the device.

    The plans of all steps are drawn at once, before the first: a TPU takes about as long for the
    random numbers of many steps as for those of one.

    Args:
      train_step: See `make_train_step`.
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.

    Returns:
      `call(state, resident, streamed, order, num_steps) → (state, losses)`: streamed is a
      `RawBatch` of [num_steps, …] or None; order is the epoch's [N] int32 random order of the
      training split; losses are [num_steps], the last one NaN if a weight is not finite afterwards.
      (In each step the check would take 3 % of a small network's time on a TPU. Within a call, such
      a weight makes the next loss NaN.)
    """

    def call(state: TrainState, resident, streamed, order: jax.Array, num_steps: int):
        def draw(step: jax.Array) -> BatchPlan:
            plan = plan_fn(state.key, step, order)
            return local_part(plan, jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS))

        def step(state: TrainState, inputs: tuple[RawBatch | None, BatchPlan]):
            return train_step(state, resident, *inputs)

        plans = jax.vmap(draw)(state.step + jnp.arange(num_steps, dtype=jnp.int32))
        if num_steps == 1:
            state, loss = step(state, jax.tree.map(lambda x: x[0], (streamed, plans)))
            losses = loss[None]
        else:
            state, losses = jax.lax.scan(step, state, (streamed, plans))
        last = jnp.where(_all_finite(state.variables), losses[-1], jnp.nan)
        return state, losses.at[-1].set(last)

    return call


def make_update_fn(
    train_step: Callable, plan_fn: Callable[..., BatchPlan]
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Maps the calls of a training step over the local devices.

    Args:
      train_step: See `make_train_step`.
      plan_fn: `(key, step, order) → BatchPlan` of the whole batch.

    Returns:
      `update(state, resident, streamed, order, num_steps) → (state, losses)`: state is replicated
      along a leading device axis and donated; resident and order are the same on all devices;
      streamed is a `RawBatch` of [devices, num_steps, …] or None; losses are [devices, num_steps].
    """
    return jax.pmap(
        make_call_fn(train_step, plan_fn),
        axis_name=AXIS,
        in_axes=(0, None, 0, None, None),
        static_broadcasted_argnums=4,
        donate_argnums=0,
    )


def _all_finite(tree) -> jax.Array:
    """Whether all numbers in a tree of floats are finite: [] bool."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
