"""Runs of the real command that come to harm, and what is compared afterwards."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from mixmo_jax.runs.workdir import Workdir

PLUGIN = pathlib.Path(__file__).with_name("tiny.py")
FIELDS = (
    "num_epochs=3",
    "model.name=tiny",
    "batch_size=192",
    "optimizer.warmup_steps=0",
    "dataset.validation_fraction=0.2",
)


def start(
    folder: pathlib.Path, *fields: str, flags: Sequence[str] = (), devices: int | None = None
) -> subprocess.Popen:
    """Starts the command in a process of its own; its output goes to files beside the folder.

    Args:
      folder: The folder of the run.
      *fields: FIELD=VALUE.
      flags: Other flags of the command.
      devices: The number of simulated devices; by default as in this process.
    """
    environment = dict(os.environ)
    if devices is not None:
        environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    values = dict(field.split("=", 1) for field in (*FIELDS, *fields))
    flags = [*(f"--config.{name}={value}" for name, value in values.items()), *flags]
    command = [sys.executable, "-m", "mixmo_jax.main", "--config=digits:cut_mixmo", *flags]
    command.append(f"--plugin={PLUGIN}")
    # A shell lets its background jobs, and so the tests and their processes, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with out_file(folder).open("w") as out, err_file(folder).open("w") as err:
        command.append(f"--workdir={folder}")
        return subprocess.Popen(command, stdout=out, stderr=err, env=environment)


def start_together(folder: pathlib.Path, *fields: str) -> list[subprocess.Popen]:
    """Starts two processes with two devices each that train together in a folder.

    The output of the second one goes to files beside `second_folder(folder)`.
    """
    address = f"127.0.0.1:{free_port()}"
    together = [f"--coordinator_address={address}", "--num_processes=2"]
    return [
        start(name, *fields, flags=[*together, f"--process_id={index}"], devices=2)
        for index, name in enumerate([folder, second_folder(folder)])
    ]


def second_folder(folder: pathlib.Path) -> pathlib.Path:
    """A folder of the second process, which it never makes."""
    return folder.with_name(f"{folder.name}-second")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(folder: pathlib.Path, *fields: str) -> int:
    """Runs the command to its end; returns its exit status."""
    return start(folder, *fields).wait(timeout=300)


def out_file(folder: pathlib.Path) -> pathlib.Path:
    """The file that the last command in a folder wrote its stdout to."""
    return folder.with_suffix(".out")


def err_file(folder: pathlib.Path) -> pathlib.Path:
    """The file that the last command in a folder wrote its stderr to."""
    return folder.with_suffix(".err")


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Waits until something is so, or the process has ended."""
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_outcome(folder: pathlib.Path) -> dict[str, object]:
    """All that a run computed, without the times: bitwise equal runs have equal outcomes.

    The logits are of the best epoch, and the losses and scores of every epoch.
    """
    epochs = [
        {name: line[name] for name in ("epoch", "step", "loss", "learning_rate", "validation")}
        for line in Workdir(folder).read_metrics()
    ]
    with np.load(folder / "logits.npz") as arrays:
        logits = arrays["logits"].tobytes()
    return {"epochs": epochs, "logits": logits, "weights": _read_weights(folder)}


def _read_weights(folder: pathlib.Path) -> bytes:
    """The train state after the last step, as bytes."""
    import jax
    from setups import set_up

    from mixmo_jax.datasets import load_dataset
    from mixmo_jax.training.checkpoints import Checkpoints

    workdir = Workdir(folder)
    config = workdir.read_config()
    dataset = load_dataset(config.dataset)
    like = jax.eval_shape(lambda: set_up(config, dataset).state)
    state, progress = Checkpoints(workdir.checkpoint_dir).restore(like)
    steps = len(dataset.train) * config.batch_repetitions // config.batch_size
    assert int(state.step) == config.num_epochs * steps
    assert not len(progress.losses)
    state = state.replace(key=jax.random.key_data(state.key))
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
