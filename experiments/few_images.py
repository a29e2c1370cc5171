"""Does multi-input training help with few images? Digits, by method and width of the network.

    python experiments/few_images.py --widths=1,2 --seeds=0,1,2,3,4

It trains on a tenth of the digits, about 14 images a class, and scores the 1,293 images that are
set apart as the validation split, after the last epoch: nothing is selected on them. Finished runs
are not trained again. The table has means ± standard deviations over the seeds, and for each
variant the difference from the plain network with the p-value of a paired t-test over the seeds.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
from scipy import stats

FIELDS = {
    "num_epochs": 60,
    "batch_size": 32,
    "dataset.validation_fraction": 0.9,
    "evaluation.every_epochs": 60,
    "checkpoint_every_epochs": 60,
    "optimizer.warmup_steps": 8,
    "optimizer.decay_epochs": (40, 54),
}
_B2 = {"batch_repetitions": 2}
_UNMIX = {**_B2, "mixmo.unmix": True}
# The method, and the fields that a variant changes.
VARIANTS = {
    "vanilla": ("vanilla", {}),
    "mimo": ("mimo", _B2),
    "linear_mixmo": ("linear_mixmo", _B2),
    "cut_mixmo": ("cut_mixmo", _B2),
    "unmix": ("cut_mixmo", _UNMIX),
    "unmix, until 2/3": ("cut_mixmo", {**_UNMIX, "mixmo.unmix_until": 2 / 3}),
    "unmix, normalized": ("cut_mixmo", {**_UNMIX, "mixmo.unmix_normalize": True}),
    "unmix, nearest": ("cut_mixmo", {**_UNMIX, "mixmo.unmix_resize": "nearest"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = "separated by commas, %(default)s by default"
    parser.add_argument("--widths", default="1,2", help=listed)
    parser.add_argument("--seeds", default="0,1,2,3,4", help=listed)
    parser.add_argument(
        "--output", type=pathlib.Path, default="runs/few_images", help="%(default)s"
    )
    arguments = parser.parse_args()
    scores = {
        width: {name: [] for name in VARIANTS} for width in map(int, arguments.widths.split(","))
    }
    for width, of_variants in scores.items():
        for seed in map(int, arguments.seeds.split(",")):
            for name, found in of_variants.items():
                found.append(train(name, width, seed, arguments.output))
    report = {
        str(width): {
            name: summarize(found, variants["vanilla"]) for name, found in variants.items()
        }
        for width, variants in scores.items()
    }
    (arguments.output / "few_images.json").write_text(json.dumps(report, indent=2) + "\n")
    print(format_table(report))


def train(name: str, width: int, seed: int, output: pathlib.Path) -> dict[str, float]:
    """Trains once, unless it is done; returns the last epoch's scores of the validation split."""
    method, fields = VARIANTS[name]
    folder = (
        output / f"{name.replace(', ', '-').replace(' ', '_').replace('/', '_')}-w{width}-s{seed}"
    )
    fields = {**FIELDS, **fields, "model.width": width, "seed": seed}
    if not (folder / "results.json").exists():
        command = [sys.executable, "-m", "mixmo_jax.main", f"--config=digits:{method}"]
        command += [f"--config.{field}={value}" for field, value in fields.items()]
        if status := subprocess.run([*command, f"--workdir={folder}"]).returncode:
            sys.exit(status)
    *_, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return last["validation"]


def summarize(runs: list[dict], plain: list[dict]) -> dict[str, object]:
    """What is known of a variant: means, standard deviations, and the paired test in accuracy."""
    accuracy, of_plain = (np.array([100 * r["accuracy"] for r in rs]) for rs in (runs, plain))
    difference = accuracy - of_plain
    p_value = None
    if len(runs) > 1 and difference.any():
        p_value = float(stats.ttest_rel(accuracy, of_plain).pvalue)
    columns = {name: [r[name] for r in runs if name in r] for name in ("nll", "disagreement")}
    members = [100 * r.get("accuracy_members_mean", r["accuracy"]) for r in runs]
    return {
        "accuracies": accuracy.tolist(),
        "accuracy": _mean_and_deviation(accuracy),
        "members_accuracy": _mean_and_deviation(members),
        "nll": _mean_and_deviation(columns["nll"]),
        "disagreement": _mean_and_deviation(columns["disagreement"] or [0.0]),
        "difference": float(difference.mean()),
        "p_value": p_value,
    }


def format_table(report: dict) -> str:
    """The report in Markdown."""
    names = ["width", "variant", "accuracy (%)", "one member (%)", "NLL", "difference", "p"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for width, variants in report.items():
        for name, row in variants.items():
            cells = [width, name]
            for column, digits in {"accuracy": 2, "members_accuracy": 2, "nll": 3}.items():
                mean, deviation = row[column]
                cells.append(f"{mean:.{digits}f} ± {deviation:.{digits}f}")
            cells.append("" if name == "vanilla" else f"{row['difference']:+.2f}")
            cells.append("" if row["p_value"] is None else f"{row['p_value']:.3f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_deviation(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
