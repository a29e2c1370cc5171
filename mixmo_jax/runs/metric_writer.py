"""The metrics of each epoch as JSON lines and for TensorBoard."""

import json
import math
import pathlib

from mixmo_jax.files import jsonable, reading, write_json, write_text

METRICS, RESULTS = "metrics.jsonl", "results.json"


class MetricWriter:
    """Writes a line for each epoch, and TensorBoard events, as a context manager.

    Args:
      folder: The folder of the run.
      epochs_done: The number of epochs that are done; lines of later epochs, from a session that
        was stopped, are discarded.
    """

    def __init__(self, folder: pathlib.Path, epochs_done: int):
        import tensorboardX  # here, as it is not needed to predict

        kept = [m for m in read_metrics(folder) if m["epoch"] <= epochs_done]
        write_text(folder / METRICS, "".join(json.dumps(m) + "\n" for m in kept))
        self._file = (folder / METRICS).open("a")
        purge = kept[-1]["step"] + 1 if kept else None
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._events.close()

    def write(self, epoch_metrics: dict) -> None:
        """Appends the metrics of an epoch, a nested dictionary of numbers."""
        self._file.write(json.dumps(jsonable(epoch_metrics)) + "\n")
        self._file.flush()
        for name, value in _flatten(epoch_metrics):
            if name not in ("epoch", "step") and math.isfinite(value):
                self._events.add_scalar(name, value, epoch_metrics["step"])


def read_metrics(folder: pathlib.Path) -> list[dict]:
    """Reads the metrics of all epochs so far; the last line is left out if it was cut off.

    Raises:
      InputError: if a line is damaged.
    """
    file = folder / METRICS
    if not file.exists():
        return []
    with reading(file, ValueError, KeyError, TypeError):
        *whole, _ = file.read_text("utf-8", errors="replace").split("\n")
        lines = [json.loads(line) for line in whole]
        for line in lines:
            for name, kind in {"epoch": int, "step": int, "loss": float, "seconds": float}.items():
                line[name] = kind(line[name])
    return lines


def write_results(folder: pathlib.Path, results: dict, step: int) -> None:
    """Writes the final results, also for TensorBoard."""
    import tensorboardX

    for old in folder.glob("events.out.tfevents.*.final"):
        old.unlink(missing_ok=True)
    with tensorboardX.SummaryWriter(str(folder), filename_suffix=".final") as events:
        for name, value in _flatten({k: v for k, v in results.items() if k.endswith("scores")}):
            if math.isfinite(value):
                events.add_scalar(f"final/{name}", value, step)
    write_json(folder / RESULTS, results)


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
