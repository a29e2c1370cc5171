"""Scores of finished runs and of ensembles of them, and the table and test of a comparison."""

import pathlib
import shlex

import numpy as np
import published
from scipy import stats
from variants import Comparison, Variant, check_same, identity, is_scored

from mixmo_jax.config import flatten
from mixmo_jax.errors import ARRAY_DAMAGE, InputError, read_json, reading
from mixmo_jax.evaluation import metrics
from mixmo_jax.runs.metric_writer import CORRUPTIONS, RESULTS, read_metrics
from mixmo_jax.runs.workdir import LOGITS

# Column: where it is, the factor to its unit, decimal places.
COLUMNS = {
    "accuracy (%)": ("scores/accuracy", 100, 2),
    "members (%)": ("scores/accuracy_members_mean", 100, 2),
    "NLL": ("scores/nll", 1, 4),
    "NLL scaled": ("scaled_scores/nll", 1, 4),
    "ECE": ("scores/ece", 1, 4),
    "ECE scaled": ("scaled_scores/ece", 1, 4),
    "Brier": ("scores/brier", 1, 4),
    "disagreement (%)": ("scores/disagreement", 100, 2),
    "ratio error": ("scores/ratio_error", 1, 3),
    "corrupted (%)": ("corruptions/mean/mean/accuracy", 100, 2),
    "training (s)": ("training_seconds", 1, 0),
    "images/s": ("images_per_second", 1, 0),
}
_SIGNIFICANT = 0.05


def read_entry(comparison: Comparison, variant: Variant, seeds: list[int]) -> dict | None:
    """What is recorded of a variant's run, or of its ensemble of runs.

    Returns:
      Label, seed (the first one of an ensemble), the fields that identify it, the environment and
      the columns, None where there is no such number; None if a run is not finished.
    """
    runs = [comparison.run(variant, seed) for seed in seeds]
    if any(run.missing for run in runs):
        return None
    results = [read_run(run.folder, comparison.validation) for run in runs]
    name = corruptions_name(comparison)
    for run, result in zip(runs, results, strict=True):
        if name and is_scored(run.folder, run.config, name):
            result["corruptions"] = read_json(run.folder / CORRUPTIONS)["scores"]
    folders = [run.folder for run in runs]
    whole = results[0]
    if len(runs) > 1:
        whole = ensemble_results(folders, runs[0].config.evaluation.ensemble)
        whole["training_seconds"] = sum(result["training_seconds"] for result in results)
    return {
        "label": variant.label,
        "seed": seeds[0],
        **({"seeds": seeds} if len(seeds) > 1 else {}),
        "fields": identity(runs[0].config),
        "environment": results[0]["environment"],
        **{name: _column(whole, *COLUMNS[name][:2]) for name in COLUMNS},
    }


def read_run(folder: pathlib.Path, validation: bool = False) -> dict:
    """The results of a finished run, with its time and speed."""
    results, epochs = read_json(folder / RESULTS), read_metrics(folder)
    if validation:
        if "validation" not in epochs[-1]:
            raise InputError(f"{folder}: no validation split; set dataset.validation_fraction")
        results = {"scores": epochs[-1]["validation"], "environment": results["environment"]}
    results["training_seconds"] = sum(epoch["seconds"] for epoch in epochs)
    rates = [epoch["images_per_second"] for epoch in epochs]
    results["images_per_second"] = float(np.median(rates[1:] or rates))  # the first one compiles
    return results


def read_logits(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, M, K] and labels [N] of a run's test images."""
    with reading(folder / LOGITS, *ARRAY_DAMAGE), np.load(folder / LOGITS) as file:
        return file["logits"], file["labels"]


def ensemble_results(folders: list[pathlib.Path], ensemble: str) -> dict:
    """The scores of the ensemble of several runs with as many members each, from their logits."""
    logits, labels = zip(*map(read_logits, folders), strict=True)
    if any(not np.array_equal(other, labels[0]) for other in labels[1:]):
        raise InputError(f"{folders[0]}: expected runs with the same test images")
    members = np.concatenate(logits, axis=1)
    scaled, _ = metrics.scaled_metrics(members, labels[0], ensemble)
    return {
        "scores": metrics.ensemble_metrics(members, labels[0], ensemble),
        "scaled_scores": scaled,
    }


def read_recorded(comparison: Comparison) -> list[dict]:
    """The runs that results.json of the output records.

    Raises:
      InputError: if one that is compared was made with other fields, or scored on other images.
    """
    file = comparison.output / "results.json"
    if not file.exists():
        return []
    results = read_json(file)
    scored = split_name(comparison)
    if results.get("scored") != scored:
        found = f"scored on the {results.get('scored')} split (now {scored})"
        raise InputError(f"{file}: {found}; choose another --output")
    # Entries without fields are of an older form.
    entries = [entry for entry in results["runs"] if "fields" in entry]
    corruptions = corruptions_name(comparison)
    if any(entry.get("corrupted (%)") is not None for entry in entries):
        found = results.get("corruptions") or corruptions
        if found != corruptions:
            made = f"corruptions={found} (now {corruptions})"
            raise InputError(f"{file}: made with {made}; choose another --output")
    variants = {variant.label: variant for variant in comparison.variants}
    for entry in entries:
        if entry["label"] in variants:
            run = comparison.run(variants[entry["label"]], entry["seed"])
            what = f"{file}: {entry['label']}, seed {entry['seed']}"
            check_same(what, entry["fields"], identity(run.config))
        for name in COLUMNS:
            value = entry.get(name)
            entry[name] = None if value is None else float(value)
    return entries


def split_name(comparison: Comparison) -> str:
    """The split that is scored."""
    return "validation" if comparison.validation else "test"


def corruptions_name(comparison: Comparison) -> str | None:
    """The name of the folder of corrupted images: the one given, else the one recorded."""
    if comparison.corruptions:
        return comparison.corruptions.resolve().name
    file = comparison.output / "results.json"
    return read_json(file).get("corruptions") if file.exists() else None


def _column(results: dict, path: str, factor: float) -> float | None:
    value = results
    for key in path.split("/"):
        value = value.get(key) if value else None
    value = np.nan if value is None else factor * float(value)
    return None if np.isnan(value) else value


def summarize(comparison: Comparison, entries: list[dict]) -> list[dict]:
    """A row for each variant with runs: means and deviations, the published number, the test.

    The test is over the seeds that a variant has in common with what it is tested against.
    """
    accuracies = {variant.label: {} for variant in comparison.variants}
    for entry in entries:
        accuracies[entry["label"]][entry["seed"]] = entry["accuracy (%)"]
    found = [variant for variant in comparison.variants if accuracies[variant.label]]
    rows = []
    for variant in found:
        own = [entry for entry in entries if entry["label"] == variant.label]
        command = shlex.join(comparison.command(variant))
        row = {"label": variant.label, "n": len(own), "command": command}
        row |= {"difference": None, "p": None}
        for name in COLUMNS:
            values = [entry[name] for entry in own if entry[name] is not None]
            if values:
                row[name] = _mean_and_deviation(values)
        fields = flatten(comparison.run(variant, own[0]["seed"]).config)
        row["published"] = published.find(fields, variant.networks)
        against = variant.against or comparison.variants[0].label
        pairs = _pairs(accuracies[variant.label], accuracies[against])
        if against != variant.label and len(pairs):
            row["difference"] = float(np.subtract(*pairs.T).mean())
            row["p"] = paired_p_value(*pairs.T)
        rows.append(row)
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"] = p
    return rows


def _pairs(values: dict[int, float], baseline: dict[int, float]) -> np.ndarray:
    """The values [n, 2] of both for the n seeds in common."""
    common = [seed for seed in values if seed in baseline]
    return np.array([(values[seed], baseline[seed]) for seed in common])


def _mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    known = len(values) > 1 and np.isfinite(values).all()
    return float(np.mean(values)), float(np.std(values, ddof=1)) if known else None


def paired_p_value(values: np.ndarray, baseline: np.ndarray) -> float | None:
    """The p-value of a paired t-test: None for one pair, 1 if all pairs differ by the same."""
    if len(values) < 2:
        return None
    if np.ptp(values - baseline) <= 1e-9 * np.abs(values).max():  # rounded, they differ by the same
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
    """The rows in Markdown; bold is an accuracy that differs from what it is tested against."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    with_published = any(row["published"] for row in rows)
    names = ["method", "n", *shown, *["published (%)"] * with_published, "difference", "p"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [row["label"], str(row["n"])]
        difference, p = row["difference"], row["p"]
        for name in shown:
            cell = _format(row.get(name), COLUMNS[name][2])
            real = p is not None and p < _SIGNIFICANT
            cells.append(f"**{cell}**" if name == "accuracy (%)" and real else cell)
        if with_published:
            cells.append(" – ".join(f"{v:.2f}" for v in row["published"] or ()))
        cells.append("" if difference is None else f"{difference:+.2f}")
        cells.append("" if p is None else f"{p:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flat_rows(rows: list[dict]) -> list[dict]:
    """The rows for a table of single numbers: "± COLUMN" is the deviation beside COLUMN."""
    flat = []
    for row in rows:
        line = {name: row[name] for name in ("label", "n")}
        for name in COLUMNS:
            line[name], line[f"± {name}"] = row.get(name) or (None, None)
        published = " – ".join(map(str, row["published"] or ()))
        line |= {"published (%)": published, "difference": row["difference"], "p": row["p"]}
        flat.append(line)
    return flat


def _format(value: tuple[float, float | None] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
