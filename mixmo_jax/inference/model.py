"""Trained networks to predict with.

Glossary: N images [H, W, C], M members, K classes.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixmo_jax.datasets.decode import MAX_PIXELS, decode_images
from mixmo_jax.errors import MAX_BYTES, InputError, expand, format_value, invalid, read_bytes
from mixmo_jax.evaluation import calibration
from mixmo_jax.evaluation.ensemble import ENSEMBLES, ensemble_log_probs
from mixmo_jax.inference.network import TrainedNetwork
from mixmo_jax.input_pipeline.augment import normalize


class Model:
    """A trained network, or an ensemble of several, in the manner of scikit-learn.

    All networks count the same, however many members each has.

    Args:
      networks: One or more networks for the same images and classes.
      ensemble: How the members are combined, see `evaluation.ensemble.ensemble_log_probs`.
      temperature: The temperature by which all logits are divided for class probabilities; None
        where none was fitted, which leaves them as they are.
      results: The results of evaluating just this model, see `inference.results`; None if there
        are none.

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
        if not networks:
            raise InputError("networks: none, expected one or more")
        if ensemble not in ENSEMBLES:
            raise invalid("ensemble", ensemble, " or ".join(ENSEMBLES))
        first = networks[0]
        for other in networks[1:]:
            for name in ("class_names", "image_shape"):
                if getattr(other, name) != getattr(first, name):
                    values = " and ".join(
                        format_value(getattr(network, name)) for network in (first, other)
                    )
                    raise InputError(f"networks: their {name} differ: {values}")
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
        """M, of all networks together."""
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
        """Reads image files, scaled and cropped at the center to what the network takes.

        Args:
          files: One or several image files.

        Returns:
          [N, H, W, C] uint8.

        Raises:
          InputError: if a file cannot be read, or is not an image.
        """
        if isinstance(files, (str, pathlib.Path)):
            files = [files]
        images = np.zeros((len(files), *self.image_shape), np.uint8)
        names = [str(expand(file)) for file in files]
        max_bytes, max_pixels = MAX_BYTES, MAX_PIXELS
        if (config := self.networks[0].config) is not None:  # what could be trained on
            max_bytes, max_pixels = config.dataset.max_file_bytes, config.dataset.max_image_pixels
        decode_images(
            functools.partial(read_bytes, max_bytes=max_bytes),
            names,
            images,
            resize=True,
            where=pathlib.Path("images"),
            max_pixels=max_pixels,
        )
        return images

    def logits(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the logits of every member.

        Args:
          images: [N, H, W, C] uint8, for one channel also [N, H, W]; N >= 1.
          preprocess: If False, the images are float32 and already normalized.

        Returns:
          [N, M, K] float32, not divided by the temperature.

        Raises:
          InputError: if the images are of another shape or dtype, or not finite.
        """
        images = self._checked(images, preprocess)
        parts = [network.logits(images, preprocess=preprocess) for network in self.networks]
        return np.concatenate(parts, axis=1)

    def predict_proba(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the ensemble's class probabilities, with the model's temperature.

        The temperature of a loaded run is the one fitted when the run, or the ensemble of these
        runs, was evaluated: on the validation split if there is one, else on the test split. If
        none was fitted, the logits are used as they are; see `calibrate`.

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
        """Computes the ensemble's class probabilities of logits: [N, M, K] → [N, K] float32."""
        scaled = logits / (self.temperature or 1.0)
        log_probs = ensemble_log_probs(scaled, self.ensemble, self.weights)
        return np.exp(log_probs).astype(np.float32)

    def calibrate(
        self, images: np.ndarray, labels: np.ndarray, *, preprocess: bool = True
    ) -> "Model":
        """Returns the model with a temperature fitted on images that it was not trained on.

        Args:
          images: See `logits`.
          labels: [N] int.
          preprocess: See `logits`.

        Raises:
          InputError: if images or labels do not fit the model.

        References:
          Temperature scaling, arXiv 1706.04599.
        """
        labels = np.asarray(labels)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
            found = f"{labels.dtype} {labels.shape}"
            raise InputError(f"labels: {found}, expected integers [{len(images)}]")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise InputError(f"labels: expected 0 to {len(self.class_names) - 1}")
        logits = self.logits(images, preprocess=preprocess)
        temperature = calibration.fit_temperature(logits, labels, self.ensemble, self.weights)
        return Model(self.networks, self.ensemble, temperature)

    def fold(self) -> "Model":
        """Returns the ordinary network, M = 1, whose logits are the mean of the members' logits.

        Everything around the core is linear: the first kernels are summed, the heads averaged, in
        float32.

        Raises:
          InputError: if there are several networks, or their probabilities are averaged.

        References:
          MixMo paper, arXiv 2103.06132: inference at the cost of one network.
        """
        if len(self.networks) > 1 or self.ensemble != "logits":
            raise InputError("fold: only one network, whose logits are averaged, folds into one")
        return Model([self.networks[0].fold()], self.ensemble, self.temperature)

    def select(self, members: Sequence[int]) -> "Model":
        """Returns the ensemble of some members of every network: their heads, and all encoders.

        It costs the same, as all heads share one core network. No temperature is fitted for it.

        Args:
          members: The numbers of the members, from 0, each once.

        Raises:
          InputError: if a network lacks one of them.
        """
        fewest = min(network.module.num_members for network in self.networks)
        chosen = np.unique(members)
        if (
            not len(chosen)
            or len(chosen) != len(members)
            or not 0 <= chosen[0] <= chosen[-1] < fewest
        ):
            raise invalid("members", tuple(members), f"different numbers from 0 to {fewest - 1}")
        networks = [network.select(members) for network in self.networks]
        return Model(networks, self.ensemble)

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
        """Writes the model into a folder to share; `load` reads it. See `inference.pretrained`."""
        from mixmo_jax.inference.pretrained import save_pretrained

        save_pretrained(self, folder, license=license, address=address)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, license: str | None = None
    ) -> str:
        """Uploads the model to the Hugging Face Hub, see `inference.hub.push`."""
        from mixmo_jax.inference.hub import push

        return push(self, repo_id, private=private, license=license)

    def _checked(self, images, preprocess):
        """The images as [N, H, W, C], if they can be used."""
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
