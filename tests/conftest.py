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
