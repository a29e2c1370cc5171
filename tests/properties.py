"""Drawing examples of properties: a few in the usual tests, many in the stress tests."""

import hypothesis
import pytest

from mixmo_jax.errors import InputError


def draws(quick, stress):
    """Runs a test with a few draws, and with more as a stress test."""
    return pytest.mark.parametrize("count", [quick, pytest.param(stress, marks=pytest.mark.stress)])


def for_all(count, *strategies, examples=()):
    """Runs the decorated property at once, always with the same draws, and with the examples."""

    def run(property_):
        for example in examples:
            property_ = hypothesis.example(*example)(property_)
        settings = hypothesis.settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        settings(hypothesis.given(*strategies)(property_))()

    return run


def value_or_input_error(read, *arguments):
    """What a function returns, or the message of its `InputError`, which is one line."""
    try:
        return read(*arguments), None
    except InputError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 1500, message[:1500]
        return None, message
