"""The training step, and its pmap over the devices.

Shapes: M members, B batch size, [H, W, C] image, [h, w, F] output of an encoder, K classes,
N training images.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from mixmo_jax.datasets import Dataset
from mixmo_jax.distributed import AXIS
from mixmo_jax.input_pipeline.augment import augment, normalize
from mixmo_jax.input_pipeline.feed import RawBatch, Resident, fetch
from mixmo_jax.input_pipeline.plan import BatchPlan, local_part
from mixmo_jax.mixing.mixing_block import mixmo_masks
from mixmo_jax.mixing.msda import mix_pixels, msda_masks
from mixmo_jax.mixing.unmix import unmix_features
from mixmo_jax.models import MixMoNet
from mixmo_jax.models.layers import global_average_pool
from mixmo_jax.training.losses import loss_weights, weighted_cross_entropy

# The random numbers of JAX's other generators depend on the number of devices and on the length of
# a call.
KEY_IMPL = "threefry2x32"


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training, and the key of all randomness."""

    step: jax.Array  # [] int32, number of steps done
    key: jax.Array  # [] typed key, constant
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None = None  # moving average of the variables; None without one

    @property
    def variables(self) -> dict:
        """The variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class TrainingInputs(NamedTuple):
    """The inputs of network and loss in one step."""

    images: jax.Array  # [M, B, H, W, C] float32, normalized and mixed
    targets: jax.Array  # [M, B, K] float32, sum to 1 over K
    masks: jax.Array  # [M, B, h, w, F] float32, sum to 1 over M; h, w and F may be 1
    weights: jax.Array  # [M, B] float32, mean 1 over M


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
      seed: The seed of the run.
      model: The network.
      tx: The optimizer.
      image_shape: (H, W, C).
      ema: Whether to keep a moving average of the variables.
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
    config: ml_collections.ConfigDict,
    model: MixMoNet,
    tx: optax.GradientTransformation,
    dataset: Dataset,
) -> Callable[..., tuple[TrainState, jax.Array, TrainingInputs]]:
    """Returns the training step of one device, to be mapped over the axis `AXIS`.

    Args:
      config: The config.
      model: The network, built with `axis_name=AXIS`.
      tx: The optimizer.
      dataset: The dataset, for the shape and statistics of its images and its number of classes.

    Returns:
      `train_step(state, data, plan) -> (state, loss, inputs)`. `data` is the training split or the
      streamed images of the plan, see `feed.fetch`. `plan` is the device's slice of the batch plan.
      `loss` is the mean over the whole batch, [] float32.
    """
    image_shape, mean, std = dataset.image_shape, dataset.mean, dataset.std
    stem_shape = model.stem_shape(*image_shape[:2])
    mixmo, crop_padding = config.mixmo, config.dataset.crop_padding

    def train_step(state: TrainState, data: Resident | RawBatch, plan: BatchPlan):
        images, labels, partners, partner_labels = fetch(data, plan, image_shape)
        images = normalize(augment(images, plan.view, crop_padding), mean, std)  # [M, B, H, W, C]
        targets = jax.nn.one_hot(labels, dataset.num_classes)  # [M, B, K]
        masks = mixmo_masks(  # [M, B, h, w, F], sum to 1 over M
            plan.ratios,
            plan.mask_keys,
            plan.mask_index,
            plan.use_patch,
            block=mixmo.block,
            shape=stem_shape,
        )
        if plan.msda is not None:  # CutMix or mixup of pixels
            msda = plan.msda
            partners = normalize(augment(partners, msda.partner, crop_padding), mean, std)
            partner_targets = jax.nn.one_hot(partner_labels, dataset.num_classes)
            pixel_masks = msda_masks(  # [M, B, H, W, 1]
                msda.ratios,
                msda.mask_keys,
                msda.mixed,
                method=config.msda.method,
                shape=image_shape[:2],
            )
            images, targets = mix_pixels(
                images, targets, partners, partner_targets, pixel_masks, masks
            )
        weights = loss_weights(masks, mixmo.weight_root)  # [M, B]

        def pool(features):  # [B, h', w', F'] → [B, F'], or [M, B, F'] with unmixing
            if plan.unmix is None:
                return global_average_pool(features)
            return unmix_features(
                features,
                masks,
                plan.unmix,
                normalize=mixmo.unmix_normalize,
                resize=mixmo.unmix_resize,
            )

        def loss_fn(params):
            logits, updated = model.apply(  # [M, B, K]
                {"params": params, "batch_stats": state.batch_stats},
                images,
                masks,
                train=True,
                pool=pool,
                mutable=["batch_stats"],
            )
            loss = weighted_cross_entropy(logits, targets, weights, config.label_smoothing)
            return loss, updated.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, grads = jax.lax.pmean((loss, grads), AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is not None:
            # A smaller decay at first, so that the initial parameters count little.
            decay = jnp.minimum(config.optimizer.ema_decay, state.step / (state.step + 10))
            average = optax.incremental_update(state.variables, state.ema, 1 - decay)
            state = state.replace(ema=average)
        return state, loss, TrainingInputs(images, targets, masks, weights)

    return train_step


def make_update_fn(
    train_step: Callable, plan_fn: Callable[..., BatchPlan]
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Maps the calls of `make_call_fn` over the local devices.

    Returns:
      `update(state, resident, streamed, order, num_steps) -> (state, losses)`. `state` has a
      leading device axis and is donated. `streamed` is a `RawBatch` of [devices, num_steps, …] or
      None, `losses` [devices, num_steps].
    """
    return jax.pmap(
        make_call_fn(train_step, plan_fn),
        axis_name=AXIS,
        in_axes=(0, None, 0, None, None),
        static_broadcasted_argnums=4,
        donate_argnums=0,
    )


def make_call_fn(
    train_step: Callable, plan_fn: Callable[..., BatchPlan]
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Returns a call of one device: one training step, or a scan over several.

    The plans of all steps are drawn before the first: a TPU takes about as long for the random
    numbers of many steps as for those of one.

    Args:
      train_step: See `make_train_step`.
      plan_fn: `plan_fn(key, step, order) -> BatchPlan` of the whole batch.

    Returns:
      `call(state, resident, streamed, order, num_steps) -> (state, losses)`. `resident` is the
      training split or None, `streamed` a `RawBatch` of [num_steps, …] or None, `order` the [N]
      int32 order of the epoch. `losses` is [num_steps]; the last one is NaN if a parameter is not
      finite.
    """

    def call(state: TrainState, resident, streamed, order: jax.Array, num_steps: int):
        def draw(step: jax.Array) -> BatchPlan:
            plan = plan_fn(state.key, step, order)
            return local_part(plan, jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS))

        def step(state: TrainState, inputs: tuple[RawBatch | None, BatchPlan]):
            batch, plan = inputs
            state, loss, _ = train_step(state, resident if batch is None else batch, plan)
            return state, loss

        plans = jax.vmap(draw)(state.step + jnp.arange(num_steps, dtype=jnp.int32))
        if num_steps == 1:
            state, loss = step(state, jax.tree.map(lambda x: x[0], (streamed, plans)))
            losses = loss[None]
        else:
            state, losses = jax.lax.scan(step, state, (streamed, plans))
        # Checked once a call: within the call, such a parameter makes the next loss NaN. In every
        # step the check would cost a small network 3 % on a TPU.
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)]
        last = jnp.where(jnp.stack(finite).all(), losses[-1], jnp.nan)
        return state, losses.at[-1].set(last)

    return call
