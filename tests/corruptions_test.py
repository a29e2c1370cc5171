"""Scores on corrupted images and of ensembles, on the command line too."""

import json
import shutil

import chex
import numpy as np
import pytest

import mixmo_jax
from mixmo_jax import datasets
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation import evaluate, metrics
from mixmo_jax.evaluation.corruptions import score_corruptions
from mixmo_jax.main import main
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import CORRUPTIONS, RESULTS, discard_results

SEVERITIES = ["1", "2", "3", "4", "5"]
N = 40  # images of a severity
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def test_split(finished_run):
    return datasets.load_dataset(workdir.read_config(finished_run).dataset).test


@pytest.fixture
def folder(tmp_path, test_split):
    """Noise and darkness of five severities."""
    rng = np.random.default_rng(0)
    clean = test_split.images[:N].astype(np.float64)
    noisy = [clean + rng.normal(0, 20 * i, clean.shape) for i in range(1, 6)]
    dark = [clean / i for i in range(1, 6)]
    folder = tmp_path / "corrupted"
    folder.mkdir()
    for name, images in {"noise": noisy, "darkness": dark}.items():
        images = np.concatenate(images).clip(0, 255).astype(np.uint8)
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(test_split.labels[:N], 5))
    return folder


@pytest.fixture
def copies(finished_run, other_run, tmp_path):
    """Copies of two runs, to be written into."""
    runs = {"a": finished_run, "b": other_run}
    return [shutil.copytree(run, tmp_path / name) for name, run in runs.items()]


def fake_logits(images):
    """Two members that look at single pixels."""
    pixels = images.reshape(len(images), -1).astype(np.float32) / 64
    return np.stack([pixels[:, 10:20], pixels[:, 30:40]], axis=1)


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_each_severity_has_the_scores_of_its_images(folder, ensemble):
    results = score_corruptions(fake_logits, folder, SHAPE, ensemble)
    assert list(results) == ["darkness", "noise", "mean"]
    labels = np.load(folder / "labels.npy")
    for name in ("darkness", "noise"):
        images = np.load(folder / f"{name}.npy")
        assert list(results[name]) == [*SEVERITIES, "mean"]
        for i, severity in enumerate(SEVERITIES):
            part = slice(N * i, N * (i + 1))
            expected = metrics.ensemble_metrics(fake_logits(images[part]), labels[part], ensemble)
            chex.assert_trees_all_equal(results[name][severity], expected)


def test_means_are_over_severities_and_corruptions(folder):
    results = score_corruptions(fake_logits, folder, SHAPE, "logits")
    corruptions = [results["darkness"], results["noise"]]
    for score in results["mean"]["mean"]:
        for corruption in corruptions:
            expected = np.mean([corruption[severity][score] for severity in SEVERITIES])
            assert corruption["mean"][score] == pytest.approx(expected, rel=1e-12)
        for column in [*SEVERITIES, "mean"]:
            expected = np.mean([corruption[column][score] for corruption in corruptions])
            assert results["mean"][column][score] == pytest.approx(expected, rel=1e-12)
        every = [
            corruption[severity][score] for corruption in corruptions for severity in SEVERITIES
        ]
        assert results["mean"]["mean"][score] == pytest.approx(np.mean(every), rel=1e-12)


def remove(name):
    return lambda folder: (folder / name).unlink()


def save(name, array):
    return lambda folder: np.save(folder / name, array)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder):
    content = (folder / "noise.npy").read_bytes()
    (folder / "noise.npy").write_bytes(content[:-1])


def zipped(name):
    def write(folder):
        np.savez(folder / "zipped.npz", np.zeros(3))
        (folder / "zipped.npz").rename(folder / name)

    return write


def without_corruptions(folder):
    (folder / "noise.npy").unlink()
    (folder / "darkness.npy").unlink()


IMAGES = np.zeros((5 * N, *SHAPE), np.uint8)
LABELS = np.zeros(5 * N, np.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"^corruptions=.*: no such folder$"),
        (remove("labels.npy"), r"labels.npy: cannot be read: No such file"),
        (without_corruptions, r"no files besides labels.npy"),
        (save("labels.npy", LABELS[:-1]), r"labels.npy: shape \(199,\), expected \[5 n\]"),
        (save("labels.npy", LABELS[:, None]), r"labels.npy: shape \(200, 1\)"),
        (save("labels.npy", np.int64(3)), r"labels.npy: shape \(\)"),
        (save("labels.npy", LABELS[:0]), r"labels.npy: "),
        (save("labels.npy", LABELS[:-5]), r"darkness.npy: .*, expected uint8 \(195, 8, 8, 1\)"),
        (save("labels.npy", LABELS + 10), r"labels: 10, expected 0 to 9"),
        (save("labels.npy", LABELS - 1), r"labels: -1, expected 0 to 9"),
        (save("labels.npy", LABELS + 0.5), r"labels.npy: .*float64"),
        (save("labels.npy", LABELS.astype(str)), r"labels.npy: .*U"),
        (save("noise.npy", IMAGES[..., 0]), r"noise.npy: uint8 \(200, 8, 8\), expected uint8"),
        (save("noise.npy", IMAGES[:, 1:]), r"noise.npy: uint8 \(200, 7, 8, 1\), expected uint8"),
        (save("noise.npy", IMAGES[:-1]), r"noise.npy: uint8 \(199, 8, 8, 1\), expected uint8"),
        (save("noise.npy", IMAGES / 2), r"noise.npy: float64 \(200, 8, 8, 1\), expected uint8"),
        (save("noise.npy", np.array({})), r"noise.npy: damaged: ValueError"),
        (write("noise.npy", b""), r"noise.npy: damaged: ValueError"),
        (write("noise.npy", b"not an array"), r"noise.npy: damaged: ValueError"),
        (write("noise.npy", b"PK\x03\x04 not a zip"), r"noise.npy: damaged: ValueError"),
        (zipped("noise.npy"), r"noise.npy: damaged: ValueError"),
        (zipped("labels.npy"), r"labels.npy: damaged: ValueError"),
        (write("noise.npy", b"\x93NUMPY\1\0\x04\0{('\n"), r"noise.npy: damaged: "),
        (truncate, r"noise.npy: damaged: ValueError"),
    ],
)
def test_damaged_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        score_corruptions(fake_logits, folder, SHAPE, "logits")
    assert "\n" not in str(error.value)


def test_corruption_called_mean_is_no_mean(folder):
    (folder / "noise.npy").rename(folder / "mean.npy")
    with pytest.raises(InputError, match="mean"):
        score_corruptions(fake_logits, folder, SHAPE, "logits")


def test_everything_is_checked_before_the_work(folder):
    np.save(folder / "zoom.npy", IMAGES[:-1])

    def logits(images):
        raise AssertionError("the work has begun")

    with pytest.raises(InputError, match=r"zoom.npy"):
        score_corruptions(logits, folder, SHAPE, "logits")


def test_command_line_scores_corruptions_of_an_ensemble(folder, copies, capsys):
    model = mixmo_jax.load(copies)
    expected = score_corruptions(model.logits, folder, SHAPE, model.ensemble)
    flags = [f"--workdir={copies[0]},{copies[1]}", f"--corruptions={folder}"]
    before = {f.name for f in copies[1].iterdir()}
    assert main(["", "--mode=evaluate", *flags]) == 0
    output = capsys.readouterr().out
    for name in ("noise", "darkness", "mean"):
        accuracies = [scores["accuracy"] for scores in expected[name].values()]
        cells = [f"{100 * accuracy:.2f} %" for accuracy in accuracies]
        (line,) = [x for x in output.splitlines() if x.split()[:1] == [name] and "%" in x]
        assert line.split() == [name, *" ".join(cells).split()]
    written = json.loads((copies[0] / workdir.ENSEMBLE_CORRUPTIONS).read_text())
    assert written["runs"] == [str(copy.resolve()) for copy in copies]
    results = written["scores"]
    assert results.keys() == expected.keys()
    assert results["noise"]["3"].keys() == expected["noise"]["3"].keys()
    assert results["mean"]["mean"]["nll"] == pytest.approx(expected["mean"]["mean"]["nll"])
    assert {f.name for f in copies[1].iterdir()} == before


def test_command_line_scores_corruptions_of_one_run(folder, copies, test_split, capsys):
    assert main(["", "--mode=evaluate", f"--workdir={copies[0]}", f"--corruptions={folder}"]) == 0
    written = json.loads((copies[0] / CORRUPTIONS).read_text())
    assert (written["images"], written["epochs"]) == (folder.name, [1])
    assert written["ensemble"] == "logits"
    results = written["scores"]
    logits = mixmo_jax.load(copies[0]).logits(test_split.images[:N])
    clean = metrics.ensemble_metrics(logits, test_split.labels[:N])
    expected = {name: value for name, value in clean.items() if np.isfinite(value)}
    found = {name: results["darkness"]["1"][name] for name in expected}  # divided by 1
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
    discard_results(copies[0])  # as a run does that trains on
    assert not (copies[0] / CORRUPTIONS).exists()


def test_command_line_scores_an_ensemble(copies, test_split, capsys):
    before = (copies[0] / RESULTS).read_text()
    assert main(["", "--mode=evaluate", f"--workdir={copies[0]},{copies[1]}"]) == 0
    output = capsys.readouterr().out
    results = json.loads((copies[0] / workdir.ENSEMBLE).read_text())
    logits = mixmo_jax.load(copies).logits(test_split.images)
    expected = metrics.ensemble_metrics(logits, test_split.labels)
    chex.assert_trees_all_close(results["scores"], expected, rtol=1e-4)
    assert results["runs"] == [str(copy) for copy in copies]
    assert results["scores"].keys() == results["scaled_scores"].keys()
    assert len(results["temperatures"]) == 2
    assert "ensemble of 2 runs, 4 members" in output
    assert (copies[0] / "ensemble.png").stat().st_size > 5000
    for name in ("accuracy", "accuracy member3", "brier", "tace", "auroc", "disagreement"):
        assert f"  {name} " in output
    assert (copies[0] / RESULTS).read_text() == before


def test_images_that_a_run_was_trained_on_do_not_calibrate_an_ensemble(copies):
    assert not evaluate._same_validation_split(copies)  # there are none
    for folder, digest in zip(copies, ("a", "b"), strict=True):
        facts = json.loads((folder / workdir.DATASET).read_text())
        (folder / workdir.DATASET).write_text(json.dumps({**facts, "validation_digest": digest}))
    assert not evaluate._same_validation_split(copies)
    (copies[1] / workdir.DATASET).write_bytes((copies[0] / workdir.DATASET).read_bytes())
    assert evaluate._same_validation_split(copies)


def test_an_ensemble_of_runs_with_other_test_images_is_warned_of(copies, capsys):
    facts = json.loads((copies[1] / workdir.DATASET).read_text())
    (copies[1] / workdir.DATASET).write_text(json.dumps({**facts, "test_digest": "other"}))
    assert main(["", "--mode=evaluate", f"--workdir={copies[0]},{copies[1]}"]) == 0
    message = f"warning: workdir={copies[1]}: its run began with other test images: it may"
    warnings = capsys.readouterr().err
    assert warnings.startswith(message) and warnings.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=digits", "--corruptions=x"], "corruptions: only with --mode=evaluate"),
        (["--mode=evaluate", "--corruptions=x"], "workdir: missing"),
        (["--mode=evaluate", "--workdir=RUN", "--corruptions=x"], "corruptions=x: no such folder"),
        (["--mode=evaluate", "--workdir=RUN,x"], "workdir=x: holds no run"),
        (["--mode=evaluate", "--workdir=RUN,x", "--corruptions=x"], "workdir=x: holds no run"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, finished_run, arguments, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(finished_run.iterdir())
    arguments = [argument.replace("RUN", str(finished_run)) for argument in arguments]
    assert main(["", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert sorted(finished_run.iterdir()) == before
