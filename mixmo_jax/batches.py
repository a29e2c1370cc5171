"""From a plan to what the network sees: the only place where pixels, masks and targets meet."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import ml_collections
import numpy as np

from mixmo_jax.augment import crop_and_flip, normalize
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.mixing.mixmo import loss_weights, mixmo_masks, patch_probability
from mixmo_jax.mixing.msda import mix_pixels, pixel_masks
from mixmo_jax.sampling import BatchPlan, View, sample_batch_plan


@flax.struct.dataclass
class RawBatch:
    """What a plan takes from the training set."""

    images: jax.Array | np.ndarray  # [M, B, H, W, C] uint8
    labels: jax.Array | np.ndarray  # [M, B] int32
    partner_images: jax.Array | np.ndarray | None  # likewise, None without pixel mixing
    partner_labels: jax.Array | np.ndarray | None


@flax.struct.dataclass
class Batch:
    """What a training step feeds to network and loss."""

    images: jax.Array  # [M, B, H, W, C] float32, normalised
    masks: jax.Array  # [M, B, h, w, 1] float32, sum to 1 over M
    targets: jax.Array  # [M, B, K] float32, distributions
    weights: jax.Array  # [M, B] float32, mean 1 over M


def gather(data: Split, index: jax.Array, partner_index: jax.Array | None) -> RawBatch:
    """Takes images out of a training set, on the device or on the host.

    Args:
      data: the training set.
      index: [M, B] int32.
      partner_index: likewise, or None.
    """
    partners = (None, None)
    if partner_index is not None:
        partners = (data.images[partner_index], data.labels[partner_index])
    return RawBatch(data.images[index], data.labels[index], *partners)


def indices(plan: BatchPlan) -> tuple[jax.Array, jax.Array | None]:
    """The images a plan takes: [M, B] int32 for the views, likewise or None for the partners."""
    return plan.view.index, None if plan.pixels is None else plan.pixels.partner.index


def make_batch(
    raw: RawBatch,
    plan: BatchPlan,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_padding: int,
    msda_method: str,
    block: str,
    root: float,
    stem_shape: tuple[int, int],
) -> Batch:
    """Carries out a plan.

    Args:
      raw: the images that the plan takes.
      plan: of the batch.
      num_classes: K.
      mean: per channel, on the scale 0 to 1.
      std: likewise.
      crop_padding: pixels of black around an image before its crop.
      msda_method: "none", "mixup" or "cutmix".
      block: "linear" or "cutmix".
      root: r of the loss weights.
      stem_shape: (h, w) of the encoders' output.
    """

    def look(images: jax.Array, labels: jax.Array, view: View) -> tuple[jax.Array, jax.Array]:
        images = crop_and_flip(images, view, crop_padding)
        return normalize(images, mean, std), jax.nn.one_hot(labels, num_classes)

    images, targets = look(raw.images, raw.labels, plan.view)
    masks = mixmo_masks(plan, block, stem_shape)
    if plan.pixels is not None:
        shares = pixel_masks(plan.pixels, msda_method, images.shape[2:4])
        partners = look(raw.partner_images, raw.partner_labels, plan.pixels.partner)
        images, targets = mix_pixels(images, targets, *partners, shares, masks)
    return Batch(images, masks, targets, loss_weights(masks, root))


def steps_per_epoch(config: ml_collections.ConfigDict, num_images: int) -> int:
    """Batches of an epoch: floor(N * b / B)."""
    return num_images * config.batch_repetitions // config.batch_size


def make_plan_fn(config: ml_collections.ConfigDict, num_images: int) -> Callable[..., BatchPlan]:
    """Returns `plan(key, step, order)`, which draws the plan of a step as the config says."""
    steps = steps_per_epoch(config, num_images)
    draw = functools.partial(
        sample_batch_plan,
        steps_per_epoch=steps,
        num_members=config.model.num_members,
        batch_size=config.batch_size,
        batch_repetitions=config.batch_repetitions,
        alpha=config.mixmo.alpha,
        crop_padding=config.dataset.crop_padding,
        flip=config.dataset.flip,
        msda_beta=None if config.msda.method == "none" else config.msda.beta,
        msda_prob=config.msda.prob,
        input_repetition=config.input_repetition,
    )

    def plan(key: jax.Array, step: jax.Array, order: jax.Array) -> BatchPlan:
        epoch = step // steps + 1
        prob = patch_probability(
            epoch, config.num_epochs, config.mixmo.prob, config.mixmo.prob_until
        )
        return draw(key, step, order, patch_prob=prob)

    return plan


def make_batch_fn(
    config: ml_collections.ConfigDict, dataset: Dataset, stem_shape: tuple[int, int]
) -> Callable[[RawBatch, BatchPlan], Batch]:
    """Returns `batch(raw, plan)`, which carries out plans as the config says."""
    return functools.partial(
        make_batch,
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
        crop_padding=config.dataset.crop_padding,
        msda_method=config.msda.method,
        block=config.mixmo.block,
        root=config.mixmo.root,
        stem_shape=stem_shape,
    )
