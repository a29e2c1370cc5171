"""The multi-input network: M encoders before one core, M heads after it, arXiv 2103.06132.

Shapes: M members, B batch size, [H, W, C] image, [h, w, F] output of an encoder, K classes.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixmo_jax.mixing.mixing_block import mix_features
from mixmo_jax.models.cpu_convolution import convolve, precision_of
from mixmo_jax.models.layers import global_average_pool, stacked_init


class MultiInputStem(nn.Module):
    """M encoders, each a 3x3 convolution without bias, and the mixing of their outputs."""

    num_members: int
    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, masks: jax.Array | None) -> jax.Array:
        """Encodes and mixes.

        Args:
          images: [M, B, H, W, C] float; without masks [B, H, W, C], each image for all encoders.
          masks: [M, B, h, w, F] float; h, w and F may be 1. None for 1 / M everywhere.

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
    """M dense layers with bias: [B, F] (shared by all members) or [M, B, F] → [M, B, K]."""

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
    """M encoders, a mixing block, a core, M heads. M = 1 is the plain network."""

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
          images: Normalized images: [M, B, H, W, C] with masks, one image per member; [B, H, W, C]
            without masks, each image for all members.
          masks: [M, B, h, w, F], sum to 1 over M; h, w and F may be 1. None for 1 / M everywhere.
          train: Whether BatchNorm uses batch statistics and updates the running ones.
          pool: Pools the features [B, h', w', F'] of the core to [B, F'], or to [M, B, F'] for each
            member.

        Returns:
          [M, B, K] float32. At inference, the logits of the ensemble are the mean over M.
        """
        stem = MultiInputStem(
            self.num_members, self.stem_features, self.stem_stride, self.dtype, name="stem"
        )
        # [M, B, H, W, C] → [B, h, w, F] → [B, h', w', F'] → [B, F'] or [M, B, F']
        features = pool(self.core(stem(images, masks), train=train))
        return MultiHead(self.num_members, self.num_classes, self.head_init, name="heads")(features)

    def stem_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns (h, w, F) of the encoders' output."""
        stride = self.stem_stride
        return -(-height // stride), -(-width // stride), self.stem_features

    def in_dtype(self, dtype: jnp.dtype) -> "MixMoNet":
        """Returns the network with another computation dtype."""
        return self.clone(dtype=dtype, core=self.core.clone(dtype=dtype))


def fold_members(params: dict) -> dict:
    """Returns the parameters of the ordinary network, M = 1, with the mean of the members' logits.

    Every layer around the core is linear, so the kernels of the encoders are summed and the heads
    averaged, in float32.

    References:
      MixMo, arXiv 2103.06132: inference at the cost of one network.
    """
    return _with_heads(params, jax.tree.map(lambda x: x.mean(0, keepdims=True), params["heads"]))


def select_members(params: dict, members: Sequence[int]) -> dict:
    """Returns the parameters of the network with the heads of some members, and all encoders."""
    return _with_heads(params, jax.tree.map(lambda x: x[np.asarray(members)], params["heads"]))


def _with_heads(params: dict, heads: dict) -> dict:
    """Encoder 0 becomes the sum of all encoders; the rest are zero."""
    kernel = params["stem"]["kernel"].sum(0, keepdims=True)
    rest = jnp.zeros((len(heads["bias"]) - 1, *kernel.shape[1:]), kernel.dtype)
    return {**params, "stem": {"kernel": jnp.concatenate([kernel, rest])}, "heads": heads}
