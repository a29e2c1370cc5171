"""Wide ResNet for CIFAR, arXiv 1605.07146."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixmo_jax.errors import invalid
from mixmo_jax.models.layers import make_conv, make_norm, stacked_init
from mixmo_jax.models.multi_input import MixMoNet


class WideBlock(nn.Module):
    """Pre-activation residual block, with the stride on the second convolution."""

    features: int
    stride: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = nn.relu(self.norm(name="bn1")(x))
        out = self.conv(self.features, (3, 3), name="conv1")(out)
        out = nn.relu(self.norm(name="bn2")(out))
        # "SAME" with stride 2 pads one row at the bottom and one column at the right.
        out = self.conv(self.features, (3, 3), self.stride, name="conv2")(out)
        if x.shape != out.shape:
            x = self.conv(self.features, (1, 1), self.stride, name="shortcut")(x)
        return x + out


class WideResNetCore(nn.Module):
    """The stages of WRN-d-k and final BatchNorm: [B, h, w, 16] → [B, ⌈h/4⌉, ⌈w/4⌉, 64 k]."""

    blocks_per_stage: int
    width: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = make_conv(self.dtype, padding="SAME")
        norm = make_norm(self.dtype, train, self.axis_name)
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = WideBlock(channels * self.width, stride, conv, norm, name=name)(x)
        return nn.relu(norm(name="bn")(x))


def wide_resnet(
    *,
    depth: int,
    width: int,
    num_members: int,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
) -> MixMoNet:
    """Builds Wide ResNet-depth-width with M encoders and heads.

    Args:
      depth: 6n + 4.
      width: k; the stages have 16k, 32k and 64k channels.
      num_members: M.
      num_classes: K.
      dtype: Computation dtype; parameters and BatchNorm statistics are float32.
      axis_name: The mapped axis over which BatchNorm synchronizes its statistics.

    Raises:
      InputError: if the depth is not 6n + 4.
    """
    if depth < 10 or depth % 6 != 4:
        raise invalid("depth", depth, "6n + 4 for a Wide ResNet (10, 16, 22, 28, ...)")
    return MixMoNet(
        core=WideResNetCore((depth - 4) // 6, width, dtype, axis_name),
        num_members=num_members,
        num_classes=num_classes,
        stem_features=16,
        stem_stride=1,
        head_init=stacked_init,
        dtype=dtype,
    )
