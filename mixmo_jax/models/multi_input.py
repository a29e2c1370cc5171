"""Several encoders before one core network, several heads after it. (arXiv 2103.06132.)

Glossary: M members, B batch, [H, W, C] image, [h, w, F] an encoder's output, K classes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixmo_jax.mixing.mixing_block import mix_features
from mixmo_jax.models.cpu_convolution import convolve, precision_of
from mixmo_jax.models.layers import global_average_pool, stacked_init


class MultiInputStem(nn.Module):
    """M encoders, each one 3x3 convolution without bias."""

    num_members: int
    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, masks: jax.Array | None) -> jax.Array:
        """Encodes and mixes.

        Args:
          images: [M, B, H, W, C] float; or [B, H, W, C], each image for all encoders.
          masks: [M, B, h, w, F] float, any of the last three 1; or None, the ratio 1 / M for every
            member.

        Returns:
          [B, h, w, F].
        """
        shape = (self.num_members, 3, 3, images.shape[-1], self.features)
        kernels = self.param("kernel", stacked_init, shape)
        images = images.astype(self.dtype)
        if masks is None:
            # Convolutions are linear: the sum of the encoders' outputs is one convolution.
            return self._convolve(images, kernels.sum(0).astype(self.dtype))
        kernels = kernels.astype(self.dtype)
        encoded = [self._convolve(x, kernel) for x, kernel in zip(images, kernels, strict=True)]
        return mix_features(jnp.stack(encoded), masks)  # [M, B, h, w, F] → [B, h, w, F]

    def _convolve(self, images, kernel):
        return convolve(images, kernel, self.stride, padding=1)


class MultiHead(nn.Module):
    """M dense layers with bias: [B, F], the same features for all, or [M, B, F] → [M, B, K]."""

    num_members: int
    num_classes: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        shape = (self.num_members, features.shape[-1], self.num_classes)
        kernels = self.param("kernel", self.kernel_init, shape)
        biases = self.param("bias", nn.initializers.zeros, (self.num_members, self.num_classes))
        precision = precision_of(features.dtype)
        indices = "bf,mfk->mbk" if features.ndim == 2 else "mbf,mfk->mbk"
        return jnp.einsum(indices, features, kernels, precision=precision) + biases[:, None]


class MixMoNet(nn.Module):
    """M encoders, a mixing block, a core network, M heads. M = 1 is the plain network."""

    core: nn.Module  # (features [B, h, w, F], train) → [B, h', w', F']
    num_members: int
    num_classes: int
    stem_features: int
    stem_stride: int
    head_init: Callable
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        masks: jax.Array | None = None,
        *,
        train: bool,
        pool: Callable[[jax.Array], jax.Array] = global_average_pool,
    ) -> jax.Array:
        """Computes the logits of every member.

        Args:
          images: Normalized images. With masks [M, B, H, W, C], one for each member; without masks
            [B, H, W, C], each image for all members.
          masks: [M, B, h, w, F], any of the last three 1, sum to 1 over M; None is 1 / M
            everywhere.
          train: Whether BatchNorm uses the batch's statistics, and updates the running ones.
          pool: How the core's features [B, h', w', F'] are averaged over the map: to [B, F'], or
            for each member to [M, B, F'], in float32 or wider.

        Returns:
          [M, B, K] float32. At inference the ensemble's logits are their mean over M.
        """
        stem = MultiInputStem(
            self.num_members, self.stem_features, self.stem_stride, self.dtype, name="stem"
        )
        # [M, B, H, W, C] → [B, h, w, F] → [B, h', w', F'] → [B, F'] or [M, B, F']
        features = pool(self.core(stem(images, masks), train=train))
        return MultiHead(self.num_members, self.num_classes, self.head_init, name="heads")(features)

    def stem_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, F) of the encoders' output for images of (height, width)."""
        stride = self.stem_stride
        return -(-height // stride), -(-width // stride), self.stem_features

    def in_dtype(self, dtype: jnp.dtype) -> "MixMoNet":
        """Returns the same network, computing in another dtype."""
        return self.clone(dtype=dtype, core=self.core.clone(dtype=dtype))
