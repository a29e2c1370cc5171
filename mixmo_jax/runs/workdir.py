"""The folder of a run: config, description of the dataset, metrics, results, and its lock."""

import contextlib
import errno
import json
import math
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import ml_collections

import mixmo_jax
from mixmo_jax import config as config_lib
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.errors import (
    InputError,
    expand,
    format_value,
    jsonable,
    read_json,
    reading,
    sha256_of,
    warn,
    write_json,
    write_text,
    writing,
)

CONFIG, DATASET = "config.json", "dataset.json"
METRICS, RESULTS, LOGITS = "metrics.jsonl", "results.json", "logits.npz"
CORRUPTIONS = "corruptions.json"
ENSEMBLE, ENSEMBLE_LOGITS = "ensemble.json", "ensemble_logits.npz"
ENSEMBLE_CORRUPTIONS = "ensemble_corruptions.json"
WEIGHTS = "model.safetensors"  # of a pretrained network, which is not a run

# Fields that may differ between the sessions of one run: they do not change the computation.
NEUTRAL_FIELDS = {
    "dataset.data_dir",
    "dataset.cache_dir",
    "dataset.placement",
    "steps_per_call",
    "compilation_cache",
    "checkpoint_every_epochs",
    "evaluation.batch_size",
}

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_FINAL = ".final"  # end of the name of the events with the final results


class MetricWriter(Protocol):
    """Records the metrics of each epoch: a nested dictionary of numbers, see `metrics.jsonl`."""

    def start(self, epochs: Sequence[dict]) -> None:
        """Called before training begins or resumes.

        Args:
          epochs: The metrics of the finished epochs, in order. An earlier session may have written
            later ones, which are repeated now: the writer should discard them.
        """

    def write(self, epoch_metrics: dict) -> None:
        """Called at the end of each epoch."""

    def close(self) -> None:
        """Called at the end, also of a session that is interrupted."""


class Workdir:
    """The folder of one run.

    Args:
      path: The folder; `open` and `lock` create it.
    """

    def __init__(self, path: str | Path):
        self.path = expand(path)

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of the checkpoints, see `training.checkpoints`."""
        return self.path / "checkpoints"

    def has_checkpoint(self) -> bool:
        """Returns whether the run has reached a checkpoint."""
        return any(step.name.isdigit() for step in self.checkpoint_dir.glob("*"))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder.

        The operating system drops the lock when the process ends, however it ends.

        Raises:
          InputError: if a process holds the lock, or the folder cannot be written.
        """
        import filelock  # not needed to predict

        is_new, file = not self.path.exists(), self.path / ".lock"
        with writing(self):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(file, fallback_to_soft=False)
            try:
                lock.acquire(timeout=0)
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            except filelock.Timeout:
                holder = file.read_text().strip() or "another process"
                raise InputError(f"{self}: in use by {holder}") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warn(f"{self}: its file system has no locks; start no second process there")
        try:
            yield
        finally:
            if is_new and os.listdir(self.path) == [file.name]:  # nothing came of it
                shutil.rmtree(self.path)
            lock.release()

    def check(self, config: ml_collections.ConfigDict) -> None:
        """Checks that the folder is new, or holds a run that this config continues.

        A config continues a run of the same config, or of one with fewer epochs. A run without a
        checkpoint makes room for another config.

        Raises:
          InputError: if the folder holds a run of another config, or something else.
        """
        data = expand(config.dataset.data_dir).resolve()
        has_classes = config.dataset.name == "image_folder" and not (data / "train").is_dir()
        if has_classes and config.dataset.data_dir and data in self.path.resolve().parents:
            reason = f"lies in dataset.data_dir={data}, where each folder is a class"
            raise InputError(f"{self}: {reason}; choose another workdir")
        with reading(self):
            if self.has_checkpoint():
                self._compare(self.read_config(), config)
            elif (self.path / RESULTS).exists():
                raise InputError(f"{self}: holds results, but its checkpoints are missing")
            elif (self.path / CONFIG).exists():
                self.read_config()  # a damaged one is left for its owner to look at
            elif self.path.exists() and any(f.name[0] != "." for f in self.path.iterdir()):
                raise InputError(f"{self}: expected a run or an empty folder")

    def open(self, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
        """Creates the folder for a run, or opens it to continue the run, see `check`."""
        self.check(config)
        with writing(self):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG, config_lib.to_json(config))
        if not self.has_checkpoint():  # else the description stays as the run began
            shutil.rmtree(self.path / "best_checkpoint", ignore_errors=True)  # of version 0.2
            info = {
                name: getattr(dataset, name)
                for name in ("image_shape", "class_names", "mean", "std", "num_images")
            }
            digests = {f"{name}_digest": split.digest() for name, split in dataset.splits.items()}
            write_json(self.path / DATASET, {**info, **digests})

    def read_config(
        self, overrides: Mapping[str, object] | None = None
    ) -> ml_collections.ConfigDict:
        """Reads the config of the run.

        Args:
          overrides: Values for some of `NEUTRAL_FIELDS`, such as the place of the data.

        Raises:
          InputError: if there is no run, its config is damaged, or another field is overridden.
        """
        file = self.path / CONFIG
        if not file.exists():
            raise InputError(f"{self}: holds no run: it has no {CONFIG}")
        if (self.path / WEIGHTS).exists():
            reason = "it can predict and be exported, not trained or evaluated"
            raise InputError(f"{self}: holds a pretrained network: {reason}")
        for field in overrides or {}:
            if field not in NEUTRAL_FIELDS:
                allowed = ", ".join(sorted(NEUTRAL_FIELDS))
                raise InputError(f"{field}: belongs to the run; only {allowed} can be set")
        with reading(file, UnicodeDecodeError):
            text = file.read_text()
        try:
            config = config_lib.from_json(text)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        config.update_from_flattened_dict(overrides or {})
        return config

    def read_dataset_info(self) -> dict:
        """Reads the description of the dataset.

        Returns:
          `image_shape`, `class_names`, `mean` and `std` as tuples, `num_images` by split, and
          `train_digest`, `validation_digest` and `test_digest`, None where there is none.

        Raises:
          InputError: if the description is missing or damaged.
        """
        file = self.path / DATASET
        info = read_json(file)
        with reading(file, KeyError, TypeError):
            arrays = {k: tuple(info[k]) for k in ("image_shape", "class_names", "mean", "std")}
            digests = {f"{k}_digest": None for k in ("train", "validation", "test")}
            return {"num_images": info["num_images"], **digests, **info, **arrays}

    def restore_statistics(self, dataset: Dataset, exact: bool = False) -> Dataset:
        """Returns the dataset with the mean and standard deviation that the run began with.

        Args:
          dataset: The dataset as it is loaded now.
          exact: Whether other images or labels are an error and not a warning: decoded images may
            differ a little between versions of the decoders.

        Raises:
          InputError: if the run began with another image shape, number of images or classes.
        """
        if not self.has_checkpoint():
            return dataset
        info = self.read_dataset_info()
        for name in ("image_shape", "class_names", "num_images"):
            began, now = info[name], getattr(dataset, name)
            if began != (tuple(now) if isinstance(began, tuple) else now):
                # Version 0.1 numbered the classes of Tiny ImageNet in the order of wnids.txt.
                same = name == "class_names" and sorted(began) == sorted(now)
                order = " in another order" if same else ""
                values = f"{name}={format_value(began)}, now {format_value(now)}{order}"
                raise InputError(f"{self}: its run began with {values}")
        for name, split in dataset.splits.items():
            if name == "test" and not exact:
                self.warn_of_other_test_images(split)
            elif info[f"{name}_digest"] not in (None, split.digest()):
                message = f"{self}: its run began with other {name} images or labels"
                if exact:
                    raise InputError(f"{message}; choose another workdir")
                warn(message)
        return dataset.replace(mean=info["mean"], std=info["std"])

    def warn_of_other_test_images(self, test: Split) -> None:
        """Warns if the run began with other test images: of another split, or decoded otherwise."""
        if self.read_dataset_info()["test_digest"] not in (None, test.digest()):
            reason = "it may have been trained on images that it is now tested on"
            warn(f"{self}: its run began with other test images: {reason}")

    def read_metrics(self) -> list[dict]:
        """Reads the metrics of all epochs; a last line that was cut off is left out.

        Raises:
          InputError: if a line is damaged.
        """
        file = self.path / METRICS
        if not file.exists():
            return []
        with reading(file, ValueError):
            *lines, _ = file.read_text().split("\n")
            return [_numbers(json.loads(line)) for line in lines]

    def metric_writers(self) -> list[MetricWriter]:
        """Returns the writers of every run."""
        return [JsonLinesWriter(self.path), TensorBoardWriter(self.path)]

    def write_results(self, results: dict, step: int) -> None:
        """Writes the final results, also for TensorBoard."""
        self._discard_events()
        scores = {f"final/{k}": v for k, v in results.items() if k.endswith("scores")}
        writer = TensorBoardWriter(self.path, _FINAL)
        with started([writer], []):
            writer.write({"step": step, **scores})
        write_json(self.path / RESULTS, results)

    def read_results(self) -> dict | None:
        """Reads the final results, None if the run was not evaluated."""
        file = self.path / RESULTS
        return read_json(file) if file.exists() else None

    def discard_results(self) -> None:
        """Deletes the results of fewer epochs, also those on corrupted images."""
        self._discard_events()
        for name in (RESULTS, CORRUPTIONS, "metrics.csv"):  # the last one of version 0.2
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def training_digest(self) -> str:
        """Returns a digest of the metrics, times included, that another run does not have.

        Imported variables have no metrics; theirs is the digest of their checkpoint.
        """
        sums = self.checkpoint_dir.glob("*/SHA256SUMS")
        newest = sorted(
            (f for f in sums if f.parent.name.isdigit()), key=lambda f: int(f.parent.name)
        )
        file = self.path / METRICS
        if file.exists() or newest:
            return sha256_of(file if file.exists() else newest[-1])
        return ""  # version 0.1 wrote no checksums

    def __str__(self) -> str:
        return f"workdir={self.path}"

    def _compare(self, old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> None:
        """Raises `InputError` with the fields in which a config differs from the run's."""
        old, new = config_lib.flatten(old), config_lib.flatten(new)
        allowed = {*NEUTRAL_FIELDS, *["num_epochs"] * (new["num_epochs"] > old["num_epochs"])}
        differences = ", ".join(
            f"{field}={format_value(old.get(field))} (now {format_value(new.get(field))})"
            for field in {**old, **new}
            if old.get(field) != new.get(field) and field not in allowed
        )
        if differences:
            free = next(
                path
                for i in range(2, 1000)
                if not (path := self.path.with_name(f"{self.path.name}-{i}")).exists()
            )
            reason = f"holds a run of another config: {differences}"
            raise InputError(f"{self}: {reason}; choose another workdir, such as {free}")

    def _discard_events(self) -> None:
        for old in self.path.glob(f"events.out.tfevents.*{_FINAL}"):
            with writing(old):
                old.unlink(missing_ok=True)


class JsonLinesWriter:
    """Writes `metrics.jsonl`, the run's own record. A `MetricWriter`."""

    def __init__(self, folder: Path):
        self._file = folder / METRICS

    def start(self, epochs: Sequence[dict]) -> None:
        """Discards the lines of later epochs."""
        write_text(self._file, "".join(map(_json_line, epochs)))

    def write(self, epoch_metrics: dict) -> None:
        """Appends a line."""
        with writing(self._file), self._file.open("a") as file:
            file.write(_json_line(epoch_metrics))

    def close(self) -> None:
        """Does nothing: the file is closed after each line."""


class TensorBoardWriter:
    """Writes the scalars of each epoch for TensorBoard. A `MetricWriter`."""

    def __init__(self, folder: Path, suffix: str = ""):
        self._folder, self._suffix = folder, suffix

    def start(self, epochs: Sequence[dict]) -> None:
        """Opens a new file, which tells TensorBoard to discard later events in older ones."""
        from tensorboardX import SummaryWriter  # not needed to predict

        purge_step = epochs[-1]["step"] + 1 if epochs else 0
        self._check_space()
        self._events = SummaryWriter(
            str(self._folder), purge_step=purge_step, filename_suffix=self._suffix
        )

    def write(self, epoch_metrics: dict) -> None:
        """Writes all numbers that are finite."""
        self._check_space()
        for name, value in _flatten(epoch_metrics):
            if name not in ("epoch", "step") and math.isfinite(value):
                self._events.add_scalar(name, value, epoch_metrics["step"])
        self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()

    def _check_space(self) -> None:
        # On a full disk the threads of SummaryWriter print tracebacks, the last one at exit.
        with writing(self._folder):
            require_space(self._folder, 2**16)


@contextlib.contextmanager
def started(writers: Sequence[MetricWriter], epochs: Sequence[dict]) -> Iterator[None]:
    """Starts writers, and closes the started ones at the end, also after an error."""
    with contextlib.ExitStack() as stack:
        for writer in writers:
            writer.start(epochs)
            stack.callback(writer.close)
        yield


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises `OSError` if a folder's disk has less space left, before a library notices."""
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def describe_environment() -> dict[str, object]:
    """Returns the versions, the commit if known, the processor and the devices that compute here.

    `cpu` is the model of the processor, `cpu_count` the number of cores that this process may use,
    `xla_flags` the flags given to XLA; each is None if unknown.
    """
    import flax
    import jax
    import jaxlib

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "mixmo_jax": mixmo_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "cpu": _processor(),
        "cpu_count": cores,
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


def _processor() -> str | None:
    info = Path("/proc/cpuinfo")  # of Linux; on ARM it has no name
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _commit() -> str | None:
    """The commit of the checkout of this package, None if it was installed."""
    root = Path(mixmo_jax.__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def _json_line(epoch_metrics: dict) -> str:
    return json.dumps(jsonable(epoch_metrics)) + "\n"


def _numbers(tree):
    """Returns nested values with floats for the strings of `jsonable`."""
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    return float(tree) if isinstance(tree, str) else tree


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
