"""The plan of a batch: everything random about it, as indices and scalars, without a pixel.

Glossary: M members, B positions of the batch, b repetitions of an image, N training images; for
AugMix: J chains, D slots of a chain.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# The operations of AugMix: those that no common corruption of test images resembles.
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
    """Chains of operations on each image, and how they are mixed with it."""

    ops: jax.Array  # [M, B, J, D] int32, in AUGMIX_OPERATIONS
    levels: jax.Array  # [M, B, J, D] float32, strengths from -10 to 10; the sign is a direction
    depth: jax.Array  # [M, B, J] int32, the slots that the chain uses
    weights: jax.Array  # [M, B, J] float32, of the chains, sum to 1 over J
    ratios: jax.Array  # [M, B] float32, the image's part; the chains have the rest


@flax.struct.dataclass
class View:
    """Which images are seen, and how each is augmented."""

    index: jax.Array  # [M, B] int32, in the training split
    offset: jax.Array  # [M, B, 2] int32, the top left corner of the crop in the padded image
    flip: jax.Array  # [M, B] bool
    augmix: AugMixPlan | None = None


@flax.struct.dataclass
class MSDAPlan:
    """How images are mixed with partners before the encoders."""

    partner: View
    mixed: jax.Array  # [M, B] bool
    ratios: jax.Array  # [M, B] float32, the image's part
    mask_keys: jax.Array  # [M, B] typed keys


@flax.struct.dataclass
class BatchPlan:
    """Everything random about a batch.

    The M masks of a sample are those of M roles; `mask_index` gives each member one of them.
    """

    view: View
    msda: MSDAPlan | None
    use_patch: jax.Array  # [] bool, whether the batch is mixed by the block or linearly
    mask_index: jax.Array  # [M] int32, the role whose mask each member gets
    ratios: jax.Array  # [M, B] float32, the ratios of the roles, sum to 1 over M
    mask_keys: jax.Array  # [B] typed keys, one for each sample's masks
    unmix: jax.Array | None = None  # [] float32, the strength of the unmixing; None: there is none


def epoch_order(
    key: Key[Array, ""], epoch: Int[Array, ""] | int, num_images: int
) -> Int[Array, "N"]:
    """Draws the random order of the training images in an epoch.

    Args:
      key: The key of the training run.
      epoch: The epoch, counted from 1.
      num_images: N.

    Returns:
      [N] int32.
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
    """Draws the plan of the whole batch of one step.

    The group of B / b images whose turn it is stands b times in the batch of every member, in an
    order of the member's own. Two copies of an image are augmented independently.

    Args:
      key: The key of the training run; the step's randomness follows from key and step.
      step: The step of the training run, counted from 0.
      order: [N] int32, the epoch's random order of the training images.
      steps_per_epoch: The number of steps of an epoch, floor(N * b / B).
      patch_prob: The probability that the batch is mixed by the block.
      unmix: The strength of the unmixing if it is; None without unmixing.
      num_members: M.
      batch_size: B.
      batch_repetitions: b, divides B.
      alpha: The Dirichlet concentration of the ratios; 0 makes them all 1 / M.
      crop_padding: The number of pixels by which crops reach over each edge.
      flip: Whether half of the images are flipped.
      msda_beta: The concentration of the pixel ratios' Beta distribution; None: no pixel mixing.
      msda_prob: The fraction of the images mixed with a partner.
      input_repetition: The fraction of the positions at which all members see the same image.
      augmix_fn: `(key, shape) → AugMixPlan`, see `sample_augmix`; None: no AugMix.

    Returns:
      The plan.

    References:
      MixMo paper, arXiv 2103.06132; batch and input repetition: MIMO, arXiv 2010.06610.
    """
    _, step_key = jax.random.split(key)  # the other one is for the orders of the epochs
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
    """Draws how AugMix augments each image.

    Args:
      key: The key.
      shape: (M, B).
      width: The number of chains, J.
      depth: The number of operations of a chain; 0: 1 to 3, at random.
      severity: The highest level; the levels are uniform from 0.1 to it.
      alpha: The concentration of the weights' Dirichlet and of the ratios' Beta distribution.

    Returns:
      The plan, with D = depth or 3 slots in a chain.

    References:
      AugMix, arXiv 1912.02781.
    """
    op_key, level_key, sign_key, depth_key, weight_key, ratio_key = jax.random.split(key, 6)
    slots = (*shape, width, depth or 3)
    levels = jax.random.uniform(level_key, slots, minval=0.1, maxval=severity)
    if alpha == 1:  # without the rejections of gamma variates
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
    """Draws ratios from the symmetric Dirichlet distribution.

    Args:
      key: The key.
      alpha: The concentration; 0 makes all ratios 1 / M.
      shape: (M, B).

    Returns:
      [M, B] float (float64 if JAX has it enabled), sum to 1 over M.
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
    """Draws from Beta(c, c), for c = 1 and c = 2 without rejection.

    Beta(1, 1) is uniform, and Beta(2, 2) is the distribution of the median of three uniform
    numbers. In general it takes gamma variates, a loop of rejections on the device.

    Args:
      key: The key.
      concentration: c, at least 0.001: below, both gamma variates may vanish.
      shape: The shape of the result.

    Returns:
      [*shape] float in [0, 1].
    """
    if concentration == 1:
        return jax.random.uniform(key, shape)
    if concentration == 2:
        a, b, c = jax.random.uniform(key, (3, *shape))
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    ratios = jax.random.beta(key, concentration, concentration, shape)
    return jnp.minimum(ratios, 1.0)  # rounding may take them 1e-5 above


def local_part(plan: BatchPlan, index: Int[Array, ""] | int, count: int) -> BatchPlan:
    """Returns the part of the plan that device `index` of `count` computes."""

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
    """The group's images, each `repetitions` times, permuted for each member: [M, B]."""
    num_members, batch_size = shape
    shared_key, *member_keys = jax.random.split(key, 1 + num_members)
    common = jax.random.permutation(shared_key, jnp.repeat(group, repetitions))
    shared = round(input_repetition * batch_size)
    own = [jax.random.permutation(key, common[shared:]) for key in member_keys]
    return jnp.concatenate(
        [jnp.broadcast_to(common[:shared], (num_members, shared)), jnp.stack(own)], axis=1
    )


def _augmentation(key, index, crop_padding, flip, augmix_fn):
    """A view of the images at `index`, with an augmentation of its own for each."""
    offset_key, flip_key = jax.random.split(key)
    return View(
        index=index,
        offset=jax.random.randint(offset_key, (*index.shape, 2), 0, 2 * crop_padding + 1),
        flip=jax.random.bernoulli(flip_key, 0.5 if flip else 0.0, index.shape),
        # A key beside the others, so that these stay as they are without AugMix.
        augmix=augmix_fn and augmix_fn(jax.random.fold_in(key, 2), index.shape),
    )
