"""Trained networks to predict with."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from mixmo_jax import evaluate, metrics, workdir
from mixmo_jax.augment import normalize
from mixmo_jax.checkpoints import Checkpoints
from mixmo_jax.datasets.decode import decode_images
from mixmo_jax.errors import InputError
from mixmo_jax.models import MixMoNet, create_model
from mixmo_jax.optimizers import create_optimizer
from mixmo_jax.train import create_train_state

BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network and what its images and answers need.

    Attributes:
      model: the network.
      variables: its parameters and BatchNorm statistics.
      class_names: [K].
      image_shape: (H, W, C).
      mean: per channel, on the scale 0 to 1.
      std: likewise.
      temperature: the logits are divided by it.
      config: of its run, if it has one.
    """

    model: MixMoNet
    variables: dict
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float = 1.0
    config: ml_collections.ConfigDict | None = None

    @functools.cached_property
    def logits_fns(self) -> dict[bool, Callable]:
        """What computes logits, of raw images (True) and of normalised ones (False)."""
        scale = functools.partial(normalize, mean=self.mean, std=self.std)
        functions = {True: scale, False: lambda images: images}
        return {
            raw: evaluate.make_logits_fn(self.model, preprocess, BATCH_SIZE)
            for raw, preprocess in functions.items()
        }


class Model:
    """A trained network, or an ensemble of several, in the manner of scikit-learn.

    Args:
      networks: one or more, for the same images and classes.
      ensemble: see `metrics.ensemble_log_probs`.

    Raises:
      InputError: if the networks do not fit together.
    """

    def __init__(self, networks: Sequence[Network], ensemble: str = "logits"):
        if not networks:
            raise InputError("networks: none, expected one or more")
        first = networks[0]
        for other in networks[1:]:
            for name in ("class_names", "image_shape"):
                if getattr(other, name) != getattr(first, name):
                    raise InputError(f"networks: their {name} differ")
        self.networks, self.ensemble = tuple(networks), ensemble

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.networks[0].class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.networks[0].image_shape

    @property
    def num_members(self) -> int:
        """M, of all networks together."""
        return sum(network.model.num_members for network in self.networks)

    @property
    def config(self) -> ml_collections.ConfigDict | None:
        """Config of the (first) network's run."""
        return self.networks[0].config

    def __repr__(self) -> str:
        counts = f"{self.num_members} members, {len(self.class_names)} classes"
        networks = f"{len(self.networks)} networks, " if len(self.networks) > 1 else ""
        return f"<mixmo_jax.Model: {networks}{counts}, images {self.image_shape}>"

    def read(self, files: str | pathlib.Path | Sequence[str | pathlib.Path]) -> np.ndarray:
        """Reads image files, scaled and cropped at the centre to what the network takes.

        Args:
          files: one or several, as Pillow reads them.

        Returns:
          [N, H, W, C] uint8.

        Raises:
          InputError: if a file cannot be read, or is not an image.
        """
        if isinstance(files, (str, pathlib.Path)):
            files = [files]
        images = np.zeros((len(files), *self.image_shape), np.uint8)
        names = [str(pathlib.Path(file).expanduser()) for file in files]
        decode_images(_read_bytes, names, images, resize=True, where=pathlib.Path("images"))
        return images

    def logits(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the logits of every member.

        Args:
          images: [N, H, W, C] uint8, for one channel also [N, H, W]; N >= 1.
          preprocess: if False, the images are normalised already, and float32.

        Returns:
          [N, M, K] float32, without any temperature.

        Raises:
          InputError: if the images are of another shape or dtype, or not finite.
        """
        images = self._checked(images, preprocess)
        parts = [n.logits_fns[preprocess](n.variables, images) for n in self.networks]
        return np.concatenate(parts, axis=1)

    def predict_proba(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Computes the ensemble's probabilities, [N, K] float32, with the fitted temperatures.

        A run's temperature was fitted when it was evaluated, on its test images.

        Args:
          images: see `logits`.
          preprocess: likewise.
        """
        return self.probs(self.logits(images, preprocess=preprocess))

    def predict(self, images: np.ndarray, *, preprocess: bool = True) -> np.ndarray:
        """Returns the most probable classes, [N] int; arguments as in `logits`."""
        return self.predict_proba(images, preprocess=preprocess).argmax(1)

    def probs(self, logits: np.ndarray) -> np.ndarray:
        """The ensemble's probabilities: [N, M, K] → [N, K] float32."""
        repeats = [network.model.num_members for network in self.networks]
        temperatures = np.repeat([network.temperature for network in self.networks], repeats)
        scaled = logits / temperatures[:, None]
        return np.exp(metrics.ensemble_log_probs(scaled, self.ensemble)).astype(np.float32)

    def fold(self) -> "Model":
        """Returns the ordinary network, M = 1, whose logits are the mean of the members' logits.

        Everything around the core is linear: the first kernels are summed, the heads averaged.

        Raises:
          InputError: if there are several networks, or their probabilities are averaged.
        """
        if len(self.networks) > 1 or self.ensemble != "logits":
            raise InputError("fold: only one network, whose logits are averaged, folds into one")
        (network,) = self.networks
        params = dict(network.variables["params"])
        params["stem"] = {"kernel": params["stem"]["kernel"].sum(0, keepdims=True)}
        params["heads"] = jax.tree.map(lambda x: x.mean(0, keepdims=True), params["heads"])
        folded = dataclasses.replace(
            network,
            model=network.model.clone(num_members=1),
            variables={**network.variables, "params": params},
        )
        return Model([folded], self.ensemble)

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
            hint = ", 0 to 255 (or normalised float32, with preprocess=False)" * preprocess
            raise InputError(f"images: {images.dtype}, expected {np.dtype(expected)}{hint}")
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            shape = ", ".join(["N >= 1", *map(str, self.image_shape)])
            raise InputError(f"images: shape {images.shape}, expected [{shape}]")
        if not preprocess and not np.isfinite(images).all():
            raise InputError("images: some values are not finite")
        return images


def load(paths: str | pathlib.Path | Sequence[str | pathlib.Path]) -> Model:
    """Loads the network of a finished run, or the ensemble of several runs.

    Args:
      paths: a run's folder, or several.

    Raises:
      InputError: if there is no finished run in a folder.
    """
    if isinstance(paths, (str, pathlib.Path)):
        paths = [paths]
    networks = [load_network(pathlib.Path(path).expanduser()) for path in paths]
    return Model(networks, networks[0].config.evaluation.ensemble if networks else "logits")


def load_network(folder: pathlib.Path) -> Network:
    """Loads the network of a finished run; its temperature, too, if it has been evaluated."""
    config = workdir.read_config(folder)
    facts = workdir.read_facts(folder)
    results = workdir.read_results(folder)
    if not results:
        reason = f"has no {workdir.RESULTS}; train it to the end"
        raise InputError(f"workdir={folder}: holds no finished run: {reason}")
    model = create_model(config.model, len(facts["class_names"]))
    tx, _ = create_optimizer(config, steps_per_epoch=1)
    like = jax.eval_shape(lambda: create_train_state(0, model, tx, facts["image_shape"]))
    state = _restore(folder, like)
    return Network(
        model=model,
        variables=state.variables,
        class_names=facts["class_names"],
        image_shape=facts["image_shape"],
        mean=facts["mean"],
        std=facts["std"],
        temperature=_temperature(folder, results),
        config=config,
    )


def _read_bytes(name: str) -> bytes:
    try:
        return pathlib.Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None


def _restore(folder, like):
    """The state of the best epoch, or else of the last."""
    best = (folder / workdir.BEST).is_dir()
    place = folder / (workdir.BEST if best else workdir.CHECKPOINTS)
    if not place.is_dir():  # else it would be made
        raise InputError(f"workdir={folder}: has no checkpoint")
    with Checkpoints(place) as checkpoints:
        return checkpoints.restore(like)


def _temperature(folder, results):
    found = results.get("temperature", 1.0)
    if not isinstance(found, (int, float)) or not 0 < found < np.inf:
        raise InputError(
            f"{folder / workdir.RESULTS}: temperature={found!r}: expected a number > 0"
        )
    return float(found)
