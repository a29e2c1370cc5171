"""A mixing block, a network and a dataset of your own, without a change to the package.

    python -m mixmo_jax.main --config=docs/examples/stripes.py

It takes seconds, most of them for compilation. Remove a line of `get_config` to go back to a part
that the package brings.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax.configs import digits
from mixmo_jax.datasets import DATASETS, Split
from mixmo_jax.mixing import MASKS
from mixmo_jax.models import NETWORKS, MixMoNet
from mixmo_jax.models.layers import make_conv, make_norm, stacked_init


def stripes_mask(key: jax.Array, ratios: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Vertical stripes: each column belongs to one role, drawn with the roles' ratios."""
    _, width, _ = shape
    roles = jax.random.categorical(key, jnp.log(ratios), shape=(width,))  # [w]
    columns = jax.nn.one_hot(roles, len(ratios), axis=0, dtype=ratios.dtype)  # [M, w]
    return columns[:, None, :, None]  # [M, 1, w, 1]: the same in all rows and channels


class TinyCore(nn.Module):
    """One convolution: [B, h, w, F] → [B, h, w, 16 width]."""

    width: int
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = make_conv(self.dtype, padding="SAME")(16 * self.width, (3, 3), name="conv")(x)
        x = make_norm(self.dtype, train, self.axis_name)(name="bn")(x)
        return nn.relu(x)


def tiny_network(
    *,
    depth: int,
    width: int,
    num_members: int,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    axis_name: str | None = None,
) -> MixMoNet:
    """A network with the tiny core; its depth is fixed."""
    del depth
    return MixMoNet(
        core=TinyCore(width, dtype, axis_name),
        num_members=num_members,
        num_classes=num_classes,
        stem_features=8,
        stem_stride=1,
        head_init=stacked_init,
        dtype=dtype,
    )


def load_bars(config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
    """Gray images of 8x8 pixels with one bright bar on noise; the class is its direction."""
    del config  # the fields of `config.dataset`: data_dir, image_size, ...
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in {"train": 256, "test": 64}.items():
        labels = np.arange(count, dtype=np.int32) % 2  # [N]
        images = rng.integers(0, 128, (count, 8, 8), dtype=np.uint8)  # [N, H, W]
        images[np.arange(count), rng.integers(0, 8, count)] = 255  # a row of each image
        vertical = labels == 1
        images[vertical] = images[vertical].swapaxes(1, 2)
        splits[name] = Split(images[..., None], labels)
    return splits, ["horizontal", "vertical"]


MASKS["stripes"] = stripes_mask
NETWORKS["tiny"] = tiny_network
DATASETS["bars"] = load_bars


def get_config(method: str = "cut_mixmo") -> ml_collections.ConfigDict:
    """Returns the config of the digits with all three parts replaced."""
    config = digits.get_config(method)
    config.mixmo.block = "stripes"
    config.model.name = "tiny"
    config.dataset.name = "bars"

    config.model.depth = 10
    config.model.width = 1
    config.num_epochs = 2  # the last epoch mixes linearly, so one epoch would show no stripes
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_epochs = ()
    return config
