"""The folder of a run."""

import json

import pytest

from mixmo_jax import config as config_lib
from mixmo_jax import workdir
from mixmo_jax.errors import InputError


@pytest.fixture
def config():
    return config_lib.parse("digits")[1]


def test_open_run_makes_the_folder_and_finds_it_again(tmp_path, config):
    folder = tmp_path / "a" / "b"
    workdir.open_run(folder, config)
    workdir.open_run(folder, config)
    assert workdir.read_config(folder) == config


@pytest.mark.parametrize("field", ["dataset.data_dir", "steps_per_call", "checkpoint_every_epochs"])
def test_fields_that_may_change(tmp_path, config, field):
    workdir.open_run(tmp_path, config)
    value = "elsewhere" if field == "dataset.data_dir" else 7
    config.update_from_flattened_dict({field: value})
    workdir.open_run(tmp_path, config)
    assert workdir.read_config(tmp_path) == config


def test_other_config_is_named(tmp_path, config):
    workdir.open_run(tmp_path, config)
    config.num_epochs = 21
    config.mixmo.alpha = 1.0
    message = r"another config: mixmo.alpha=2.0 \(now 1.0\), num_epochs=20 \(now 21\)"
    with pytest.raises(InputError, match=message):
        workdir.open_run(tmp_path, config)
    assert workdir.read_config(tmp_path).num_epochs == 20


def test_folder_with_something_else(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="expected a run or an empty folder"):
        workdir.open_run(tmp_path, config)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_written(tmp_path, config):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        workdir.open_run(file / "run", config)
    with pytest.raises(InputError, match="cannot be written"):
        workdir.open_run(file, config)
    assert file.read_text() == "x"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"seed": 1}'])
def test_damaged_config(tmp_path, config, text):
    (tmp_path / workdir.CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        workdir.open_run(tmp_path, config)
    assert (tmp_path / workdir.CONFIG).read_text() == text


def test_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    with workdir.MetricsLog(tmp_path, 0) as log:
        for epoch in (1, 2, 3):
            log.write({"epoch": epoch, "step": 10 * epoch, "loss": float(epoch)})
    with workdir.MetricsLog(tmp_path, 2) as log:
        log.write({"epoch": 3, "step": 30, "loss": 0.5})
    losses = [line["loss"] for line in workdir.read_metrics(tmp_path)]
    assert losses == [1.0, 2.0, 0.5]


def test_results_are_valid_json(tmp_path):
    """Infinities and NaN, which JSON lacks, become null."""
    workdir.write_results(tmp_path, {"scores": {"ratio_error": float("inf"), "nll": 0.5}})
    text = (tmp_path / workdir.RESULTS).read_text()
    assert json.loads(text) == {"scores": {"ratio_error": None, "nll": 0.5}}
    assert [f.name for f in tmp_path.iterdir()] == [workdir.RESULTS]
