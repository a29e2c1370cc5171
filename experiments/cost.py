"""What training runs cost, before they are started: hours, from the speed of a step."""

import json
import pathlib
from collections.abc import Callable

import jax
import ml_collections
from benchmark import DATASETS, random_dataset, training
from flops import model_flops
from variants import Run

from mixmo_jax import config as config_lib
from mixmo_jax.config import flatten
from mixmo_jax.errors import InputError, is_number, read_json, reading
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.training.loop import Trainer

_SECONDS = 3.0  # of a measurement, beside the compilation


class Estimate:
    """The hours of runs, without their evaluations.

    Attributes:
      source: Where the speed is from, in words.
    """

    def __init__(self, file: pathlib.Path | None = None):
        """Takes the speed from a file or, without one, measures it here and now.

        Args:
          file: The JSON that benchmark.py or tpu_estimate.py writes. For other networks than its
            own, the speed is scaled by the FLOPs of a position of the batch.

        Raises:
          InputError: if it is another file.
        """
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        self.source = f"by {file}" if file else f"measured on {device}"
        self._rate_fn = from_file(file) if file else measure
        self._rates = {}

    def hours(self, config: ml_collections.ConfigDict) -> float:
        """The hours of a run."""
        fields = flatten(config)
        # What the speed of a step follows from; other fields change it by a few percent.
        names = ("batch_size", "dataset.name", "dataset.image_size", "mixmo.unmix")
        groups = ("model.", "augment.")
        key = tuple(v for k, v in fields.items() if k in names or k.startswith(groups))
        if key not in self._rates:
            self._rates[key] = self._rate_fn(config)
        return num_steps(config) * config.batch_size / self._rates[key] / 3600

    def table(self, runs: list[Run], missing: list[Run]) -> str:
        """Lists runs with the cost of each, and the sum of those that are missing."""
        folders = {run.folder for run in missing}
        lines = [f"{'epochs':>7} {'b':>3} {'steps':>11} {'hours':>8}  run"]
        for run in runs:
            size = f"{run.config.num_epochs:>7} {run.config.batch_repetitions:>3}"
            cost = f"{num_steps(run.config):>11,} {self.hours(run.config):>8.3g}"
            done = "" if run.folder in folders else " (done)"
            lines.append(f"{size} {cost}  {run.folder}{done}")
        total = sum(self.hours(run.config) for run in missing)
        lines.append(f"{total:.3g} hours for {len(missing)} of {len(runs)} runs, {self.source}")
        return "\n".join(lines)


def measure(config: ml_collections.ConfigDict) -> float:
    """Measures the positions of batches a second in training, on random images."""
    # As many steps in an epoch as one call to the device has at most, or as the data allow.
    images = min(num_images(config), 100 * config.batch_size // config.batch_repetitions)
    work = training(Trainer(config, random_dataset(config, max(images, config.batch_size))))
    work(0.01)  # compiles
    return work(_SECONDS)


def from_file(file: pathlib.Path) -> Callable[[ml_collections.ConfigDict], float]:
    """Returns the positions of batches a second as a function of the config, see `Estimate`."""
    report = read_json(file)
    with reading(file, ValueError, KeyError, TypeError):
        rate = report.get("images_per_second") or report["train_images_per_second"]["median"]
        if not is_number(rate) or rate <= 0:
            raise ValueError("expected a report of benchmark.py or tpu_estimate.py")
        text = json.dumps(report["config"])
    try:
        measured = config_lib.from_json(text)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    rate_of_flops = rate * flops_of_position(measured)
    return lambda config: rate_of_flops / flops_of_position(config)


def flops_of_position(config: ml_collections.ConfigDict) -> float:
    """FLOPs of a position of the batch in training."""
    return model_flops(small_trainer(config)) / config.batch_size


def small_trainer(config: ml_collections.ConfigDict) -> Trainer:
    """A trainer with few random images of the right shape: a step has the same FLOPs."""
    return Trainer(config, random_dataset(config, 4 * config.batch_size))


def num_steps(config: ml_collections.ConfigDict) -> int:
    """The number of steps of a run."""
    images = round(num_images(config) * (1 - config.dataset.validation_fraction))
    return config.num_epochs * steps_per_epoch(config, images)


def num_images(config: ml_collections.ConfigDict) -> int:
    """The number of images for training and validation.

    Raises:
      InputError: if it is not known without reading the data.
    """
    if config.dataset.name not in DATASETS:
        known = ", ".join(DATASETS)
        raise InputError(f"dataset.name={config.dataset.name!r}: the cost is known for {known}")
    return config.dataset.num_train_images or DATASETS[config.dataset.name][0]
