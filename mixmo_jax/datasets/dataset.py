"""The form every data source is brought into."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Split:
    """Images and labels in memory, on the host or on devices."""

    images: np.ndarray | jax.Array  # [N, H, W, C] uint8
    labels: np.ndarray | jax.Array  # [N] int32

    def __len__(self) -> int:
        return len(self.labels)


@flax.struct.dataclass
class Dataset:
    """Two splits and what is needed to feed and to read a network."""

    train: Split
    test: Split
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    mean: tuple[float, ...] = flax.struct.field(pytree_node=False)  # per channel, scale 0 to 1
    std: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.images.shape[1:]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
