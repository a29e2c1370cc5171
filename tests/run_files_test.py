"""The files of a run, damaged in many ways: one line that names the file, and never a traceback."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mixmo_jax import export, main, predict
from mixmo_jax.datasets import cache
from mixmo_jax.errors import InputError
from mixmo_jax.inference import loading
from mixmo_jax.runs import workdir
from mixmo_jax.runs.metric_writer import METRICS, RESULTS, read_metrics

HUGE = "1" + 400 * "0"  # larger than any float
# JSON as Python reads it; what stands for a text, a number, … is wrong in most places.
VALUES = (
    "null",
    "true",
    '"x"',
    '"5"',
    '"nan"',
    "[]",
    "{}",
    "[[1]]",
    "[null, true]",
    '{"a": {"b": []}}',
    "0",
    "-1",
    "1.5",
    "NaN",
    "-Infinity",
    "1e400",
    HUGE,
    f"-{HUGE}",
    f"[{HUGE}]",
    f'{{"train": {HUGE}, "test": 1}}',
    '"\\ud800\\n\\u2028"',
    900 * "[" + 900 * "]",
)
# Whole files that are no dictionary in JSON.
FILES = {
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(100),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "list": b"[]",
    "number": b"5",
    "text": b'"text"',
    "cut off": b'{"a": [1, 2',
    "two": b"{} {}",
    "deep list": 100_000 * b"[",
    "deep dictionary": 100_000 * b'{"a":',
    "long integer": b'{"a": ' + 5000 * b"9" + b"}",
}


@pytest.fixture(scope="module")
def network(finished_run):
    return loading.load_run(finished_run)


@pytest.fixture(scope="module")
def readers(network):
    """What reads each file, as a function of the folder."""

    def temperature_of(*folders):
        return lambda folder: loading._read_results(
            [folder, *folders], [network] * (1 + len(folders)), "logits"
        )

    return {
        workdir.CONFIG: workdir.read_config,
        workdir.DATASET: workdir.read_dataset_info,
        METRICS: read_metrics,
        RESULTS: temperature_of(),
        workdir.ENSEMBLE: temperature_of(workdir.pathlib.Path("other")),
    }


@pytest.fixture(scope="module")
def small_run(finished_run, tmp_path_factory):
    """The files of the run without its checkpoint."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    folder.mkdir()
    for name in (workdir.CONFIG, workdir.DATASET, METRICS, RESULTS):
        shutil.copy(finished_run / name, folder)
    shutil.copy(finished_run / RESULTS, folder / workdir.ENSEMBLE)
    return folder


@pytest.fixture(scope="module")
def full_run(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "full"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture
def damage():
    """Replaces the content of a file; afterwards the file is as before."""
    kept = {}

    def replace(file, content):
        kept[file] = file.read_bytes()
        file.unlink()
        if content == "folder":
            file.mkdir()
        elif content == "pipe":
            os.mkfifo(file)
        else:
            file.write_bytes(content)

    yield replace
    for file, content in kept.items():
        file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(content)


def check_message(error, name):
    message = str(error.value)
    assert name in message and len(message.splitlines()) == 1 and len(message) < 1000, message


@pytest.mark.parametrize("name", [workdir.CONFIG, workdir.DATASET, RESULTS, workdir.ENSEMBLE])
@pytest.mark.parametrize("content", [*FILES, "folder", "pipe"])
def test_file_that_is_no_dictionary_is_named(small_run, readers, damage, name, content):
    damage(small_run / name, FILES.get(content, content))
    with pytest.raises(InputError) as error:
        readers[name](small_run)
    check_message(error, name)


@pytest.mark.parametrize("content", [*FILES, "folder", "pipe"])
def test_metrics_that_are_no_dictionary_are_named(small_run, damage, content):
    text = FILES.get(content, content)
    damage(small_run / METRICS, text if isinstance(text, str) else text + b"\n")
    with pytest.raises(InputError) as error:
        read_metrics(small_run)
    check_message(error, METRICS)


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_last_line_without_an_end_was_cut_off(small_run, damage, content):
    whole = (small_run / METRICS).read_bytes()
    expected = read_metrics(small_run)
    damage(small_run / METRICS, whole + content.replace(b"\n", b""))
    assert read_metrics(small_run) == expected


def set_value(values, path, text):
    """Replaces one value by JSON text, wherever it stands: "test.accuracy"."""
    *groups, name = path.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = f"@{text}@"


def with_value(values, path, text):
    """A copy of values as JSON in which the value at a path is the given JSON text."""
    values = json.loads(json.dumps(values))
    set_value(values, path, "here")
    return json.dumps(values).replace('"@here@"', text).encode()


# The fields of each file, with those of VALUES that are right there.
FIELDS = [
    *((workdir.DATASET, field, ()) for field in ("image_shape", "class_names", "mean", "std")),
    (workdir.DATASET, "num_images", ()),
    (workdir.DATASET, "num_images.train", ()),
    (workdir.DATASET, "num_images.other", ()),
    *(
        (workdir.DATASET, f"{split}_digest", ("null", '"x"', '"5"', '"nan"', '"\\ud800\\n\\u2028"'))
        for split in ("train", "validation", "test")
    ),
    *((METRICS, field, ()) for field in ("epoch", "step", "test", "validation")),
    *((METRICS, field, ("0", "-1", "1.5")) for field in ("loss", "seconds")),
    *((METRICS, f"test.{field}", ("0", "-1", "1.5")) for field in ("accuracy", "accuracy_member1")),
    (RESULTS, "prediction_temperatures.logits", ("1.5",)),
    *((workdir.CONFIG, field, ()) for field in ("method", "model.name", "mixmo.block")),
    (workdir.CONFIG, "model", ("{}",)),  # then all of it is as by default
    (workdir.CONFIG, "new", ()),
    (workdir.CONFIG, "num_epochs", (HUGE,)),
    (workdir.CONFIG, "batch_size", ()),
    (workdir.CONFIG, "model.width", ()),
    (workdir.CONFIG, "dataset.flip", ("true",)),
    (workdir.CONFIG, "dataset.mean", ("[]",)),
    (workdir.CONFIG, "optimizer.decay_epochs", ("[]", f"[{HUGE}]")),
    (workdir.CONFIG, "optimizer.learning_rate", ("1.5",)),
    (workdir.CONFIG, "mixmo.patch_prob", ("0",)),
    (workdir.CONFIG, "a\nb.c", ()),
]


@pytest.mark.parametrize(("name", "field", "right"), FIELDS, ids=lambda value: str(value)[:40])
def test_wrong_value_is_named(small_run, readers, damage, name, field, right):
    """Each field with each of the values; those that are right there are read."""
    file = small_run / name
    values = json.loads(file.read_text().splitlines()[0] if name == METRICS else file.read_text())
    damage(file, b"")
    for text in VALUES:
        file.write_bytes(with_value(values, field, text) + b"\n")
        if text in right:
            readers[name](small_run)
        else:
            with pytest.raises(InputError) as error:
                readers[name](small_run)
                pytest.fail(f"{field}={text[:40]} was read")
            check_message(error, name)


@pytest.mark.parametrize("name", [RESULTS, workdir.ENSEMBLE])
@pytest.mark.parametrize(
    "field", ["epoch", "epochs", "runs", "temperature", "prediction_temperatures"]
)
def test_results_are_read_or_named(small_run, readers, damage, name, field):
    file = small_run / name
    values = json.loads(file.read_text())
    values.setdefault("runs", [str(small_run.resolve()), os.path.realpath("other")])
    values.setdefault("epochs", [1, 1])
    damage(file, b"")
    for text in VALUES:
        file.write_bytes(with_value(values, field, text))
        try:
            temperature, _ = readers[name](small_run)
        except InputError as error:
            assert name in str(error) and len(str(error).splitlines()) == 1
        else:
            assert temperature is None or 0 < temperature < np.inf


def test_infinite_weight_root_is_json(small_run, damage):
    """As a text, since JSON has no infinity; files that have it all the same are read, too."""
    values = json.loads((small_run / workdir.CONFIG).read_text())
    damage(small_run / workdir.CONFIG, b"")
    for text in ('"inf"', "Infinity"):
        content = with_value(values, "mixmo.weight_root", text)
        (small_run / workdir.CONFIG).write_bytes(content)
        assert workdir.read_config(small_run).mixmo.weight_root == np.inf


COMMANDS = {
    "evaluate": lambda run: main.main(["", "--mode=evaluate", f"--workdir={run}"]),
    "predict": lambda run: predict.main(["", f"--workdir={run}", f"{run.parent}/image.png"]),
    "export": lambda run: export.main(["", f"--workdir={run}", f"--output={run.parent}/out"]),
    "train": lambda run: main.main(
        ["", "--config=digits", f"--workdir={run}"]
        + [f"--config.{field}" for field in ("num_epochs=1", "model.width=1", "batch_size=192")]
        + ["--config.batch_repetitions=1"]
        + ["--config.optimizer.warmup_steps=0", "--config.optimizer.learning_rate=0.1"]
    ),
}


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        *((command, workdir.CONFIG, "pipe") for command in COMMANDS),
        *((command, workdir.DATASET, b'{"mean": 1e400}') for command in COMMANDS),
        ("evaluate", METRICS, b'{"epoch": 1, "step": 7, "loss": 1, "seconds": null}\n'),
        ("train", METRICS, b'{"epoch": 1, "step": 7, "loss": 1, "seconds": 1, "test": 5}\n'),
        ("predict", RESULTS, b'{"temperature": 1' + 400 * b"0" + b"}"),
        ("export", RESULTS, 100_000 * b"["),
    ],
)
def test_commands_name_the_file_and_exit_with_2(full_run, damage, capfd, command, name, content):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(full_run.parent / "image.png")
    damage(full_run / name, content)
    assert COMMANDS[command](full_run) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and name in line


def test_unknown_user_in_a_path_is_no_defect(capfd):
    assert main.main(["", "--mode=evaluate", "--workdir=~nobody-of-this-name/run"]) == 2
    assert "~nobody-of-this-name/run" in capfd.readouterr().err


def test_images_larger_than_memory_are_not_made_to_load(full_run, damage):
    info = json.loads((full_run / workdir.DATASET).read_text())
    content = json.dumps({**info, "image_shape": [9999, 9999, 1]})
    damage(full_run / workdir.DATASET, content.encode())
    assert loading.load_run(full_run).image_shape == (9999, 9999, 1)


def test_epoch_without_a_step_is_named(full_run, damage):
    config = json.loads((full_run / workdir.CONFIG).read_text())
    damage(full_run / workdir.CONFIG, json.dumps({**config, "batch_size": 2**20}).encode())
    with pytest.raises(InputError, match="batch_size=1048576: expected at most 1437 with"):
        loading.load_run(full_run, allow_unfinished=True)


@pytest.mark.parametrize("content", [b"", 100_000 * b"[", b"\x93NUMPY"])
@pytest.mark.parametrize("name", ["meta.json", "train_labels.npy"])
def test_damaged_cache_is_built_anew(tmp_path, name, content):
    def build(arrays):
        arrays.create("train_labels", (3,), np.int32)[:] = 7

    for _ in range(2):
        arrays, _ = cache.load(tmp_path, "cache", {"a": "b"}, build)
        assert arrays["train_labels"].tolist() == [7, 7, 7]
        (tmp_path / "cache" / name).write_bytes(content)
