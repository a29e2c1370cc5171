"""Output of a run on the terminal: a progress bar, the epochs, tables of metrics."""

import datetime
import time
from collections.abc import Callable

import numpy as np
import tqdm


class Progress:
    """A bar over the images of a training run, as a context manager.

    Without a terminal it prints a line for each epoch instead.

    Args:
      num_epochs: The number of epochs.
      steps_per_epoch: The number of steps of an epoch.
      batch_size: The batch size B of the core network.
      schedule: The learning rate by the number of finished steps.
      steps_done: The number of steps that earlier sessions have finished.
    """

    _REFRESH_SECONDS = 0.5
    # tqdm's default without the counts, which leave no room for the bar on a narrow terminal.
    _BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"

    def __init__(
        self,
        num_epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        schedule: Callable[[int], float],
        steps_done: int,
    ):
        self._num_epochs, self._batch_size, self._schedule = num_epochs, batch_size, schedule
        images = steps_per_epoch * batch_size
        self._bar = tqdm.tqdm(
            total=num_epochs * images,
            initial=steps_done * batch_size,
            unit=" img",
            unit_scale=True,
            desc="compiling",
            bar_format=self._BAR,
            dynamic_ncols=True,
            disable=None,
        )
        self._epoch = steps_done // steps_per_epoch + 1
        self._shown = {}
        self._refreshed = time.monotonic()
        self._epoch_start = None  # set when the first step is compiled

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, num_steps: int, losses: np.ndarray) -> None:
        """Counts finished steps with their losses, [num_steps] float."""
        if self._epoch_start is None:
            self._epoch_start = time.monotonic()
            self._bar.set_description_str(self._describe(), refresh=False)
        if self._bar.disable:
            return
        self._bar.update(num_steps * self._batch_size)
        if time.monotonic() - self._refreshed > self._REFRESH_SECONDS:
            learning_rate = self._schedule(self._bar.n // self._batch_size - 1)
            self._show(loss=f"{float(losses[-1]):.3f}", lr=f"{float(learning_rate):.2g}")
            self._refreshed = time.monotonic()

    def end_epoch(self, epoch_metrics: dict) -> None:
        """Shows the metrics of an epoch, a line of `metrics.jsonl`."""
        now, epoch = time.monotonic(), epoch_metrics["epoch"]
        left = (now - (self._epoch_start or now)) * (self._num_epochs - epoch)
        self._epoch_start = now
        loss, lr = f"{epoch_metrics['loss']:.3f}", f"{epoch_metrics['learning_rate']:.2g}"
        names = {"validation": "val", "test": "test"}
        accuracies = {
            short: f"{100 * epoch_metrics[name]['accuracy']:.2f}%"
            for name, short in names.items()
            if name in epoch_metrics
        }
        self._show(loss=loss, **accuracies, lr=lr)
        if self._bar.disable:
            shown = "".join(f"  {name} accuracy {value}" for name, value in accuracies.items())
            print(
                f"epoch {epoch}/{self._num_epochs}  loss {loss}{shown}  learning rate {lr}"
                f"  {epoch_metrics['images_per_second']:,.0f} images/s"
                f"  {datetime.timedelta(seconds=round(left))} left",
                flush=True,
            )
        self._epoch = min(epoch + 1, self._num_epochs)
        self._bar.set_description_str(self._describe())

    def _describe(self):
        return f"epoch {self._epoch}/{self._num_epochs}"

    def _show(self, **values: str) -> None:
        self._shown.update(values)
        # A narrow terminal cuts off the end: the learning rate comes last.
        names = [name for name in ("loss", "val", "test", "lr") if name in self._shown]
        self._bar.set_postfix_str(" ".join(f"{name} {self._shown[name]}" for name in names))


def metric_table(plain: dict[str, float], scaled: dict[str, float]) -> str:
    """Formats `metrics.ensemble_metrics` before and after temperature scaling, one a line.

    No temperature changes the metrics of the members' predictions: they are shown once. With one
    member they are left out, as they are the ensemble's.
    """
    members = [name for name in plain if name.startswith("accuracy_member")]
    fractions = ["accuracy", "top5_accuracy", *members, "disagreement"]
    fixed = {*members, "ratio_error", "disagreement"}
    names = [*fractions[:-1], *(name for name in plain if name not in fractions), "disagreement"]
    lines = [f"  {'':<24}{'plain':>10}{'scaled':>10}"]
    for name in names:
        if name not in plain or (name in members and "disagreement" not in plain):
            continue
        form = "{:.2%}" if name in fractions else "{:.4f}"
        values = [plain[name]] if name in fixed else [plain[name], scaled[name]]
        cells = "".join(f"{'-' if np.isnan(x) else form.format(x):>10}" for x in values)
        lines.append(f"  {name.replace('_', ' '):<24}{cells}")
    return "\n".join(lines)


def corruption_table(results: dict[str, dict]) -> str:
    """Formats the accuracy on corruptions (see `corruptions.score_corruptions`), one a line."""
    columns = list(results["mean"])
    lines = [f"  {'accuracy, severity':<24}" + "".join(f"{column:>10}" for column in columns)]
    for name, scores in results.items():
        cells = "".join(f"{100 * scores[column]['accuracy']:>8.2f} %" for column in columns)
        lines.append(f"  {name:<24}{cells}")
    mean = results["mean"]["mean"]
    return "\n".join([*lines, f"  mean NLL {mean['nll']:.4f}, mean ECE {mean['ece']:.4f}"])
