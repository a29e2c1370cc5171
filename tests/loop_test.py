"""Training: the same steps on any number of devices, in any grouping, across interruptions."""

import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harm import free_port

from mixmo_jax import config as config_lib
from mixmo_jax import datasets, distributed
from mixmo_jax import train as train_lib
from mixmo_jax.datasets import Split
from mixmo_jax.distributed import StopSignals
from mixmo_jax.errors import InputError, Interrupted, read_json
from mixmo_jax.evaluation import metrics
from mixmo_jax.evaluation.evaluate import evaluate_run
from mixmo_jax.inference.loading import load
from mixmo_jax.input_pipeline import streaming
from mixmo_jax.mixing.unmix import unmix_features
from mixmo_jax.models import create_model
from mixmo_jax.runs import metric_writer, plots, terminal, workdir
from mixmo_jax.runs.metric_writer import RESULTS
from mixmo_jax.train import train
from mixmo_jax.training.checkpoints import BestCheckpoint, Checkpoints, EpochProgress
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.losses import weighted_cross_entropy
from mixmo_jax.training.outputs import Outputs
from mixmo_jax.training.step import make_update_fn

TINY = (
    "--config.model.name=tiny",
    "--config.model.dtype=float32",
    "--config.num_epochs=3",
    "--config.batch_size=192",
    "--config.optimizer.decay_epochs=3",
)


def tiny_config(method="cut_mixmo", *overrides):
    names = {flag.partition("=")[0] for flag in overrides}
    kept = [flag for flag in TINY if flag.partition("=")[0] not in names]
    return config_lib.parse(f"digits:{method}", [*kept, *overrides])[1]


@pytest.fixture(scope="module")
def dataset():
    return datasets.load_dataset(tiny_config().dataset)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing, and compiling what is drawn, takes a good part of so short a run."""
    monkeypatch.setattr(train_lib, "_draw_training_inputs", lambda *_: None)
    for name in ("learning_curves", "reliability_diagram"):
        monkeypatch.setattr(plots, name, lambda *_: None)


def run_steps(trainer, call_sizes, max_traces=None):
    """Trains from the start in calls of the given sizes; returns state and losses."""
    feed = create_feed(trainer)
    step = create_train_step(trainer, feed)
    if max_traces:
        chex.clear_trace_counter()
        step = chex.assert_max_traces(step, n=max_traces)
    update = make_update_fn(step, trainer.plan_fn)
    state = trainer.create_state()
    call = next(feed.calls(state.key, 1))
    state, losses = distributed.replicate_for_pmap(state), []
    for size in call_sizes:
        state, call_losses = update(state, call.resident, None, call.order, size)
        losses.append(np.asarray(call_losses[0]))  # waits: too many calls in flight may deadlock
    return distributed.unreplicate(state), np.concatenate(losses)


def create_feed(trainer):
    """The feed that the config asks for."""
    placement, steps = trainer.config.dataset.placement, trainer.config.steps_per_call
    return streaming.create_feed(
        placement, trainer.plan_fn, trainer.dataset.train, trainer.steps_per_epoch, steps
    )


def create_train_step(trainer, feed):
    return trainer.create_train_step(feed.fetch)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        pytest.param("vanilla", (), marks=pytest.mark.stress),
        pytest.param("mixup", (), marks=pytest.mark.stress),
        pytest.param("mimo", (), marks=pytest.mark.stress),
        ("cut_mixmo+cutmix", ()),
        pytest.param("cut_mixmo", ("--config.model.num_members=3",), marks=pytest.mark.stress),
    ],
)
def test_methods_learn(dataset, method, overrides):
    """The loss falls, from log K a member; the step is traced once for all steps."""
    fast = ("--config.optimizer.warmup_steps=2", "--config.optimizer.learning_rate=0.5")
    trainer = Trainer(tiny_config(method, *fast, *overrides), dataset)
    members = trainer.model.num_members
    state, losses = run_steps(trainer, [1] * 90, max_traces=1)
    assert int(state.step) == 90
    assert members * 1.8 < losses[0] < members * 4.5
    assert losses[-20:].mean() < 0.95 * losses[:4].mean()  # three members share a tiny core


def test_scan_equals_single_steps(dataset):
    trainer = Trainer(tiny_config(), dataset)
    single, single_losses = run_steps(trainer, [1] * 4)
    scanned, scanned_losses = run_steps(trainer, [3, 1])
    np.testing.assert_allclose(scanned_losses, single_losses, rtol=1e-5)
    chex.assert_trees_all_close(scanned.params, single.params, rtol=1e-4, atol=1e-6)


def read_batches(trainer, epoch):
    """What the network is fed in an epoch, gathered as the trainer says."""
    key, feed = jax.random.key(0), create_feed(trainer)

    @jax.jit
    def make_batch(resident, streamed, order, step):
        plan = trainer.plan_fn(key, step, order)
        # [devices, 1, M, B / devices, …] → [M, B, …]
        streamed = jax.tree.map(lambda x: jnp.concatenate(list(x[:, 0]), axis=1), streamed)
        return trainer.batch_fn(feed.fetch(resident, streamed, plan), plan)

    for i, (resident, streamed, order, num_steps) in enumerate(feed.calls(key, epoch)):
        assert num_steps == 1
        yield make_batch(resident, streamed, order, (epoch - 1) * trainer.steps_per_epoch + i)


@pytest.mark.parametrize(
    "method", [pytest.param("vanilla", marks=pytest.mark.stress), "cut_mixmo+cutmix"]
)
def test_both_placements_feed_the_same(dataset, method):
    """Images, masks and targets are bitwise equal, step by step; epoch 2 as good as any."""
    feeds = [
        read_batches(Trainer(tiny_config(method, f"--config.dataset.placement={p}"), dataset), 2)
        for p in ("device", "host")
    ]
    count = 0
    for device, host in zip(*feeds, strict=True):
        chex.assert_trees_all_equal(device, host)
        count += 1
    assert count == 1437 * (1 if method == "vanilla" else 4) // 192


@pytest.mark.stress
def test_both_placements_train_the_same_network(dataset):
    """Resident with one step a call, and streamed with two."""
    losses = []
    for placement, steps in (("device", 1), ("host", 2)):
        overrides = [f"dataset.placement={placement}", f"steps_per_call={steps}"]
        config = tiny_config("cut_mixmo+cutmix", *(f"--config.{field}" for field in overrides))
        trainer = Trainer(config, dataset)
        state = trainer.create_state()
        feed = create_feed(trainer)
        update = make_update_fn(create_train_step(trainer, feed), trainer.plan_fn)
        calls = feed.calls(state.key, 1)
        state, values = distributed.replicate_for_pmap(state), []
        for arguments in itertools.islice(calls, 4 // steps):
            state, call_losses = update(state, *arguments)
            values.append(call_losses[0])
        losses.append(np.concatenate(values))
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("placement", "num_bytes", "expected"),
    [("device", 1 << 60, False), ("host", 1, True), ("auto", 1, False), ("auto", 1 << 60, True)],
)
def test_placement(placement, num_bytes, expected):
    assert streaming.is_streamed(placement, num_bytes) == expected


@pytest.mark.parametrize("side", [32, 224])
def test_streamed_calls_are_bounded_by_bytes(dataset, monkeypatch, side):
    """Whatever the size of the images; as on an accelerator, where calls have many steps."""
    monkeypatch.setattr(streaming, "_default_steps_per_call", lambda: 100)
    count = len(dataset.train)
    images = np.broadcast_to(np.zeros((), np.uint8), (count, side, side, 3))
    trainer = Trainer(tiny_config("cut_mixmo+cutmix", "--config.batch_size=32"), dataset)
    feed = streaming.StreamedFeed(trainer.plan_fn, Split(images, dataset.train.labels), 7 * 20)
    # Two members and their partners; each device has its part.
    step_bytes = 2 * 2 * 32 * side * side * 3 // jax.local_device_count()
    with contextlib.closing(feed.calls(jax.random.key(0), 1)) as calls:
        call = next(calls)
    assert call.streamed.images.shape[1] == call.num_steps
    most = min(100, (64 << 20) // step_bytes)
    assert most / 2 <= call.num_steps <= most


class Losses:
    """Losses of one call that count when they are waited for."""

    finished = 0

    def __init__(self, value):
        self.value = value

    @property
    def addressable_shards(self):
        return [types.SimpleNamespace(data=self)]

    def __array__(self, dtype=None, copy=None):
        Losses.finished += 1
        return np.float32([[self.value]])


def run_calls(dataset, losses, stop=lambda: False):
    """Runs one call for each loss, the first epoch of which one step was done before."""
    in_flight, trainer = [], Trainer(tiny_config(), dataset)
    losses, Losses.finished = iter(losses), 0

    def update(state, *_):
        in_flight.append(state + 1 - Losses.finished)
        return state + 1, Losses(next(losses))

    class Progress:
        def update(self, num_steps, losses):
            assert Losses.finished == len(in_flight) or in_flight[-1] > 1

    begun = EpochProgress(np.float32([0.5]), 2.0)
    calls = (streaming.Call(None, None, None, 1) for _ in range(10))
    state, progress = trainer.run_calls(update, 0, calls, begun, progress=Progress(), stop=stop)
    return state, progress, max(in_flight, default=0)


def test_few_calls_are_in_flight(dataset):
    """The loop waits for the calls before, with a terminal or without."""
    state, progress, most = run_calls(dataset, range(10))
    assert state == 10
    np.testing.assert_array_equal(progress.losses, [0.5, *range(10)])
    assert progress.seconds > 2.0
    assert most == 3  # two in flight, and the one that is dispatched


def test_stop_is_asked_for_after_each_call(dataset):
    answers = iter([False, False, True])
    state, progress, _ = run_calls(dataset, range(10), stop=lambda: next(answers))
    assert (state, len(progress.losses)) == (2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_step_that_is_not_finite_is_named(dataset, value):
    with pytest.raises(FloatingPointError, match=r"step 5 \(epoch 1\): loss or weights are"):
        run_calls(dataset, [1.0, 1.0, 1.0, value, 1.0, value, *[1.0] * 4])


def test_weights_that_are_not_finite_make_the_loss_nan(dataset):
    """The loss of the step itself is finite."""
    trainer = Trainer(tiny_config(), dataset)
    trainer.tx = optax.scale(-np.inf)
    assert np.isnan(run_steps(trainer, [1])[1][0])


@pytest.mark.parametrize(("done", "expected"), [(0, [3, 3, 2]), (2, [1, 3, 2]), (6, [2]), (8, [])])
def test_calls_that_are_left_in_an_epoch(done, expected):
    assert streaming.remaining_lengths([3, 3, 2], done) == expected


@pytest.mark.parametrize("placement", ["device", "host"])
def test_calls_go_on_inside_an_epoch(dataset, placement):
    fields = (f"dataset.placement={placement}", "steps_per_call=2")
    trainer = Trainer(tiny_config("cut_mixmo", *(f"--config.{field}" for field in fields)), dataset)
    calls = create_feed(trainer).calls
    whole = list(calls(jax.random.key(0), 2))
    parts = list(calls(jax.random.key(0), 2, 4))
    assert len(parts) == len(whole) - 2
    for part, call in zip(parts, whole[2:], strict=True):
        chex.assert_trees_all_equal(part, call)


def test_moving_average_of_the_variables(dataset):
    """It follows the raw ones, and changes nothing about them."""
    raw, losses = run_steps(Trainer(tiny_config(), dataset), [1] * 3)
    trainer = Trainer(tiny_config("cut_mixmo", "--config.optimizer.ema_decay=0.5"), dataset)
    state, same_losses = run_steps(trainer, [1] * 3)
    np.testing.assert_array_equal(losses, same_losses)
    chex.assert_trees_all_equal(state.replace(ema=None, key=None), raw.replace(key=None))
    average = trainer.create_state().variables
    for steps in (1, 2, 3):
        now = run_steps(trainer, [1] * steps)[0].variables
        decay = min(0.5, steps / (steps + 10))
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, now)  # noqa: B023
    chex.assert_trees_all_close(state.ema, average, rtol=1e-5, atol=1e-7)


@pytest.mark.stress
def test_run_evaluates_the_moving_average_beside_the_raw_weights(tmp_path):
    fields = ("optimizer.ema_decay=0.9", "optimizer.schedule=cosine", "label_smoothing=0.1")
    config = tiny_config("linear_mixmo", *(f"--config.{field}" for field in fields))
    train(config, tmp_path)
    last = metric_writer.read_metrics(tmp_path)[-1]
    results = read_json(tmp_path / RESULTS)
    assert last["ema_test"]["nll"] == pytest.approx(results["ema_scores"]["nll"])
    assert last["test"]["nll"] == pytest.approx(results["scores"]["nll"])
    images = datasets.load_dataset(config.dataset).test.images[:8]
    raw, average = (load(tmp_path, ema=ema).logits(images) for ema in (False, True))
    assert np.abs(raw - average).max() > 0
    config.num_epochs += 1
    with pytest.raises(InputError, match="done the steps with another learning rate"):
        train(config, tmp_path)


def test_unmixing_is_part_of_the_step(dataset):
    """Its fields reach the loss, on all devices."""
    fields = ("patch_prob=1.0", "unmix=True", "unmix_normalize=True")
    config = tiny_config("cut_mixmo", *(f"--config.mixmo.{field}" for field in fields))
    trainer = Trainer(config, dataset)
    state = trainer.create_state()
    batch = trainer.batch_fn(*trainer.first_batch(state.key))
    assert batch.unmix == 1
    model = create_model(config.model, dataset.num_classes)

    @functools.partial(jax.jit, static_argnames="normalize")
    def expected_loss(batch, normalize):
        def pool(features):
            return unmix_features(features, batch.masks, batch.unmix, normalize=normalize)

        variables, inputs = state.variables, (batch.images, batch.masks)
        mutable = ["batch_stats"]
        logits, _ = model.apply(variables, *inputs, train=True, pool=pool, mutable=mutable)
        return weighted_cross_entropy(logits, batch.targets, batch.weights)

    (loss,) = run_steps(trainer, [1])[1]
    np.testing.assert_allclose(loss, expected_loss(batch, True), rtol=1e-5)
    assert abs(loss - expected_loss(batch, False)) > 1e-4 * loss


def test_more_epochs_are_refused_where_unmixing_would_have_been_another(tmp_path, dataset):
    fields = ("num_epochs=40", "mixmo.unmix=True")
    config = tiny_config("cut_mixmo", *(f"--config.{field}" for field in fields))
    workdir.open_run(tmp_path, config, dataset)
    config.num_epochs = 41
    trainer = Trainer(config, dataset)
    train_lib._check_extension(trainer, 0, tmp_path)
    with pytest.raises(InputError, match="unmixed the steps that are done with another strength"):
        train_lib._check_extension(trainer, 1, tmp_path)
    config.num_epochs, config.mixmo.unmix_until = 40, math.inf  # always the same strength
    workdir.open_run(tmp_path / "constant", config, dataset)
    config.num_epochs = 41
    train_lib._check_extension(trainer, 1, tmp_path / "constant")


def test_best_epoch_whose_scores_are_lost_is_not_replaced(tmp_path, capsys):
    field = "--config.dataset.validation_fraction=0.2"
    train(tiny_config("vanilla", field, "--config.num_epochs=1"), tmp_path)
    file = tmp_path / metric_writer.METRICS
    file.write_text("")
    more = tiny_config("vanilla", field, "--config.num_epochs=2")
    with pytest.raises(InputError, match=r"metrics\.jsonl: damaged: step 5, the best one, has no"):
        train(more, tmp_path)
    shutil.rmtree(tmp_path / workdir.BEST)
    train(more, tmp_path)
    assert "metrics.jsonl: lacks some of the 1 epochs that are done" in capsys.readouterr().err


def test_validation_split_selects_the_epoch(tmp_path, monkeypatch, capsys):
    """The best epoch in validation is evaluated, also after an interruption; the test set is not
    looked at before."""
    fields = ("dataset.validation_fraction=0.2", "num_epochs=4")
    config = tiny_config("vanilla", *(f"--config.{field}" for field in fields))
    accuracies = iter([0.5, 0.7, 0.6])
    compute = metrics.ensemble_metrics

    def fake_metrics(logits, labels, *arguments):
        found = compute(logits, labels, *arguments)
        return found if len(labels) == 360 else {**found, "accuracy": next(accuracies)}

    monkeypatch.setattr(metrics, "ensemble_metrics", fake_metrics)
    end_epoch = terminal.Progress.end_epoch

    def stop_in_epoch_3(self, epoch_metrics):
        if epoch_metrics["epoch"] == 3:
            raise KeyboardInterrupt
        end_epoch(self, epoch_metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(terminal.Progress, "end_epoch", stop_in_epoch_3)
        train(config, tmp_path)
    accuracies = iter([0.6, 0.4])
    train(config, tmp_path)
    lines = metric_writer.read_metrics(tmp_path)
    assert [line["validation"]["accuracy"] for line in lines] == [0.5, 0.7, 0.6, 0.4]
    assert not any("test" in line for line in lines)
    assert "epoch 2 (the best in validation)" in capsys.readouterr().out
    results = json.loads((tmp_path / RESULTS).read_text())
    assert (results["epoch"], results["temperature_fitted_on"]) == (2, "validation")
    evaluate_run(tmp_path)
    assert json.loads((tmp_path / RESULTS).read_text()) == results


def test_seed_decides_everything(dataset):
    first = run_steps(Trainer(tiny_config(), dataset), [1] * 2)[1]
    again = run_steps(Trainer(tiny_config(), dataset), [1] * 2)[1]
    other = run_steps(Trainer(tiny_config("cut_mixmo", "--config.seed=1"), dataset), [1] * 2)[1]
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other)


def test_random_numbers_are_the_same_whatever_generator_jax_prefers(dataset):
    """Others draw other numbers for another length of a call or number of devices."""
    trainer = Trainer(tiny_config(), dataset)
    state = trainer.create_state()
    with jax.default_prng_impl("rbg"):
        other = trainer.create_state()
    states = [s.replace(key=jax.random.key_data(s.key)) for s in (state, other)]
    chex.assert_trees_all_equal(*states)


def test_eight_devices_and_two_processes_train_the_same_network(tmp_path):
    """In float64 nothing but rounding is left between 1 and 8 devices, and 2 processes with 2."""
    script = pathlib.Path(__file__).with_name("device_steps.py")
    address = f"127.0.0.1:{free_port()}"
    runs = {
        "one": (1, ()),
        "eight": (8, ()),
        "first": (2, (address, "2", "0")),
        "second": (2, (address, "2", "1")),
    }
    started = []
    for name, (count, arguments) in runs.items():
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
        command = [sys.executable, str(script), str(tmp_path / name), *arguments]
        started.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=300) for process in started] == [0] * len(runs)
    one, *others = (dict(np.load(tmp_path / f"{name}.npz")) for name in runs)
    assert [arrays.pop("devices") for arrays in (one, *others)] == [1, 8, 4, 4]
    assert one["losses"][0] != one["losses"][-1]
    for arrays in others:
        chex.assert_trees_all_close(one, arrays, rtol=1e-9, atol=1e-11)
    chex.assert_trees_all_equal(*others[1:])


def final_state(folder, config, dataset):
    trainer = Trainer(config, dataset)
    with Checkpoints(folder / workdir.CHECKPOINTS) as checkpoints:
        step = checkpoints.latest_step
        assert step == config.num_epochs * trainer.steps_per_epoch
        return checkpoints.restore(jax.eval_shape(trainer.create_state))[0]


def read_losses_and_scores(folder):
    lines = metric_writer.read_metrics(folder)
    return [{k: line[k] for k in ("epoch", "step", "loss", "test")} for line in lines]


@pytest.fixture
def lenient():
    """Allows promotions between dtypes, which optax's Adam and flax's BatchNorm need."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("lenient")
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, dataset, monkeypatch, capsys):
    """With everything that a state can hold; `harm_test.py` does the same with the defaults."""
    fields = ("name=adamw", "schedule=cosine", "clip_norm=1.0", "ema_decay=0.9")
    config = tiny_config("cut_mixmo", *(f"--config.optimizer.{field}" for field in fields))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)

    write = metric_writer.JsonLinesWriter.write

    def stop_in_epoch_3(self, epoch_metrics):
        write(self, epoch_metrics)
        if epoch_metrics["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metric_writer.JsonLinesWriter, "write", stop_in_epoch_3)
        train(config, parts)
    assert not (parts / RESULTS).exists()
    capsys.readouterr()
    # A damaged checkpoint of a later step is neither used nor counted as the newest one.
    newest = max((parts / workdir.CHECKPOINTS).glob("*"), key=lambda folder: int(folder.name))
    shutil.copytree(newest, newest.with_name("9999"))
    (newest.with_name("9999") / "epoch.json").write_text("{}")
    train(config, parts)
    captured = capsys.readouterr()
    assert "resuming after epoch 2" in captured.out
    assert "9999: damaged: epoch.json" in captured.err

    states = [final_state(folder, config, dataset) for folder in (whole, parts)]
    chex.assert_trees_all_equal(*[s.replace(key=jax.random.key_data(s.key)) for s in states])
    assert read_losses_and_scores(parts) == read_losses_and_scores(whole)
    results = [read_json(folder / RESULTS) for folder in (whole, parts)]
    assert results[0].pop("training_seconds") > 0 < results[1]["training_seconds"]
    expected = {k: v for k, v in results[1].items() if k != "training_seconds"}
    assert expected == results[0]
    assert expected["epoch"] == 3

    # Run once more, it is found finished and is evaluated.
    train(config, parts)
    assert "is finished (epoch 3)" in capsys.readouterr().out
    assert read_json(parts / RESULTS) == results[1]
    # So does evaluate mode, from the folder alone.
    evaluate_run(parts)
    assert read_json(parts / RESULTS) == results[1]


def test_run_stopped_before_its_last_evaluation_is_not_finished(tmp_path, monkeypatch):
    config = tiny_config("vanilla", "--config.num_epochs=1")
    monkeypatch.setattr(StopSignals, "received", signal.SIGTERM)
    answers = itertools.chain([False] * 7, itertools.repeat(True))  # the signal comes in step 7
    monkeypatch.setattr(StopSignals, "requested", lambda self: next(answers))
    with pytest.raises(Interrupted, match="stopped after step 7, which is saved"):
        train(config, tmp_path)
    with pytest.raises(InputError, match="holds no finished run: 0 of 1 epochs are done"):
        evaluate_run(tmp_path)
    monkeypatch.undo()
    train(config, tmp_path)
    assert [line["epoch"] for line in metric_writer.read_metrics(tmp_path)] == [1]


def test_evaluate_needs_a_finished_run(tmp_path, monkeypatch):
    config = tiny_config()
    with pytest.raises(InputError, match="holds no run"):
        evaluate_run(tmp_path / "nothing")
    workdir.open_run(tmp_path, config, datasets.load_dataset(config.dataset))
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate_run(tmp_path)

    def stop(self, epoch_metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr("mixmo_jax.runs.terminal.Progress.end_epoch", stop)
        train(config, tmp_path)
    with pytest.raises(InputError, match="has no checkpoint; train it first"):
        evaluate_run(tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "missing", "nothing left"])
def test_damaged_checkpoint_is_named(finished_run, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    (step,) = (folder / workdir.CHECKPOINTS).iterdir()
    data = max((step / "state" / "d").iterdir(), key=lambda file: file.stat().st_size)
    if damage == "flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "missing":
        data.unlink()
    else:
        shutil.rmtree(step)
    message = r"checkpoints/\d+: damaged: state/d/|no checkpoint"
    with pytest.raises(InputError, match=message) as error:
        evaluate_run(folder)
    assert "\n" not in str(error.value)
    config = workdir.read_config(folder)
    with pytest.raises(InputError, match=r"holds no intact|its checkpoints are missing"):
        train(config, folder)  # no silent start from scratch


@pytest.mark.stress
def test_epochs_may_become_more(tmp_path, dataset):
    """One epoch and one more are as good as two, where the schedule was the same."""
    one, two = (
        tiny_config("vanilla", f"--config.num_epochs={n}", "--config.optimizer.decay_epochs=2")
        for n in (1, 2)
    )
    train(one, tmp_path / "parts")
    train(two, tmp_path / "parts")
    train(two, tmp_path / "whole")
    states = [final_state(tmp_path / name, two, dataset) for name in ("parts", "whole")]
    chex.assert_trees_all_equal(*[s.replace(key=jax.random.key_data(s.key)) for s in states])
    parts, whole = (read_json(tmp_path / name / RESULTS) for name in ("parts", "whole"))
    assert parts["scores"] == whole["scores"]
    with pytest.raises(InputError, match=r"another config: num_epochs=2 \(now 1\)"):
        train(one, tmp_path / "parts")


def test_more_epochs_are_refused_where_patches_would_have_been_others(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "copy")
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.name != ".lock"}
    config = workdir.read_config(folder).copy_and_resolve_references()
    with config.unlocked():
        config.num_epochs = 40
    with pytest.raises(InputError, match=r"num_epochs=1 \(now 40\) would have mixed the epochs"):
        train(config, folder)
    assert before == {f: f.stat().st_mtime_ns for f in before}


def test_best_checkpoint_survives_a_crash_before_the_next_checkpoint(tmp_path):
    """With a checkpoint every third epoch: the run resumes from before its best epochs so far."""
    scores = {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.7, 5: 0.8, 6: 0.3}
    with BestCheckpoint(tmp_path) as best:
        for epoch in (1, 2, 3, 4, 5):  # checkpoints at 3 (certain) and 6 (never reached)
            best.offer(epoch, {"x": jnp.full(2, epoch)}, scores[epoch])
            if epoch == 3:
                best.commit(0)
            if epoch == 4:
                best.commit(3)
        best.wait()
        assert best.steps == [3, 4, 5]
    with BestCheckpoint(tmp_path) as best:
        best.delete_after(3)
        assert best.latest_step == 3
        best.score = scores[3]
        for epoch in (4, 5, 6):
            best.offer(epoch, {"x": jnp.full(2, epoch)}, scores[epoch])
        best.commit(6)
        assert best.steps == [5]
        assert best.restore({"x": jnp.zeros(2)})[0]["x"].tolist() == [5, 5]


def test_no_run_resumes_from_after_a_best_state_that_may_be_lost(tmp_path, dataset, monkeypatch):
    """The best state is there before the writing of the run's own checkpoint begins."""
    events, write = [], Checkpoints._write

    def slow_write(self, step, state, progress):
        events.append(type(self))
        time.sleep(0.1)
        write(self, step, state, progress)
        events.append(type(self))

    monkeypatch.setattr(Checkpoints, "_write", slow_write)
    display = types.SimpleNamespace(end_epoch=lambda _: None, update=lambda *_: None)
    # At the end of an epoch, and where a run is stopped in the one after its best epoch.
    trainer = Trainer(tiny_config("vanilla", "--config.checkpoint_every_epochs=9"), dataset)
    stop = iter([False] * trainer.steps_per_epoch + [False, False, True, True]).__next__
    monkeypatch.setattr(
        trainer, "evaluate", lambda state: {"validation": {"accuracy": float(state.step > 0)}}
    )
    with Checkpoints(tmp_path / "own") as own, BestCheckpoint(tmp_path / "best") as best:
        outputs = Outputs(own, best, [], display)
        epoch_metrics = {"epoch": 9, "step": 1, "validation": {"accuracy": 0.5}}
        trainer._end_epoch(epoch_metrics, {"x": jnp.zeros(2)}, outputs)
        own.wait()
        assert events == [BestCheckpoint, BestCheckpoint, Checkpoints, Checkpoints]
        events.clear()
        trainer.train(trainer.create_state(), outputs=outputs, stop=stop)
    assert events == [BestCheckpoint, BestCheckpoint, Checkpoints, Checkpoints]


def test_resumed_run_keeps_its_best_epoch(tmp_path, monkeypatch):
    """Stopped between the best epoch and the next checkpoint, it ends as if it was not."""
    fields = ("checkpoint_every_epochs=2", "dataset.validation_fraction=0.2", "num_epochs=4")
    config = tiny_config("vanilla", *(f"--config.{field}" for field in fields))
    accuracies = {1: 0.6, 2: 0.5, 3: 0.7, 4: 0.4}
    compute = Trainer.evaluate

    def fake_evaluate(self, state):
        found = compute(self, state)
        found["validation"]["accuracy"] = accuracies[int(state.step) // self.steps_per_epoch]
        return found

    monkeypatch.setattr(Trainer, "evaluate", fake_evaluate)
    write = metric_writer.JsonLinesWriter.write

    def stop_in_epoch_4(self, epoch_metrics):
        write(self, epoch_metrics)
        if epoch_metrics["epoch"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metric_writer.JsonLinesWriter, "write", stop_in_epoch_4)
        train(config, tmp_path)
    with BestCheckpoint(tmp_path / workdir.BEST) as best:
        assert [step // 5 for step in best.steps] == [1, 3]  # epoch 1 is the best up to 2
    train(config, tmp_path)
    assert read_json(tmp_path / RESULTS)["epoch"] == 3


def test_steps_are_counted_in_32_bits(dataset):
    for field in ("num_epochs", "optimizer.warmup_steps"):
        config = tiny_config("vanilla", f"--config.{field}=10000000000")
        with pytest.raises(InputError, match=rf"{field}: [\d,]+ steps, expected fewer"):
            Trainer(config, dataset)
    far = tiny_config("vanilla", "--config.optimizer.decay_epochs=10000000000,")
    assert float(Trainer(far, dataset).schedule(10)) > 0


def test_batch_larger_than_the_dataset(dataset):
    config = tiny_config("vanilla", "--config.batch_size=2000")
    with pytest.raises(InputError, match="batch_size=2000: expected at most 1437"):
        Trainer(config, dataset)


def test_images_that_the_encoders_would_cut(dataset):
    """Half a row of pixels at the edge would belong to no place of a mask."""
    images = np.pad(dataset.train.images, ((0, 0), (0, 1), (0, 1), (0, 0)))
    odd = dataset.replace(train=Split(images, dataset.train.labels))
    network = ("--config.model.name=preact_resnet", "--config.model.depth=18")
    config = tiny_config("cut_mixmo", *network, "--config.dataset.image_size=9")
    with pytest.raises(InputError, match="images: 9x9 pixels, expected multiples of the"):
        Trainer(config, odd)
    Trainer(tiny_config(), odd)


def test_batch_not_a_multiple_of_the_devices(dataset, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 5)
    with pytest.raises(InputError, match="batch_size=192: expected a multiple of the 5 devices"):
        Trainer(tiny_config(), dataset)


def test_what_needs_no_images_is_checked_before_they_are_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load", lambda config: pytest.fail("loaded"))
    config = config_lib.parse("digits", ["--config.model.depth=11"])[1]
    with pytest.raises(InputError, match=r"model\.depth=11: expected 6n"):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("steps", "limit", "expected"),
    [
        (3125, 100, [25] * 125),
        (4000, 100, [100] * 40),
        (781, 100, [71] * 11),
        (7, 100, [7]),
        (5, 1, [1] * 5),
        (997, 100, [100] * 9 + [97]),
    ],
)
def test_call_lengths(steps, limit, expected):
    """Equal calls where the number of steps has a divisor for it; each length is compiled."""
    assert streaming.call_lengths(steps, limit) == expected


def test_bfloat16_training_stays_close_to_float32(dataset):
    losses = []
    for dtype in ("float32", "bfloat16"):
        trainer = Trainer(tiny_config("cut_mixmo", f"--config.model.dtype={dtype}"), dataset)
        with jax.numpy_dtype_promotion("standard"):  # flax's BatchNorm mixes both
            state, values = run_steps(trainer, [1] * 3)
        losses.append(values)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.variables))
    # bfloat16 has 8 bits of mantissa: 4e-3 a rounding, averaged over a batch.
    np.testing.assert_allclose(*losses, rtol=0.02)
