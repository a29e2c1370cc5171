"""Compares methods over seeds: runs what is missing, then tables, a plot and a test.

    python experiments/compare.py --config=digits --methods=vanilla,mimo,cut_mixmo --seeds=5
    python experiments/compare.py --config=digits --methods=vanilla,cut_mixmo \\
        --variant="unmixed=cut_mixmo mixmo.unmix=True" --config.num_epochs=5

Each run is a process of its own in a folder under --output, and resumes if it was interrupted; so
the same command goes on after Ctrl-C. `--config.FIELD=VALUE` goes to every run; a variant is a
method with fields of its own. The first method is the baseline: the others are compared with it by
a paired t-test over the seeds, corrected for the number of comparisons by Holm's method, and bold
is only what differs with p < 0.05.

It writes table.md, runs.csv, results.json and accuracy.png to --output.
"""

import argparse
import csv
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import published
import tqdm
from matplotlib.figure import Figure
from scipy import stats

from mixmo_jax import config as config_lib
from mixmo_jax.commands import run_command
from mixmo_jax.errors import InputError, Interrupted
from mixmo_jax.files import read_json, write_json, write_text
from mixmo_jax.runs.metric_writer import METRICS, RESULTS, read_metrics
from mixmo_jax.schema import flatten

# Column: where it is, the factor to its unit, decimal places.
COLUMNS = {
    "accuracy (%)": ("scores/accuracy", 100, 2),
    "members (%)": ("scores/accuracy_members_mean", 100, 2),
    "NLL": ("scores/nll", 1, 4),
    "ECE": ("scores/ece", 1, 4),
    "ECE scaled": ("scaled_scores/ece", 1, 4),
    "Brier": ("scores/brier", 1, 4),
    "disagreement (%)": ("scores/disagreement", 100, 2),
    "ratio error": ("scores/ratio_error", 1, 3),
    "training (s)": ("training_seconds", 1, 0),
    "images/s": ("images_per_second", 1, 0),
}
_SIGNIFICANT = 0.05


class Variant(NamedTuple):
    """A row of the table."""

    label: str
    method: str
    fields: tuple[str, ...] = ()  # FIELD=VALUE

    def folder(self, output: pathlib.Path, seed: int) -> pathlib.Path:
        """The folder of its run with a seed."""
        return output / f"{re.sub(r'[^a-zA-Z0-9.+-]+', '_', self.label)}-s{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    parser.add_argument(
        "--methods",
        default="vanilla,mimo,linear_mixmo,cut_mixmo",
        help="separated by commas, %(default)s by default",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'LABEL=METHOD FIELD=VALUE …'",
        help="another row; may be given several times",
    )
    parser.add_argument("--seeds", default="5", help="their number, or 0,1,4; %(default)s")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/compare"))
    parser.add_argument(
        "--validation",
        action="store_true",
        help="score the last epoch on the validation split instead of the test split",
    )
    arguments, overrides = parser.parse_known_args()
    variants = [Variant(method, method) for method in arguments.methods.split(",") if method]
    variants += map(parse_variant, arguments.variant)
    compare(
        arguments.config,
        variants,
        parse_seeds(arguments.seeds),
        arguments.output,
        overrides,
        validation=arguments.validation,
    )


def parse_variant(text: str) -> Variant:
    """Reads `LABEL=METHOD FIELD=VALUE …`."""
    label, equals, rest = text.partition("=")
    method, *fields = rest.split() or [""]
    if not equals or not label or not method or not all("=" in field for field in fields):
        raise InputError(f"variant={text!r}: expected 'LABEL=METHOD FIELD=VALUE …'")
    return Variant(label, method, tuple(fields))


def parse_seeds(text: str) -> list[int]:
    """Reads a number of seeds, or seeds separated by commas."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"seeds={text}: expected a number, or numbers like 0,1,4") from None
    return numbers if "," in text else list(range(numbers[0]))


def merge(overrides: list[str], fields: tuple[str, ...]) -> list[str]:
    """Returns the flags of overrides and of fields; of several for a field the last one counts."""
    flags = [*overrides, *(f"--config.{field}" for field in fields)]
    return list({flag.partition("=")[0]: flag for flag in flags}.values())


def compare(
    config: str,
    variants: list[Variant],
    seeds: list[int],
    output: pathlib.Path,
    overrides: list[str],
    *,
    validation: bool = False,
) -> dict[str, object]:
    """Runs what is missing, writes the files and prints the table; returns the results."""
    if len({v.label for v in variants}) < len(variants) or not variants or not seeds:
        raise InputError("methods, seeds: expected one or more, and each method or label once")
    configs = {
        v.label: config_lib.parse(f"{config}:{v.method}", merge(overrides, v.fields))[1]
        for v in variants
    }
    run_missing(config, variants, seeds, output, overrides, configs)
    runs = [
        {"label": v.label, "seed": seed, **read_run(v.folder(output, seed), validation)}
        for v in variants
        for seed in seeds
    ]
    rows = summarize(variants, runs, configs)
    first = variants[0].folder(output, seeds[0])
    results = {
        "config": config,
        "overrides": overrides,
        "scored": "validation" if validation else "test",
        "seeds": seeds,
        "environment": read_json(first / RESULTS)["environment"],
        "rows": rows,
        "runs": runs,
    }
    table = format_table(rows)
    write_json(output / "results.json", results)
    write_text(output / "table.md", table + "\n")
    with (output / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["label", "seed", *COLUMNS])
        writer.writeheader()
        writer.writerows(runs)
    plot(output / "accuracy.png", rows)
    print(f"\n{table}\n\nin {output}: table.md, runs.csv, results.json, accuracy.png")
    return results


def run_missing(config, variants, seeds, output, overrides, configs) -> None:
    """Trains each run that is not finished, with a bar over the epochs of all."""
    total = len(seeds) * sum(c.num_epochs for c in configs.values())
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    output.mkdir(parents=True, exist_ok=True)
    with tqdm.tqdm(total=total, bar_format=form, dynamic_ncols=True) as bar:
        for seed in seeds:  # so that all methods have as many
            for variant in variants:
                folder, before = variant.folder(output, seed), bar.n
                bar.set_description_str(f"{variant.label}, seed {seed}")
                if not (folder / RESULTS).exists():
                    command = [sys.executable, "-m", "mixmo_jax.main"]
                    command += [f"--config={config}:{variant.method}", f"--workdir={folder}"]
                    command += merge(overrides, (*variant.fields, f"seed={seed}"))
                    _run(command, folder, bar, before)
                bar.update(before + configs[variant.label].num_epochs - bar.n)


def _run(command: list[str], folder: pathlib.Path, bar: tqdm.tqdm, before: int) -> None:
    """Runs a command to its end; what it prints goes to a file beside the folder."""
    log = folder.with_name(f"{folder.name}.log")
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            if (folder / METRICS).exists():
                bar.update(before + len(read_metrics(folder)) - bar.n)
    except KeyboardInterrupt as error:  # the run saves its step
        process.send_signal(getattr(error, "signum", signal.SIGINT))
        process.wait()
        message = "stopped; the same command goes on"
        raise Interrupted(message, getattr(error, "signum", signal.SIGINT)) from None
    if process.returncode:
        *_, last = log.read_text(errors="replace").splitlines() or [""]
        raise InputError(f"{folder}: the run ended with status {process.returncode}: {last}")


def read_run(folder: pathlib.Path, validation: bool = False) -> dict[str, float | None]:
    """The columns of a finished run; None where a run has no such number."""
    results, epochs = read_json(folder / RESULTS), read_metrics(folder)
    if validation:
        results = {"scores": epochs[-1]["validation"]}
    results["training_seconds"] = sum(epoch["seconds"] for epoch in epochs)
    rates = [epoch["images_per_second"] for epoch in epochs]
    results["images_per_second"] = float(np.median(rates[1:] or rates))  # the first one compiles
    columns = {}
    for name, (path, factor, _) in COLUMNS.items():
        value = results
        for key in path.split("/"):
            value = value.get(key) if value else None
        columns[name] = None if value is None else factor * value
    return columns


def summarize(variants: list[Variant], runs: list[dict], configs: dict) -> list[dict]:
    """A row for each variant: means and deviations, the published number, the test."""
    accuracies = {
        v.label: np.array([r["accuracy (%)"] for r in runs if r["label"] == v.label])
        for v in variants
    }
    baseline, *others = (accuracies[v.label] for v in variants)
    p_values = dict(
        zip(
            [v.label for v in variants[1:]],
            holm([paired_p_value(other, baseline) for other in others]),
            strict=True,
        )
    )
    rows = []
    for variant in variants:
        row = {"label": variant.label, "n": len(accuracies[variant.label])}
        for name in COLUMNS:
            values = [r[name] for r in runs if r["label"] == variant.label and r[name] is not None]
            if values:
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                row[name] = (float(np.mean(values)), deviation)
        row["published"] = published.find(flatten(configs[variant.label]))
        row["difference"] = float((accuracies[variant.label] - baseline).mean())
        row["p"] = p_values.get(variant.label)
        rows.append(row)
    return rows


def paired_p_value(values: np.ndarray, baseline: np.ndarray) -> float:
    """The p-value of a paired t-test, 1 where it says nothing."""
    if len(values) < 2 or np.ptp(values - baseline) == 0:
        return 1.0
    return float(stats.ttest_rel(values, baseline).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Corrects p-values for their number, by Holm's method (1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def format_table(rows: list[dict]) -> str:
    """The rows in Markdown; bold is an accuracy that differs from the baseline's."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    with_published = any(row["published"] for row in rows)
    names = ["method", "n", *shown, *["published (%)"] * with_published, "difference", "p"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [row["label"], str(row["n"])]
        for name in shown:
            cell = _format(row.get(name), COLUMNS[name][2])
            real = row["p"] is not None and row["p"] < _SIGNIFICANT
            cells.append(f"**{cell}**" if name == "accuracy (%)" and real else cell)
        if with_published:
            cells.append(" – ".join(f"{v:.2f}" for v in row["published"] or ()))
        is_compared = row["p"] is not None
        cells.append(f"{row['difference']:+.2f}" if is_compared else "")
        cells.append(f"{row['p']:.3f}" if is_compared else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(file: pathlib.Path, rows: list[dict]) -> None:
    """Draws accuracies with standard deviations: of the ensembles, and of single members."""
    figure = Figure(figsize=(7, 1.6 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    kinds = {
        "ensemble": ("accuracy (%)", 0.12, {"fmt": "o", "color": "black"}),
        "single members": ("members (%)", -0.12, {"fmt": "o", "color": "tab:blue", "mfc": "white"}),
    }
    for label, (name, shift, style) in kinds.items():
        drawn = [(row[name], place) for row, place in zip(rows, places, strict=True) if name in row]
        means = [mean for (mean, _), _ in drawn]
        deviations = [deviation or 0 for (_, deviation), _ in drawn]
        at = [place + shift for _, place in drawn]
        axes.errorbar(means, at, xerr=deviations, capsize=3, label=label, **style)
    known = [(row["published"], p) for row, p in zip(rows, places, strict=True) if row["published"]]
    if known:
        means = [np.mean(accuracy) for accuracy, _ in known]
        axes.plot(means, [p for _, p in known], "x", color="tab:red", label="published")
    axes.set_yticks(places, [f"{row['label']} (n = {row['n']})" for row in rows])
    axes.set_xlabel("accuracy (%), mean ± standard deviation over seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(file, dpi=150)


def _format(value: tuple[float, float | None] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
