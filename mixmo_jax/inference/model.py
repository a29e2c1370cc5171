"""Trained networks, and ensembles of them, to predict with.

Shapes: N images [H, W, C], M members, K classes.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax import distributed
from mixmo_jax.datasets.files import read_images
from mixmo_jax.errors import InputError, invalid
from mixmo_jax.evaluation.calibration import fit_temperature
from mixmo_jax.evaluation.metrics import ENSEMBLES, check_logits, ensemble_log_probs
from mixmo_jax.inference import pretrained
from mixmo_jax.input_pipeline.augment import normalize
from mixmo_jax.models import MixMoNet
from mixmo_jax.models.multi_input import fold_members, select_members

_BATCHES_IN_FLIGHT = 2  # the device never waits for the host, and memory is bounded


@functools.lru_cache(maxsize=8)  # equal networks are compiled once
def make_logits_fn(
    module: MixMoNet,
    *,
    batch_size: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Callable[[dict, np.ndarray], np.ndarray]:
    """Returns `logits(variables, images)`: [N, H, W, C] → [N, M, K] float32, for any N >= 1.

    Batches are sharded over the local devices, on which the variables must lie, see
    `distributed.replicate`. The last batch is padded to a power of two, so that one image costs
    about one image and few sizes are compiled.

    Args:
      module: The network.
      batch_size: Images of a batch, rounded up to a multiple of the devices.
      mean: Mean of each channel, in [0, 1], to normalize uint8 images; None for images that are
        normalized float32.
      std: Standard deviation of each channel, or None.
    """
    count = jax.local_device_count()
    most = -(-batch_size // count) * count

    @jax.jit
    def eval_step(variables: dict, images: jax.Array) -> jax.Array:
        if mean is not None:
            images = normalize(images, mean, std)
        logits = module.apply(variables, images, train=False)
        return jnp.moveaxis(logits, 0, 1)  # [M, B, K] → [B, M, K]

    def logits(variables: dict, images: np.ndarray) -> np.ndarray:
        pending, outputs = collections.deque(), []
        for start in range(0, len(images), most):
            batch = images[start : start + most]
            power = 1 << (len(batch) - 1).bit_length()
            size = min(most, -(-power // count) * count)
            padding = [(0, size - len(batch))] + [(0, 0)] * 3
            pending.append(eval_step(variables, distributed.shard(np.pad(batch, padding))))
            if len(pending) > _BATCHES_IN_FLIGHT:
                outputs.append(np.asarray(pending.popleft()))
        outputs += map(np.asarray, pending)
        return np.concatenate(outputs)[: len(images)]

    return logits


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One trained network and the description of its images and classes.

    Attributes:
      module: The Flax module.
      variables: Parameters and BatchNorm statistics.
      class_names: [K].
      image_shape: (H, W, C).
      mean: Mean of each channel, in [0, 1].
      std: Standard deviation of each channel, on the same scale.
      batch_size: Maximum number of images computed at once.
      config: The config of its run, if it has one.
      epoch: The epoch after which it was saved, if it is of a run.
      architecture: The fields of `config.model` that build the module; None if not known.
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
        """Computes logits, [N, H, W, C] → [N, M, K] float32, see `Model.logits`."""
        statistics = {"mean": self.mean, "std": self.std} if preprocess else {}
        logits_fn = make_logits_fn(self.module, batch_size=self.batch_size, **statistics)
        return logits_fn(self._placed_variables, images)

    @functools.cached_property
    def _placed_variables(self) -> dict:
        """The variables on all local devices, placed at the first prediction."""
        return distributed.replicate(self.variables)

    def fold(self) -> "TrainedNetwork":
        """Returns the ordinary network, M = 1, with the mean of the members' logits."""
        return self._with(fold_members(self.variables["params"]), 1)

    def select(self, members: Sequence[int]) -> "TrainedNetwork":
        """Returns the network with the heads of some members, and all encoders."""
        return self._with(select_members(self.variables["params"], members), len(members))

    def _with(self, params: dict, num_members: int) -> "TrainedNetwork":
        module = self.module.clone(num_members=num_members)
        variables = {**self.variables, "params": params}
        return dataclasses.replace(self, module=module, variables=variables)


class Model:
    """A trained network, or an ensemble of several, in the manner of scikit-learn.

    All networks have the same weight, whatever their number of members.

    Args:
      networks: One or more networks for the same images and classes.
      ensemble: How members are averaged, see `metrics.ensemble_log_probs`.
      temperature: All logits are divided by it for class probabilities; None if none was fitted.
      results: The results of evaluating this model; None without them.

    Raises:
      InputError: if the networks do not fit together.
    """

    def __init__(
        self,
        networks: Sequence[TrainedNetwork],
        ensemble: str = "logits",
        temperature: float | None = None,
        results: dict[str, object] | None = None,
    ):
        if ensemble not in ENSEMBLES:
            raise invalid("ensemble", ensemble, " or ".join(ENSEMBLES))
        first = networks[0]
        for other in networks[1:]:
            for name in ("class_names", "image_shape"):
                if getattr(other, name) != getattr(first, name):
                    raise InputError(f"networks: they differ in their {name}")
        self.networks, self.ensemble, self.temperature = tuple(networks), ensemble, temperature
        self.results = results

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self.networks[0].class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.networks[0].image_shape

    @property
    def num_members(self) -> int:
        """M, the members of all networks."""
        return sum(network.module.num_members for network in self.networks)

    @property
    def weights(self) -> np.ndarray:
        """The weight of each member in the ensemble: [M] float64, sum to 1."""
        counts = [network.module.num_members for network in self.networks]
        return np.concatenate([np.full(m, 1 / (m * len(counts))) for m in counts])

    @property
    def config(self) -> ml_collections.ConfigDict | None:
        """The config of the (first) network's run."""
        return self.networks[0].config

    def __repr__(self) -> str:
        counts = f"{self.num_members} members, {len(self.class_names)} classes"
        networks = f"{len(self.networks)} networks, " if len(self.networks) > 1 else ""
        return f"<mixmo_jax.Model: {networks}{counts}, images {self.image_shape}>"

    def read(self, files: str | pathlib.Path | Sequence[str | pathlib.Path]) -> np.ndarray:
        """Reads image files, scaled and center-cropped to (H, W).

        Returns:
          [N, H, W, C] uint8.

        Raises:
          InputError: if a file cannot be read, or is not an image.
        """
        return read_images(
            [files] if isinstance(files, str | pathlib.Path) else files, self.image_shape
        )

    def logits(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the logits of every member.

        Args:
          images: [N, H, W, C] uint8, N >= 1; for one channel also [N, H, W].
          preprocess: If False, the images are normalized float32.

        Returns:
          [N, M, K] float32, not divided by the temperature.

        Raises:
          InputError: if the images have another shape or dtype, or are not finite.
        """
        images = self._check_images(images, preprocess)
        parts = [network.logits(images, preprocess=preprocess) for network in self.networks]
        return np.concatenate(parts, axis=1)

    def predict_proba(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the ensemble's class probabilities with the model's temperature.

        The temperature of a loaded run was fitted when it was evaluated: on the validation split,
        or else on the test split. Without one, logits are not scaled; see `calibrate`.

        Args:
          images: See `logits`.
          preprocess: See `logits`.

        Returns:
          [N, K] float32.
        """
        return self.probs(self.logits(images, preprocess=preprocess))

    def predict(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Returns the most probable classes, [N] int; arguments as in `logits`."""
        return self.predict_proba(images, preprocess=preprocess).argmax(1)

    def probs(self, logits: np.ndarray) -> np.ndarray:
        """Computes the ensemble's class probabilities: [N, M, K] → [N, K] float32."""
        scaled = logits / (self.temperature or 1.0)
        log_probs = ensemble_log_probs(scaled, self.ensemble, self.weights)
        return np.exp(log_probs).astype(np.float32)

    def calibrate(
        self, images: np.ndarray, labels: np.ndarray, *, preprocess: bool = True
    ) -> "Model":
        """Returns the model with a temperature fitted on images it was not trained on.

        Args:
          images: See `logits`.
          labels: [N] int.
          preprocess: See `logits`.

        Raises:
          InputError: if images or labels do not fit the model.

        References:
          Temperature scaling, arXiv 1706.04599.
        """
        logits, labels = check_logits(self.logits(images, preprocess=preprocess), labels)
        temperature = fit_temperature(logits, labels, self.ensemble, self.weights)
        return Model(self.networks, self.ensemble, temperature)

    def fold(self) -> "Model":
        """Returns the ordinary network, M = 1, whose logits are the mean of the members' logits.

        Raises:
          InputError: if there are several networks, or their probabilities are averaged.

        References:
          MixMo, arXiv 2103.06132: inference at the cost of one network.
        """
        if len(self.networks) > 1 or self.ensemble != "logits":
            raise InputError("fold: only one network, whose logits are averaged, folds into one")
        return Model([self.networks[0].fold()], self.ensemble, self.temperature)

    def select(self, members: Sequence[int]) -> "Model":
        """Returns the ensemble of some members of every network, without a temperature.

        It costs the same, as the members of a network share its core.

        Args:
          members: Distinct indices of members.

        Raises:
          InputError: if a network lacks one of them.
        """
        fewest = min(network.module.num_members for network in self.networks)
        chosen = sorted(set(members))
        if not chosen or len(chosen) < len(members) or chosen[0] < 0 or chosen[-1] >= fewest:
            raise invalid("members", tuple(members), f"distinct indices from 0 to {fewest - 1}")
        return Model([network.select(members) for network in self.networks], self.ensemble)

    def make_predict_fn(self) -> Callable[[jax.Array], jax.Array]:
        """Returns `predict_proba` as a JAX function in float32, with the weights inside.

        It takes [N, H, W, C] uint8 and returns [N, K] float32; `export` serializes it.
        """
        weights = jnp.asarray(self.weights, jnp.float32)[:, None, None]
        temperature = self.temperature or 1.0

        def predict_proba(images: jax.Array) -> jax.Array:
            parts = []
            for network in self.networks:
                float32 = network.module.in_dtype(jnp.dtype("float32"))
                inputs = normalize(images, network.mean, network.std)
                parts.append(float32.apply(network.variables, inputs, train=False))  # [M, N, K]
            logits = jnp.concatenate(parts) / temperature
            if self.ensemble == "logits":
                return jax.nn.softmax((weights * logits).sum(0))
            return (weights * jax.nn.softmax(logits)).sum(0)

        return predict_proba

    def save_pretrained(
        self, folder: str | pathlib.Path, *, license: str | None = None, address: str | None = None
    ) -> None:
        """Writes the model into a folder to share, which `load` reads; see `pretrained.save`."""
        pretrained.save(self, folder, license=license, address=address)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, license: str | None = None
    ) -> str:
        """Uploads the model to the Hugging Face Hub, see `pretrained.push`."""
        return pretrained.push(self, repo_id, private=private, license=license)

    def _check_images(self, images, preprocess):
        """Returns the images as [N, H, W, C]."""
        try:
            images = np.asarray(images)
        except ValueError:
            raise InputError("images: they differ in shape") from None
        if images.ndim == 3 and self.image_shape[2] == 1:
            images = images[..., None]
        expected = np.uint8 if preprocess else np.float32
        if images.dtype != expected:
            hint = ", 0 to 255 (or normalized float32, with preprocess=False)" * preprocess
            raise InputError(f"images: {images.dtype}, expected {np.dtype(expected)}{hint}")
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            shape = ", ".join(["N >= 1", *map(str, self.image_shape)])
            raise InputError(f"images: shape {images.shape}, expected [{shape}]")
        if not preprocess and not np.isfinite(images).all():
            raise InputError("images: some values are not finite")
        return images


def predict_files(model: Model, files: Sequence[pathlib.Path]) -> list[dict]:
    """Predicts the classes of image files, scaled and center-cropped to (H, W).

    Returns:
      For each file: `file`, `class`, its `probability`, the `votes` of the members, and whether
      they `disagree`, a sign of an uncertain prediction.

    Raises:
      InputError: if a file is not an image.
    """
    logits = model.logits(model.read(files))
    return [
        {
            "file": os.fsencode(file).decode(errors="replace"),
            "class": model.class_names[probs.argmax()],
            "probability": round(float(probs.max()), 6),
            "votes": [model.class_names[vote] for vote in votes],
            "disagree": bool((votes != votes[0]).any()),
        }
        for file, probs, votes in zip(files, model.probs(logits), logits.argmax(-1), strict=True)
    ]
