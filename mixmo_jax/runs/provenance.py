"""What it takes to repeat a run: versions, commit, devices."""

import pathlib
import platform
import subprocess

import flax
import jax
import jaxlib

import mixmo_jax


def describe_environment() -> dict[str, object]:
    """Returns the versions, the commit if known, and the devices that compute here."""
    return {
        "mixmo_jax": mixmo_jax.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


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
