"""One trained network, and what can be made of its encoders and heads.

Glossary: N images [H, W, C], M members, K classes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.evaluation.logits import make_logits_fn
from mixmo_jax.models import MixMoNet


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One trained network and the description of its images and classes.

    Attributes:
      module: The Flax module.
      variables: Its parameters and BatchNorm statistics.
      class_names: [K].
      image_shape: (H, W, C).
      mean: The mean of each channel, on the scale 0 to 1.
      std: The standard deviation of each channel, on the same scale.
      batch_size: The most images that are computed at once.
      config: The config of its run, if it has one.
      epoch: The epoch after which it was saved, if it is of a run.
      architecture: The fields of `config.model` that build the network; None if not known. The
        number of members is that of `model`.
    """

    module: MixMoNet
    variables: dict
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int = 256
    config: ml_collections.ConfigDict | None = None
    epoch: int | None = None
    architecture: dict[str, object] | None = None

    def logits(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes logits of images that fit: [N, H, W, C] → [N, M, K], see `Model.logits`."""
        statistics = {"mean": self.mean, "std": self.std} if preprocess else {}
        logits_fn = make_logits_fn(self.module, batch_size=self.batch_size, **statistics)
        return logits_fn(self._variables_on_devices, images)

    @functools.cached_property
    def _variables_on_devices(self) -> dict:
        """The variables on all local devices, placed at the first prediction."""
        return distributed.replicate(self.variables)

    def fold(self) -> "TrainedNetwork":
        """Returns the ordinary network, M = 1, with the mean of the members' logits.

        Everything around the core is linear: the first kernels are summed, the heads averaged, in
        float32.

        References:
          MixMo paper, arXiv 2103.06132: inference at the cost of one network.
        """
        heads = jax.tree.map(lambda x: x.mean(0, keepdims=True), self._params["heads"])
        return self._with_heads(heads, 1)

    def select(self, members: Sequence[int]) -> "TrainedNetwork":
        """Returns the network with the heads of the numbered members, and all encoders."""
        heads = jax.tree.map(lambda x: x[np.asarray(members)], self._params["heads"])
        return self._with_heads(heads, len(members))

    @property
    def _params(self) -> dict:
        return self.variables["params"]

    def _with_heads(self, heads: dict, num_members: int) -> "TrainedNetwork":
        """The network with other heads. One encoder is the sum of all, as many as needed are 0."""
        kernel = self._params["stem"]["kernel"].sum(0, keepdims=True)
        empty = jnp.zeros((num_members - 1, *kernel.shape[1:]), kernel.dtype)
        params = {**self._params, "stem": {"kernel": jnp.concatenate([kernel, empty])}}
        params["heads"] = heads
        return dataclasses.replace(
            self,
            module=self.module.clone(num_members=num_members),
            variables={**self.variables, "params": params},
        )
