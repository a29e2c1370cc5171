"""Compares methods over seeds: runs what is missing, then tables, a plot and a paired test.

    python experiments/compare.py --config=digits --methods=vanilla,mimo,cut_mixmo --seeds=5
    python experiments/compare.py --config=digits --methods=vanilla,cut_mixmo \\
        --variant="unmixed=cut_mixmo mixmo.unmix=True" --config.num_epochs=5

Each run is a process of its own in a folder under --output, and resumes if it was interrupted. The
runs that results.json in --output records count as done, even if their folders are gone.

`--config.FIELD=VALUE` goes to every run. A variant is a method with fields of its own. The first
method is the baseline: the others are compared with it by a paired t-test over the seeds, corrected
by Holm's method. Bold is an accuracy that differs with p < 0.05.

It writes table.md, table.csv, runs.csv, results.json and accuracy.png to --output.
"""

import argparse
import ast
import csv
import dataclasses
import io
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

import ml_collections
import numpy as np
import plots
from scipy import stats

import mixmo_jax
from mixmo_jax import metrics
from mixmo_jax.config import flatten, unknown_field
from mixmo_jax.configs import cifar10, cifar100, common, tiny_imagenet
from mixmo_jax.errors import InputError, expand, jsonable, read_json, write_json, write_text
from mixmo_jax.runs.workdir import CORRUPTIONS, LOGITS, NEUTRAL_FIELDS, RESULTS, Workdir

# Column: path in the results, factor to its unit, decimal places.
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

# Top-1 accuracy in % on the authors' page, by method: CIFAR-100 and CIFAR-10 (WRN-28-10), Tiny
# ImageNet (PreActResNet-18 of width 1, 2, 3). Two numbers are the ends of a range.
_CIFAR = {
    "vanilla": ((81.79,), (96.37,)),
    "mixup": ((83.43,), (97.07,)),
    "cutmix": ((83.95,), (97.28,)),
    "mimo": ((82.92,), (96.71,)),
    "linear_mixmo": ((82.96,), (96.88,)),
    "cut_mixmo": ((85.52, 85.59), (97.52,)),
    "linear_mixmo+cutmix": ((85.36, 85.57), (97.73,)),
    "cut_mixmo+cutmix": ((85.77, 85.92), (97.83,)),
}
_TINY_IMAGENET = {
    "vanilla": ((62.75,), (64.91,), (65.84,)),
    "linear_mixmo": ((62.91,), (67.03,), (68.36,)),
    "cut_mixmo": ((64.32,), (69.12,), (70.23,)),
}
# The paper's config, its width, the number of networks, and the column of their accuracies.
_PUBLISHED = [
    (cifar100, 10, 1, _CIFAR, 0),
    (cifar100, 10, 3, {"cut_mixmo+cutmix": ((86.81,),)}, 0),
    (cifar10, 10, 1, _CIFAR, 1),
    *((tiny_imagenet, i + 1, 1, _TINY_IMAGENET, i) for i in range(3)),
]
# Fields that may differ from the paper's: they change no score, or only by rounding.
_FREE = {
    *NEUTRAL_FIELDS,
    "method",
    "seed",
    "model.dtype",
    "model.width",
    "dataset.split_seed",
    "evaluation.every_epochs",
    "optimizer.ema_decay",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
      label: Its name, from which the names of its folders follow.
      method: The method of the config.
      fields: Its own fields.
      length: Factor on the epochs and on the schedule of the learning rate.
      against: The label of the row that it is tested against; "" for the first row, its own label
        for none.
      networks: The number of runs in one deep ensemble.
      runs_of: The label of the row whose runs an ensemble consists of; "" for its own.
    """

    label: str
    method: str
    fields: dict[str, object] = dataclasses.field(default_factory=dict)
    length: float = 1.0
    against: str = ""
    networks: int = 1
    runs_of: str = ""

    def groups(self, seeds: Sequence[int]) -> list[list[int]]:
        """Returns the seeds of each ensemble; no seed is in two."""
        starts = range(0, len(seeds) - self.networks + 1, self.networks)
        return [list(seeds[i : i + self.networks]) for i in starts]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows, seeds, and the fields that all rows share.

    Attributes:
      config: The config without a method.
      variants: The rows.
      seeds: The seeds of every row.
      output: The folder of the runs and of the results.
      fields: Fields of all rows.
      validation: Whether to score the last epoch on the validation split, not the test split.
      corruptions: A folder of corrupted images on which every run is evaluated, or None.
      own_split: Whether the seed also draws the images that are set apart from training.
    """

    config: str
    variants: list[Variant]
    seeds: list[int]
    output: pathlib.Path
    fields: dict[str, object] = dataclasses.field(default_factory=dict)
    validation: bool = False
    corruptions: pathlib.Path | None = None
    own_split: bool = False

    def folder(self, variant: Variant, seed: int) -> pathlib.Path:
        """Returns the folder of a run."""
        label = re.sub(r"[^a-zA-Z0-9.+-]+", "_", variant.runs_of or variant.label)
        return self.output / f"{label}-s{seed}"

    def changes(self, variant: Variant, seed: object) -> dict[str, object]:
        """Returns the fields in which a run differs from its config and method."""
        fields = {**self.fields, **variant.fields}
        spec = f"{self.config}:{variant.method}"
        seeds = ["seed"] + ["dataset.split_seed"] * self.own_split
        return {**fields, **scaled(spec, fields, variant.length), **dict.fromkeys(seeds, seed)}

    def create_config(self, variant: Variant, seed: int) -> ml_collections.ConfigDict:
        """Returns the config of a run."""
        changes = self.changes(variant, seed)
        return with_fields(mixmo_jax.get_config(f"{self.config}:{variant.method}"), changes)

    def command(self, variant: Variant, seed: object) -> list[str]:
        """Returns the arguments of `python` that train a run, without its folder."""
        flags = [f"--config.{k}={v}" for k, v in self.changes(variant, seed).items()]
        return ["-m", "mixmo_jax.main", f"--config={self.config}:{variant.method}", *flags]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    parser.add_argument("--methods", default="vanilla,mimo,linear_mixmo,cut_mixmo", help="A,B,C")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'LABEL=METHOD FIELD=VALUE …'"
    )
    parser.add_argument("--validation", action="store_true", help="score the validation split")
    add_arguments(parser, seeds="5", output="runs/compare")
    arguments, fields = parse_arguments(parser)
    variants = [Variant(method, method) for method in arguments.methods.split(",") if method]
    variants += map(parse_variant, arguments.variant)
    comparison = Comparison(
        arguments.config,
        variants,
        parse_seeds(arguments.seeds),
        arguments.output,
        fields,
        validation=arguments.validation,
        corruptions=arguments.corruptions,
    )
    execute([comparison], arguments)


def add_arguments(parser: argparse.ArgumentParser, *, seeds: str, output: str) -> None:
    """Adds the arguments of every comparison."""
    parser.add_argument("--seeds", default=seeds, help="their number; or 0,1,4 (4, for one)")
    parser.add_argument("--output", type=expand, default=pathlib.Path(output), help=output)
    parser.add_argument(
        "--corruptions", type=expand, help="also evaluate on this folder, as CIFAR-10-C"
    )
    parser.add_argument("--table_only", action="store_true", help="train nothing")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and their hours")
    parser.add_argument(
        "--images_per_second", type=float, help="for --dry_run: the speed; else measured here"
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, object]]:
    """Parses a command line; returns its arguments, and the fields of `--config.FIELD=VALUE`."""
    parser.allow_abbrev = False
    arguments, rest = parser.parse_known_args(argv)
    fields = {}
    for flag in rest:
        if not (match := re.fullmatch(r"--config\.([\w.]+)=(.*)", flag)):
            parser.error(f"unknown argument {flag}; fields are set by --config.FIELD=VALUE")
        fields[match[1]] = parse_value(match[2])
    return arguments, fields


def parse_value(text: str) -> object:
    """Returns the value of a Python literal, or else the string."""
    try:
        return float("inf") if text == "inf" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_variant(text: str) -> Variant:
    """Reads `LABEL=METHOD FIELD=VALUE …`."""
    label, _, rest = text.partition("=")
    method, *fields = rest.split() or [""]
    if not label or not method or not all("=" in field for field in fields):
        raise InputError(f"variant={text!r}: expected 'LABEL=METHOD FIELD=VALUE …'")
    pairs = (field.split("=", 1) for field in fields)
    return Variant(label, method, {name: parse_value(value) for name, value in pairs})


def parse_seeds(text: str) -> list[int]:
    """Reads a number of seeds, or seeds separated by commas; "4," is the seed 4."""
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise InputError(f"seeds={text}: expected a number, or numbers like 0,1,4") from None
    return numbers if "," in text else list(range(numbers[0]))


def with_fields(
    config: ml_collections.ConfigDict, fields: dict[str, object]
) -> ml_collections.ConfigDict:
    """Returns a config with some fields replaced."""
    for name in fields.keys() - flatten(config).keys():
        raise unknown_field(name)
    config.update_from_flattened_dict(fields)
    mixmo_jax.config.check_config(config)
    return config


def scaled(spec: str, fields: dict[str, object], length: float) -> dict[str, object]:
    """Returns the fields of a longer or shorter run, with its schedule in proportion.

    Patch probability and unmixing are fractions of the run already.
    """
    if length == 1:
        return {}
    config = with_fields(mixmo_jax.get_config(spec), fields)
    optimizer = config.optimizer
    # Epochs count from 1: the learning rate falls after the same part of the run.
    decays = [max(1, round((epoch - 1) * length) + 1) for epoch in optimizer.decay_epochs]
    return {
        "num_epochs": max(1, round(config.num_epochs * length)),
        "optimizer.warmup_steps": round(optimizer.warmup_steps * length),
        "optimizer.warmup_epochs": optimizer.warmup_epochs * length,
        "optimizer.decay_epochs": tuple(dict.fromkeys(decays)),
    }


def execute(comparisons: list[Comparison], arguments: argparse.Namespace) -> None:
    """Lists, runs or tabulates comparisons, as the arguments say."""
    for comparison in comparisons:
        labels = [variant.label for variant in comparison.variants]
        if len(set(labels)) < len(labels) or not comparison.seeds:
            raise InputError("methods, seeds: expected one or more, each of them once")
        for variant in comparison.variants:  # mistakes in fields show before the first run
            comparison.create_config(variant, comparison.seeds[0])
    if arguments.dry_run:
        list_runs(comparisons, arguments.images_per_second)
        return
    for comparison in comparisons:
        if not arguments.table_only:
            for variant, seed in missing_runs(comparison):
                run(comparison, variant, seed)
        tabulate(comparison)


def list_runs(comparisons: list[Comparison], images_per_second: float | None) -> None:
    """Prints the commands of the missing runs with their hours; other schedulers may run them."""
    from benchmark import measure_training, num_images  # slow to import

    from mixmo_jax.input_pipeline.plan import steps_per_epoch

    rates, total = {}, 0.0
    for comparison in comparisons:
        for variant, seed in missing_runs(comparison):
            config = comparison.create_config(variant, seed)
            key = str((config.model.to_dict(), config.batch_size, config.dataset.name))
            if key not in rates:
                rates[key] = images_per_second or measure_training(config)
            images = num_images(config) * (1 - config.dataset.validation_fraction)
            steps = config.num_epochs * steps_per_epoch(config, round(images))
            hours = steps * config.batch_size / rates[key] / 3600
            total += hours
            folder = f"--workdir={comparison.folder(variant, seed)}"
            command = shlex.join(["python", *comparison.command(variant, seed), folder])
            print(f"{steps:>9,} steps {hours:7.3g} h  {command}")
    print(f"{total:.3g} hours")


def missing_runs(comparison: Comparison) -> list[tuple[Variant, int]]:
    """Returns the runs to do, one seed after the other, so that all methods have as many."""
    recorded, needed = read_recorded(comparison), {}
    for seed in comparison.seeds:
        for variant in comparison.variants:
            for group in variant.groups(comparison.seeds):
                done = _is_done(recorded.get((variant.label, group[0])), comparison, group)
                folder = comparison.folder(variant, seed)
                if seed in group and not done and not is_finished(comparison, variant, seed):
                    needed.setdefault(folder, (variant, seed))
    return list(needed.values())


def _is_done(entry: dict | None, comparison: Comparison, group: list[int]) -> bool:
    if entry is None or entry.get("seeds", [entry["seed"]]) != group:
        return False
    wanted = comparison.corruptions is not None and len(group) == 1
    return not wanted or entry["corrupted (%)"] is not None


def is_finished(comparison: Comparison, variant: Variant, seed: int) -> bool:
    """Returns whether the folder of a run holds its results, and the scores on corruptions."""
    workdir = Workdir(comparison.folder(variant, seed))
    if not (workdir.path / RESULTS).exists():
        return False
    check_same(workdir, workdir.read_config(), comparison.create_config(variant, seed))
    return comparison.corruptions is None or (workdir.path / CORRUPTIONS).exists()


def identity(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns the fields that identify a run: those that matter and are not the default."""
    defaults = flatten(common.get_config("vanilla"))
    fields = flatten(config).items()
    return jsonable({k: v for k, v in fields if k not in NEUTRAL_FIELDS and v != defaults.get(k)})


def check_same(what: object, found, expected) -> None:
    """Raises `InputError` with the first field in which a run differs from the comparison."""
    found, expected = (x if isinstance(x, dict) else identity(x) for x in (found, expected))
    for name in {**found, **expected}:
        if found.get(name) != expected.get(name):
            values = f"{found.get(name, 'the default')} (now {expected.get(name, 'the default')})"
            raise InputError(f"{what}: made with {name}={values}; choose another --output")


def run(comparison: Comparison, variant: Variant, seed: int) -> None:
    """Trains, and evaluates on corruptions; the output goes to a file beside the folder."""
    folder = comparison.folder(variant, seed)
    commands = [[*comparison.command(variant, seed), f"--workdir={folder}"]]
    if comparison.corruptions:
        flags = ["--mode=evaluate", f"--workdir={folder}"]
        commands.append(["-m", "mixmo_jax.main", *flags, f"--corruptions={comparison.corruptions}"])
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{variant.label}, seed {seed}: {log}", flush=True)
    for command in commands:
        with log.open("ab") as file:
            done = subprocess.run([sys.executable, *command], stdout=file, stderr=file)
        if done.returncode:
            last = log.read_text(errors="replace").splitlines()[-1:]
            raise InputError(f"{folder}: the run ended with status {done.returncode}: {last}")


def read_recorded(comparison: Comparison) -> dict[tuple[str, int], dict]:
    """Returns the runs recorded in results.json, by label and seed."""
    file = comparison.output / "results.json"
    if not file.exists():
        return {}
    results, scored = read_json(file), "validation" if comparison.validation else "test"
    if results["scored"] != scored:
        found = f"scored on the {results['scored']} split (now {scored})"
        raise InputError(f"{file}: {found}; choose another --output")
    variants, entries = {variant.label: variant for variant in comparison.variants}, {}
    for entry in results["runs"]:
        if entry["label"] in variants:
            config = comparison.create_config(variants[entry["label"]], entry["seed"])
            check_same(f"{file}: {entry['label']}, seed {entry['seed']}", entry["fields"], config)
        numbers = {k: None if entry.get(k) is None else float(entry[k]) for k in COLUMNS}
        entries[entry["label"], entry["seed"]] = {**entry, **numbers}
    return entries


def read_entry(comparison: Comparison, variant: Variant, seeds: list[int]) -> dict | None:
    """Returns the scores of a run, or of an ensemble of runs; None if one is not finished."""
    if not all(is_finished(comparison, variant, seed) for seed in seeds):
        return None
    folders = [comparison.folder(variant, seed) for seed in seeds]
    results = [read_run(folder, comparison.validation) for folder in folders]
    config = comparison.create_config(variant, seeds[0])
    whole = results[0]
    if len(seeds) > 1:
        whole = ensemble_scores(folders, config.evaluation.ensemble)
        whole["training_seconds"] = sum(result["training_seconds"] for result in results)
    return {
        "label": variant.label,
        "seed": seeds[0],
        **({"seeds": seeds} if len(seeds) > 1 else {}),
        "fields": identity(config),
        "environment": results[0]["environment"],
        **{name: _column(whole, *COLUMNS[name][:2]) for name in COLUMNS},
    }


def read_run(folder: pathlib.Path, validation: bool = False) -> dict:
    """Returns the results of a finished run, with its time and speed."""
    results, epochs = read_json(folder / RESULTS), Workdir(folder).read_metrics()
    if validation:
        if "validation" not in epochs[-1]:
            raise InputError(f"{folder}: no validation split; set dataset.validation_fraction")
        results = {"scores": epochs[-1]["validation"], "environment": results["environment"]}
    if (folder / CORRUPTIONS).exists():
        results["corruptions"] = read_json(folder / CORRUPTIONS)["scores"]
    results["training_seconds"] = sum(epoch["seconds"] for epoch in epochs)
    rates = [epoch["images_per_second"] for epoch in epochs]
    results["images_per_second"] = float(np.median(rates[1:] or rates))  # the first one compiles
    return results


def read_logits(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits [N, M, K] and labels [N] of a run's test images."""
    with np.load(folder / LOGITS) as file:
        return file["logits"], file["labels"]


def ensemble_scores(folders: list[pathlib.Path], ensemble: str) -> dict:
    """Returns the scores of the ensemble of several runs with as many members each."""
    logits, labels = zip(*map(read_logits, folders), strict=True)
    members = np.concatenate(logits, axis=1)
    return {
        "scores": metrics.ensemble_metrics(members, labels[0], ensemble),
        "scaled_scores": metrics.scaled_metrics(members, labels[0], ensemble)[0],
    }


def _column(results: dict, path: str, factor: float) -> float | None:
    value = results
    for key in path.split("/"):
        value = value.get(key) if value else None
    value = np.nan if value is None else factor * float(value)
    return None if np.isnan(value) else value


def tabulate(comparison: Comparison) -> None:
    """Writes the files and prints the table."""
    recorded = read_recorded(comparison)
    compared, missing = {}, []
    for variant in comparison.variants:
        for group in variant.groups(comparison.seeds):
            key = variant.label, group[0]
            entry = read_entry(comparison, variant, group)
            if entry is None and _is_done(recorded.get(key), comparison, group):
                entry = recorded[key]
            if entry is None:
                missing.append(f"{variant.label}, seed {' + '.join(map(str, group))}")
            else:
                compared[key] = entry
    output = comparison.output
    if not compared:
        print(f"{output}: no run is finished")
        return
    rows = summarize(comparison, list(compared.values()))
    results = {
        "config": comparison.config,
        "overrides": [f"--config.{k}={v}" for k, v in comparison.fields.items()],
        "scored": "validation" if comparison.validation else "test",
        "corruptions": comparison.corruptions and comparison.corruptions.resolve().name,
        "seeds": comparison.seeds,
        "rows": rows,
        "runs": list({**recorded, **compared}.values()),  # also of other seeds or methods
    }
    write_json(output / "results.json", results)
    write_tables(output, rows)
    names = ["label", "seed", *COLUMNS]
    entries = [{k: e.get(k) for k in names} for e in compared.values()]
    write_text(output / "runs.csv", to_csv(entries))
    plots.accuracy([output]).savefig(output / "accuracy.png", dpi=150)
    print(f"\n{format_table(rows)}\n\nin {output}: table.md, table.csv, runs.csv, results.json")
    if missing:
        print(f"missing: {'; '.join(missing)}")


def write_tables(folder: pathlib.Path, rows: list[dict]) -> None:
    """Writes table.md and table.csv of the rows of results.json."""
    write_text(folder / "table.md", format_table(rows) + "\n")
    write_text(folder / "table.csv", to_csv(flat_rows(rows)))


def to_csv(rows: list[dict]) -> str:
    """Returns rows with the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summarize(comparison: Comparison, entries: list[dict]) -> list[dict]:
    """Returns a row for each variant: means and deviations, published accuracy, test.

    The test is over the seeds that a variant has in common with the row it is tested against.
    """
    accuracies = {variant.label: {} for variant in comparison.variants}
    for entry in entries:
        accuracies[entry["label"]][entry["seed"]] = entry["accuracy (%)"]
    rows = []
    for variant in comparison.variants:
        own = [entry for entry in entries if entry["label"] == variant.label]
        if not own:
            continue
        command = shlex.join(["python", *comparison.command(variant, "SEED")])
        row = {"label": variant.label, "n": len(own), "command": command}
        row |= {"difference": None, "p": None}
        for name in COLUMNS:
            if values := [entry[name] for entry in own if entry[name] is not None]:
                known = len(values) > 1 and np.isfinite(values).all()
                deviation = float(np.std(values, ddof=1)) if known else None
                row[name] = float(np.mean(values)), deviation
        config = comparison.create_config(variant, own[0]["seed"])
        row["published"] = published(flatten(config), variant.networks)
        against = variant.against or comparison.variants[0].label
        baseline = accuracies[against]
        pairs = [(v, baseline[s]) for s, v in accuracies[variant.label].items() if s in baseline]
        if against != variant.label and pairs:
            pairs = np.array(pairs)
            row["difference"] = float(np.subtract(*pairs.T).mean())
            row["p"] = paired_p_value(*pairs.T)
        rows.append(row)
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"] = p
    return rows


def published(fields: dict[str, object], networks: int = 1) -> tuple[float, ...] | None:
    """Returns the published accuracy of a flat config, or the ends of a range; None without one."""
    method = fields["method"]
    for config, width, count, accuracies, column in _PUBLISHED:
        paper = flatten(config.get_config(method))
        same = all(fields[name] == paper[name] for name in paper.keys() - _FREE)
        if same and fields["model.width"] == width and count == networks and method in accuracies:
            return accuracies[method][column]
    return None


def paired_p_value(values: np.ndarray, baseline: np.ndarray) -> float | None:
    """Returns the p-value of a paired t-test; None for one pair, 1 if all differences are equal."""
    if len(values) < 2:
        return None
    if np.ptp(values - baseline) <= 1e-9 * np.abs(values).max():
        return 1.0
    return float(stats.ttest_rel(values, baseline).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Corrects p-values for their number by Holm's method (1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def format_table(rows: list[dict]) -> str:
    """Returns the rows in Markdown. Bold is an accuracy that differs with p < 0.05."""
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    with_published = any(row["published"] for row in rows)
    names = ["method", "n", *shown, *["published (%)"] * with_published, "difference", "p"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [row["label"], str(row["n"])]
        difference, p = row["difference"], row["p"]
        for name in shown:
            mean, deviation = row.get(name) or (None, None)
            digits = COLUMNS[name][2]
            cell = "" if mean is None else f"{mean:.{digits}f}"
            cell += "" if deviation is None else f" ± {deviation:.{digits}f}"
            real = p is not None and p < 0.05
            cells.append(f"**{cell}**" if name == "accuracy (%)" and real else cell)
        if with_published:
            cells.append(" – ".join(f"{v:.2f}" for v in row["published"] or ()))
        cells.append("" if difference is None else f"{difference:+.2f}")
        cells.append("" if p is None else f"{p:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flat_rows(rows: list[dict]) -> list[dict]:
    """Returns the rows with single numbers: "± COLUMN" is the deviation of COLUMN."""
    flat = []
    for row in rows:
        line = {name: row[name] for name in ("label", "n")}
        for name in COLUMNS:
            line[name], line[f"± {name}"] = row.get(name) or (None, None)
        numbers = " – ".join(map(str, row["published"] or ()))
        line |= {"published (%)": numbers, "difference": row["difference"], "p": row["p"]}
        flat.append(line)
    return flat


def command_line(function) -> None:
    """Runs a script; a mistake of the user is one line."""
    try:
        function()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")


if __name__ == "__main__":
    command_line(main)
