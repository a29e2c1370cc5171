"""The metrics of each epoch as JSON lines and for TensorBoard."""

import contextlib
import json
import math
import pathlib
import time

from mixmo_jax.errors import shown
from mixmo_jax.files import (
    is_count,
    is_number,
    jsonable,
    read_text,
    reading,
    write_json,
    write_text,
    writing,
)

METRICS, RESULTS = "metrics.jsonl", "results.json"

_FINAL = ".final"  # end of the name of the events with the final results


class MetricWriter:
    """Writes a line for each epoch, and TensorBoard events, as a context manager.

    Args:
      folder: The folder of the run.
      epochs_done: The number of epochs that are done; lines of later epochs, from a session that
        was stopped, are discarded.
    """

    def __init__(self, folder: pathlib.Path, epochs_done: int):
        self._path = folder / METRICS
        kept = [m for m in read_metrics(folder) if m["epoch"] <= epochs_done]
        write_text(self._path, "".join(json.dumps(jsonable(m)) + "\n" for m in kept))
        with writing(self._path):
            self._file = self._path.open("a")
        self._events = _Events(folder, purge_step=kept[-1]["step"] + 1 if kept else None)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        with contextlib.suppress(OSError):  # each line was flushed, or its error was raised
            self._file.close()
        self._events.close()

    def write(self, epoch_metrics: dict) -> None:
        """Appends the metrics of an epoch, a nested dictionary of numbers.

        Raises:
          InputError: if they cannot be written.
        """
        with writing(self._path):
            self._file.write(json.dumps(jsonable(epoch_metrics)) + "\n")
            self._file.flush()
        named = {k: v for k, v in _flatten(epoch_metrics) if k not in ("epoch", "step")}
        self._events.write(named, epoch_metrics["step"])


def read_metrics(folder: pathlib.Path) -> list[dict]:
    """Reads the metrics of all epochs so far; the last line is left out if it was cut off.

    Raises:
      InputError: if a line is damaged.
    """
    file = folder / METRICS
    if not file.exists():
        return []
    with reading(file, ValueError, RecursionError):
        *whole, _ = read_text(file, errors="replace").split("\n")
        lines = [json.loads(line) for line in whole]
        for line in lines:
            _check(line)
    return lines


def _check(line):
    """Raises `ValueError` unless a line holds what is taken from it later."""
    if not isinstance(line, dict):
        raise ValueError(f"{shown(line)}: expected a dictionary")
    found = {name: line.get(name) for name in ("epoch", "step", "loss", "seconds")}
    for split in ("validation", "test"):
        scores = line.get(split, {"accuracy": 0.0})
        if not isinstance(scores, dict) or "accuracy" not in scores:
            raise ValueError(f"{split}={shown(scores)}: expected the metrics of a split")
        accuracies = {k: v for k, v in scores.items() if k.startswith("accuracy")}
        found |= {f"{split}/{name}": value for name, value in accuracies.items()}
    for name, value in found.items():
        if not (is_count(value) if name in ("epoch", "step") else is_number(value)):
            raise ValueError(f"{name}={shown(value)}")


def write_results(folder: pathlib.Path, results: dict, step: int) -> None:
    """Writes the final results, also for TensorBoard."""
    _discard_events(folder)
    events = _Events(folder, suffix=_FINAL)
    scores = _flatten({k: v for k, v in results.items() if k.endswith("scores")})
    events.write({f"final/{name}": value for name, value in scores}, step)
    events.close()
    write_json(folder / RESULTS, results)


def discard_results(folder: pathlib.Path) -> None:
    """Deletes results that a run does not have any more."""
    _discard_events(folder)
    with writing(folder / RESULTS):
        (folder / RESULTS).unlink(missing_ok=True)


def _discard_events(folder: pathlib.Path) -> None:
    for old in folder.glob(f"events.out.tfevents.*{_FINAL}"):
        with writing(old):
            old.unlink(missing_ok=True)


class _Events:
    """TensorBoard events of scalars.

    Written at once: the thread of tensorboardX's own writer cannot say that the disk is full.

    Args:
      folder: The folder of the run.
      purge_step: The step from which on the events of earlier sessions are discarded, None to keep
        them all.
      suffix: The end of the file's name.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None, suffix: str = ""):
        from tensorboardX.event_file_writer import EventsWriter  # not needed to predict

        self._folder = folder
        with writing(folder):
            self._writer = EventsWriter(str(folder / "events"), suffix)
        if purge_step is not None:
            self._add(purge_step, session_log={"status": "START"})

    def write(self, values: dict[str, float], step: int) -> None:
        """Writes those of the values that are finite."""
        for name, value in values.items():
            if math.isfinite(value):
                self._add(step, summary={"value": [{"tag": name, "simple_value": value}]})
        with writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # all that was written was flushed
            self._writer.close()

    def _add(self, step: int, **content: dict) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with writing(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
