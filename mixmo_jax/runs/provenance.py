"""What it takes to repeat a run: versions, commit, hardware."""

import os
import pathlib
import platform
import subprocess

import flax
import jax
import jaxlib

import mixmo_jax


def describe_environment() -> dict[str, object]:
    """Returns the versions, the commit if known, the processor and the devices that compute here.

    `cpu` is the model of the processor, None if it is not known; `cpu_count` the number of its
    cores that this process may use; `xla_flags` what XLA was told, None if nothing.
    """
    return {
        "mixmo_jax": mixmo_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "cpu": _processor(),
        "cpu_count": _num_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


def _processor() -> str | None:
    """The model of the processor, as the system calls it."""
    info = pathlib.Path("/proc/cpuinfo")  # of Linux; on ARM it has no name
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or None


def _num_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _commit() -> str | None:
    """The commit of the checkout that the package lies in, None if it was installed."""
    root = pathlib.Path(mixmo_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # without git it is not known
        return None
    return done.stdout.strip() or None
