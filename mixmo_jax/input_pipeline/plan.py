"""Batch plans: everything random about a batch, as indices and scalars, before any pixel.

Shapes: M members, B batch size, b batch repetitions, N training images; for AugMix J chains of D
operations.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int, Key

from mixmo_jax.mixing.mixing_block import patch_probability
from mixmo_jax.mixing.unmix import unmix_strength

# AugMix leaves out the operations that resemble common test corruptions.
AUGMIX_OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


@flax.struct.dataclass
class AugMixPlan:
    """Chains of operations for each image, and the weights of their mixture."""

    ops: jax.Array  # [M, B, J, D] int32, indices into AUGMIX_OPERATIONS
    levels: jax.Array  # [M, B, J, D] float32, strength from -10 to 10; the sign is a direction
    depth: jax.Array  # [M, B, J] int32, the number of operations in use
    weights: jax.Array  # [M, B, J] float32, weights of the chains, sum to 1 over J
    ratios: jax.Array  # [M, B] float32, weight of the original image


@flax.struct.dataclass
class View:
    """Indices of images, and the augmentation of each."""

    index: jax.Array  # [M, B] int32, index into the training split
    offset: jax.Array  # [M, B, 2] int32, top left corner of the crop in the padded image
    flip: jax.Array  # [M, B] bool
    augmix: AugMixPlan | None = None


@flax.struct.dataclass
class MSDAPlan:
    """Mixing of pixels with partner images before the encoders (MSDA)."""

    partner: View
    mixed: jax.Array  # [M, B] bool, whether the image is mixed
    ratios: jax.Array  # [M, B] float32, ratio of the image against its partner
    mask_keys: jax.Array  # [M, B] typed keys


@flax.struct.dataclass
class BatchPlan:
    """Everything random about a batch.

    A sample has M masks, one per role. Role 0 gets the patch. `mask_index` assigns a role to each
    member, the same for the whole batch.
    """

    view: View
    msda: MSDAPlan | None  # None without mixing of pixels
    use_patch: jax.Array  # [] bool, whether the mixing block is used; otherwise linear mixing
    mask_index: jax.Array  # [M] int32, role of each member
    ratios: jax.Array  # [M, B] float32, ratio of each role, sum to 1 over M
    mask_keys: jax.Array  # [B] typed keys, one per sample
    unmix: jax.Array | None = None  # [] float32, strength of the unmixing; None without it


def steps_per_epoch(config: ml_collections.ConfigDict, num_images: int) -> int:
    """Returns the number of batches of an epoch, floor(N * b / B)."""
    return num_images * config.batch_repetitions // config.batch_size


def mixes_by_patches(config: ml_collections.ConfigDict) -> bool:
    """Returns whether a run mixes some batches by a block other than `linear`."""
    block = config.mixmo.block != "linear" and config.mixmo.patch_prob > 0
    return block and config.model.num_members > 1


def make_plan_fn(config: ml_collections.ConfigDict, num_images: int) -> Callable[..., BatchPlan]:
    """Returns `plan_fn(key, step, order) -> BatchPlan`, with the settings of the config."""
    steps, mixmo, augment = steps_per_epoch(config, num_images), config.mixmo, config.augment
    augmix_fn = None
    if augment.augmix:
        augmix_fn = functools.partial(
            sample_augmix,
            width=augment.augmix_width,
            depth=augment.augmix_depth,
            severity=augment.augmix_severity,
            alpha=augment.augmix_alpha,
        )
    sample = functools.partial(
        sample_batch_plan,
        steps_per_epoch=steps,
        num_members=config.model.num_members,
        batch_size=config.batch_size,
        batch_repetitions=config.batch_repetitions,
        alpha=mixmo.alpha,
        crop_padding=config.dataset.crop_padding,
        flip=config.dataset.flip,
        msda_beta=None if config.msda.method == "none" else config.msda.beta,
        msda_prob=config.msda.prob,
        input_repetition=config.input_repetition,
        augmix_fn=augmix_fn,
    )

    def plan_fn(
        key: Key[Array, ""], step: Int[Array, ""] | int, order: Int[Array, "N"]
    ) -> BatchPlan:
        epoch = step // steps + 1
        patch_prob = patch_probability(
            epoch, config.num_epochs, mixmo.patch_prob, mixmo.patch_prob_until
        )
        unmix = None
        if mixmo.unmix and mixes_by_patches(config):
            unmix = unmix_strength(step / (steps * config.num_epochs), mixmo.unmix_until)
        return sample(key, step, order, patch_prob=patch_prob, unmix=unmix)

    return plan_fn


def epoch_order(
    key: Key[Array, ""], epoch: Int[Array, ""] | int, num_images: int
) -> Int[Array, "N"]:
    """Draws the random order of the training images in an epoch, [N] int32.

    Args:
      key: The key of the training run.
      epoch: The epoch, counted from 1.
      num_images: N.
    """
    order_key, _ = jax.random.split(key)
    return jax.random.permutation(jax.random.fold_in(order_key, epoch), num_images)


def sample_batch_plan(
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    order: Int[Array, "N"],
    *,
    steps_per_epoch: int,
    patch_prob: Float[Array, ""] | float,
    unmix: Float[Array, ""] | None = None,
    num_members: int,
    batch_size: int,
    batch_repetitions: int,
    alpha: float,
    crop_padding: int,
    flip: bool,
    msda_beta: float | None = None,
    msda_prob: float = 0.0,
    input_repetition: float = 0.0,
    augmix_fn: Callable[..., AugMixPlan] | None = None,
) -> BatchPlan:
    """Draws the plan of a whole batch.

    A batch holds B / b distinct images. Each is repeated b times for every member, in an order
    drawn per member. Copies of an image are augmented independently.

    Args:
      key: The key of the training run. The randomness of a step depends on key and step only.
      step: The training step, counted from 0.
      order: [N] int32, the order of the training images in this epoch.
      steps_per_epoch: floor(N * b / B).
      patch_prob: p(t), the probability that the mixing block is used.
      unmix: Strength of the unmixing if it is used; None without unmixing.
      num_members: M.
      batch_size: B.
      batch_repetitions: b, a divisor of B.
      alpha: Dirichlet concentration of the ratios; 0 for equal ratios 1 / M.
      crop_padding: Crops extend this many pixels beyond each edge.
      flip: Whether to flip half of the images horizontally.
      msda_beta: Concentration of the pixel ratios' Beta distribution; None for no mixing of pixels.
      msda_prob: q, the probability that an image is mixed with a partner.
      input_repetition: Fraction of positions where all members see the same image.
      augmix_fn: `augmix_fn(key, shape) -> AugMixPlan`; None for no AugMix.

    References:
      MixMo, arXiv 2103.06132; batch repetition and input repetition: MIMO, arXiv 2010.06610.
    """
    _, step_key = jax.random.split(key)  # the other key draws the orders of the epochs
    order_key, view_key, msda_key, patch_key, role_key, ratio_key, mask_key = jax.random.split(
        jax.random.fold_in(step_key, step), 7
    )
    shape = (num_members, batch_size)
    group_size = batch_size // batch_repetitions
    group = order[: steps_per_epoch * group_size].reshape(-1, group_size)[step % steps_per_epoch]
    index = _repeat(order_key, group, shape, batch_repetitions, input_repetition)  # [M, B]
    msda = None
    if msda_beta is not None:
        partner_key, mixed_key, beta_key, box_key = jax.random.split(msda_key, 4)
        index_key, partner_key = jax.random.split(partner_key)
        partner = jax.random.randint(index_key, shape, 0, len(order))
        msda = MSDAPlan(
            partner=_augmentation(partner_key, partner, crop_padding, flip, augmix_fn),
            mixed=jax.random.bernoulli(mixed_key, msda_prob, shape),
            ratios=sample_beta(beta_key, msda_beta, shape),
            mask_keys=jax.random.split(box_key, shape),
        )
    use_patch = jax.random.bernoulli(patch_key, patch_prob)
    return BatchPlan(
        view=_augmentation(view_key, index, crop_padding, flip, augmix_fn),
        msda=msda,
        use_patch=use_patch,
        mask_index=jax.random.permutation(role_key, num_members),
        ratios=sample_dirichlet(ratio_key, alpha, shape),
        mask_keys=jax.random.split(mask_key, batch_size),
        unmix=None if unmix is None else jnp.where(use_patch, unmix, 0.0),
    )


def sample_augmix(
    key: Key[Array, ""],
    shape: tuple[int, int],
    *,
    width: int,
    depth: int,
    severity: float,
    alpha: float,
) -> AugMixPlan:
    """Draws an AugMix plan.

    Args:
      key: A typed random key.
      shape: (M, B).
      width: J, the number of chains.
      depth: D, the number of operations in a chain; 0 for a random number from 1 to 3.
      severity: The maximum level. Levels are uniform in [0.1, severity].
      alpha: Concentration of the chains' Dirichlet and of the ratios' Beta distribution.

    References:
      AugMix, arXiv 1912.02781.
    """
    op_key, level_key, sign_key, depth_key, weight_key, ratio_key = jax.random.split(key, 6)
    slots = (*shape, width, depth or 3)
    levels = jax.random.uniform(level_key, slots, minval=0.1, maxval=severity)
    if alpha == 1:  # avoids the rejection loop of gamma variates
        weights = jnp.maximum(jax.random.exponential(weight_key, (*shape, width)), 1e-9)
        weights /= weights.sum(-1, keepdims=True)
    else:
        weights = jax.random.dirichlet(weight_key, jnp.full(width, float(alpha)), shape)
    return AugMixPlan(
        ops=jax.random.randint(op_key, slots, 0, len(AUGMIX_OPERATIONS)),
        levels=jnp.where(jax.random.bernoulli(sign_key, 0.5, slots), levels, -levels),
        depth=jax.random.randint(depth_key, slots[:-1], depth or 1, (depth or 3) + 1),
        weights=weights,
        ratios=sample_beta(ratio_key, alpha, shape),
    )


def sample_dirichlet(
    key: Key[Array, ""], alpha: float, shape: tuple[int, int]
) -> Float[Array, "M B"]:
    """Draws ratios from a symmetric Dirichlet distribution.

    Args:
      key: A typed random key.
      alpha: The concentration; 0 for equal ratios.
      shape: (M, B).

    Returns:
      [M, B] float32 (float64 under x64), sum to 1 over M.
    """
    num_members, batch_size = shape
    if alpha == 0 or num_members == 1:
        return jnp.full(shape, 1 / num_members)
    if num_members == 2:
        first = sample_beta(key, alpha, (batch_size,))
        return jnp.stack([first, 1 - first])
    concentration = jnp.full(num_members, float(alpha))
    return jax.random.dirichlet(key, concentration, (batch_size,)).T


def sample_beta(
    key: Key[Array, ""], concentration: float, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Draws from Beta(c, c).

    c = 1 is uniform. c = 2 is the median of three uniform variates. Other values use gamma
    variates, a rejection loop on the device.

    Args:
      key: A typed random key.
      concentration: c >= 0.001. Below, both gamma variates may underflow to 0.
      shape: The shape of the result.

    Returns:
      Float in [0, 1].
    """
    if concentration == 1:
        return jax.random.uniform(key, shape)
    if concentration == 2:
        a, b, c = jax.random.uniform(key, (3, *shape))
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    ratios = jax.random.beta(key, concentration, concentration, shape)
    return jnp.minimum(ratios, 1.0)  # rounding may exceed 1 by 1e-5


def local_part(plan: BatchPlan, index: Int[Array, ""] | int, count: int) -> BatchPlan:
    """Returns the slice of a plan for device `index` of `count`."""

    def cut(tree, axis):
        def part(leaf):
            size = leaf.shape[axis] // count
            return jax.lax.dynamic_slice_in_dim(leaf, index * size, size, axis=axis)

        return jax.tree.map(part, tree)

    return plan.replace(
        view=cut(plan.view, axis=1),
        msda=cut(plan.msda, axis=1),
        ratios=cut(plan.ratios, axis=1),
        mask_keys=cut(plan.mask_keys, axis=0),
    )


def _repeat(key, group, shape, repetitions, input_repetition):
    """Repeats the group's images and permutes them for each member: [M, B]."""
    num_members, batch_size = shape
    shared_key, *member_keys = jax.random.split(key, 1 + num_members)
    common = jax.random.permutation(shared_key, jnp.repeat(group, repetitions))
    shared = round(input_repetition * batch_size)
    own = [jax.random.permutation(key, common[shared:]) for key in member_keys]
    return jnp.concatenate(
        [jnp.broadcast_to(common[:shared], (num_members, shared)), jnp.stack(own)], axis=1
    )


def _augmentation(key, index, crop_padding, flip, augmix_fn):
    """Draws an augmentation for each image of `index`."""
    offset_key, flip_key = jax.random.split(key)
    return View(
        index=index,
        offset=jax.random.randint(offset_key, (*index.shape, 2), 0, 2 * crop_padding + 1),
        flip=jax.random.bernoulli(flip_key, 0.5 if flip else 0.0, index.shape),
        # An extra key, so that crops and flips are the same with and without AugMix.
        augmix=augmix_fn and augmix_fn(jax.random.fold_in(key, 2), index.shape),
    )
