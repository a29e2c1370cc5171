"""Scores on corrupted images and of ensembles, on the command line too."""

import json
import shutil

import chex
import numpy as np
import pytest

import mixmo_jax
from mixmo_jax import datasets
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation import metrics
from mixmo_jax.evaluation.corruptions import score_corruptions
from mixmo_jax.main import main
from mixmo_jax.runs.workdir import CORRUPTIONS, DATASET, ENSEMBLE, ENSEMBLE_CORRUPTIONS, Workdir

SEVERITIES = ["1", "2", "3", "4", "5"]
N = 40  # images of a severity
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def test_split(finished_run):
    return datasets.load_dataset(Workdir(finished_run).read_config().dataset).test


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


IMAGES = np.zeros((5 * N, *SHAPE), np.uint8)


def save(name, array):
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "labels.npy").unlink(), "expected a folder with labels.npy"),
        (lambda folder: (folder / "noise.npy").write_bytes(b"x"), "noise.npy: damaged"),
        (save("labels.npy", np.zeros((5 * N, 1))), "labels.npy: float64"),
        (save("labels.npy", np.full(5 * N, 10)), "labels: 10, expected 0 to 9"),
        (save("noise.npy", IMAGES[1:]), "noise.npy: uint8"),
        (save("noise.npy", IMAGES.astype(np.float32)), "noise.npy: float32"),
        (save("noise.npy", np.array([{}] * 5 * N)), "noise.npy: damaged"),
    ],
)
def test_damaged_folder_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        score_corruptions(fake_logits, folder, SHAPE, "logits")
    assert "\n" not in str(error.value)


def test_everything_is_checked_before_the_work(folder):
    np.save(folder / "zoom.npy", IMAGES[:-1])

    def logits(images):
        raise AssertionError("the work has begun")

    with pytest.raises(InputError, match=r"zoom.npy"):
        score_corruptions(logits, folder, SHAPE, "logits")


def test_command_scores_one_run_and_an_ensemble(folder, copies, capsys):
    for runs, name in ((copies, ENSEMBLE_CORRUPTIONS), (copies[:1], CORRUPTIONS)):
        flags = [f"--workdir={','.join(map(str, runs))}", f"--corruptions={folder}"]
        assert main(["", "--mode=evaluate", *flags]) == 0
        assert "darkness" in capsys.readouterr().out
        written = json.loads((copies[0] / name).read_text())
        model = mixmo_jax.load(runs)
        expected = score_corruptions(model.logits, folder, SHAPE, model.ensemble)
        assert written["runs"] == [str(run.resolve()) for run in runs]
        nll = written["scores"]["mean"]["mean"]["nll"]
        assert nll == pytest.approx(expected["mean"]["mean"]["nll"])
    Workdir(copies[0]).discard_results()  # as a run does that trains on
    assert not (copies[0] / CORRUPTIONS).exists()


def test_command_scores_an_ensemble(copies, test_split, capsys):
    assert main(["", "--mode=evaluate", f"--workdir={copies[0]},{copies[1]}"]) == 0
    results = json.loads((copies[0] / ENSEMBLE).read_text())
    logits = mixmo_jax.load(copies).logits(test_split.images)
    expected = metrics.ensemble_metrics(logits, test_split.labels)
    chex.assert_trees_all_close(results["scores"], expected, rtol=1e-4)
    assert "ensemble of 2 runs, 4 members" in capsys.readouterr().out
    assert (copies[0] / "ensemble.png").stat().st_size > 5000


def test_ensemble_of_runs_with_other_test_images_is_warned_of(copies, capsys):
    facts = json.loads((copies[1] / DATASET).read_text())
    (copies[1] / DATASET).write_text(json.dumps({**facts, "test_digest": "other"}))
    assert main(["", "--mode=evaluate", f"--workdir={copies[0]},{copies[1]}"]) == 0
    assert "its run began with other test images" in capsys.readouterr().err
