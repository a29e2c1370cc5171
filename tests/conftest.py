"""Settings for all tests."""

import fcntl
import os
import pathlib
from importlib.metadata import version

# The CPU, unless another platform is asked for: JAX_PLATFORMS=cuda,cpu.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Two simulated devices for all tests; and less optimization, as most of the time goes into
# compiling. Fusions without emitters of their own, which later versions lack, compile in two thirds
# of the time. XLA takes the last of two equal flags: one that is set stays.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=2",
        "--xla_backend_optimization_level=1",
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

# Networks compile once for all tests and for the processes that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import mixmo_jax  # isort: skip  # noqa: F401, before jax, for what it sets

import beartype
import jax
import pytest
from jaxtyping import install_import_hook

_ROOT = pathlib.Path(__file__).parent.parent

# No dtype or rank is promoted in silence.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def typecheck(function):
    """Checks functions at every call, but no dataclass: JAX fills them with leaves of any kind."""
    return function if function.__name__ == "__init__" else beartype.beartype(function)


# Shapes and dtypes of what these modules' functions take and return are checked in all tests. It
# comes before whatever imports the modules.
install_import_hook(
    ["mixmo_jax.mixing", "mixmo_jax.input_pipeline", "mixmo_jax.training.losses"],
    "conftest.typecheck",
)


def pytest_configure() -> None:
    """Registers the tiny network, after the import hook."""
    import tiny  # noqa: F401


@pytest.fixture(scope="session")
def shared_goldens() -> pathlib.Path:
    """A folder beside the checkout with golden numbers too large for it."""
    folder = _ROOT.parent / "shared" / "goldens"
    if not folder.is_dir():
        pytest.skip(f"needs the large golden numbers in {folder}")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> pathlib.Path:
    """The folder of a quick run, to be read only."""
    return _train_digits(tmp_path_factory, seed=0)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory) -> pathlib.Path:
    """The same with another seed."""
    return _train_digits(tmp_path_factory, seed=1)


def _train_digits(tmp_path_factory, seed: int) -> pathlib.Path:
    """Trains once for all workers of pytest-xdist, whose folders are in one."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / f"run{seed}"
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "results.json").exists():
            _train(folder, seed)
    return folder


def _train(folder: pathlib.Path, seed: int) -> None:
    from mixmo_jax.config import get_config
    from mixmo_jax.training.train import train_and_evaluate

    config = get_config("digits")
    config.seed, config.num_epochs, config.model.width = seed, 1, 1
    config.batch_size, config.batch_repetitions = 192, 1
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 0, 0.1
    train_and_evaluate(config, folder)
