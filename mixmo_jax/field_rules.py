"""What each field of a config allows: its type, the values in words, and their test."""

import math
import os
import sys

from mixmo_jax.configs import common
from mixmo_jax.datasets import DATASETS
from mixmo_jax.evaluation.ensemble import ENSEMBLES
from mixmo_jax.mixing import MASKS, msda_methods
from mixmo_jax.models import NETWORKS


def is_of_type(value: object, kind: type) -> bool:
    """Whether a value is of a type; an integer is a number, too, and a bool is neither."""
    if kind is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


_INT = (int, "an integer")
_FLOAT = (float, "a number")
_BOOL = (bool, "True or False")
_STR = (str, "a string")
_TUPLE = (tuple, "a tuple")


def _rule(kind, allowed=None, test=lambda value: True):
    return kind[0], allowed or kind[1], test


def _at_least(kind, low, high=math.inf):
    limit = f" and <= {high}" if high < math.inf else ""
    return _rule(
        kind,
        f"{kind[1]} >= {low}{limit}",
        lambda value: low <= value <= high and value < math.inf,
    )


def _above(kind, low):
    return _rule(kind, f"{kind[1]} > {low}", lambda value: low < value < math.inf)


def _fraction(low=0.0, high=1.0):
    return _rule(_FLOAT, f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def _one_of(*choices):
    return _rule(_STR, "one of " + ", ".join(choices), lambda value: value in choices)


def _registered(names, registry):
    """The rule for a name in a registry, which users extend: it is read at every check."""

    def allowed():
        return f"one of {', '.join(names())}, or a name that your own file adds to {registry}"

    return _STR[0], allowed, lambda value: value in names()


def _numbers(above):
    return _rule(
        _TUPLE,
        "a tuple of numbers" + (f" > {above:g}" if math.isfinite(above) else ""),
        lambda values: all(is_of_type(v, float) and math.isfinite(v) and v > above for v in values),
    )


def _path():
    """The rule for a path, or "": what the file system can take."""

    def test(value):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False

    return _rule(_STR, "a path", test)


# Below it, float32 cannot represent how close to 0 the ratios are.
_LEAST_CONCENTRATION = 1e-3

# Every field of a config: its type, what is allowed in words (or a function for them), the test.
RULES = {
    "method": _one_of(*common.METHODS),
    "seed": _rule(_INT, "an integer from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
    "num_epochs": _at_least(_INT, 1),
    "batch_size": _at_least(_INT, 1, 2**20),
    "batch_repetitions": _at_least(_INT, 1, 2**20),
    "input_repetition": _fraction(),
    "label_smoothing": _fraction(),
    "checkpoint_every_epochs": _at_least(_INT, 1),
    "steps_per_call": _at_least(_INT, 0),
    "compilation_cache": _path(),
    "model.name": _registered(lambda: NETWORKS, "mixmo_jax.models.NETWORKS"),
    "model.depth": _at_least(_INT, 1, 10_000),
    "model.width": _at_least(_INT, 1, 10_000),
    "model.num_members": _at_least(_INT, 1, 1000),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "mixmo.block": _registered(lambda: MASKS, "mixmo_jax.mixing.MASKS"),
    "mixmo.patch_prob": _fraction(),
    "mixmo.patch_prob_until": _rule(_FLOAT, "a number >= 0 and < 1", lambda value: 0 <= value < 1),
    "mixmo.alpha": _rule(
        _FLOAT,
        "0, or a number from 0.001 to 1e+06",
        lambda value: value == 0 or _LEAST_CONCENTRATION <= value <= 1e6,
    ),
    "mixmo.weight_root": _rule(_FLOAT, "a number > 0; inf is allowed", lambda value: value > 0),
    "mixmo.unmix": _rule(_BOOL),
    "mixmo.unmix_until": _rule(_FLOAT, "a number > 0; inf is allowed", lambda value: value > 0),
    "mixmo.unmix_normalize": _rule(_BOOL),
    "mixmo.unmix_resize": _one_of("area", "nearest"),
    "msda.method": _registered(lambda: ["none", *msda_methods()], "mixmo_jax.mixing.MASKS"),
    "msda.beta": _fraction(_LEAST_CONCENTRATION, 1e6),
    "msda.prob": _fraction(),
    "augment.augmix": _rule(_BOOL),
    "augment.augmix_width": _at_least(_INT, 1, 100),
    "augment.augmix_depth": _at_least(_INT, 0, 100),
    "augment.augmix_severity": _fraction(0.1, 10.0),
    "augment.augmix_alpha": _fraction(_LEAST_CONCENTRATION, 1e6),
    "dataset.name": _registered(lambda: DATASETS, "mixmo_jax.datasets.DATASETS"),
    "dataset.data_dir": _path(),
    "dataset.cache_dir": _path(),
    "dataset.max_file_bytes": _at_least(_INT, 1, 2**40),
    "dataset.max_image_pixels": _at_least(_INT, 1, 178_956_970),  # Pillow's own limit
    "dataset.num_train_images": _at_least(_INT, 0),
    "dataset.validation_fraction": _fraction(high=0.999),
    "dataset.split_seed": _at_least(_INT, 0),
    "dataset.placement": _one_of("auto", "device", "host"),
    "dataset.image_size": _at_least(_INT, 8, 10_000),
    "dataset.test_fraction": _fraction(low=0.01, high=0.9),
    "dataset.crop_padding": _at_least(_INT, 0, 1000),
    "dataset.flip": _rule(_BOOL),
    "dataset.mean": _numbers(above=-math.inf),
    "dataset.std": _numbers(above=0),
    "optimizer.name": _one_of("sgd", "adamw"),
    "optimizer.schedule": _one_of("steps", "cosine"),
    "optimizer.clip_norm": _at_least(_FLOAT, 0),
    "optimizer.ema_decay": _rule(_FLOAT, "a number >= 0 and < 1", lambda value: 0 <= value < 1),
    "optimizer.learning_rate": _above(_FLOAT, 0),
    "optimizer.warmup_steps": _at_least(_INT, 0),
    "optimizer.warmup_epochs": _at_least(_FLOAT, 0, 10**9),
    "optimizer.decay_epochs": _rule(
        _TUPLE,
        "epochs in rising order, each >= 1",
        lambda epochs: (
            all(is_of_type(e, int) and e >= 1 for e in epochs)
            and list(epochs) == sorted(set(epochs))
        ),
    ),
    "optimizer.decay_factor": _above(_FLOAT, 0),
    "optimizer.momentum": _fraction(),
    "optimizer.nesterov": _rule(_BOOL),
    "optimizer.weight_decay": _at_least(_FLOAT, 0),
    "evaluation.batch_size": _at_least(_INT, 1),
    "evaluation.every_epochs": _at_least(_INT, 1),
    "evaluation.ensemble": _one_of(*ENSEMBLES),
    "evaluation.members": _rule(
        _TUPLE,
        "different numbers of members, from 0",
        lambda numbers: (
            all(is_of_type(n, int) and n >= 0 for n in numbers)
            and len(set(numbers)) == len(numbers)
        ),
    ),
}
