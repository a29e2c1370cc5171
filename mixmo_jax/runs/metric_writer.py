"""The metrics of each epoch, as JSON lines, CSV and for TensorBoard; and the final results."""

import contextlib
import csv
import io
import json
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mixmo_jax.errors import (
    format_value,
    is_count,
    is_number,
    jsonable,
    read_text,
    reading,
    write_json,
    write_text,
    writing,
)

if TYPE_CHECKING:  # its module imports Orbax, which takes time
    from mixmo_jax.training.outputs import MetricWriter

METRICS, CSV, RESULTS = "metrics.jsonl", "metrics.csv", "results.json"
CORRUPTIONS = "corruptions.json"

_FINAL = ".final"  # end of the name of the events with the final results


class JsonLinesWriter:
    """Writes `metrics.jsonl`: the run's own record, from which it resumes. A `MetricWriter`."""

    def __init__(self, folder: pathlib.Path):
        self._path = folder / METRICS

    def start(self, epochs: Sequence[dict]) -> None:
        """Discards the lines of later epochs, which a session wrote that was stopped."""
        write_text(self._path, "".join(map(_json_line, epochs)))
        with writing(self._path):
            self._file = self._path.open("a")

    def write(self, epoch_metrics: dict) -> None:
        """Appends a line."""
        with writing(self._path):
            self._file.write(_json_line(epoch_metrics))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # each line was flushed, or its error was raised
            self._file.close()


class CsvWriter:
    """Writes `metrics.csv`: a row for each epoch, a column for each number. A `MetricWriter`.

    Columns are named as in TensorBoard, "test/accuracy"; a cell is empty where an epoch lacks the
    number.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / CSV

    def start(self, epochs: Sequence[dict]) -> None:
        """Replaces the file."""
        self._rows = [dict(_flatten(jsonable(epoch_metrics))) for epoch_metrics in epochs]
        self._replace()

    def write(self, epoch_metrics: dict) -> None:
        """Appends a row; replaces the file if there are new columns."""
        row = dict(_flatten(jsonable(epoch_metrics)))
        self._rows.append(row)
        if not row.keys() <= set(self._columns):
            self._replace()
            return
        with writing(self._path), self._path.open("a") as file:
            file.write(self._format([row]))

    def close(self) -> None:
        """Does nothing: no file is left open."""

    def _replace(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        header = {name: name for name in self._columns}
        write_text(self._path, self._format([header, *self._rows] if self._rows else []))

    def _format(self, rows: Sequence[dict]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoardWriter:
    """Writes events of scalars for TensorBoard. A `MetricWriter`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def start(self, epochs: Sequence[dict]) -> None:
        """Opens a new file, which tells TensorBoard to discard later events in older ones."""
        purge_step = epochs[-1]["step"] + 1 if epochs else 0
        self._events = _Events(self._folder, purge_step)

    def write(self, epoch_metrics: dict) -> None:
        """Writes an event for each number."""
        named = {k: v for k, v in _flatten(epoch_metrics) if k not in ("epoch", "step")}
        self._events.write(named, epoch_metrics["step"])

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


def create_writers(folder: pathlib.Path) -> list["MetricWriter"]:
    """Returns the writers of every run; they raise `InputError` for what cannot be written."""
    return [JsonLinesWriter(folder), TensorBoardWriter(folder), CsvWriter(folder)]


@contextlib.contextmanager
def started(writers: Sequence["MetricWriter"], epochs: Sequence[dict]) -> Iterator[None]:
    """Starts writers, and closes those that were started in the end, however it comes."""
    with contextlib.ExitStack() as stack:
        for writer in writers:
            writer.start(epochs)
            stack.callback(writer.close)
        yield


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


def read_done(folder: pathlib.Path, epochs_done: int) -> list[dict]:
    """Reads the metrics of the first epochs as they were given to the writers.

    Args:
      folder: The folder of the run.
      epochs_done: The number of these epochs.

    Raises:
      InputError: if a line is damaged.
    """
    lines = [line for line in read_metrics(folder) if line["epoch"] <= epochs_done]
    with reading(folder / METRICS, ValueError):
        return [_numbers(line) for line in lines]


def _numbers(tree):
    """Returns nested values with floats for the texts of `jsonable`."""
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    return float(tree) if isinstance(tree, str) else tree


def _check(line):
    """Raises `ValueError` unless a line holds what is taken from it later."""
    if not isinstance(line, dict):
        raise ValueError(f"{format_value(line)}: expected a dictionary")
    found = {name: line.get(name) for name in ("epoch", "step", "loss", "seconds")}
    for split in ("validation", "test"):
        scores = line.get(split, {"accuracy": 0.0})
        if not isinstance(scores, dict) or "accuracy" not in scores:
            raise ValueError(f"{split}={format_value(scores)}: expected the metrics of a split")
        accuracies = {k: v for k, v in scores.items() if k.startswith("accuracy")}
        found |= {f"{split}/{name}": value for name, value in accuracies.items()}
    for name, value in found.items():
        if not (is_count(value) if name in ("epoch", "step") else is_number(value)):
            raise ValueError(f"{name}={format_value(value)}")


def write_results(folder: pathlib.Path, results: dict, step: int) -> None:
    """Writes the final results, also for TensorBoard."""
    _discard_events(folder)
    events = _Events(folder, suffix=_FINAL)
    scores = _flatten({k: v for k, v in results.items() if k.endswith("scores")})
    events.write({f"final/{name}": value for name, value in scores}, step)
    events.close()
    write_json(folder / RESULTS, results)


def discard_results(folder: pathlib.Path) -> None:
    """Deletes results that a run does not have any more, also those on corrupted images."""
    _discard_events(folder)
    for name in (RESULTS, CORRUPTIONS):
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


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


def _json_line(epoch_metrics):
    return json.dumps(jsonable(epoch_metrics)) + "\n"


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
