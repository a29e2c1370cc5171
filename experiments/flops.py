"""The floating point operations of a training step."""

import jax
import jax.numpy as jnp

from mixmo_jax.errors import InputError
from mixmo_jax.models import create_model
from mixmo_jax.training.loop import Trainer


def model_flops(trainer: Trainer) -> float:
    """FLOPs of forward and backward pass of a step, as XLA counts them before it optimizes.

    They are those of an accelerator's program, whatever the machine: the CPU's computes its weight
    gradients in loops, of which XLA counts one round.

    Raises:
      InputError: if JAX has been told not to use the CPU.
    """
    config, shape = trainer.config, trainer.dataset.image_shape
    model = create_model(config.model, trainer.dataset.num_classes)
    like = jax.eval_shape(trainer.create_state).variables
    images = jax.ShapeDtypeStruct((model.num_members, config.batch_size, *shape), jnp.float32)
    stem = model.stem_shape(*shape[:2])[:2]
    masks = jax.ShapeDtypeStruct((*images.shape[:2], *stem, 1), jnp.float32)

    def loss(params, batch_stats, images, masks):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = model.apply(variables, images, masks, train=True, mutable=["batch_stats"])
        return logits.sum()

    with jax.default_device(cpu()):  # JAX's backends for GPU and TPU do not count
        traced = jax.jit(jax.grad(loss)).trace(like["params"], like["batch_stats"], images, masks)
        return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def cpu() -> jax.Device:
    """The host's CPU as a device of JAX."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        platforms = jax.config.jax_platforms
        message = f"counting FLOPs needs the CPU, too: {platforms},cpu"
        raise InputError(f"JAX_PLATFORMS={platforms}: {message}") from None
