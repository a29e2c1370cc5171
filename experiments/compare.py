"""Compares methods over seeds: runs what is missing, then tables, a plot and a test.

    python experiments/compare.py --config=digits --methods=vanilla,mimo,cut_mixmo --seeds=5
    python experiments/compare.py --config=digits --methods=vanilla,cut_mixmo \\
        --variant="unmixed=cut_mixmo mixmo.unmix=True" --config.num_epochs=5

Each run is a process of its own in a folder under --output, and resumes if it was interrupted; so
the same command resumes after Ctrl-C. What results.json in --output records counts as done, even if
the folder of the run is gone: a comparison resumes from that file on another machine.

`--config.FIELD=VALUE` goes to every run; a variant is a method with fields of its own. The first
method is the baseline: the others are compared with it by a paired t-test over the seeds, corrected
for the number of comparisons by Holm's method, and bold is only what differs with p < 0.05.

It writes table.md, table.csv, runs.csv, results.json and accuracy.png to --output.
"""

import argparse
import csv
import io
import pathlib
import sys

import plot_accuracy
from launch import run_here, write_slurm
from scores import (
    COLUMNS,
    corruptions_name,
    flat_rows,
    format_table,
    read_entry,
    read_recorded,
    split_name,
    summarize,
)
from variants import Comparison, Run, Variant, parse_seeds, parse_variant

from mixmo_jax.commands import parse_with_fields, run_command
from mixmo_jax.errors import InputError, expand, write_json, write_text

_LAUNCHERS = ("here", "slurm")


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
    parser.add_argument(
        "--validation",
        action="store_true",
        help="score the last epoch on the validation split instead of the test split",
    )
    add_arguments(parser, seeds="5", output="runs/compare")
    arguments, overrides = parse_with_fields(parser)
    variants = [Variant(method, method) for method in arguments.methods.split(",") if method]
    variants += map(parse_variant, arguments.variant)
    comparison = Comparison(
        arguments.config,
        variants,
        parse_seeds(arguments.seeds),
        arguments.output,
        overrides,
        validation=arguments.validation,
        corruptions=arguments.corruptions,
    )
    execute([comparison], arguments)


def add_arguments(parser: argparse.ArgumentParser, *, seeds: str, output: str) -> None:
    """Adds what all comparisons have in common, with these defaults."""
    parser.add_argument(
        "--seeds", default=seeds, help="their number; or 0,1,4, or 4, for one; %(default)s"
    )
    parser.add_argument("--output", type=expand, default=pathlib.Path(output), help=output)
    parser.add_argument(
        "--corruptions",
        type=expand,
        metavar="DIR",
        help="also evaluate every run on corrupted images in the layout of CIFAR-10-C",
    )
    parser.add_argument(
        "--table_only", action="store_true", help="train nothing: tabulate what is there"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the runs and their cost")
    parser.add_argument(
        "--estimate",
        type=expand,
        metavar="FILE",
        help="for --dry_run: the JSON of benchmark.py or tpu_estimate.py; else it is measured here",
    )
    parser.add_argument(
        "--launcher",
        default="here",
        help="here, or slurm: write a job array instead of running; %(default)s by default",
    )


def execute(comparisons: list[Comparison], arguments: argparse.Namespace) -> None:
    """Does what the arguments ask for."""
    if arguments.launcher not in _LAUNCHERS:
        allowed = " or ".join(_LAUNCHERS)
        raise InputError(f"launcher={arguments.launcher}: expected {allowed}")
    if arguments.dry_run:
        from cost import Estimate

        runs, missing = [], []
        for comparison in comparisons:
            runs += list_runs(comparison)
            missing += missing_runs(comparison)
        print(Estimate(arguments.estimate).table(runs, missing))
        return
    # What is wrong with a later table is said before the runs of the first one.
    all_missing = [missing_runs(comparison) for comparison in comparisons]
    for comparison, missing in zip(comparisons, all_missing, strict=True):
        if not arguments.table_only:
            comparison.output.mkdir(parents=True, exist_ok=True)
            if arguments.launcher == "slurm":
                script = write_slurm(missing, comparison.output)
                print(f"sbatch {script}" if script else f"{comparison.output}: nothing is missing")
                continue
            run_here(missing)
        tabulate(comparison)


def list_runs(comparison: Comparison) -> list[Run]:
    """All training runs, a seed after the other, so that all methods have as many.

    Raises:
      InputError: if rows, seeds or fields are wrong.
    """
    comparison.check()
    variants = comparison.variants
    runs = [
        comparison.run(variant, seed)
        for i, seed in enumerate(comparison.seeds)
        for variant in variants
        if i < len(comparison.seeds) // variant.networks * variant.networks
    ]
    return list({run.folder: run for run in runs}.values())


def missing_runs(comparison: Comparison) -> list[Run]:
    """The runs that are neither finished nor recorded with all that is asked for.

    Raises:
      InputError: if rows, seeds or fields are wrong, or the output was made with other fields.
    """
    needed = set()
    recorded = {(e["label"], e["seed"]): e for e in read_recorded(comparison)}
    for variant in comparison.variants:
        for seeds in variant.groups(comparison.seeds):
            entry = recorded.get((variant.label, seeds[0]))
            if not _covers(entry, comparison, seeds):
                needed |= {variant.folder(comparison.output, seed) for seed in seeds}
    return [run for run in list_runs(comparison) if run.missing and run.folder in needed]


def _covers(entry: dict | None, comparison: Comparison, seeds: list[int]) -> bool:
    """Whether a recorded entry has what is asked for."""
    if entry is None or entry.get("seeds", [entry["seed"]]) != seeds:
        return False
    # Ensembles are not evaluated on corrupted images.
    return comparison.corruptions is None or len(seeds) > 1 or entry["corrupted (%)"] is not None


def tabulate(comparison: Comparison) -> dict[str, object] | None:
    """Writes the files and prints the table; returns the results, None if there are none."""
    recorded = {(e["label"], e["seed"]): e for e in read_recorded(comparison)}
    compared, missing = {}, []
    for variant in comparison.variants:
        for seeds in variant.groups(comparison.seeds):
            key = variant.label, seeds[0]
            entry = read_entry(comparison, variant, seeds)
            if entry is None and _covers(recorded.get(key), comparison, seeds):
                entry = recorded[key]
            if entry is None:
                missing.append(f"{variant.label}, seed {' + '.join(map(str, seeds))}")
            else:
                compared[key] = entry
    output = comparison.output
    if not compared:
        print(f"{output}: no run is finished")
        return None
    rows = summarize(comparison, list(compared.values()))
    results = {
        "config": comparison.config,
        "overrides": comparison.overrides,
        "scored": split_name(comparison),
        "corruptions": corruptions_name(comparison),
        "seeds": comparison.seeds,
        "rows": rows,
        "runs": list({**recorded, **compared}.values()),  # also of other seeds or methods
    }
    table = format_table(rows)
    write_json(output / "results.json", results)
    write_text(output / "table.md", table + "\n")
    names = ["label", "seed", *COLUMNS]
    _write_csv(output / "runs.csv", [{k: e.get(k) for k in names} for e in compared.values()])
    _write_csv(output / "table.csv", flat_rows(rows))
    plot_accuracy.draw(rows).savefig(output / "accuracy.png", dpi=150)
    print(f"\n{table}\n\nin {output}: table.md, table.csv, runs.csv, results.json, accuracy.png")
    if missing:
        print(f"missing: {'; '.join(missing)}")
    return results


def _write_csv(file: pathlib.Path, rows: list[dict]) -> None:
    """Writes rows, all with the same columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


if __name__ == "__main__":
    sys.exit(run_command(main))
