"""What a run shows on the terminal: the bar, the epochs, the table of scores."""

import datetime
import time

import jax
import numpy as np
import optax
import tqdm


class Progress:
    """A bar over the images of a training; lines for its epochs where there is no terminal.

    Args:
      num_epochs: of the training.
      steps_per_epoch: batches of an epoch.
      batch_size: images a batch, as the network's core counts them: B.
      schedule: learning rate by steps done.
      first_epoch: 1-based, the one that comes next.
    """

    _REFRESH_SECONDS = 0.5
    # tqdm's without its counts, which take the bar's place on a narrow terminal.
    _BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"

    def __init__(
        self,
        num_epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        schedule: optax.Schedule,
        first_epoch: int,
    ):
        self._num_epochs, self._batch_size, self._schedule = num_epochs, batch_size, schedule
        images = steps_per_epoch * batch_size
        self._bar = tqdm.tqdm(
            total=num_epochs * images,
            initial=(first_epoch - 1) * images,
            unit=" images",
            unit_scale=True,
            desc="compiling",
            bar_format=self._BAR,
            dynamic_ncols=True,
            disable=None,
        )
        self._first_epoch = first_epoch
        self._postfix = {}
        self._refreshed = time.monotonic()
        self._epoch_start = None  # with the first step compiled

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def update(self, losses: jax.Array) -> None:
        """Counts the steps of one call, of which the losses are [devices, steps]."""
        if self._epoch_start is None:
            self._epoch_start = time.monotonic()
            self._bar.set_description_str(f"epoch {self._first_epoch}", refresh=False)
        if self._bar.disable:
            return
        self._bar.update(losses.shape[1] * self._batch_size)
        if time.monotonic() - self._refreshed > self._REFRESH_SECONDS:
            # Waits for the device: not with each call.
            rate = self._schedule(self._bar.n // self._batch_size - 1)
            self._show(loss=f"{float(losses[0, -1]):.3f}", rate=f"{float(rate):.2g}")
            self._refreshed = time.monotonic()

    def end_epoch(self, line: dict) -> None:
        """Shows the metrics of an epoch (see `Trainer.train`)."""
        now = time.monotonic()
        left = (now - self._epoch_start) * (self._num_epochs - line["epoch"])
        self._epoch_start = now
        scored = [name for name in ("validation", "test") if name in line]
        accuracies = {name: f"{100 * line[name]['accuracy']:.2f} %" for name in scored}
        self._show(loss=f"{line['loss']:.3f}", rate=f"{line['learning_rate']:.2g}", **accuracies)
        if self._bar.disable:
            shown = "".join(f"  {name} accuracy {value}" for name, value in accuracies.items())
            print(
                f"epoch {line['epoch']}/{self._num_epochs}  loss {line['loss']:.3f}{shown}"
                f"  rate {line['learning_rate']:.2g}"
                f"  {line['images_per_second']:,.0f} images/s"
                f"  {datetime.timedelta(seconds=round(left))} left",
                flush=True,
            )
        self._bar.set_description_str(f"epoch {min(line['epoch'] + 1, self._num_epochs)}")

    def _show(self, **values: str) -> None:
        self._postfix.update(values)
        self._bar.set_postfix(self._postfix)


def score_table(scores: dict[str, float], scaled: dict[str, float]) -> str:
    """Lays out `metrics.plain_scores` before and after temperature scaling, a line each.

    The scores of the members' answers, which no temperature changes, stand there once; those of
    the only member of a network, which are the ensemble's, not at all.
    """
    members = sorted(name for name in scores if name.startswith("accuracy_member"))
    shares = ["accuracy", "top5_accuracy", *members, "disagreement"]
    fixed = {*members, "ratio_error", "disagreement"}
    names = [*shares[:-1], *(name for name in scores if name not in shares), "disagreement"]
    lines = [f"  {'':<24}{'plain':>10}{'scaled':>10}"]
    for name in names:
        if name not in scores or (name in members and "disagreement" not in scores):
            continue
        form = "{:.2%}" if name in shares else "{:.4f}"
        values = [scores[name]] if name in fixed else [scores[name], scaled[name]]
        cells = "".join(f"{'-' if np.isnan(x) else form.format(x):>10}" for x in values)
        lines.append(f"  {name.replace('_', ' '):<24}{cells}")
    return "\n".join(lines)


def corruption_table(results: dict[str, dict]) -> str:
    """Lays out the accuracy on corruptions (see `corruptions.score_corruptions`), a line each."""
    columns = list(results["mean"])
    lines = [f"  {'accuracy, severity':<24}" + "".join(f"{column:>10}" for column in columns)]
    for name, scores in results.items():
        cells = "".join(f"{100 * scores[column]['accuracy']:>8.2f} %" for column in columns)
        lines.append(f"  {name:<24}{cells}")
    mean = results["mean"]["mean"]
    return "\n".join([*lines, f"  mean NLL {mean['nll']:.4f}, mean ECE {mean['ece']:.4f}"])
