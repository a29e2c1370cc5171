"""What the evaluation of a network found, as far as it is kept with the network."""

from collections.abc import Mapping

from mixmo_jax.errors import format_value, is_count, is_number

_NOT_FINITE = ("nan", "inf", "-inf")  # as `files.jsonable` writes them


def read_results(values: Mapping[str, object]) -> dict[str, object]:
    """Takes those of the fields of a `results.json` that say how good a network is.

    Args:
      values: The fields, as they were read; others are left out.

    Returns:
      Those of `scores`, `scaled_scores`, `test_images`, `temperature_fitted_on`,
      `training_seconds` and `environment` that are there.

    Raises:
      ValueError: if one of them is of another type.
    """
    results = {}
    for name, is_valid in _RULES.items():
        if name not in values:
            continue
        value = values[name]
        if not is_valid(value):
            raise ValueError(f"{name}={format_value(value)}")
        if _RULES[name] is _are_scores:
            value = {score: float(number) for score, number in value.items()}
        results[name] = value
    return results


def _are_scores(scores: object) -> bool:
    numbers = scores.values() if isinstance(scores, dict) else [None]
    return all(is_number(x) or x in _NOT_FINITE or isinstance(x, float) for x in numbers)


def _is_environment(versions: object) -> bool:
    return isinstance(versions, dict) and all(
        value is None or isinstance(value, str) or is_count(value) for value in versions.values()
    )


_RULES = {
    "scores": _are_scores,
    "scaled_scores": _are_scores,
    "test_images": is_count,
    "temperature_fitted_on": lambda split: split in ("validation", "test"),
    "training_seconds": is_number,
    "environment": _is_environment,
}
