"""Settings for all tests."""

import pathlib

import jax
import pytest

_ROOT = pathlib.Path(__file__).parent.parent

# Networks compile once for all tests and for the processes that they start.
jax.config.update("jax_compilation_cache_dir", str(_ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
    return _train_digits(tmp_path_factory.mktemp("runs") / "run0", seed=0)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory) -> pathlib.Path:
    """The same with another seed."""
    return _train_digits(tmp_path_factory.mktemp("runs") / "run1", seed=1)


def _train_digits(folder: pathlib.Path, seed: int) -> pathlib.Path:
    from mixmo_jax import config, runs

    fields = {
        "seed": seed,
        "num_epochs": 1,
        "model.width": 1,
        "batch_size": 192,
        "optimizer.warmup_steps": 0,
        "optimizer.learning_rate": 0.1,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    runs.train(config.parse("digits", overrides)[1], folder)
    return folder
