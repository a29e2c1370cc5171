"""Pre-activation ResNet-18 for Tiny ImageNet, arXiv 1603.05027."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixmo_jax.errors import invalid
from mixmo_jax.models.layers import make_conv, make_norm
from mixmo_jax.models.multi_input import MixMoNet

_head_init = nn.initializers.normal(0.01)


class PreActBlock(nn.Module):
    """Pre-activation residual block. A projection shortcut takes the activated input."""

    features: int
    stride: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = nn.relu(self.norm(name="bn1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = self.conv(self.features, (1, 1), self.stride, padding=0, name="shortcut")(out)
        out = self.conv(self.features, (3, 3), self.stride, name="conv1")(out)
        out = nn.relu(self.norm(name="bn2")(out))
        return x + self.conv(self.features, (3, 3), name="conv2")(out)


class PreActResNetCore(nn.Module):
    """Four stages of two blocks: [B, h, w, 64] → [B, ⌈h/8⌉, ⌈w/8⌉, 512 w].

    There is no BatchNorm or ReLU after the last block, as in the reference program.
    """

    width: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = make_conv(self.dtype, padding=1)
        norm = make_norm(self.dtype, train, self.axis_name)
        for stage, channels in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = PreActBlock(channels * self.width, stride, conv, norm, name=name)(x)
        return x


def preact_resnet(
    *,
    depth: int,
    width: int,
    num_members: int,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
) -> MixMoNet:
    """Builds PreActResNet-18 with M encoders and heads.

    Args:
      depth: 18.
      width: w; the stages have 64w, 128w, 256w and 512w channels, the encoders always 64.
      num_members: M.
      num_classes: K.
      dtype: Computation dtype; parameters and BatchNorm statistics are float32.
      axis_name: The mapped axis over which BatchNorm synchronizes its statistics.

    Raises:
      InputError: if the depth is not 18.
    """
    if depth != 18:
        raise invalid("depth", depth, "18 for a PreActResNet")
    return MixMoNet(
        core=PreActResNetCore(width, dtype, axis_name),
        num_members=num_members,
        num_classes=num_classes,
        stem_features=64,
        stem_stride=2,
        head_init=_head_init,
        dtype=dtype,
    )
