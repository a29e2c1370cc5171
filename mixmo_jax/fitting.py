"""Training in Python, on arrays."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import ml_collections
import numpy as np

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, distributed
from mixmo_jax.datasets import Dataset, Split, arrays
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, Interrupted, expand, format_value
from mixmo_jax.inference.loading import load
from mixmo_jax.inference.model import Model
from mixmo_jax.train import train
from mixmo_jax.training.outputs import MetricWriter


def fit(
    config: str | ml_collections.ConfigDict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    workdir: str | pathlib.Path | None = None,
    writers: Sequence[MetricWriter] = (),
) -> Model:
    """Trains a network on images in memory, as the command does, and evaluates it.

    The same call resumes a run that was interrupted, and evaluates a finished one. Ctrl-C finishes
    the step and saves it; outside of the main thread signals are not noticed.

    Args:
      config: A config as on the command line, such as "digits:cut_mixmo"; or the config itself,
        see `config.parse`, which is not changed. Of `config.dataset` all fields apply but those on
        files, `test_fraction` and `image_size`. The mean and standard deviation that a text stands
        for are those of another dataset: they are measured on the images instead. In a config they
        count, unless they are ().
      images: The images for training, [N, H, W, C] uint8 with C = 1 or 3, or [N, H, W]. They are
        not copied, and must stay as they are until the end.
      labels: Their labels, [N] int from 0 to K - 1; every class has an image.
      test: The images and labels for the final scores.
      validation: The images and labels for the choice of the best epoch and for the temperature;
        by default `config.dataset.validation_fraction` of the images for training.
      class_names: The names of the K classes; by default their numbers.
      workdir: The folder of the run, made if it is not there; by default a temporary one, which is
        gone afterwards.
      writers: Further writers for the metrics of each epoch, beside those of the run's files. They
        are not started if the run is finished.

    Returns:
      The trained model, with its temperature: what `mixmo_jax.load(workdir)` returns.

    Raises:
      InputError: if an argument cannot be used, or `workdir` holds a run of another config or of
        other images.
      Interrupted: a KeyboardInterrupt, if a signal asked to stop.
      FloatingPointError: if the loss or a weight is not finite.
    """
    if not distributed.is_alone():
        raise InputError(
            "fit: trains in one process only; for several, run python -m mixmo_jax.main"
        )
    writers = list(writers)
    for writer in writers:
        for method in ("start", "write", "close"):
            if not callable(getattr(writer, method, None)):
                raise InputError(f"writers: {format_value(writer)} has no method {method}")
    config = _read_config(config)
    dataset = _create_dataset(config, images, labels, test, validation, class_names)
    distributed.use_compilation_cache(config.compilation_cache)
    with _folder(workdir) as folder:
        signals = StopSignals(own_process=False)
        train(config, folder, dataset=dataset, writers=writers, signals=signals)
        return load(folder)


def _read_config(config: str | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a checked config of a dataset of arrays."""
    if isinstance(config, str):
        _, config = config_lib.parse(config)
        config.dataset.mean = config.dataset.std = ()
    elif isinstance(config, ml_collections.ConfigDict):
        config = ml_collections.ConfigDict(config.to_dict())
        config_lib.check(config)
    else:
        raise InputError(f"config={format_value(config)}: expected a string or a ConfigDict")
    config.dataset.name = arrays.NAME
    config_lib.override(config, [])
    return config


def _create_dataset(config, images, labels, test, validation, class_names) -> Dataset:
    """Returns the dataset that the arguments of `fit` stand for."""
    splits = {"train": _create_split("", images, labels)}
    for name, pair in {"test": test, "validation": validation}.items():
        if name == "validation" and pair is None:
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(f"{name}: expected a pair, images and labels")
        splits[name] = _create_split(f"{name}: ", *pair)
    if class_names is not None:
        if isinstance(class_names, str) or not isinstance(class_names, Iterable):
            raise InputError(
                f"class_names={format_value(class_names)}: expected a sequence of texts"
            )
        class_names = list(class_names)
    return datasets.from_splits(config.dataset, splits, class_names)


def _create_split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """Returns images, with an axis of channels, and labels."""
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError:
        raise InputError(f"{name}images and labels: expected arrays") from None
    return Split(images[..., None] if images.ndim == 3 else images, labels)


@contextlib.contextmanager
def _folder(workdir: str | pathlib.Path | None) -> Iterator[pathlib.Path]:
    """The folder of the run, perhaps a temporary one."""
    if workdir is not None:
        yield expand(workdir)
        return
    with tempfile.TemporaryDirectory(prefix="mixmo_jax-") as folder:
        try:
            yield pathlib.Path(folder)
        except Interrupted as error:
            reason = "stopped; nothing is kept without a workdir"
            raise Interrupted(reason, error.signum) from None
    print("  these files are removed, as no workdir was given", flush=True)
