"""Training in Python, on arrays: the same run as the command's."""

import os
import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import numpy as np
import pytest
from setups import tiny_config

import mixmo_jax
from mixmo_jax import distributed, main
from mixmo_jax.config import get_config
from mixmo_jax.datasets import load_dataset
from mixmo_jax.errors import InputError, Interrupted
from mixmo_jax.inference.load import load_run
from mixmo_jax.runs import plots
from mixmo_jax.runs.workdir import Workdir
from mixmo_jax.training import train as train_lib
from mixmo_jax.training.train import train_and_evaluate

NAMES = [f"digit {k}" for k in range(10)]
DIGITS = load_dataset(tiny_config().dataset)
IMAGES, LABELS = DIGITS.train.images, DIGITS.train.labels
TEST = (DIGITS.test.images[..., 0], DIGITS.test.labels.tolist())


class Recorder:
    """Keeps the metrics of all epochs; stops in some of them."""

    def __init__(self, **stops):
        self.epochs, self.sessions, self.stops = [], [], stops

    def start(self, epochs):
        self.epochs = list(epochs)
        self.sessions.append(len(epochs))

    def write(self, epoch_metrics):
        self.epochs.append(epoch_metrics)
        self.stops.pop(f"epoch{epoch_metrics['epoch']}", lambda: None)()

    def close(self):
        self.sessions.append("closed")


def fit(workdir, config=None, **arguments):
    given = {"images": IMAGES, "labels": LABELS, "test": TEST, "class_names": NAMES, **arguments}
    return mixmo_jax.fit(config or tiny_config(), **given, workdir=workdir)


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib, "training_inputs", lambda *_: {})
        for name in ("training_inputs", "learning_curves", "reliability_diagram"):
            patch.setattr(plots, name, lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder, the model that was fitted there in a thread, and what a writer got."""
    folder, recorder = tmp_path_factory.mktemp("fit") / "run", Recorder()
    with ThreadPoolExecutor(1) as pool:  # as a thread has no signals
        return folder, pool.submit(fit, folder, writers=[recorder]).result(), recorder


def without_times(epochs):
    return [
        {k: v for k, v in m.items() if k not in ("seconds", "images_per_second")} for m in epochs
    ]


def assert_same_run(folder, expected):
    assert without_times(Workdir(folder).read_metrics()) == without_times(
        Workdir(expected).read_metrics()
    )
    variables = [load_run(Workdir(path)).variables for path in (folder, expected)]
    chex.assert_trees_all_equal(*variables)


def test_it_is_the_run_of_the_command(fitted, tmp_path):
    folder, _, _ = fitted
    train_and_evaluate(tiny_config(), tmp_path)
    assert_same_run(folder, tmp_path)


def test_model_is_the_one_that_is_loaded(fitted):
    folder, model, _ = fitted
    loaded = mixmo_jax.load(folder)
    assert model.class_names == loaded.class_names == tuple(NAMES)
    assert model.temperature == loaded.temperature is not None
    images = DIGITS.test.images[:7]
    np.testing.assert_array_equal(model.predict_proba(images), loaded.predict_proba(images))


def test_writers_get_what_the_files_hold(fitted):
    folder, _, recorder = fitted
    assert recorder.epochs == Workdir(folder).read_metrics()
    assert recorder.sessions == [0, "closed"]


def test_finished_run_is_evaluated_again(fitted, capsys):
    folder, model, _ = fitted
    recorder = Recorder()
    again = fit(folder, writers=[recorder])
    assert "is finished (epoch 3)" in capsys.readouterr().out
    assert again.temperature == model.temperature
    assert recorder.sessions == []


def test_interrupted_run_resumes_and_gives_every_epoch_once(fitted, tmp_path):
    """Ended before the checkpoint of epoch 2; by Ctrl-C in epoch 3; then to the end."""

    def end():
        raise KeyboardInterrupt

    def press_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # the signal is read by a thread

    recorder, before = Recorder(epoch2=end), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, writers=[recorder])
    recorder.stops["epoch2"] = press_ctrl_c
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may let it be ignored
    try:
        with pytest.raises(Interrupted, match=r"stopped after step \d+, which is saved in .* run"):
            fit(tmp_path, writers=[recorder])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    fit(tmp_path, writers=[recorder])
    assert recorder.sessions == [0, "closed", 1, "closed", 2, "closed"]
    assert without_times(recorder.epochs) == without_times(Workdir(tmp_path).read_metrics())
    assert_same_run(tmp_path, fitted[0])


def test_without_a_folder_nothing_is_left(fitted, tmp_path, monkeypatch, capsys):
    folder, model, _ = fitted
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def train_quickly(config, target, **_):
        assert target.parent == tmp_path
        shutil.copytree(folder, target, dirs_exist_ok=True)

    monkeypatch.setattr(train_lib, "train_and_evaluate", train_quickly)
    again = fit(None)
    assert list(tmp_path.iterdir()) == []
    assert "deleted, as no workdir was given" in capsys.readouterr().out
    images = DIGITS.test.images[:3]
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))

    def stop(*_, **__):
        raise Interrupted("saved", signal.SIGTERM)

    monkeypatch.setattr(train_lib, "train_and_evaluate", stop)
    with pytest.raises(Interrupted, match=r"^stopped; nothing is kept without a workdir$"):
        fit(None)
    assert list(tmp_path.iterdir()) == []


def test_run_can_only_be_evaluated_in_python(fitted, capsys):
    assert main.main(["", "--mode=evaluate", f"--workdir={fitted[0]}"]) == 2
    assert "mixmo_jax.fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 255 - IMAGES}, "began with other train images or labels; choose another"),
        ({"labels": LABELS[::-1]}, "began with other train images or labels; choose another"),
        ({"test": (TEST[0], TEST[1][::-1])}, "its run began with other test images or labels"),
        ({"class_names": None}, "its run began with class_names="),
        ({"validation": TEST}, "its run began with num_images="),
        ({"config": tiny_config(seed=1)}, r"another config: seed=0 \(now 1\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_folder_of_another_run_is_refused(fitted, arguments, message):
    folder = fitted[0]
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.name != ".lock"}
    with pytest.raises(InputError, match=message):
        fit(folder, **arguments)
    assert before == {f: f.stat().st_mtime_ns for f in before}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "digit"}, "did you mean digits?"),
        ({"images": IMAGES / 255}, "train: images are float64"),
        ({"images": [[0], [0, 1]]}, "images: expected arrays"),
        ({"images": IMAGES[:-1]}, "1436 images, but labels (1437,)"),
        ({"labels": LABELS.astype(float)}, "labels are float64"),
        ({"labels": LABELS + 1, "class_names": None}, "label 10"),
        ({"class_names": NAMES[:9]}, "label 9"),
        ({"class_names": [*NAMES, "x"]}, "no image of 1"),
        ({"test": (TEST[0][:, 1:], TEST[1])}, "(7, 8, 1)"),
        ({"validation": (TEST[0], [])}, "labels (0,)"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError) as error:
        fit(tmp_path / "run", **arguments)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_one_process_only(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    with pytest.raises(InputError, match=r"^fit: one process only"):
        fit(tmp_path)


@pytest.mark.parametrize("kind", ["string", "config"])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_measured_for_a_string_and_taken_from_a_config(
    tmp_path, monkeypatch, kind, channels
):
    """The given config does not change."""
    found = {}
    monkeypatch.setattr(
        train_lib, "train_and_evaluate", lambda *_, dataset, **__: found.update(d=dataset)
    )
    monkeypatch.setattr(train_lib, "load", lambda _: None)
    config = "cifar100:cut_mixmo" if kind == "string" else get_config("cifar100:cut_mixmo")
    if kind == "config" and channels == 1:
        config.dataset.mean = config.dataset.std = ()
    images = IMAGES.repeat(channels, -1)
    before = str(config)
    fit(tmp_path, config, images=images, test=(images, LABELS), class_names=None)
    assert str(config) == before
    assert found["d"].class_names == tuple("0123456789")
    measured = (pytest.approx(IMAGES.mean() / 255),) * channels
    given = kind == "config" and channels == 3
    assert found["d"].mean == (config.dataset.mean if given else measured)
