"""From a plan to what the network sees: the only place where pixels, masks and targets meet.

Glossary: M members, B positions of the batch, [H, W, C] an image, K classes, [h, w, F] an encoder's
output, N training images, b repetitions of an image.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from mixmo_jax.datasets import Dataset
from mixmo_jax.datasets.dataset import Rows
from mixmo_jax.input_pipeline.augment import crop_and_flip, normalize
from mixmo_jax.input_pipeline.augmix import augmix
from mixmo_jax.input_pipeline.plan import BatchPlan, View, sample_augmix, sample_batch_plan
from mixmo_jax.mixing.mixing_block import mixmo_masks, patch_probability
from mixmo_jax.mixing.msda import mix_pixels, msda_masks
from mixmo_jax.mixing.unmix import unmix_strength
from mixmo_jax.training.losses import loss_weights

HostOrDeviceArray = jax.Array | np.ndarray


@flax.struct.dataclass
class RawBatch:
    """The images that a plan takes from the training split."""

    images: HostOrDeviceArray  # [M, B, H, W, C] uint8
    labels: HostOrDeviceArray  # [M, B] int32
    partner_images: HostOrDeviceArray | None  # [M, B, H, W, C] uint8, None without pixel mixing
    partner_labels: HostOrDeviceArray | None  # [M, B] int32


@flax.struct.dataclass
class Batch:
    """What a training step feeds to network and loss."""

    images: jax.Array  # [M, B, H, W, C] float32, normalized
    masks: jax.Array  # [M, B, h, w, F] float32, any of the last three 1; sum to 1 over M
    targets: jax.Array  # [M, B, K] float32, distributions
    weights: jax.Array  # [M, B] float32, with a mean of 1 over M
    unmix: jax.Array | None  # [] float32, the strength of the unmixing; None: there is none


def planned_indices(
    plan: BatchPlan,
) -> tuple[Int[Array, "M B"], Int[Array, "M B"] | None]:
    """Returns the images that a plan takes, and their partners: [M, B] int32 each."""
    return plan.view.index, None if plan.msda is None else plan.msda.partner.index


def gather(
    images: UInt8[HostOrDeviceArray | Rows, "N *image"],
    labels: Int[HostOrDeviceArray, "N"],
    index: Int[HostOrDeviceArray, "*steps M B"],
    partner_index: Int[HostOrDeviceArray, "*steps M B"] | None,
    image_shape: tuple[int, int, int],
) -> RawBatch:
    """Takes images out of the training split, on the device or on the host.

    Args:
      images: [N, H, W, C] or flat, [N, H * W * C]; uint8.
      labels: [N] int32.
      index: [M, B] int32; or [S, M, B] for several steps, and so is what is returned.
      partner_index: The same for the partners, or None without pixel mixing.
      image_shape: (H, W, C).
    """

    def take(index):
        if index is None:
            return None, None
        return images[index].reshape(*index.shape, *image_shape), labels[index]

    return RawBatch(*take(index), *take(partner_index))


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
    weight_root: float,
    stem_shape: tuple[int, int, int],
) -> Batch:
    """Carries out a plan.

    Args:
      raw: The images that the plan takes.
      plan: The plan of the batch.
      num_classes: K.
      mean: The mean of each channel, on the scale 0 to 1.
      std: The standard deviation of each channel, on the same scale.
      crop_padding: The number of black pixels around an image before its crop.
      msda_method: "mixup" or a mask function's name; not used where the plan mixes no pixels.
      block: The name of a mask function, see `mixmo_jax.mixing.MASKS`.
      weight_root: r of the loss weights.
      stem_shape: (h, w, F) of the encoders' output.
    """

    raw, plan = jax.tree.map(jnp.asarray, (raw, plan))  # they may come from the host

    def preprocess(
        images: UInt8[Array, "M B H W C"], labels: Int[Array, "M B"], view: View
    ) -> tuple[Float[Array, "M B H W C"], Float[Array, "M B K"]]:
        images = crop_and_flip(images, view, crop_padding)
        if view.augmix is not None:
            images = augmix(images, view.augmix)
        return normalize(images, mean, std), jax.nn.one_hot(labels, num_classes)

    images, targets = preprocess(raw.images, raw.labels, plan.view)
    masks = mixmo_masks(
        plan.ratios,
        plan.mask_keys,
        plan.mask_index,
        plan.use_patch,
        block=block,
        shape=stem_shape,
    )
    if plan.msda is not None:
        msda = plan.msda
        pixel_masks = msda_masks(
            msda.ratios, msda.mask_keys, msda.mixed, method=msda_method, shape=images.shape[2:4]
        )
        partners = preprocess(raw.partner_images, raw.partner_labels, msda.partner)
        images, targets = mix_pixels(images, targets, *partners, pixel_masks, masks)
    return Batch(images, masks, targets, loss_weights(masks, weight_root), plan.unmix)


def steps_per_epoch(config: ml_collections.ConfigDict, num_images: int) -> int:
    """Returns the number of batches of an epoch: floor(N * b / B)."""
    return num_images * config.batch_repetitions // config.batch_size


def mixes_by_patches(config: ml_collections.ConfigDict) -> bool:
    """Returns whether a run mixes some of its batches by a block other than `linear`."""
    block = config.mixmo.block != "linear" and config.mixmo.patch_prob > 0
    return block and config.model.num_members > 1


def make_plan_fn(config: ml_collections.ConfigDict, num_images: int) -> Callable[..., BatchPlan]:
    """Returns `plan(key, step, order)`, which draws the plan of a step as the config says."""
    steps = steps_per_epoch(config, num_images)
    num_epochs = config.num_epochs
    mixmo, augment, augmix_fn = config.mixmo, config.augment, None
    if augment.augmix:
        augmix_fn = functools.partial(
            sample_augmix,
            width=augment.augmix_width,
            depth=augment.augmix_depth,
            severity=augment.augmix_severity,
            alpha=augment.augmix_alpha,
        )
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
        augmix_fn=augmix_fn,
    )

    def plan(key: Key[Array, ""], step: Int[Array, ""] | int, order: Int[Array, "N"]) -> BatchPlan:
        prob = patch_probability(
            step // steps + 1, num_epochs, mixmo.patch_prob, mixmo.patch_prob_until
        )
        strength = None
        if mixmo.unmix and mixes_by_patches(config):
            strength = unmix_strength(step / (steps * num_epochs), mixmo.unmix_until)
        return draw(key, step, order, patch_prob=prob, unmix=strength)

    return plan


def make_batch_fn(
    config: ml_collections.ConfigDict, dataset: Dataset, stem_shape: tuple[int, int, int]
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
        weight_root=config.mixmo.weight_root,
        stem_shape=stem_shape,
    )
