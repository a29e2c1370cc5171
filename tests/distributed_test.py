"""Several processes on this machine, started as a user starts them on several hosts."""

import signal
import time

import harm
import jax
import numpy as np
import pytest

from mixmo_jax import distributed
from mixmo_jax.errors import InputError
from mixmo_jax.runs.workdir import Workdir
from mixmo_jax.training.checkpoints import Checkpoints


@pytest.mark.parametrize(
    "arguments",
    [
        ("localhost:1234", None, 0),
        ("localhost", 2, 0),
        ("localhost:1234", 2, 2),
        ("localhost:1234", 0, 0),
    ],
)
def test_arguments_that_do_not_fit(arguments):
    with pytest.raises(InputError, match=r"coordinator_address=.*: expected HOST:PORT"):
        distributed.connect(*arguments)


@pytest.mark.parametrize("half_connected", [True, False])
def test_cluster_that_does_not_answer(monkeypatch, capsys, half_connected):
    """JAX knows how many processes there are before it is connected to them."""
    answers = iter([False, half_connected])
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: next(answers))

    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    message = "cannot be reached: DEADLINE_EXCEEDED"
    if half_connected:
        with pytest.raises(InputError, match=message):
            distributed.connect()
    else:
        distributed.connect()
        assert message in capsys.readouterr().err


def test_a_process_alone_agrees_with_itself():
    values = {"a": np.float32([-0.0, np.nan])}
    assert distributed.broadcast(values) is values
    distributed.check_equal({"seed": 0})
    np.testing.assert_array_equal(distributed.map_rows(lambda x: 2 * x, np.arange(3)), [0, 2, 4])
    answers = iter([False, True])
    asked = distributed.any_process(lambda: next(answers), delay=2)
    assert [asked(), asked()] == [False, True]


def test_what_is_sent_to_others_arrives_bit_for_bit(monkeypatch):
    """One process sends to itself."""
    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    sent = {"a": np.float32([-0.0, np.nan]), "b": np.int32(-7)}
    received = distributed.broadcast(sent)
    assert {k: v.tobytes() for k, v in received.items()} == {
        k: v.tobytes() for k, v in sent.items()
    }
    value = {"name": "für alle", "numbers": [1, None, 0.1]}
    assert distributed.broadcast_json(value) == value
    answers = iter([False, True, False])
    asked = distributed.any_process(lambda: next(answers), delay=1)
    assert [asked() for _ in range(3)] == [False, False, True]


def test_what_differs_from_the_first_process_is_named(monkeypatch):
    first = {"seed": 0, "images": {"train": 7}}
    monkeypatch.setattr(distributed, "broadcast_json", lambda own: first)
    distributed.check_equal({"seed": 0, "images": {"train": 7}})
    with pytest.raises(InputError, match=r"process 0: seed=1 \(process 0: 0\)$"):
        distributed.check_equal({"seed": 1, "images": {"train": 7}})
    with pytest.raises(
        InputError, match=r"images=None \(process 0: .*\), size=3 \(process 0: None\)$"
    ):
        distributed.check_equal({"seed": 0, "size": 3})


def read_scores(folder):
    """Loss and accuracy of every epoch: [epochs, 2]."""
    return np.array(
        [(m["loss"], m["validation"]["accuracy"]) for m in Workdir(folder).read_metrics()]
    )


def end_of(started, timeout=240):
    return [process.wait(timeout=timeout) for process in started]


@pytest.mark.stress
@pytest.mark.parametrize("placement", ["device", "host"])
def test_two_processes_train_and_stop_as_one(tmp_path, placement):
    """A run of four devices is the same in one process and in two, or first in these, then those.

    The float32 sums over the devices differ in their order, and so do the last bits.
    """
    where = f"dataset.placement={placement}"
    alone, together, mixed = (tmp_path / name for name in ("alone", "together", "mixed"))
    assert harm.start(alone, where, devices=4).wait(timeout=240) == 0
    assert end_of(harm.start_together(together, where)) == [0, 0]
    assert not harm.second_folder(together).exists()
    assert "epoch" not in harm.out_file(harm.second_folder(together)).read_text()
    np.testing.assert_allclose(read_scores(together), read_scores(alone), rtol=1e-4, atol=0.01)

    # Two processes, of which the second one is asked to stop, then one process.
    checkpoints = Checkpoints(Workdir(mixed).checkpoint_dir)
    first, second = harm.start_together(mixed, where)
    harm.wait_until(lambda: checkpoints.steps, first)
    second.send_signal(signal.SIGTERM)
    assert end_of([first, second]) == [128 + signal.SIGTERM] * 2
    assert "stopped after step" in harm.err_file(mixed).read_text()
    assert harm.start(mixed, where, devices=4).wait(timeout=240) == 0
    assert "resuming after step" in harm.out_file(mixed).read_text()
    np.testing.assert_allclose(read_scores(mixed), read_scores(alone), rtol=1e-4, atol=0.01)


@pytest.mark.stress
def test_checkpoints_move_between_numbers_of_processes(tmp_path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    method = "mixmo.block=linear"  # the number of epochs changes nothing that is done
    assert harm.start(whole, method, "num_epochs=4", devices=4).wait(timeout=240) == 0
    assert end_of(harm.start_together(moved, method, "num_epochs=1")) == [0, 0]
    assert harm.start(moved, method, "num_epochs=2", devices=1).wait(timeout=240) == 0
    assert "resuming after epoch 1" in harm.out_file(moved).read_text()
    assert end_of(harm.start_together(moved, method, "num_epochs=4")) == [0, 0]
    assert "resuming after epoch 2" in harm.out_file(moved).read_text()
    np.testing.assert_allclose(read_scores(moved), read_scores(whole), rtol=1e-4, atol=0.01)


@pytest.mark.stress
@pytest.mark.parametrize("victim", [0, 1])
def test_no_process_outlives_another_for_long(tmp_path, victim):
    folder = tmp_path / "run"
    started = harm.start_together(folder, "num_epochs=2000")
    harm.wait_until(lambda: Checkpoints(Workdir(folder).checkpoint_dir).steps, started[0])
    assert [process.poll() for process in started] == [None, None]
    started[victim].kill()
    killed = time.monotonic()
    assert started[1 - victim].wait(timeout=60) not in (0, None)
    assert time.monotonic() - killed < 60
    survivor = [folder, harm.second_folder(folder)][1 - victim]
    assert "error" in harm.err_file(survivor).read_text().lower()
    # And the run resumes. A signal before the first step would end the processes one by one.
    checkpoints = Checkpoints(Workdir(folder).checkpoint_dir)
    done = checkpoints.latest_step
    started = harm.start_together(folder, "num_epochs=2000")
    harm.wait_until(lambda: checkpoints.latest_step > done, started[0])
    assert "resuming after" in harm.out_file(folder).read_text()
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert end_of(started) == [128 + signal.SIGTERM] * 2


@pytest.mark.stress
def test_processes_that_differ_are_named(tmp_path):
    folder = tmp_path / "run"
    together = [f"--coordinator_address=127.0.0.1:{harm.free_port()}", "--num_processes=2"]
    second = harm.second_folder(folder)
    started = [
        harm.start(folder, flags=[*together, "--process_id=0"], devices=2),
        harm.start(second, "seed=1", flags=[*together, "--process_id=1"], devices=2),
    ]
    assert started[1].wait(timeout=120) == 2
    expected = "error: process 1 differs from process 0: seed=1 (process 0: 0)\n"
    assert harm.err_file(second).read_text().endswith(expected)
    assert started[0].wait(timeout=60) != 0
