"""Properties of configs and of the files of a run, whatever is drawn for them."""

import json
import math
import re
import sys
import types

import pytest
from hypothesis import strategies as st
from properties import draws, for_all, value_or_input_error

from mixmo_jax import config as config_lib
from mixmo_jax.configs import common
from mixmo_jax.datasets import DATASETS
from mixmo_jax.errors import read_json
from mixmo_jax.inference import loading
from mixmo_jax.mixing import MASKS
from mixmo_jax.mixing.masks import msda_methods
from mixmo_jax.models import NETWORKS
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import METRICS, RESULTS, read_metrics

HUGE = 10**400  # larger than any float
TINY, LARGEST = math.ulp(0.0), sys.float_info.max

# The least and the largest value of every field that is an integer, or a number.
INTEGERS = {
    "seed": (0, 2**32 - 1),
    "num_epochs": (1, HUGE),
    "batch_size": (1, 2**20),
    "batch_repetitions": (1, 2**20),
    "checkpoint_every_epochs": (1, HUGE),
    "steps_per_call": (0, HUGE),
    "model.depth": (1, 10_000),
    "model.width": (1, 10_000),
    "model.num_members": (1, 1000),
    "dataset.max_file_bytes": (1, 2**40),
    "dataset.max_image_pixels": (1, 178_956_970),
    "dataset.num_train_images": (0, HUGE),
    "dataset.split_seed": (0, HUGE),
    "dataset.image_size": (8, 10_000),
    "dataset.crop_padding": (0, 1000),
    "optimizer.warmup_steps": (0, HUGE),
    "augment.augmix_width": (1, 100),
    "augment.augmix_depth": (0, 100),
    "evaluation.batch_size": (1, HUGE),
    "evaluation.every_epochs": (1, HUGE),
}
NUMBERS = {
    "input_repetition": (0, 1),
    "label_smoothing": (0, 1),
    "mixmo.unmix_until": (TINY, math.inf),
    "augment.augmix_severity": (0.1, 10),
    "augment.augmix_alpha": (1e-3, 1e6),
    "optimizer.clip_norm": (0, LARGEST),
    "optimizer.ema_decay": (0, math.nextafter(1, 0)),
    "mixmo.patch_prob": (0, 1),
    "mixmo.patch_prob_until": (0, math.nextafter(1, 0)),
    "mixmo.alpha": (1e-3, 1e6),
    "mixmo.weight_root": (TINY, math.inf),
    "msda.beta": (1e-3, 1e6),
    "msda.prob": (0, 1),
    "dataset.validation_fraction": (0, 0.999),
    "dataset.test_fraction": (0.01, 0.9),
    "optimizer.learning_rate": (TINY, LARGEST),
    "optimizer.warmup_epochs": (0, 1e9),
    "optimizer.decay_factor": (TINY, LARGEST),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, LARGEST),
}
NO_NUMBERS = (None, True, False, "1", "x", (), (1,), {}, {"a": 1}, math.nan, -math.inf, -HUGE)
NO_TUPLES = (None, True, "x", 1, 0.5, [1.0], {}, (None,), ("1",), (True,), ((1,),), (math.nan,))
NO_BOOLS = (None, 0, 1, 0.5, "True", (), (True,), {})
NO_TEXTS = (None, True, 1, 0.5, (), ("x",), {})
NUMBER_TUPLES = st.lists(st.floats(TINY, LARGEST) | st.integers(1, 10**300)).map(tuple)

# Every other field: what may be drawn for it, and what is wrong.
OTHERS = {
    "method": (st.sampled_from(sorted(common.METHODS)), (*NO_TEXTS, "", "cutmixx")),
    "model.name": (st.sampled_from(sorted(NETWORKS)), (*NO_TEXTS, "", "vgg")),
    "model.dtype": (st.sampled_from(("auto", "float32", "bfloat16")), (*NO_TEXTS, "int8")),
    "mixmo.block": (st.sampled_from(sorted(MASKS)), (*NO_TEXTS, "", "none", "mixup")),
    "msda.method": (
        st.sampled_from(["none", *msda_methods()]),
        (*NO_TEXTS, "", "linear", "channels"),
    ),
    "dataset.name": (st.sampled_from(sorted(DATASETS)), (*NO_TEXTS, "", "mnist")),
    "dataset.data_dir": (st.sampled_from(("", "/a b", "~", "é\n")), (*NO_TEXTS, "\0", "\ud800")),
    "dataset.cache_dir": (st.sampled_from(("", "~nobody/x")), (*NO_TEXTS, "a\0b", "\udfff/")),
    "compilation_cache": (st.sampled_from(("", "~")), (*NO_TEXTS, "\0", "\ud800")),
    "dataset.placement": (st.sampled_from(("auto", "device", "host")), (*NO_TEXTS, "gpu")),
    "dataset.flip": (st.booleans(), NO_BOOLS),
    "augment.augmix": (st.booleans(), NO_BOOLS),
    "mixmo.unmix": (st.booleans(), NO_BOOLS),
    "mixmo.unmix_normalize": (st.booleans(), NO_BOOLS),
    "mixmo.unmix_resize": (st.sampled_from(("area", "nearest")), (*NO_TEXTS, "bilinear")),
    "optimizer.name": (st.sampled_from(("sgd", "adamw")), (*NO_TEXTS, "adam")),
    "optimizer.schedule": (st.sampled_from(("steps", "cosine")), (*NO_TEXTS, "step")),
    "optimizer.nesterov": (st.booleans(), NO_BOOLS),
    "dataset.mean": (NUMBER_TUPLES, (*NO_TUPLES, (HUGE,), (1.0, math.inf))),
    "dataset.std": (NUMBER_TUPLES, (*NO_TUPLES, (HUGE,), (0,), (1.0, -0.5))),
    "optimizer.decay_epochs": (
        st.sets(st.integers(1, HUGE)).map(sorted).map(tuple),
        (*NO_TUPLES, (0,), (1.5,), (2, 1), (1, 1), (-HUGE,)),
    ),
    "evaluation.ensemble": (st.sampled_from(("logits", "probabilities")), (*NO_TEXTS, "votes")),
    "evaluation.members": (
        st.sampled_from(((), (0,))),
        (*NO_TUPLES, (-1,), (0, 0), (0.5,), (HUGE,), (True,)),
    ),
}


def inside(field):
    if field in INTEGERS:
        return st.integers(*INTEGERS[field])
    return st.floats(*NUMBERS[field]) if field in NUMBERS else OTHERS[field][0]


def outside(field):
    if field in INTEGERS:
        low, high = INTEGERS[field]
        over = (high + 1,) * (high < HUGE)
        return (low - 1, *over, low + 0.5, math.inf, *NO_NUMBERS)
    if field in NUMBERS:
        low, high = NUMBERS[field]
        under = -1 if field == "mixmo.alpha" else math.nextafter(low, -math.inf)
        over = (math.nextafter(high, math.inf),) * (high < math.inf)
        return (under, *over, HUGE, *NO_NUMBERS)
    return OTHERS[field][1]


def fields_with(field, value):
    fields = config_lib.flatten(common.get_config("vanilla")) | {field: value}
    return fields | {"batch_size": value} if field == "batch_repetitions" else fields


def test_every_field_has_its_values_here():
    assert {*INTEGERS, *NUMBERS, *OTHERS} == set(config_lib.field_names())


@draws(10, 200)
@pytest.mark.parametrize("field", config_lib.field_names())
def test_a_field_takes_what_is_inside(field, count):
    low_and_high = st.sampled_from((INTEGERS | NUMBERS).get(field, (None,)))

    @for_all(count, inside(field), low_and_high)
    def _(value, limit):
        config_lib.check_fields(fields_with(field, value))
        if limit is not None:
            config_lib.check_fields(fields_with(field, limit))


@pytest.mark.parametrize("field", config_lib.field_names())
def test_a_field_refuses_what_is_outside(field):
    for value in outside(field):
        _, message = value_or_input_error(config_lib.check_fields, fields_with(field, value))
        assert message and re.match(rf"({field}|batch_size)=", message), value


NAMES = st.text(max_size=5) | st.sampled_from(["test", "a.b", "a\nb", "items", "__class__"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([HUGE, -HUGE, 2**31, "inf", "nan", "5"])
    | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


@draws(200, 5000)
def test_whatever_value_a_field_has_is_taken_or_refused(count):
    @for_all(count, st.sampled_from(config_lib.field_names()), JSON)
    def _(field, value):
        value = tuple(value) if isinstance(value, list) else value
        value_or_input_error(config_lib.check_fields, fields_with(field, value))


CONFIGS = st.fixed_dictionaries({field: inside(field) for field in config_lib.field_names()})


@draws(15, 300)
def test_json_keeps_every_config(count):
    """Strictly JSON, which has no infinity."""

    @for_all(count, CONFIGS)
    def _(fields):
        config = common.get_config()
        # What else depends on another field.
        changes = {
            "batch_size": fields["batch_repetitions"],
            "optimizer.momentum": fields["optimizer.momentum"] / 2,
        }
        config.update_from_flattened_dict(fields | changes)
        text = config_lib.to_json(config)
        json.loads(text, parse_constant=pytest.fail)
        again = config_lib.from_json(text)
        assert again == config.lock()
        assert config_lib.to_json(again) == text


@draws(100, 2000)
def test_command_line_takes_or_refuses_any_text(count):
    literals = (
        JSON.map(repr) | JSON.map(json.dumps) | st.sampled_from(["(" * 999, "1,,2", "-" * 9999])
    )

    @for_all(count, st.sampled_from(config_lib.field_names()), literals | st.text(max_size=9))
    def _(field, text):
        flag = f"--config.{field}={text}"
        value_or_input_error(config_lib.parse, "digits", [flag])


# Files of a run

INFO = {
    "image_shape": [8, 8, 1],
    "class_names": ["a", "b"],
    "mean": [0.5],
    "std": [0.5],
    "num_images": {"train": 5, "test": 5},
    "test_digest": "x",
}
LINE = {"epoch": 1, "step": 5, "loss": 1.0, "seconds": 1.0, "test": {"accuracy": 0.5}}
RESULT = {"epoch": 1, "temperature": 1.0, "prediction_temperatures": {"logits": 1.0}}
CONFIG = json.loads(config_lib.to_json(common.get_config()))
NETWORK = types.SimpleNamespace(epoch=1, config=common.get_config())
READERS = {
    workdir.CONFIG: (CONFIG, workdir.read_config),
    workdir.DATASET: (INFO, workdir.read_dataset_info),
    METRICS: (LINE, read_metrics),
    RESULTS: (RESULT, lambda folder: loading._read_results([folder], [NETWORK], "logits")),
    "any.json": ({}, lambda folder: read_json(folder / "any.json")),
}


@st.composite
def changed(draw, values):
    """Nested values of which some, wherever they stand, are replaced, removed or added."""
    values = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 2))):
        group = values
        name = draw(st.sampled_from([*group, "new"]) | NAMES)
        while isinstance(group.get(name), dict) and group[name] and draw(st.booleans()):
            group = group[name]
            name = draw(st.sampled_from([*group, "new"]) | NAMES)
        if draw(st.integers(0, 4)):
            group[name] = draw(JSON)
        else:
            group.pop(name, None)
    return json.dumps(values)


@draws(60, 1000)
@pytest.mark.parametrize("name", READERS)
def test_file_is_read_or_named(tmp_path, name, count):
    values, read = READERS[name]
    texts = changed(values) | changed(values) | JSON.map(json.dumps) | st.text()

    @for_all(count, texts)
    def _(text):
        (tmp_path / name).write_bytes(f"{text}\n".encode(errors="surrogatepass"))
        _, message = value_or_input_error(read, tmp_path)
        assert message is None or name in message
