"""The rows of a comparison, the runs behind them, and what identifies a run."""

import functools
import pathlib
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from mixmo_jax import config as config_lib
from mixmo_jax.config import flatten, from_json_value
from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, format_value, jsonable, read_json
from mixmo_jax.evaluation.corruptions import read_labels
from mixmo_jax.runs.metric_writer import CORRUPTIONS, RESULTS, read_metrics
from mixmo_jax.runs.workdir import CONFIG, NEUTRAL_FIELDS, read_config

# Datasets that have no validation split of their own. Of others it is known when they are loaded.
_WITHOUT_VALIDATION = ("digits", "cifar10", "cifar100", "tiny_imagenet")


class Variant(NamedTuple):
    """A row of the table.

    Attributes:
      label: Its name, from which those of its folders follow.
      method: The argument of the config.
      fields: `FIELD=VALUE`, beside the overrides of all rows.
      length: The factor on the epochs and on the schedule of the learning rate.
      against: The label of the row that it is tested against; its own for none, "" for the first.
      networks: The number of runs that are one ensemble.
      runs_of: The label of the row whose runs an ensemble is made of; "" for its own.
    """

    label: str
    method: str
    fields: tuple[str, ...] = ()
    length: float = 1.0
    against: str = ""
    networks: int = 1
    runs_of: str = ""

    def folder(self, output: pathlib.Path, seed: int) -> pathlib.Path:
        """The folder of its run with a seed."""
        return output / f"{_file_name(self.runs_of or self.label)}-s{seed}"

    def groups(self, seeds: list[int]) -> list[list[int]]:
        """The seeds of each of its ensembles, none of them in two."""
        starts = range(0, len(seeds) - self.networks + 1, self.networks)
        return [seeds[i : i + self.networks] for i in starts]

    def flags(self, config: str, overrides: list[str]) -> list[str]:
        """All flags of its runs but the seed."""
        flags = merge(overrides, self.fields)
        spec = f"{config}:{self.method}"
        return merge(flags, scaled(spec, flags, epochs=self.length, steps=self.length))


class Run(NamedTuple):
    """A training run, and what is done with it.

    Attributes:
      label: The row's.
      folder: Its folder.
      config: The checked config.
      steps: The commands, each with the question whether it has nothing left to do.
    """

    label: str
    folder: pathlib.Path
    config: ml_collections.ConfigDict
    steps: tuple[tuple[Callable[[], bool], list[str]], ...]

    @property
    def missing(self) -> list[list[str]]:
        """The commands that are left."""
        return [command for is_done, command in self.steps if not is_done()]


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
      config: The config, without a method.
      variants: The rows.
      seeds: The seeds of every row.
      output: The folder of the runs and of the results.
      overrides: The `--config.FIELD=VALUE` flags of all rows.
      validation: Whether the last epoch is scored on the validation split, not the test split.
      corruptions: A folder of corrupted images, on which every run is evaluated; None for none.
      own_split: Whether the seed also chooses the images that are set apart from training.
    """

    config: str
    variants: list[Variant]
    seeds: list[int]
    output: pathlib.Path
    overrides: list[str]
    validation: bool = False
    corruptions: pathlib.Path | None = None
    own_split: bool = False

    def run(self, variant: Variant, seed: int) -> Run:
        """The run of a variant with a seed.

        Raises:
          InputError: if a field is wrong, or the folder holds a run of another config.
        """
        folder = variant.folder(self.output, seed)
        flags = variant.flags(self.config, self.overrides)
        spec = f"{self.config}:{variant.method}"
        config = _parse(spec, tuple(flags)).copy_and_resolve_references()
        config.seed = seed
        flags = merge(flags, (f"seed={seed}",))
        if self.own_split:
            config.dataset.split_seed = seed
            flags = merge(flags, (f"dataset.split_seed={seed}",))
        if (folder / CONFIG).exists():
            check_same(folder, identity(read_config(folder)), identity(config))
        main = [sys.executable, "-m", "mixmo_jax.main"]
        train = [*main, f"--config={spec}", f"--workdir={folder}", *flags]
        steps = [(functools.partial(is_trained, folder, config), train)]
        if self.corruptions:
            evaluate = [*main, "--mode=evaluate", f"--workdir={folder}"]
            evaluate += [f"--corruptions={self.corruptions}"]
            if self.config.endswith(".py"):  # what it registers is not in the folder
                evaluate += [f"--plugin={self.config}"]
            name = self.corruptions.resolve().name
            steps += [(functools.partial(is_scored, folder, config, name), evaluate)]
        return Run(variant.runs_of or variant.label, folder, config, tuple(steps))

    def command(self, variant: Variant) -> list[str]:
        """The command that trains one seed of a variant, wherever the data are."""
        flags = variant.flags(self.config, self.overrides)
        kept = [flag for flag in flags if _field_of(flag) not in NEUTRAL_FIELDS]
        seed = ["--config.dataset.split_seed=SEED"] * self.own_split + ["--config.seed=SEED"]
        main = ["python", "-m", "mixmo_jax.main"]
        return [*main, f"--config={self.config}:{variant.method}", *kept, *seed]

    def check(self) -> None:
        """Checks the rows and seeds.

        Raises:
          InputError: if there are none, two rows would share a name or a folder, or a field is set
            that follows from the seed; if what the rows are scored on is missing.
        """
        if not self.variants or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("methods, seeds: expected one or more, each of them once")
        names = {}
        for variant in self.variants:
            name = _file_name(variant.label).lower()  # some file systems have one case only
            if name in names:
                both = f"{names[name]!r} and {variant.label!r}"
                raise InputError(f"labels {both}: expected labels that differ as folders, {name}")
            names[name] = variant.label
        flags = [*self.overrides, *(field for v in self.variants for field in v.fields)]
        fields = [_field_of(flag) for flag in flags]
        for field in ("seed", *["dataset.split_seed"] * self.own_split):
            if field in fields:
                raise InputError(f"{field}: cannot be set here; it follows from --seeds")
        if self.corruptions:
            read_labels(self.corruptions)  # which fails now and not after hours
        for variant in self.variants:
            if variant.against and variant.against not in (v.label for v in self.variants):
                raise InputError(f"{variant.label}: tested against {variant.against!r}, not a row")
        most = max(v.networks for v in self.variants)
        if len(self.seeds) < most:
            raise InputError(f"seeds: {len(self.seeds)}, expected at least {most} for an ensemble")
        if self.validation and most > 1:
            raise InputError("validation: ensembles of runs are scored on the test split only")
        for variant in self.variants if self.validation else ():
            dataset = self.run(variant, self.seeds[0]).config.dataset
            if dataset.name in _WITHOUT_VALIDATION and not dataset.validation_fraction:
                allowed = "set dataset.validation_fraction"
                raise InputError(f"{variant.label}: no validation split; {allowed}")


def is_trained(folder: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
    """Whether a folder holds the results of the whole run, and of just this config.

    `--mode=evaluate` can write others: of a run that is not finished, or with the members combined
    in another way.
    """
    if not (folder / RESULTS).exists():
        return False
    epochs, ensemble = read_metrics(folder), config.evaluation.ensemble
    finished = bool(epochs) and epochs[-1]["epoch"] == config.num_epochs
    return finished and read_json(folder / RESULTS).get("ensemble", ensemble) == ensemble


def is_scored(folder: pathlib.Path, config: ml_collections.ConfigDict, name: str) -> bool:
    """Whether a run was evaluated, as its config says, on a folder of images of this name."""
    if not (folder / CORRUPTIONS).exists():
        return False
    results = read_json(folder / CORRUPTIONS)
    found = [results.get("images"), results.get("ensemble")]
    return found == [name, config.evaluation.ensemble]


def parse_variant(text: str) -> Variant:
    """Reads `LABEL=METHOD FIELD=VALUE …`."""
    label, equals, rest = text.partition("=")
    method, *fields = rest.split() or [""]
    if not equals or not label or not method or not all("=" in field for field in fields):
        raise InputError(f"variant={text!r}: expected 'LABEL=METHOD FIELD=VALUE …'")
    return Variant(label, method, tuple(fields))


def parse_seeds(text: str) -> list[int]:
    """Reads a number of seeds, or seeds separated by commas; "4," is the seed 4."""
    numbers = parse_numbers("seeds", text)
    return numbers if "," in text else list(range(numbers[0]))


def parse_numbers(name: str, text: str) -> list[int]:
    """Reads integers separated by commas."""
    try:
        return [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(f"{name}={text}: expected a number, or numbers like 0,1,4") from None


def merge(overrides: list[str], fields: tuple[str, ...]) -> list[str]:
    """Returns the flags of overrides and of fields; of several for a field the last one counts."""
    flags = [*overrides, *(f"--config.{field}" for field in fields)]
    return list({flag.partition("=")[0]: flag for flag in flags}.values())


def scaled(spec: str, overrides: list[str], *, epochs: float, steps: float = 1) -> tuple[str, ...]:
    """Returns fields by which a run is longer or shorter, all parts of it in proportion.

    The decline of the patches and the unmixing need none: they are fractions of the run.

    Args:
      spec: The config and its method.
      overrides: The flags that it already has.
      epochs: The factor on the number of epochs, and on those at which the learning rate falls. Of
        those that become the same epoch one is left.
      steps: The factor on the number of steps of the warm-up.
    """
    if epochs == steps == 1:
        return ()
    fields = _parse(spec, tuple(overrides))
    optimizer = fields.optimizer
    # An epoch counts from 1: the learning rate falls after the same part of the run.
    decays = [max(1, round((epoch - 1) * epochs) + 1) for epoch in optimizer.decay_epochs]
    values = {
        "num_epochs": max(1, round(fields.num_epochs * epochs)),
        "optimizer.warmup_steps": round(optimizer.warmup_steps * steps),
        "optimizer.warmup_epochs": optimizer.warmup_epochs * epochs,
        "optimizer.decay_epochs": tuple(dict.fromkeys(decays)),
    }
    return tuple(f"{name}={value}" for name, value in values.items())


@functools.lru_cache(maxsize=1000)
def _parse(spec: str, overrides: tuple[str, ...]) -> ml_collections.ConfigDict:
    """The locked config, which takes milliseconds for every field that is set."""
    return config_lib.parse(spec, overrides)[1]


def identity(config: ml_collections.ConfigDict) -> dict[str, object]:
    """What identifies a run: the fields that matter and differ from configs/common.py.

    A field that a later version adds, with a default by which it does nothing, changes no identity.
    """
    defaults = flatten(common.get_config("vanilla"))
    fields = flatten(config).items()
    kept = {k: v for k, v in fields if k not in NEUTRAL_FIELDS and v != defaults[k]}
    return jsonable(kept)


def all_fields(entry: dict) -> dict[str, object]:
    """Every field of a recorded run, see `identity`."""
    own = {name: from_json_value(name, value) for name, value in entry["fields"].items()}
    return {**flatten(common.get_config("vanilla")), **own}


def check_same(what: object, found: dict[str, object], expected: dict[str, object]) -> None:
    """Raises `InputError` if a run was made with other fields than are asked for."""
    different = [k for k in {**found, **expected} if found.get(k) != expected.get(k)]
    if different:
        values = [
            format_value(fields.get(different[0], "the default")) for fields in (found, expected)
        ]
        change = f"{different[0]}={values[0]} (now {values[1]})"
        raise InputError(f"{what}: made with {change}; choose another --output")


def _field_of(flag: str) -> str:
    """The field that a flag, or `FIELD=VALUE`, sets."""
    return flag.partition("=")[0].removeprefix("--config.")


def _file_name(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9.+-]+", "_", label)
