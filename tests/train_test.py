"""Training runs: interruptions, resuming, selection of the best epoch, checks before the start."""

import itertools
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from setups import set_up, tiny_config

from mixmo_jax.datasets import Split, load_dataset
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, Interrupted, read_json
from mixmo_jax.evaluation.evaluate import evaluate_run
from mixmo_jax.inference.load import load
from mixmo_jax.runs import plots, terminal
from mixmo_jax.runs.workdir import Workdir
from mixmo_jax.training import train as train_lib
from mixmo_jax.training.checkpoints import Checkpoints
from mixmo_jax.training.train import check_network, check_sizes, train_and_evaluate


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny_config().dataset)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes a good part of so short a run."""
    for name in ("training_inputs", "learning_curves", "reliability_diagram"):
        monkeypatch.setattr(plots, name, lambda *_, **__: None)
    monkeypatch.setattr(train_lib, "training_inputs", lambda *_: {})


def stop_at_the_end_of(monkeypatch, epoch):
    """Ends the process's run at the end of an epoch, before its checkpoint."""
    end_epoch = terminal.Progress.end_epoch

    def stop(self, epoch_metrics):
        end_epoch(self, epoch_metrics)
        if epoch_metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Progress, "end_epoch", stop)


def stop_before_step(monkeypatch, step):
    """Sends the signal to stop before a step, counted from 1."""
    monkeypatch.setattr(StopSignals, "received", signal.SIGTERM)
    answers = itertools.chain([False] * (step - 1), itertools.repeat(True))
    monkeypatch.setattr(StopSignals, "requested", lambda self: next(answers))


def results_of(folder):
    return read_json(folder / "results.json")


def final_state(folder, config, dataset):
    like = jax.eval_shape(lambda: set_up(config, dataset).state)
    with Checkpoints(Workdir(folder).checkpoint_dir) as checkpoints:
        state, _ = checkpoints.restore(like)
    return state.replace(key=jax.random.key_data(state.key))


def read_losses_and_scores(folder):
    lines = Workdir(folder).read_metrics()
    return [{k: line[k] for k in ("epoch", "step", "loss", "test")} for line in lines]


def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, dataset, monkeypatch, capsys):
    """With everything that a state can hold; `harm_test.py` does the same with the defaults."""
    fields = {"name": "adamw", "schedule": "cosine", "clip_norm": 1.0, "ema_decay": 0.9}
    config = tiny_config(**{f"optimizer__{name}": value for name, value in fields.items()})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam and flax's BatchNorm need it
        train_and_evaluate(config, whole)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at_the_end_of(patch, 3)
            train_and_evaluate(config, parts)
        assert not (parts / "results.json").exists()
        # A damaged checkpoint of a later step is neither used nor counted as the newest one.
        newest = max(
            (f for f in Workdir(parts).checkpoint_dir.iterdir() if f.name.isdigit()),
            key=lambda f: int(f.name),
        )
        damaged = newest.with_name("9999")
        shutil.copytree(newest, damaged)
        max(damaged.rglob("*"), key=lambda f: f.stat().st_size * f.is_file()).write_bytes(b"")
        capsys.readouterr()
        train_and_evaluate(config, parts)
        captured = capsys.readouterr()
        assert "resuming after epoch 2" in captured.out
        assert captured.err.count("9999: damaged") == 1
        states = [final_state(folder, config, dataset) for folder in (whole, parts)]
        chex.assert_trees_all_equal(*states)
        assert read_losses_and_scores(parts) == read_losses_and_scores(whole)
        results = [results_of(folder) for folder in (whole, parts)]
        times = [r.pop("training_seconds") for r in results]
        assert min(times) > 0
        assert results[0] == results[1] and results[0]["epoch"] == 3
        # Once more, the run is found finished and is evaluated; so does evaluate mode.
        train_and_evaluate(config, parts)
        assert "is finished (epoch 3)" in capsys.readouterr().out
        evaluate_run(Workdir(parts))
        again = results_of(parts)
        del again["training_seconds"]
        assert again == results[1]


def test_run_stopped_before_its_last_evaluation_is_not_finished(tmp_path, monkeypatch):
    config = tiny_config("vanilla", num_epochs=1)
    with monkeypatch.context() as patch:
        stop_before_step(patch, 8)  # after the last step, before the evaluation
        with pytest.raises(Interrupted, match="stopped after step 7, which is saved"):
            train_and_evaluate(config, tmp_path)
    with pytest.raises(InputError, match=r"unfinished \(epoch 0 of 1\)"):
        evaluate_run(Workdir(tmp_path))
    train_and_evaluate(config, tmp_path)
    assert [line["epoch"] for line in Workdir(tmp_path).read_metrics()] == [1]


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny_config(optimizer__learning_rate=1e30, optimizer__warmup_steps=0)
    with pytest.raises(FloatingPointError, match=r"step \d+ \(epoch 1\): loss or weights are not"):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "results.json").exists()


def fake_scores(monkeypatch, accuracies):
    """Replaces the validation accuracy of each epoch."""
    make = train_lib.make_evaluate_fn

    def make_evaluate_fn(config, dataset):
        evaluate = make(config, dataset)
        steps = len(dataset.train) * config.batch_repetitions // config.batch_size

        def fake(state):
            scores = evaluate(state)
            scores["validation"]["accuracy"] = accuracies[int(state.step) // steps]
            return scores

        return fake

    monkeypatch.setattr(train_lib, "make_evaluate_fn", make_evaluate_fn)


@pytest.mark.parametrize(
    ("every", "accuracies", "best"),
    [(1, {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.4}, 2), (2, {1: 0.6, 2: 0.5, 3: 0.7, 4: 0.4}, 3)],
)
def test_best_epoch_survives_an_interruption(
    tmp_path, monkeypatch, capsys, every, accuracies, best
):
    """The best epoch in validation is evaluated. The test split is not used before."""
    config = tiny_config(
        "vanilla",
        num_epochs=4,
        checkpoint_every_epochs=every,
        dataset__validation_fraction=0.2,
    )
    fake_scores(monkeypatch, accuracies)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_the_end_of(patch, 4)
        train_and_evaluate(config, tmp_path)
    train_and_evaluate(config, tmp_path)
    lines = Workdir(tmp_path).read_metrics()
    assert [line["validation"]["accuracy"] for line in lines] == list(accuracies.values())
    assert not any("test" in line for line in lines)
    results = results_of(tmp_path)
    assert (results["epoch"], results["temperature_fitted_on"]) == (best, "validation")


def test_moving_average_is_evaluated_beside_the_parameters(tmp_path):
    fields = {"optimizer__ema_decay": 0.9, "optimizer__schedule": "cosine"}
    config = tiny_config("linear_mixmo", label_smoothing=0.1, num_epochs=2, **fields)
    train_and_evaluate(config, tmp_path)
    last, results = Workdir(tmp_path).read_metrics()[-1], results_of(tmp_path)
    assert last["ema_test"]["nll"] == pytest.approx(results["ema_scores"]["nll"])
    assert last["test"]["nll"] == pytest.approx(results["scores"]["nll"])
    images = load_dataset(config.dataset).test.images[:8]
    raw, average = (load(tmp_path, ema=ema).logits(images) for ema in (False, True))
    assert np.abs(raw - average).max() > 0
    config.num_epochs += 1
    with pytest.raises(InputError, match=r"num_epochs=2 \(now 3\) would give .* learning rates"):
        train_and_evaluate(config, tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "patch probabilities"), ({"mixmo__unmix": True, "num_epochs": 40}, "unmixing")],
)
def test_more_epochs_that_would_change_the_epochs_done(tmp_path, monkeypatch, fields, reason):
    """The folder stays as it was."""
    config = tiny_config(**{"num_epochs": 1, **fields})
    stop_before_step(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train_and_evaluate(config, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.name != ".lock"}
    config.num_epochs += 40
    with pytest.raises(InputError, match=rf"would give the epochs done other {reason}"):
        train_and_evaluate(config, tmp_path)
    assert before == {f: f.stat().st_mtime_ns for f in before}


@pytest.mark.stress
def test_epochs_may_become_more(tmp_path, dataset):
    """One epoch and one more equal two, where the schedule is the same."""
    one, two = (tiny_config("vanilla", num_epochs=n, optimizer__decay_epochs=(2,)) for n in (1, 2))
    train_and_evaluate(one, tmp_path / "parts")
    train_and_evaluate(two, tmp_path / "parts")
    train_and_evaluate(two, tmp_path / "whole")
    states = [final_state(tmp_path / name, two, dataset) for name in ("parts", "whole")]
    chex.assert_trees_all_equal(*states)
    assert results_of(tmp_path / "parts")["scores"] == results_of(tmp_path / "whole")["scores"]
    with pytest.raises(InputError, match=r"another config: num_epochs=2 \(now 1\)"):
        train_and_evaluate(one, tmp_path / "parts")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 2000}, "batch_size=2000: expected at most 1437"),
        ({"num_epochs": 10**10}, "num_epochs=10000000000"),
        ({"model__depth": 11, "model__name": "wide_resnet"}, "model.depth=11"),
        ({"batch_size": 191}, "batch_size=191: expected a multiple of the 2 devices"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train_and_evaluate(tiny_config("vanilla", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_network_is_checked_before_images_are_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(train_lib, "load_dataset", lambda config: pytest.fail("loaded"))
    config = tiny_config(model__name="wide_resnet", model__depth=11)
    with pytest.raises(InputError, match=r"model\.depth=11"):
        train_and_evaluate(config, tmp_path)


def test_images_that_the_encoders_would_cut(dataset):
    """The last row and column would belong to no position of a mask."""
    images = np.pad(dataset.train.images, ((0, 0), (0, 1), (0, 1), (0, 0)))
    odd = dataset.replace(train=Split(images, dataset.train.labels))
    config = tiny_config(model__name="preact_resnet", model__depth=18)
    check_network(config)
    with pytest.raises(InputError, match="images: 9x9 pixels, expected multiples of the"):
        check_sizes(config, odd, 1)
    check_sizes(tiny_config(), odd, 1)
