"""Runs that are killed, stopped, or share their folder end as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import harm
import pytest

from mixmo_jax.distributed import SIGNALS, StopSignals
from mixmo_jax.errors import InputError
from mixmo_jax.runs.workdir import Workdir


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("harm") / "undisturbed"
    assert harm.run(folder) == 0, harm.err_file(folder).read_text()
    return harm.read_outcome(folder)


def being_saved(folder):
    """A condition: that a checkpoint is being written."""
    return list((folder / "checkpoints").glob(".*.part"))


def line(text):
    """A condition: that the run has printed something."""
    return lambda folder: text in harm.out_file(folder).read_text()


# Moments of a run: what has happened before, and the seconds after which the process is killed.
MOMENTS = {
    "importing": (lambda folder: True, 1.0),
    "compiling": (line(": new"), 2.0),
    "steps": (lambda folder: (folder / "metrics.jsonl").exists(), 2.0),
    "saving": (being_saved, 0.05),
    "between epochs": (line("epoch 1/3"), 0.6),
    "last epoch": (line("epoch 2/3"), 0.6),
    "evaluating": (line("epoch 3/3"), 1.5),
    "writing results": (lambda folder: (folder / "reliability.png").exists(), 0.1),
}


def kill(folder, moment, chance, signum=signal.SIGKILL):
    """Starts a run and kills it a random time after a moment."""
    condition, seconds = MOMENTS[moment]
    process = harm.start(folder)
    harm.wait_until(lambda: condition(folder), process)
    time.sleep(chance.random() * seconds)
    process.send_signal(signum)  # to Python itself
    return process.wait(timeout=200)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_killed_at_any_moment_ends_the_same(undisturbed, tmp_path, moment, seed):
    folder = tmp_path / "run"
    kill(folder, moment, random.Random(f"{moment} {seed}"))
    assert harm.run(folder) == 0, harm.err_file(folder).read_text()
    assert harm.read_outcome(folder) == undisturbed


def stop(folder):
    """SIGTERM inside the second epoch; returns the step that the run says it has saved."""
    process = harm.start(folder)
    harm.wait_until(lambda: line("epoch 1/3")(folder), process)
    time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=200) == 143
    *_, message = harm.err_file(folder).read_text().splitlines()
    step = int(re.search(r"stopped after step (\d+), which is saved in", message)[1])
    assert message.endswith("run again, it resumes there")
    assert (folder / "checkpoints" / str(step) / "SHA256SUMS").exists()
    return step


def test_stopped_run_saves_its_step_and_ends_the_same(undisturbed, tmp_path):
    step = stop(tmp_path / "run")
    assert harm.run(tmp_path / "run") == 0
    assert line(f"resuming after step {step}, in epoch")(tmp_path / "run")
    assert harm.read_outcome(tmp_path / "run") == undisturbed


@pytest.mark.stress
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_resumed_run_may_be_stopped_too(undisturbed, tmp_path, signum, status):
    """Killed, or stopped by Ctrl-C, in the epoch in which it was stopped before."""
    folder = tmp_path / "run"
    step = stop(folder)
    process = harm.start(folder)
    harm.wait_until(lambda: line(f"resuming after step {step}, in epoch")(folder), process)
    process.send_signal(signum)
    assert process.wait(timeout=200) == status
    assert harm.run(folder) == 0
    assert harm.read_outcome(folder) == undisturbed


STOP = """
import os, signal, sys, time
from mixmo_jax.distributed import StopSignals
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    while not signals.requested():
        time.sleep(0.01)
    if "twice" in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
assert signals.received == signal.SIGTERM
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def test_second_signal_ends_at_once():
    command = [sys.executable, "-c", STOP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert subprocess.run([*command, "twice"], capture_output=True, timeout=50).returncode == 130


def test_second_signal_leaves_a_process_that_is_not_the_runs_own():
    """As in a notebook: `KeyboardInterrupt`, also if Python takes both signals for one."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt), StopSignals(own_process=False) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.requested():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with StopSignals(own_process=False) as signals:
        for _ in range(2):
            os.write(signals._writer, bytes([signal.SIGTERM]))
        while not signals._repeated:
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)


def test_signal_is_noticed_and_handlers_are_restored(capsys):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        while not signals.requested():
            time.sleep(0.001)
    assert signals.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert capsys.readouterr().err.startswith("stopping after the steps under way")


def test_ignored_signals_stay_ignored():
    """As in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
    assert not signals.requested()


def test_without_the_main_thread_signals_are_left_alone():
    def enter():
        with StopSignals() as signals:
            return signals.requested()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is False


HOLD = """
import sys, time
from mixmo_jax.runs.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(100)
"""


def test_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, capsys):
    from mixmo_jax.main import main

    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        start = time.monotonic()
        status = main(["", "--config=digits", f"--workdir={tmp_path}"])
        seconds = time.monotonic() - start
        holder.kill()
    message = capsys.readouterr().err
    assert (status, message.count("\n")) == (2, 1)
    assert message.startswith(f"error: workdir={tmp_path}: in use by process {holder.pid} on ")
    assert seconds < 50  # while the other one sleeps
    mine = f"in use by process {os.getpid()}"
    workdir = Workdir(tmp_path)
    with workdir.lock(), pytest.raises(InputError, match=mine), workdir.lock():
        pass


def test_evaluation_takes_the_lock(finished_run, tmp_path, capsys):
    from mixmo_jax.main import main

    folder = shutil.copytree(finished_run, tmp_path / "copy")
    with Workdir(folder).lock():
        assert main(["", "--mode=evaluate", f"--workdir={folder}"]) == 2
    assert "in use by process" in capsys.readouterr().err


def test_lock_leaves_no_folder_that_was_not_there(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), workdir.lock():
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    with workdir.lock():
        (workdir.path / "config.json").touch()
    assert (workdir.path / "config.json").exists()


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
def test_two_processes_started_together(undisturbed, tmp_path, seed):
    folder = tmp_path / "run"
    first = harm.start(folder)
    time.sleep(random.Random(seed).random() * 0.2 * seed)
    second = harm.start(folder)
    assert sorted([first.wait(timeout=300), second.wait(timeout=300)]) == [0, 2]
    assert harm.read_outcome(folder) == undisturbed


@pytest.fixture(params=[64, 160, 1400, 2000, 2600, 3000])
def small_disk(request, tmp_path):
    """A file system with room for this many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs"]
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, *options, folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.stress
def test_full_disk_is_one_line_and_loses_nothing(small_disk, undisturbed, tmp_path):
    """Stopped wherever the disk is full, the run ends the same elsewhere."""
    folder = small_disk / "run"
    status = harm.run(folder)
    if status != 0:
        assert status == 2
        lines = harm.err_file(folder).read_text().splitlines()
        assert len(lines) == 1 and "cannot be written: No space left on device" in lines[0]
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert harm.run(moved) == 0
    assert harm.read_outcome(moved) == undisturbed
