"""Trains methods of a config with several seeds and tabulates their final metrics in Markdown.

    python experiments/sweep.py --config=digits --methods=vanilla,cut_mixmo --seeds=0,1,2,3,4

Each run is a separate process in a folder under --output; a finished one is not trained again.
Further flags, such as `--config.num_epochs=5`, go to every run.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

COLUMNS = {"accuracy": 100, "accuracy_members_mean": 100, "nll": 1, "ece": 1, "disagreement": 100}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    listed = "separated by commas, %(default)s by default"
    parser.add_argument("--methods", default="cut_mixmo", help=listed)
    parser.add_argument("--seeds", default="0,1,2,3,4", help=listed)
    parser.add_argument("--output", type=pathlib.Path, default="runs/sweep", help="%(default)s")
    arguments, overrides = parser.parse_known_args()
    seeds = arguments.seeds.split(",")
    rows = []
    for method in arguments.methods.split(","):
        runs = [run(arguments.config, method, seed, arguments.output, overrides) for seed in seeds]
        rows.append(f"| {method} | {len(runs)} | {' | '.join(summarize(runs))} |")
    names = ["method", "n", *(name.replace("_", " ") for name in COLUMNS), "training (s)"]
    print("\n" + "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows]))


def run(config: str, method: str, seed: str, output: pathlib.Path, overrides: list[str]) -> dict:
    """Trains once; returns the metrics, and the seconds of training, compilation included."""
    folder = output / f"{pathlib.Path(config).stem}-{method}-s{seed}"
    command = [sys.executable, "-m", "mixmo_jax.main", f"--config={config}:{method}"]
    flags = [f"--config.seed={seed}", f"--workdir={folder}", *overrides]
    if status := subprocess.run([*command, *flags]).returncode:
        sys.exit(status)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads((folder / "results.json").read_text())["scores"]
    return {**scores, "seconds": sum(epoch["seconds"] for epoch in epochs)}


def summarize(runs: list[dict]) -> list[str]:
    """Mean ± standard deviation over the runs, a cell for each column."""
    cells = []
    for name, scale in {**COLUMNS, "seconds": 1}.items():
        values = [scale * run[name] for run in runs if run.get(name) is not None]
        digits = {100: 2, 1: 4}[scale] if name != "seconds" else 0
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        cells.append(f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}" if values else "")
    return cells


if __name__ == "__main__":
    main()
