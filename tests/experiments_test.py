"""The scripts in experiments/: tables, tests, plots, speeds."""

import csv
import json
import pathlib
import shutil
import sys

import benchmark
import compare
import figures
import numpy as np
import plots
import pytest
import studies
from compare import Comparison, Variant
from scipy import stats
from setups import tiny_config

from mixmo_jax.errors import InputError
from mixmo_jax.mixing import MASKS

ROOT = pathlib.Path(__file__).parent.parent
RECORDED = sorted((ROOT / "experiments" / "results").rglob("results.json"))
PLUGIN_CONFIG = f"""
import pathlib, sys
sys.path.append({str(ROOT / "tests")!r})
import tiny
from mixmo_jax.configs import digits


def get_config(method):
    config = digits.get_config(method)
    config.model.name, config.num_epochs, config.batch_size = "tiny", 1, 192
    return config
"""


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.parent.name)
def test_recorded_tables_follow_from_recorded_results(file, tmp_path):
    rows = json.loads(file.read_text())["rows"]
    for row in rows:  # JSON has no infinity
        row.update({k: [float("inf"), None] for k, v in row.items() if v == ["inf", None]})
    compare.write_tables(tmp_path, rows)
    for name in ("table.md", "table.csv"):
        assert (tmp_path / name).read_text() == (file.parent / name).read_text()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two methods and an ensemble over two seeds of a tiny network."""
    folder = tmp_path_factory.mktemp("comparison")
    config = folder / "tiny_digits.py"
    config.write_text(PLUGIN_CONFIG)
    variants = [
        Variant("vanilla", "vanilla"),
        Variant("MixMo, p = 1", "cut_mixmo", {"mixmo.patch_prob": 1.0}),
        Variant("vanilla, N = 2", "vanilla", networks=2, runs_of="vanilla"),
    ]
    comparison = Comparison(str(config), variants, [0, 1], folder / "out", {"model.width": 2})
    for variant, seed in compare.missing_runs(comparison):
        compare.run(comparison, variant, seed)
    compare.tabulate(comparison)
    return comparison


def test_comparison_runs_what_is_missing_and_tabulates(comparison):
    output = comparison.output
    assert compare.missing_runs(comparison) == []
    names = {f.name for f in output.iterdir() if f.is_dir()}
    assert names == {"vanilla-s0", "vanilla-s1", "MixMo_p_1-s0", "MixMo_p_1-s1"}
    results = json.loads((output / "results.json").read_text())
    assert [(row["label"], row["n"]) for row in results["rows"]] == [
        ("vanilla", 2),
        ("MixMo, p = 1", 2),
        ("vanilla, N = 2", 1),
    ]
    assert results["rows"][1]["difference"] is not None
    rows = list(csv.DictReader((output / "runs.csv").read_text().splitlines()))
    assert len(rows) == 5 and float(rows[0]["accuracy (%)"]) > 0
    assert (output / "accuracy.png").stat().st_size > 5000


def test_recorded_runs_count_without_their_folders(comparison, tmp_path):
    moved = shutil.copytree(comparison.output, tmp_path / "out")
    for folder in moved.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    other = compare.dataclasses.replace(comparison, output=moved)
    assert compare.missing_runs(other) == []
    before = (moved / "table.md").read_text()
    compare.tabulate(other)
    assert (moved / "table.md").read_text() == before
    changed = compare.dataclasses.replace(other, fields={"model.width": 3})
    with pytest.raises(InputError, match=r"model\.width=2 \(now 3\); choose another --output"):
        compare.missing_runs(changed)
    more = compare.dataclasses.replace(other, seeds=[0, 1, 2])
    assert {seed for _, seed in compare.missing_runs(more)} == {2}


def test_paired_test_and_correction():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    assert compare.paired_p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert compare.paired_p_value(a[:1], b[:1]) is None
    assert compare.paired_p_value(a, a + 0.1) == 1.0
    # Holm (1979): sorted p-values times 3, 2, 1, made monotone.
    assert compare.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])


def test_published_accuracies_are_found_for_the_papers_settings():
    config = compare.with_fields(
        compare.mixmo_jax.get_config("cifar100:cut_mixmo+cutmix"), {"seed": 3}
    )
    assert compare.published(compare.flatten(config)) == (85.77, 85.92)
    assert compare.published(compare.flatten(config), networks=3) == (86.81,)
    config.num_epochs = 299
    assert compare.published(compare.flatten(config)) is None


def test_longer_runs_keep_the_shape_of_their_schedule():
    fields = compare.scaled("digits:vanilla", {"num_epochs": 40}, 0.5)
    assert fields == {
        "num_epochs": 20,
        "optimizer.warmup_steps": 11,
        "optimizer.warmup_epochs": 0.0,
        "optimizer.decay_epochs": (7, 9),
    }


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_study_has_valid_configs(study, tmp_path):
    parser = compare.argparse.ArgumentParser()
    for name in ("study", "--config", "--row"):
        parser.add_argument(name)
    for name in ("--widths", "--images"):
        parser.add_argument(name, default="")
    parser.add_argument("--scale", type=float, default=1.0)
    compare.add_arguments(parser, seeds="3", output="runs")
    flags = [study, f"--corruptions={tmp_path}"]
    arguments, fields = compare.parse_arguments(parser, flags)
    for comparison in studies.create_comparisons(arguments, fields):
        for variant in comparison.variants:
            config = comparison.create_config(variant, 1)
            assert config.seed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare.py", "--config=digit"], "did you mean digits?"),
        (["compare.py", "--config.lr=1"], "optimizer.learning_rate"),
        (["compare.py", "--seeds=x"], "seeds=x"),
        (["compare.py", "--variant=x"], "variant='x'"),
        (["compare.py", "--methods=mimo,mimo"], "each of them once"),
    ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [*arguments, f"--output={tmp_path}/out"])
    with pytest.raises(SystemExit, match=message) as error:
        compare.command_line(compare.main)
    assert "\n" not in str(error.value)


def test_dry_run_lists_commands_and_hours(monkeypatch, tmp_path, capsys):
    flags = ["--dry_run", "--images_per_second=1000", f"--output={tmp_path}", "--seeds=1"]
    monkeypatch.setattr(sys, "argv", ["compare.py", "--methods=vanilla,mimo", *flags])
    compare.main()
    *lines, total = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "--config=digits:vanilla" in lines[0]
    steps = 20 * (1437 // 64) + 20 * (1437 * 4 // 64)
    assert float(total.split()[0]) == pytest.approx(steps * 64 / 1000 / 3600, rel=0.01)


@pytest.mark.parametrize("name", ["learning_curves", "reliability"])
def test_plots_of_runs(comparison, name):
    runs = [f for f in comparison.output.iterdir() if f.is_dir()]
    assert plots.FIGURES[name](runs).axes


@pytest.mark.parametrize("name", ["accuracy", "diversity", "width"])
def test_plots_of_recorded_results(name):
    (file,) = [f for f in RECORDED if f.parent.name == "digits"]
    if name == "diversity":
        assert plots.diversity([file], "disagreement (%)").axes
    else:
        assert plots.FIGURES[name]([file.parent]).axes


def test_labels_beside_a_plot_do_not_overlap():
    order, heights = plots.spread(np.array([0.5, 0.5, 0.9, 0.1]), 0.2)
    assert list(order) == [3, 0, 1, 2]
    assert np.diff(heights).min() >= 0.2 - 1e-9


def test_figures_of_the_documentation(monkeypatch):
    monkeypatch.setattr(figures, "MASKS", {name: MASKS[name] for name in ("linear", "cutmix")})
    assert len(figures.draw_gallery().axes) == 3
    assert figures.draw_overview().axes


def test_benchmark_measures_everything():
    config = tiny_config(num_epochs=1)
    report = benchmark.measure(config, turns=1, seconds=0.01)
    for name in ("pipeline_efficiency", "multi_input_cost", "fold_cost", "evaluation_cost"):
        assert report[name]["median"] > 0
    assert report["flops_per_step"] > 1e6
    assert "pipeline efficiency" in benchmark.format_report(report)
