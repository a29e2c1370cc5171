"""The folder of a run: its config, metrics and results."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Sequence

import ml_collections
import tensorboardX

from mixmo_jax import config as config_lib
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.errors import InputError, warn

CONFIG, DATASET, METRICS, RESULTS = "config.json", "dataset.json", "metrics.jsonl", "results.json"
CHECKPOINTS, BEST = "checkpoints", "best_checkpoint"
ENSEMBLE, CORRUPTIONS = "ensemble.json", "corruptions.json"

# Fields that may differ between the sessions of one run: they do not change what is computed.
_NEUTRAL_FIELDS = {
    "dataset.data_dir",
    "dataset.cache_dir",
    "dataset.placement",
    "steps_per_call",
    "checkpoint_every_epochs",
    "evaluation.batch_size",
}


def split_folders(text: str) -> list[pathlib.Path]:
    """Returns the folders of the runs that a command line names: A,B,C."""
    folders = [pathlib.Path(part).expanduser() for part in text.split(",") if part]
    if not folders:
        raise InputError("workdir: missing; expected the folder of a finished run")
    return folders


def check_run(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises `InputError` if the folder holds a run of another config, or something else."""
    try:
        if (folder / CONFIG).exists():
            _compare(folder, read_config(folder), config)
        elif folder.exists() and any(f.name[0] != "." for f in folder.iterdir()):
            raise InputError(f"workdir={folder}: expected a run or an empty folder")
    except OSError as error:
        raise InputError(f"workdir={folder}: cannot be read: {error.strerror}") from None


def open_run(folder: pathlib.Path, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Makes the folder a run's, or finds that it is this run's already.

    Raises:
      InputError: if it cannot be written, or see `check_run`.
    """
    check_run(folder, config)
    facts = {
        "image_shape": dataset.image_shape,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        "num_images": dataset.num_images,
        "test_digest": dataset.test.digest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, config_lib.to_json(config))
        if not (folder / DATASET).exists():  # else as the run began
            write_text(folder / DATASET, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"workdir={folder}: cannot be written: {error.strerror}") from None


def with_kept_facts(folder: pathlib.Path, dataset: Dataset) -> Dataset:
    """Returns the data set with the mean and standard deviation that its run began with.

    Warns if the run began with other test images.

    Raises:
      InputError: if the run began with images of another shape or number, or with other classes.
    """
    if not (folder / DATASET).exists():
        return dataset
    facts = read_facts(folder)
    for name in ("image_shape", "class_names"):
        if facts[name] != tuple(getattr(dataset, name)):
            raise InputError(f"workdir={folder}: its run began with data of another {name}")
    if facts["num_images"] != dataset.num_images:
        began, now = (_counts(n) for n in (facts["num_images"], dataset.num_images))
        raise InputError(f"workdir={folder}: its run began with {began} images, now {now}")
    warn_of_other_test_images(folder, dataset.test)
    return dataset.replace(mean=facts["mean"], std=facts["std"])


def warn_of_other_test_images(folder: pathlib.Path, test: Split) -> None:
    """Warns if a run began with other test images: of another split, or decoded otherwise."""
    if read_facts(folder)["test_digest"] not in (None, test.digest()):
        reason = "it may have been trained on images that it is now tested on"
        warn(f"workdir={folder}: its run began with other test images: {reason}")


def _counts(num_images: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in num_images.items())


def read_facts(folder: pathlib.Path) -> dict:
    """Reads what a run keeps of its data.

    Returns:
      `image_shape`, `class_names`, `mean` and `std` as tuples, `num_images` of each split, and
      `test_digest` or None.
    """
    try:
        facts = json.loads((folder / DATASET).read_text())
        kinds = {"image_shape": int, "class_names": str, "mean": float, "std": float}
        kept = {name: tuple(map(kind, facts[name])) for name, kind in kinds.items()}
        _, _, channels = kept["image_shape"]
        if not len(kept["mean"]) == len(kept["std"]) == channels:
            raise ValueError(f"expected {channels} means and standard deviations")
        digest = facts.get("test_digest")  # not in runs of an older version
        return {**kept, "num_images": dict(facts["num_images"]), "test_digest": digest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / DATASET}: cannot be read: {error!r}") from None


def read_config(folder: pathlib.Path, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads the config of the run in a folder.

    Args:
      folder: of the run.
      overrides: `--config.FIELD=VALUE` flags, for fields that do not change what is computed, such
        as the place of the data.
    """
    try:
        text = (folder / CONFIG).read_text(errors="replace")
    except OSError as error:
        raise InputError(f"workdir={folder}: holds no run: {CONFIG}: {error.strerror}") from None
    try:
        config = config_lib.from_json(text)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    for field in config_lib.override(config, overrides):
        if field not in _NEUTRAL_FIELDS:
            able = ", ".join(sorted(_NEUTRAL_FIELDS))
            raise InputError(f"{field}: the config is that of the run; only {able} can be set")
    return config


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes a text file, see `write_bytes`."""
    write_bytes(file, text.encode())


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Writes a file at once: a reader finds the old content or the new, never a part."""
    file = pathlib.Path(os.path.realpath(file))  # not in the place of a link
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_results(folder: pathlib.Path, results: dict, step: int) -> None:
    """Writes the final scores, also for TensorBoard; what JSON cannot hold becomes null."""
    results = _finite(results)
    for old in folder.glob("events.out.tfevents.*.final"):
        old.unlink(missing_ok=True)
    with tensorboardX.SummaryWriter(str(folder), filename_suffix=".final") as events:
        for name, value in _flat({k: v for k, v in results.items() if k.endswith("scores")}):
            if value is not None:
                events.add_scalar(f"final/{name}", value, step)
    write_json(folder / RESULTS, results)


def write_json(file: pathlib.Path, values: dict) -> None:
    """Writes a JSON file at once; numbers that JSON cannot hold become null."""
    write_text(file, json.dumps(_finite(values), indent=2) + "\n")


def read_results(folder: pathlib.Path) -> dict:
    """Reads the final scores; empty without any."""
    try:
        results = json.loads((folder / RESULTS).read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def read_metrics(folder: pathlib.Path) -> list[dict]:
    """Reads the lines of all epochs so far.

    Raises:
      InputError: if one is damaged; but the last, of an epoch whose end was cut off, is left out.
    """
    file = folder / METRICS
    if not file.exists():
        return []
    *whole, _ = file.read_text(errors="replace").split("\n")
    try:
        lines = [json.loads(line) for line in whole]
        for line in lines:
            line["epoch"], line["step"], line["loss"]
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged: {error!r}") from None


class MetricsLog:
    """A line an epoch, as JSON and as TensorBoard events. Use it as a context manager.

    Args:
      folder: of the run.
      epochs_done: what is beyond, from a session that was stopped, is dropped.
    """

    def __init__(self, folder: pathlib.Path, epochs_done: int):
        kept = [line for line in read_metrics(folder) if line["epoch"] <= epochs_done]
        write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (folder / METRICS).open("a")
        purge = kept[-1]["step"] + 1 if kept else None
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._events.close()

    def write(self, line: dict) -> None:
        """Appends the metrics of an epoch: a nested dictionary of numbers."""
        line = _finite(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in _flat(line):
            if value is not None and name not in ("epoch", "step"):
                self._events.add_scalar(name, value, line["step"])


def _compare(folder, old, new):
    old, new = config_lib.flatten(old), config_lib.flatten(new)
    changed = [k for k in old if old[k] != new[k] and k not in _NEUTRAL_FIELDS]
    if changed:
        differences = ", ".join(f"{k}={old[k]!r} (now {new[k]!r})" for k in changed)
        raise InputError(
            f"workdir={folder}: holds a run of another config: {differences}; "
            "choose another --workdir"
        )


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
