"""Standard augmentation, on the device."""

import jax
import jax.numpy as jnp

from mixmo_jax.sampling import View


def crop_and_flip(images: jax.Array, view: View, padding: int) -> jax.Array:
    """Crops each image out of its zero-padded self, then flips it left to right or not.

    Args:
      images: [M, B, H, W, C] uint8.
      view: the crops and flips; its `index` is not used.
      padding: pixels of zeros (black) on every side.

    Returns:
      [M, B, H, W, C] uint8.
    """
    height, width, channels = images.shape[2:]

    def augment(image, offset, flip):
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (*offset, 0), (height, width, channels))
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(jax.vmap(augment))(images, view.offset, view.flip)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Scales to [0, 1] and standardises per channel: [..., C] uint8 → float32."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
