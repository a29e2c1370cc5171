"""The scripts that compare methods, without training."""

import argparse
import csv
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import compare
import cost
import harm
import launch
import mask_gallery
import numpy as np
import plot_accuracy
import plot_corruptions
import plot_diversity
import plot_learning_curves
import plot_reliability
import plot_style
import plot_width
import published
import pytest
import scores
import studies
import variants
from matplotlib.colors import to_rgb
from scipy import stats
from variants import Comparison, Variant

from mixmo_jax import config as config_lib
from mixmo_jax.commands import parse_with_fields
from mixmo_jax.config import flatten
from mixmo_jax.configs import common
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation import metrics
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.mixing import MASKS

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
FOUND = {"vanilla": (0.90, 0.92, 0.91), "mimo": (0.95, 0.97, 0.965), "cutmix": (0.9, 0.93, 0.9)}
ONE_EPOCH = ["--config.num_epochs=1"]


def write_run(run, accuracy, corrupted=None, logits_seed=None):
    """What a finished run leaves, as far as the scripts read it."""
    folder = run.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_lib.to_json(run.config))
    scores = scores_of(run, accuracy)
    results = {"scores": scores, "scaled_scores": scores, "environment": {"jax": "x"}}
    (folder / "results.json").write_text(json.dumps(results))
    speed = {"loss": 1.0, "seconds": 1.0, "images_per_second": 9.0}
    lines = []
    for i in range(1, run.config.num_epochs + 1):
        missed = 0.01 * (run.config.num_epochs - i)  # the last epoch is the best
        splits = {
            "test": scores_of(run, accuracy - missed),
            "validation": scores_of(run, accuracy - missed - 0.2),
        }
        lines.append({"epoch": i, "step": i, **speed, **splits})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if corrupted is not None:
        severities = {str(i): {"accuracy": corrupted} for i in [*range(1, 6), "mean"]}
        write_corruptions(run, {"mean": severities})
    if logits_seed is not None:
        logits = np.random.default_rng(logits_seed).normal(
            size=(60, run.config.model.num_members, 4)
        )
        np.savez(folder / "logits.npz", logits=logits, labels=np.arange(60) % 4)


def scores_of(run, accuracy):
    members = run.config.model.num_members
    values = {f"accuracy_member{i}": accuracy - 0.01 for i in range(members)}
    values |= {"accuracy": accuracy, "accuracy_members_mean": accuracy - 0.01}
    values |= {"nll": 1.0, "ece": 0.1, "brier": 0.5}
    if members > 1:
        values |= {"ratio_error": 2.0 + accuracy, "disagreement": 0.1}
    return values


def write_corruptions(run, scores, images="my images", ensemble="logits"):
    results = {"images": images, "ensemble": ensemble, "scores": scores}
    (run.folder / "corruptions.json").write_text(json.dumps(results))


def comparison_of(output, methods=FOUND, seeds=(0, 1, 2), overrides=ONE_EPOCH, **options):
    rows = [Variant(method, method) for method in methods]
    return Comparison("digits", rows, list(seeds), output, overrides, **options)


@pytest.fixture
def corrupted(tmp_path):
    """A folder of corrupted images, as far as the scripts look at it."""
    folder = tmp_path / "my images"
    folder.mkdir()
    np.save(folder / "labels.npy", np.arange(10))
    return folder


@pytest.fixture
def finished(tmp_path):
    """A comparison, all runs of which are finished."""
    comparison = comparison_of(tmp_path / "out")
    for variant in comparison.variants:
        for seed, accuracy in enumerate(FOUND[variant.label]):
            write_run(comparison.run(variant, seed), accuracy)
    return comparison


def test_comparison_of_finished_runs(finished, capsys):
    assert compare.missing_runs(finished) == []
    results, output = compare.tabulate(finished), finished.output
    vanilla, mimo, cutmix = results["rows"]
    assert vanilla["accuracy (%)"] == pytest.approx((91, 1))
    assert mimo["difference"] == pytest.approx(np.mean([5, 5, 5.5]))
    p = stats.ttest_rel(FOUND["mimo"], FOUND["vanilla"]).pvalue
    assert mimo["p"] == pytest.approx(2 * p)  # the smaller of two
    assert vanilla["p"] is None
    table = (output / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "**96.17 ± 1.04**" in table
    assert "| 91.00 ± 1.00 |" in table
    assert cutmix["p"] > 0.05
    assert "published" not in table
    assert len((output / "runs.csv").read_text().splitlines()) == 10
    with (output / "table.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert [row["label"] for row in flat] == list(FOUND)
    assert float(flat[1]["± accuracy (%)"]) == pytest.approx(mimo["accuracy (%)"][1])
    assert float(flat[1]["p"]) == mimo["p"]
    assert flat[0]["p"] == flat[0]["corrupted (%)"] == ""
    assert (output / "accuracy.png").stat().st_size > 1000
    assert results["runs"][0]["environment"]["jax"] == "x"
    assert results["runs"][0]["fields"]["num_epochs"] == 1
    train = "python -m mixmo_jax.main --config=digits:mimo --config.num_epochs=1"
    assert mimo["command"] == f"{train} --config.seed=SEED"


def test_comparison_on_the_validation_split_takes_the_last_epoch(tmp_path):
    """And nothing that was fitted on or scored with test images."""
    fields = ["--config.num_epochs=3", "--config.dataset.validation_fraction=0.5"]
    comparison = comparison_of(tmp_path, overrides=fields, validation=True)
    for run in compare.list_runs(comparison):
        write_run(run, FOUND[run.label][run.config.seed])
    results = compare.tabulate(comparison)
    assert results["scored"] == "validation"
    for row in results["rows"]:
        expected = 100 * np.mean(FOUND[row["label"]]) - 20
        assert row["accuracy (%)"][0] == pytest.approx(expected)
        assert "NLL scaled" not in row
    for run in compare.list_runs(comparison):
        file = run.folder / "metrics.jsonl"
        file.write_text(file.read_text().replace("validation", "other"))
    with pytest.raises(InputError, match="vanilla-s0: no validation split"):
        compare.tabulate(comparison)


def test_recorded_runs_count_as_done_on_another_machine(finished, corrupted, tmp_path):
    before = compare.tabulate(finished)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "results.json").write_bytes((finished.output / "results.json").read_bytes())
    comparison = comparison_of(elsewhere)
    assert compare.missing_runs(comparison) == []
    assert compare.tabulate(comparison)["rows"] == before["rows"]
    # One more seed is missing, and only that.
    more = comparison._replace(seeds=[0, 1, 2, 3])
    assert {run.config.seed for run in compare.missing_runs(more)} == {3}
    # Fewer methods leave what is recorded of the others.
    compare.tabulate(comparison_of(elsewhere, ["vanilla"], [0]))
    assert compare.missing_runs(comparison) == []
    # Corrupted images were not scored.
    assert len(compare.missing_runs(comparison._replace(corruptions=corrupted))) == 9


def test_output_of_other_fields_is_refused_in_one_line(finished):
    change = r"num_epochs=1 \(now 2\); choose another --output"
    other = finished._replace(overrides=["--config.num_epochs=2"])
    with pytest.raises(InputError, match=f"vanilla-s0: made with {change}"):
        compare.missing_runs(other)
    compare.tabulate(finished)
    for file in finished.output.glob("*/config.json"):
        file.unlink()
    with pytest.raises(InputError, match=f"results.json: vanilla, seed 0: made with {change}"):
        compare.missing_runs(other)
    with pytest.raises(InputError, match=r"scored on the test split \(now validation\)"):
        compare.missing_runs(finished._replace(validation=True))
    # What is only the place of the data, or the like, may differ.
    assert not compare.missing_runs(
        finished._replace(overrides=[*ONE_EPOCH, "--config.steps_per_call=2"])
    )


def test_table_of_what_is_there(tmp_path, capsys):
    """Rows may have fewer seeds; the test is over those in common."""
    comparison = comparison_of(tmp_path, ["vanilla", "mimo", "cutmix"])
    assert compare.tabulate(comparison) is None
    for method, seed, accuracy in [("vanilla", 0, 0.9), ("vanilla", 2, 0.8), ("mimo", 2, 0.95)]:
        write_run(comparison.run(Variant(method, method), seed), accuracy)
    vanilla, mimo = compare.tabulate(comparison)["rows"]
    assert (vanilla["n"], mimo["n"], mimo["p"]) == (2, 1, None)
    assert mimo["difference"] == pytest.approx(15)
    missing = capsys.readouterr().out.splitlines()[-1]
    assert missing.startswith(
        "missing: vanilla, seed 1; mimo, seed 0; mimo, seed 1; cutmix, seed 0"
    )


@pytest.mark.parametrize("why", ["unfinished", "ensemble"])
def test_results_of_another_evaluation_are_none(finished, why):
    """As `--mode=evaluate` writes them with --allow_unfinished, or with --ensemble."""
    run = compare.list_runs(finished)[0]
    if why == "unfinished":
        (run.folder / "metrics.jsonl").write_text("")
    else:
        results = json.loads((run.folder / "results.json").read_text())
        results["ensemble"] = "probabilities"
        (run.folder / "results.json").write_text(json.dumps(results))
    assert [missing.folder for missing in compare.missing_runs(finished)] == [run.folder]
    (vanilla, *_) = compare.tabulate(finished)["rows"]
    assert vanilla["n"] == 2


def test_runs_of_a_config_file_are_evaluated_with_its_parts(corrupted, tmp_path):
    file = EXPERIMENTS.parent / "docs" / "examples" / "stripes.py"
    rows = [Variant("stripes", "cut_mixmo")]
    comparison = Comparison(str(file), rows, [0], tmp_path, [], corruptions=corrupted)
    (run,) = compare.list_runs(comparison)
    assert f"--plugin={file}" in run.missing[1]


def test_numbers_that_no_run_has(tmp_path):
    """A ratio error is infinite if no image has both members wrong, and nan without errors."""
    column = scores._column
    assert column({"scores": {"x": "inf"}}, "scores/x", 1) == np.inf
    assert column({"scores": {"x": "nan"}}, "scores/x", 1) is None
    assert column({"scores": None}, "scores/x", 1) is None
    assert scores._mean_and_deviation([1.0, np.inf]) == (np.inf, None)


def test_differences_that_are_equal_but_for_rounding():
    baseline = np.array([340, 341, 344]) / 360 * 100
    values = np.array([341, 342, 345]) / 360 * 100
    assert np.ptp(values - baseline) > 0
    assert scores.paired_p_value(values, baseline) == 1
    assert scores.paired_p_value(values, baseline + np.array([0, 0, 0.1])) < 0.05


def test_holm_corrects_in_order():
    assert scores.holm([]) == []
    np.testing.assert_allclose(scores.holm([0.04, 0.01, 0.5]), [0.08, 0.03, 0.5])
    np.testing.assert_allclose(scores.holm([0.9, 0.6]), [1, 1])


def test_variants_and_seeds_as_written():
    variant = variants.parse_variant("my way=cut_mixmo mixmo.alpha=1.0 model.width=2")
    assert variant == Variant("my way", "cut_mixmo", ("mixmo.alpha=1.0", "model.width=2"))
    assert variant.folder(pathlib.Path("x"), 3) == pathlib.Path("x/my_way-s3")
    assert variants.parse_seeds("3") == [0, 1, 2]
    assert variants.parse_seeds("1,4") == [1, 4]
    assert variants.parse_seeds("4,") == [4]
    for text in ("cut_mixmo", "=mimo", "a=", "a=mimo alpha"):
        with pytest.raises(InputError, match="expected 'LABEL=METHOD FIELD=VALUE …'"):
            variants.parse_variant(text)
    with pytest.raises(InputError, match="seeds=x: expected a number"):
        variants.parse_seeds("x")
    flags = variants.merge(["--config.seed=1", "--config.model.width=2"], ("seed=4",))
    assert flags == ["--config.seed=4", "--config.model.width=2"]


@pytest.mark.parametrize(
    "rows, seeds, message",
    [
        (["a b", "a_b"], [0], "labels 'a b' and 'a_b': expected labels that differ as folders"),
        (["a", "A"], [0], "labels 'a' and 'A'"),
        (["a", "a"], [0], "labels 'a' and 'a'"),
        (["a"], [], "methods, seeds: expected one or more"),
        ([], [0], "methods, seeds: expected one or more"),
        (["a"], [1, 1], "each of them once"),
    ],
)
def test_rows_that_cannot_be_told_apart(tmp_path, rows, seeds, message):
    rows = [Variant(label, "vanilla") for label in rows]
    with pytest.raises(InputError, match=message):
        compare.list_runs(Comparison("digits", rows, seeds, tmp_path, []))


def test_what_is_wrong_is_said_before_the_first_run(corrupted, tmp_path):
    rows = [Variant("vanilla", "vanilla"), Variant("mine", "mimo", ("seed=3",))]
    comparison = Comparison("digits", rows[:1], [0], tmp_path, [], corruptions=corrupted)
    for change, message in [
        ({"corruptions": tmp_path / "no"}, "corruptions=.*no: no such folder"),
        ({"corruptions": tmp_path}, r"labels\.npy: cannot be read"),
        ({"validation": True}, "vanilla: no validation split; set dataset.validation_fraction"),
        ({"overrides": ["--config.seed=7"]}, "seed: cannot be set here"),
        ({"variants": rows}, "seed: cannot be set here"),
        (
            {"variants": [rows[0]._replace(against="mine")]},
            "vanilla: tested against 'mine', not a row",
        ),
        (
            {"overrides": ["--config.dataset.split_seed=7"], "own_split": True},
            "split_seed: cannot be set here",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            compare.list_runs(comparison._replace(**change))


def test_nothing_is_trained_if_a_later_table_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "run_here", lambda missing: pytest.fail("trained"))
    given = {"output": tmp_path, "widths": "1,0", "dry_run": False, "launcher": "here"}
    arguments = arguments_of("few_images", **given, table_only=False)
    with pytest.raises(InputError, match=r"model\.width=0"):
        compare.execute(studies.create_comparisons(arguments, []), arguments)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seed=3", "--seed=3: no such flag; did you mean --seeds"),
        ("--ouput=x", "did you mean --output"),
        ("--lr=3", "did you mean --config.optimizer.learning_rate"),
        ("x", "x: no such flag"),
    ],
)
def test_mistyped_flags_of_scripts(flag, message):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser, seeds="5", output="runs")
    with pytest.raises(InputError, match=message):
        parse_with_fields(parser, [flag])
    given, fields = parse_with_fields(parser, ["--output=~/x", "--config.seed", "3"])
    assert given.output == pathlib.Path.home() / "x"
    assert fields == ["--config.seed=3"]


# A run in place of the real one: it saves when it is asked to stop.
RUN = """
import pathlib, sys, time
from mixmo_jax.distributed import StopSignals
with StopSignals() as signals:
    pathlib.Path(sys.argv[1], "started").touch()
    while not signals.requested():
        time.sleep(0.01)
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], "saved").touch()
"""
COMPARE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import launch
from mixmo_jax.commands import run_command
folder = pathlib.Path(sys.argv[2])
command = [sys.executable, "-c", sys.argv[3], str(folder)]
sys.exit(run_command(lambda: launch._run(command, folder, lambda: None)))
"""


def test_interrupted_comparison_lets_the_run_save(tmp_path):
    """Ctrl-C in a terminal is a signal to all processes of the group."""
    command = [sys.executable, "-c", COMPARE, str(EXPERIMENTS), str(tmp_path), RUN]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    harm.wait_until(lambda: (tmp_path / "started").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (130, "stopped; the same command resumes\n")
    assert (tmp_path / "saved").exists()


def test_bar_counts_what_was_done_before(finished, monkeypatch):
    """An epoch counts as often as it repeats its images."""
    more = finished._replace(seeds=[0, 3], overrides=["--config.num_epochs=4"])
    runs = [more.run(variant, 3) for variant in more.variants]  # b = 1, 4, 1
    write_run(runs[1], 0.9)
    (runs[1].folder / "results.json").unlink()
    file = runs[1].folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))

    class Bar:
        def __init__(self, *, total, initial, **_):
            self.total, self.n, self.seen = total, initial, [initial]
            bars.append(self)

        def update(self, count):
            self.n += count
            self.seen.append(self.n)

        def set_description_str(self, _):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def train(command, folder, report):
        report()
        if folder == runs[1].folder:
            file.write_text("".join(lines))
            report()

    bars = []
    monkeypatch.setattr(launch.tqdm, "tqdm", Bar)
    monkeypatch.setattr(launch, "_run", train)
    launch.run_here(runs)
    (bar,) = bars
    assert (bar.total, bar.seen) == (24, [12, 12, 16, 16, 20, 20, 20, 24])


def test_published_numbers_stand_beside_the_papers_configs_only():
    for spec, overrides, networks, expected in [
        ("cifar100:cut_mixmo", [], 1, (85.52, 85.59)),
        ("cifar10:mimo", [], 1, (96.71,)),
        ("cifar100:cut_mixmo", ["--config.model.width=2"], 1, None),
        ("cifar100:cut_mixmo", ["--config.num_epochs=15"], 1, None),
        ("cifar100:cut_mixmo", ["--config.dataset.num_train_images=10000"], 1, None),
        ("cifar100:cut_mixmo", ["--config.mixmo.block=cow"], 1, None),
        ("cifar100:cut_mixmo", ["--config.optimizer.learning_rate=0.2"], 1, None),
        ("cifar100:cut_mixmo", ["--config.batch_size=128"], 1, None),
        ("cifar100:cut_mixmo", ["--config.evaluation.ensemble=probabilities"], 1, None),
        ("cifar100:vanilla", ["--config.dataset.flip=False"], 1, None),
        (
            "cifar100:vanilla",
            ["--config.seed=3", "--config.evaluation.every_epochs=9"],
            1,
            (81.79,),
        ),
        ("cifar100:cut_mixmo", [], 3, None),
        ("cifar100:cut_mixmo+cutmix", [], 3, (86.81,)),
        ("tiny_imagenet:cut_mixmo", ["--config.model.width=2"], 1, (69.12,)),
        ("tiny_imagenet:mixup", [], 1, None),
    ]:
        assert published.find(flatten(config_lib.parse(spec, overrides)[1]), networks) == expected


def arguments_of(study, **given):
    values = {
        "study": study,
        "config": None,
        "widths": "",
        "images": "",
        "scale": 1.0,
        "row": None,
        "seeds": "3",
        "output": pathlib.Path("out"),
        "corruptions": pathlib.Path("C") if study == "robustness" else None,
    }
    return argparse.Namespace(**{**values, **given})


def configs_of(study, labels=None, **given):
    """The configs by label of a study's only comparison, or of some of its rows."""
    (comparison,) = studies.create_comparisons(arguments_of(study, **given), [])
    rows = {v.label: v for v in comparison.variants}
    return {label: comparison.run(rows[label], 0).config for label in labels or rows}


def test_every_study_names_what_there_is():
    """Each of its rows is a config that can be trained."""
    for study in studies.STUDIES.values():
        Comparison("digits", study.variants, [0, 1, 2], pathlib.Path("out"), []).check()
        for variant in study.variants:
            config_lib.parse(f"cifar100:{variant.method}", variants.merge([], variant.fields))
    tables = studies.create_comparisons(arguments_of("tiny_imagenet"), [])
    assert [t.output.name for t in tables] == [f"tiny_imagenet-w{w}" for w in (1, 2, 3)]
    assert [t.run(t.variants[0], 0).config.model.width for t in tables] == [1, 2, 3]
    assert [v.label for v in studies.STUDIES["cifar10"].variants] == list(common.METHODS)


def test_scale_shortens_all_parts_of_a_run():
    config = configs_of("methods", ["cut_mixmo"], config="cifar100", scale=0.05)["cut_mixmo"]
    assert (config.num_epochs, config.optimizer.warmup_steps) == (15, 39)
    assert config.optimizer.decay_epochs == (6, 11, 12)
    # Those of the patches and of unmixing are fractions of the run.
    assert (config.mixmo.patch_prob_until, config.mixmo.unmix_until) == (11 / 12, 1 / 3)


def test_equal_time_is_as_many_steps():
    configs = configs_of("equal_time", config="cifar100")
    steps = {
        label: (config.num_epochs * steps_per_epoch(config, 64_000))
        for label, config in configs.items()
    }
    plain, long, short, mixed = steps
    assert (steps[plain], steps[long]) == (steps[short], steps[mixed])
    assert steps[long] == 4 * steps[plain]
    for one, other in ((long, mixed), (plain, short)):
        warmup = [
            configs[i].optimizer.warmup_steps * configs[i].batch_repetitions for i in (one, other)
        ]
        assert abs(warmup[0] - warmup[1]) <= 2  # rounded for b = 1
    assert configs[long].optimizer.decay_epochs == (401, 801, 901)


def test_few_images_take_as_many_steps():
    labels = ["vanilla", "cut_mixmo"]
    usual = configs_of("few_images", labels)
    for images in (50, 580):
        for label, config in configs_of("few_images", labels, images=str(images)).items():
            left = 1437 * (1 - config.dataset.validation_fraction)
            assert abs(left - images) < 2
            steps = config.num_epochs * steps_per_epoch(config, images)
            expected = usual[label].num_epochs * steps_per_epoch(usual[label], 145)
            assert steps == pytest.approx(expected, rel=0.1)
            assert config.optimizer.warmup_steps == 8
            last = config.optimizer.decay_epochs[-1]
            assert last / config.num_epochs == pytest.approx(0.9, abs=0.1)


def test_some_rows_of_a_study():
    given = arguments_of("few_images", row=["cut_mixmo", "vanilla, epochs x 3"])
    (comparison,) = studies.create_comparisons(given, [])
    assert [v.label for v in comparison.variants] == ["vanilla, epochs x 3", "cut_mixmo"]
    comparison.check()
    (comparison,) = studies.create_comparisons(arguments_of("few_images", row=["mimo"]), [])
    with pytest.raises(InputError, match="mimo: tested against 'vanilla, epochs x 3', not a row"):
        comparison.check()


def test_rows_without_the_first_one_are_not_tested(tmp_path):
    labels = ["block = rows", "block = cow"]
    given = arguments_of("blocks", row=labels, output=tmp_path, seeds="2")
    (comparison,) = studies.create_comparisons(given, ONE_EPOCH)
    for run in compare.list_runs(comparison):
        write_run(run, 0.9 + 0.01 * run.config.seed)
    rows = compare.tabulate(comparison)["rows"]
    assert [(row["label"], row["n"], row["p"]) for row in rows] == [(x, 2, None) for x in labels]


def test_few_images_are_others_for_each_seed():
    (comparison,) = studies.create_comparisons(arguments_of("few_images"), [])
    run = comparison.run(comparison.variants[0], 2)
    assert (run.config.seed, run.config.dataset.split_seed) == (2, 2)
    assert "--config.dataset.split_seed=2" in run.steps[0][1]


def test_a_table_for_each_width_and_number_of_images(monkeypatch):
    monkeypatch.setattr(studies, "_with_images", lambda variant, *_: variant)
    given = arguments_of("few_images", images="50,145", widths="1,2")
    names = [f"few_images-n{n}-w{w}" for w in (1, 2) for n in (50, 145)]
    assert [table.output.name for table in studies.create_comparisons(given, [])] == names


@pytest.mark.parametrize(
    "study, given, message",
    [
        ("widths", {}, "widths: no such study; did you mean width"),
        ("methods", {"scale": 0.0}, "scale=0.0: expected a number > 0"),
        ("methods", {"images": "50"}, "images=50: only for few_images"),
        ("methods", {"row": ["cut_mix"]}, "cut_mix: no such row; did you mean cut"),
        ("methods", {"widths": "1,x"}, "widths=x: expected a number"),
        ("few_images", {"images": "20"}, "images=20: expected 32 to 1436"),
        ("few_images", {"images": "1437"}, "images=1437: expected 32 to 1436"),
        ("robustness", {"corruptions": None}, "corruptions: missing; expected a folder"),
    ],
)
def test_wrong_arguments_of_a_study(study, given, message):
    with pytest.raises(InputError, match=message):
        studies.create_comparisons(arguments_of(study, **given), [])


RESULTS = EXPERIMENTS / "results"


def committed_comparisons():
    """Those whose results are in the repository, with the rows and seeds that they have."""
    for name in ("cifar100-10k", "cifar100-10k-unmix", "cifar100-10k-w4", "cifar100-16-8"):
        results = json.loads((RESULTS / name / "results.json").read_text())
        rows = []
        for row in results["rows"]:
            config, *fields = shlex.split(row["command"])[3:]
            method, fields = config.partition(":")[2], [f.partition(".")[2] for f in fields]
            rows.append(Variant(row["label"], method, tuple(fields[:-1])))
        yield Comparison("cifar100", rows, results["seeds"], RESULTS / name, [])
    methods = [Variant(method, method) for method in common.METHODS]
    yield Comparison("digits", methods, list(range(10)), RESULTS / "digits", [])
    rows = [v.label for v in studies.STUDIES["few_images"].variants if v.method != "cutmix"]
    seeds = ",".join(map(str, range(5, 15)))
    again = ["vanilla, epochs x 3", "cutmix, epochs x 3", "cut_mixmo"]
    for given in (
        {"images": "", "widths": "1,2", "row": rows},
        {"images": "50", "widths": "1,2", "row": rows},
        {"images": "50", "widths": "4", "row": rows[:6]},
        {"images": "50", "widths": "4", "row": again, "seeds": seeds, "output": RESULTS / "again"},
    ):
        given = {"output": RESULTS, "seeds": "5", **given}
        yield from studies.create_comparisons(arguments_of("few_images", **given), [])


def test_committed_results_need_no_training():
    """The comparison resumes from them on a machine that has none of the folders."""
    tables = list(committed_comparisons())
    assert len(tables) == 11
    for comparison in tables:
        if comparison.config == "digits":  # the rows of the other one have different seeds
            assert compare.missing_runs(comparison) == []
        entries = scores.read_recorded(comparison)
        rows = scores.summarize(comparison, entries)
        assert scores.format_table(rows) + "\n" == (comparison.output / "table.md").read_text()
        recorded = json.loads((comparison.output / "results.json").read_text())["rows"]
        assert [row["command"] for row in rows] == [row["command"] for row in recorded]


def test_ensembles_are_made_of_the_runs_of_the_seeds(tmp_path):
    rows = studies._ensembles("cut_mixmo")
    comparison = Comparison("digits", rows, [0, 1, 2, 3], tmp_path, ONE_EPOCH)
    runs = compare.missing_runs(comparison)
    assert [run.folder.name for run in runs] == [f"cut_mixmo-s{i}" for i in range(4)]
    for run in runs:
        write_run(run, 0.5, logits_seed=run.config.seed)
    results = compare.tabulate(comparison)
    assert [(row["label"], row["n"]) for row in results["rows"]] == [
        ("cut_mixmo", 4),
        ("cut_mixmo, N = 2", 2),
        ("cut_mixmo, N = 3", 1),
    ]
    logits, labels = zip(*(scores.read_logits(run.folder) for run in runs[2:]), strict=True)
    expected = metrics.ensemble_metrics(np.concatenate(logits, axis=1), labels[0])
    (second,) = (e for e in results["runs"] if e.get("seeds") == [2, 3])
    assert second["NLL"] == pytest.approx(expected["nll"])
    assert second["accuracy (%)"] == pytest.approx(100 * expected["accuracy"])
    # An ensemble that is not recorded needs the runs, though they are.
    for run in runs:
        (run.folder / "results.json").unlink()
    assert compare.missing_runs(comparison) == []
    (record,) = (tmp_path / "results.json",)
    kept = json.loads(record.read_text())
    kept["runs"] = [e for e in kept["runs"] if e.get("seeds") != [2, 3]]
    record.write_text(json.dumps(kept))
    assert [run.folder.name[-2:] for run in compare.missing_runs(comparison)] == ["s2", "s3"]
    with pytest.raises(InputError, match="seeds: 2, expected at least 3 for an ensemble"):
        comparison._replace(seeds=[0, 1]).check()


def test_corrupted_images_are_a_step_of_their_own(corrupted, tmp_path):
    comparison = comparison_of(tmp_path, ["vanilla"], [0], corruptions=corrupted)
    (run,) = compare.missing_runs(comparison)
    assert [c[3].partition("=")[0] for c in run.missing] == ["--config", "--mode"]
    write_run(run, 0.9)
    assert run.missing == [run.steps[1][1]]
    assert run.missing[0][-1] == f"--corruptions={corrupted}"
    severities = {"mean": {"accuracy": 0.4}}
    for other in ({"images": "others"}, {"ensemble": "probabilities"}):
        write_corruptions(run, {"mean": severities}, **other)
        assert run.missing == [run.steps[1][1]]
    # Scores of images that nobody asked for are in no table.
    (row,) = compare.tabulate(comparison._replace(corruptions=None))["rows"]
    assert "corrupted (%)" not in row
    write_corruptions(run, {"mean": severities})
    assert compare.missing_runs(comparison) == []
    (row,) = compare.tabulate(comparison)["rows"]
    assert row["corrupted (%)"] == (pytest.approx(40), None)
    # They stay recorded by the name of their folder; numbers of other images are not mixed in.
    assert compare.tabulate(comparison._replace(corruptions=None))["corruptions"] == "my images"
    other = corrupted.rename(tmp_path / "others")
    with pytest.raises(InputError, match=r"made with corruptions=my images \(now others\)"):
        compare.missing_runs(comparison._replace(corruptions=other))


def test_job_array_starts_what_would_run_here(finished, corrupted, monkeypatch):
    more = finished._replace(seeds=[0, 1, 2, 3], corruptions=corrupted)
    missing, started = compare.missing_runs(more), []
    monkeypatch.setattr(launch, "_run", lambda command, *_: started.append(command))
    launch.run_here(missing)
    script = launch.write_slurm(missing, more.output)
    lines = (more.output / "commands.txt").read_text().splitlines()
    commands = [line.split(" && ") for line in lines]
    assert f"--array=1-{len(missing)}\n" in script.read_text()
    assert [shlex.split(c) for parts in commands for c in parts] == started
    assert len(started) == 9 + 2 * 3  # nine runs are trained already
    assert launch.write_slurm([], more.output) is None


@pytest.mark.parametrize("status", [0, 3, 143])
def test_job_array_requeues_what_was_told_to_stop(tmp_path, status):
    """The script runs the line of its task; a stand-in is SLURM."""
    tools, output = tmp_path / "bin", tmp_path / "out put"
    for folder in (tools, output):
        folder.mkdir()
    for name, text in {
        "srun": 'shift; exec "$@"',
        "scontrol": f'echo "$@" > "{tmp_path}/queue"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    step = (lambda: False, ["sh", "-c", f"echo 'a  b' > '{tmp_path}/done'; exit {status}"])
    runs = [variants.Run(name, output / name, None, ((lambda: False, ["false"]),)) for name in "ab"]
    runs.insert(1, variants.Run("c", output / "c", None, (step,)))
    script = launch.write_slurm(runs, output)
    (output / "commands.txt").write_text("false\n" * 3)  # by another call, for other runs
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(["bash", script], env=environment, timeout=60)
    assert done.returncode == status
    assert (tmp_path / "done").read_text() == "a  b\n"
    assert (tmp_path / "queue").exists() == (status == 143)


def test_flops_are_those_of_all_convolutions():
    """Whatever the platform computes them with: the gradients take twice the forward pass."""
    fields = ["--config.model.depth=10", "--config.model.width=1", "--config.batch_size=32"]
    _, config = config_lib.parse("cifar100:vanilla", fields)
    # Map, input channels, output channels of the 3x3 convolutions; the 1x1 ones have a ninth.
    convolutions = [(32, 3, 16), (32, 16, 16), (32, 16, 16), (32, 16, 32), (16, 32, 32)]
    convolutions += [(16, 32, 64), (8, 64, 64), (16, 16, 32 / 9), (8, 32, 64 / 9)]
    forward = sum(2 * 9 * side**2 * i * o for side, i, o in convolutions)
    assert cost.flops_of_position(config) == pytest.approx(3 * forward, rel=0.15)


PROGRAM = """
%body (p: s32[]) -> s32[] {
  %a = f32[] fusion(%p), metadata={op_name="step/add"}, backend_config={"estimated_cycles":"7"}
}
%rejections (p: s32[]) -> s32[] {
  %b = f32[] fusion(%p), metadata={op_name="gamma"}, backend_config={"estimated_cycles":"5"}
}
%below (p: s32[]) -> pred[] {
  %c = s32[] constant(100)
  ROOT %d = pred[] compare(%p, %c), direction=LT
}
%accepted (p: s32[]) -> pred[] {
  ROOT %e = pred[] compare(%p, %p), direction=NE
}
ENTRY %main (x: f32[]) -> f32[] {
  %f = f32[] copy(%x), backend_config={"estimated_cycles":"3"}
  %g = s32[] while(%f), condition=%below, body=%body
  %h = s32[] while(%g), condition=%accepted, body=%rejections
}
"""


def test_cycles_of_a_loop_count_as_often_as_it_runs(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ})  # the import changes it
    import tpu_estimate

    with pytest.raises(InputError, match="topology=v6e:2x2: expected one of v4, v5e, v5p"):
        tpu_estimate.describe_chips("v6e:2x2", 1)
    assert tpu_estimate.operation_cycles(PROGRAM) == {"%f": 3, "step/add": 700, "gamma": 5}


def test_cost_follows_steps_and_flops(tmp_path):
    fields = ["--config.model.name=tiny", "--config.num_epochs=3", "--config.batch_size=32"]
    _, measured = config_lib.parse("digits:vanilla", fields)
    file = tmp_path / "bench.json"
    report = {"config": measured.to_dict(), "train_images_per_second": {"median": 100.0}}
    file.write_text(json.dumps(report))
    estimate = cost.Estimate(file)
    steps = 3 * (1437 // 32)
    assert cost.num_steps(measured) == steps
    fewer = config_lib.parse("digits", ["--config.dataset.num_train_images=200"])[1]
    assert cost.num_images(fewer) == 200
    assert estimate.hours(measured) == pytest.approx(steps * 32 / 100 / 3600)
    _, two = config_lib.parse("digits:cut_mixmo", fields)  # two encoders and heads, b = 4
    flops = cost.flops_of_position(two) / cost.flops_of_position(measured)
    assert flops > 1
    assert estimate.hours(two) / estimate.hours(measured) == pytest.approx(4 * flops, rel=0.02)
    run = variants.Run("a", tmp_path / "a", measured, ((lambda: False, []),))
    runs = [run, run._replace(folder=tmp_path / "b")]
    again = run._replace(steps=((lambda: False, []),))  # as it is made a second time
    _, first, second, total = estimate.table(runs, [again]).splitlines()
    assert first.endswith("/a") and second.endswith("/b (done)")
    assert total == f"{estimate.hours(measured):.3g} hours for 1 of 2 runs, by {file}"
    for wrong in ({}, {"config": 1, "images_per_second": 2.0}, {"images_per_second": "x"}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"bench\.json: "):
            cost.Estimate(file)
    with pytest.raises(InputError, match="the cost is known for digits"):
        cost.num_images(config_lib.parse("image_folder")[1])


def test_cost_measured_here_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "measure", lambda config: asked.append(config) or 200.0)
    estimate = cost.Estimate()
    for seed in (0, 1):
        _, config = config_lib.parse("digits:vanilla", [f"--config.seed={seed}"])
        assert estimate.hours(config) == pytest.approx(cost.num_steps(config) * 64 / 200 / 3600)
    assert len(asked) == 1


def test_plots_of_runs_and_results(corrupted, tmp_path):
    comparison = comparison_of(
        tmp_path / "out", ["vanilla", "cut_mixmo"], [0, 1], corruptions=corrupted
    )
    runs = compare.list_runs(comparison)
    for run in runs:
        accuracy = 0.9 + 0.01 * run.config.seed
        write_run(run, accuracy, corrupted=0.4, logits_seed=run.config.seed)
    rows = compare.tabulate(comparison)["rows"]
    entries = plot_style.read_results([comparison.output])
    groups = plot_style.by_label(run.folder for run in runs)
    assert list(groups) == ["vanilla", "cut_mixmo"]
    figures = {
        "accuracy": plot_accuracy.draw(rows),
        "diversity": plot_diversity.draw(entries, "ratio error"),
        "width": plot_width.draw(entries),
        "learning_curves": plot_learning_curves.draw(groups),
        "reliability": plot_reliability.draw(groups),
        "corruptions": plot_corruptions.draw(groups),
    }
    for name, figure in figures.items():
        plot_style.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    width, corruptions = figures["width"].axes[0], figures["corruptions"].axes[0]
    for axes in (width, corruptions):  # labels stand beside the lines
        assert [text.get_text() for text in axes.texts] == ["vanilla", "cut_mixmo"]
    assert 90.5 in [line.get_ydata()[0] for line in width.lines]
    curves = [line.get_ydata() for line in corruptions.lines if len(line.get_ydata()) == 6]
    np.testing.assert_allclose(curves[-1], [90.5, *[40] * 5])
    # No mean over the runs only that have a finite ratio error.
    entries[-1]["ratio error"] = np.inf
    with pytest.raises(InputError, match='else --measure="disagreement'):
        plot_diversity.draw(entries, "ratio error")
    with pytest.raises(InputError, match="expected the results of a comparison"):
        plot_accuracy.read_rows(runs[0].folder)
    with pytest.raises(InputError, match=r"x\.y: cannot be written: Format 'y' is not supported"):
        plot_style.save(figures["width"], tmp_path / "x.y")
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        plot_style.by_label([tmp_path])


def test_gallery_has_every_mixing_block(monkeypatch):
    monkeypatch.setattr(mask_gallery, "NUM_ROLES", (2, 4))
    monkeypatch.setattr(mask_gallery, "RATIOS", (0.5, 1.0))
    monkeypatch.setattr(mask_gallery, "SHAPE", (8, 8, 4))
    first, second = mask_gallery.draw_gallery().axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(MASKS)
    for axes in (first, second):
        colors = axes.images[0].get_array()
        assert colors.shape == (len(MASKS) * 12 - 4, 2 * 12 - 4, 3)
        for name in ("linear", "rows", "channels", "noise"):  # with a ratio of 1, role 0 has all
            row = 12 * list(MASKS).index(name)
            whole = colors[row : row + 8, 12:]
            np.testing.assert_allclose(whole, np.broadcast_to(to_rgb("tab:blue"), whole.shape))


def test_labels_are_moved_apart_as_little_as_possible():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7):
        heights = rng.uniform(0, 0.3, count)
        order, placed = plot_style.spread(heights, 0.1)
        assert (np.diff(placed) >= 0.1 - 1e-9).all()
        assert (np.diff(heights[order]) >= 0).all()
        assert placed.mean() == pytest.approx(heights.mean(), abs=0.05)
    order, placed = plot_style.spread(np.array([0.9, 0.1]), 0.1)
    np.testing.assert_allclose((order, placed), ([1, 0], [0.1, 0.9]))
