"""The plan of a batch: everything random about it, as indices and scalars, without a pixel.

Glossary: M members, B positions of the batch, b repetitions of an image, N training images.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class View:
    """Which images are seen, and how each is augmented."""

    index: jax.Array  # [M, B] int32, in the training set
    offset: jax.Array  # [M, B, 2] int32, top left corner of the crop in the padded image
    flip: jax.Array  # [M, B] bool


@flax.struct.dataclass
class PixelPlan:
    """How images are mixed with partners before the encoders."""

    partner: View
    mixed: jax.Array  # [M, B] bool
    ratios: jax.Array  # [M, B] float32, the image's share
    centres: jax.Array  # [M, B, 2] float32 in [0, 1), of the boxes


@flax.struct.dataclass
class BatchPlan:
    """Everything random about a batch.

    Arrays of two dimensions and more have the batch on their second axis.
    """

    view: View
    pixels: PixelPlan | None
    use_patch: jax.Array  # [] bool, whether the batch is mixed by patches or linearly
    roles: jax.Array  # [M] int32, the role (the mask) each member has
    ratios: jax.Array  # [M, B] float32, of each role, sum to 1 over M
    centres: jax.Array  # [M, B, 2] float32 in [0, 1), of each role's box


def epoch_order(key: jax.Array, epoch: jax.Array | int, num_images: int) -> jax.Array:
    """The random order of the training images in an epoch: [N] int32."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_images)


def sample_batch_plan(
    key: jax.Array,
    step: jax.Array | int,
    order: jax.Array,
    *,
    steps_per_epoch: int,
    patch_prob: jax.Array | float,
    num_members: int,
    batch_size: int,
    batch_repetitions: int,
    alpha: float,
    crop_padding: int,
    flip: bool,
    msda_beta: float | None = None,
    msda_prob: float = 0.0,
    input_repetition: float = 0.0,
) -> BatchPlan:
    """Draws the plan of the whole batch of one step.

    The group of B / b images whose turn it is stands b times in the batch of every member, in an
    order of the member's own. Two copies of an image are augmented independently.

    Args:
      key: of the training; the step's randomness is `fold_in(key, step)`.
      step: 0-based, of the training.
      order: [N] int32, the epoch's random order of the training images.
      steps_per_epoch: floor(N * b / B).
      patch_prob: probability that the batch is mixed by patches.
      num_members: M.
      batch_size: B.
      batch_repetitions: b, divides B.
      alpha: Dirichlet concentration of the ratios; 0 makes them all 1 / M.
      crop_padding: crops reach this many pixels over each edge.
      flip: whether half of the images are flipped.
      msda_beta: pixel ratios are drawn from Beta(msda_beta, msda_beta); None: no pixel mixing.
      msda_prob: share of the images mixed with a partner.
      input_repetition: share of the positions at which all members see the same image.

    Returns:
      The plan.

    References:
      MixMo paper, arXiv 2103.06132; batch and input repetition: MIMO, arXiv 2010.06610.
    """
    order_key, view_key, pixel_key, patch_key, role_key, ratio_key, centre_key = jax.random.split(
        jax.random.fold_in(key, step), 7
    )
    shape = (num_members, batch_size)
    group_size = batch_size // batch_repetitions
    group = jax.lax.dynamic_slice_in_dim(order, step % steps_per_epoch * group_size, group_size)
    index = _repeat(order_key, group, shape, batch_repetitions, input_repetition)
    pixels = None
    if msda_beta is not None:
        partner_key, mixed_key, beta_key, box_key = jax.random.split(pixel_key, 4)
        index_key, partner_key = jax.random.split(partner_key)
        partner = jax.random.randint(index_key, shape, 0, len(order))
        pixels = PixelPlan(
            partner=_augmentation(partner_key, partner, crop_padding, flip),
            mixed=jax.random.bernoulli(mixed_key, msda_prob, shape),
            ratios=jax.random.beta(beta_key, msda_beta, msda_beta, shape),
            centres=jax.random.uniform(box_key, (*shape, 2)),
        )
    if alpha > 0 and num_members > 1:
        concentration = jnp.full(num_members, alpha)
        ratios = jax.random.dirichlet(ratio_key, concentration, (batch_size,)).T
    else:
        ratios = jnp.full(shape, 1 / num_members)
    return BatchPlan(
        view=_augmentation(view_key, index, crop_padding, flip),
        pixels=pixels,
        use_patch=jax.random.bernoulli(patch_key, patch_prob),
        roles=jax.random.permutation(role_key, num_members),
        ratios=ratios,
        centres=jax.random.uniform(centre_key, (*shape, 2)),
    )


def shard(plan: BatchPlan, index: jax.Array | int, count: int) -> BatchPlan:
    """Returns the part of the plan that device `index` of `count` computes."""

    def part(leaf):
        if leaf.ndim < 2:
            return leaf
        size = leaf.shape[1] // count
        return jax.lax.dynamic_slice_in_dim(leaf, index * size, size, axis=1)

    return jax.tree.map(part, plan)


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


def _augmentation(key, index, crop_padding, flip):
    """A view of the images at `index`, with an augmentation of its own for each."""
    offset_key, flip_key = jax.random.split(key)
    return View(
        index=index,
        offset=jax.random.randint(offset_key, (*index.shape, 2), 0, 2 * crop_padding + 1),
        flip=jax.random.bernoulli(flip_key, 0.5 if flip else 0.0, index.shape),
    )
