"""Configs: methods, checks, JSON."""

import json
import pathlib

import pytest

import mixmo_jax
from mixmo_jax import config as config_lib
from mixmo_jax.configs import common
from mixmo_jax.errors import InputError

CONFIGS = config_lib.config_names()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", common.METHODS)
def test_every_method_of_every_config_is_valid(name, method):
    config = mixmo_jax.get_config(f"{name}:{method}")
    assert config.method == method
    assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("vanilla", (1, 1, "linear", 2.0, 3.0, "none")),
        ("mixup", (1, 1, "linear", 2.0, 3.0, "mixup")),
        ("cutmix", (1, 1, "linear", 2.0, 3.0, "cutmix")),
        ("mimo", (2, 4, "linear", 0.0, 1.0, "none")),
        ("linear_mixmo", (2, 4, "linear", 2.0, 3.0, "none")),
        ("cut_mixmo", (2, 4, "cutmix", 2.0, 3.0, "none")),
        ("linear_mixmo+cutmix", (2, 4, "linear", 2.0, 3.0, "cutmix")),
        ("cut_mixmo+cutmix", (2, 4, "cutmix", 2.0, 3.0, "cutmix")),
    ],
)
def test_methods(method, expected):
    config = common.get_config(method)
    assert expected == (
        config.model.num_members,
        config.batch_repetitions,
        config.mixmo.block,
        config.mixmo.alpha,
        config.mixmo.weight_root,
        config.msda.method,
    )
    assert (config.mixmo.patch_prob, config.msda.prob, config.msda.beta) == (0.5, 0.5, 1.0)


def test_default_method():
    assert mixmo_jax.get_config("digits").method == "cut_mixmo"


def test_config_file_of_ones_own(tmp_path):
    """It may add fields, which survive JSON."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from mixmo_jax.configs import cifar10\n"
        "def get_config(method='mimo'):\n"
        "    config = cifar10.get_config(method)\n"
        "    config.num_epochs = 7\n"
        "    config.model.heads = 4\n"
        "    return config\n"
    )
    config = mixmo_jax.get_config(str(file))
    assert (config.method, config.num_epochs) == ("mimo", 7)
    assert mixmo_jax.get_config(f"{file}:vanilla").method == "vanilla"
    assert config_lib.from_json(config_lib.to_json(config)).model.heads == 4


def test_packaged_config_by_its_path_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mixmo_jax.get_config("configs/digits.py") == mixmo_jax.get_config("digits")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("num_epochs", 0),
        ("batch_size", 10),  # not a multiple of batch_repetitions=4
        ("batch_size", "4"),
        ("label_smoothing", 1.5),
        ("model.name", "vgg"),
        ("model.dtype", "int8"),
        ("model.num_members", 0),
        ("model.num_members", True),
        ("mixmo.block", "circles"),
        ("mixmo.alpha", -1.0),
        ("mixmo.alpha", float("nan")),
        ("mixmo.alpha", 1e-9),
        ("mixmo.weight_root", 0.0),
        ("mixmo.patch_prob", 1.01),
        ("mixmo.patch_prob_until", 1.0),
        ("msda.method", "channels"),  # cuts channels, not pixels
        ("msda.beta", 1e-9),
        ("dataset.name", "mnist2"),
        ("dataset.flip", 1),
        ("dataset.std", (0.2, 0, 0.2)),
        ("dataset.mean", ("a",)),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.decay_epochs", (20, 10)),
        ("evaluation.members", (2,)),
        ("evaluation.members", (0, 0)),
    ],
)
def test_values_that_would_break_training(field, value):
    config = common.get_config("cut_mixmo")
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError) as error:
        config_lib.check_config(config)
    assert str(error.value).startswith(f"{field}=") and "\n" not in str(error.value)


def test_values_at_the_limits():
    config = common.get_config("cut_mixmo")
    config.mixmo.alpha, config.mixmo.weight_root, config.mixmo.unmix_until = 0, float("inf"), 1
    config.optimizer.momentum = 1.0
    config_lib.check_config(config)
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.mixmo.weight_root == float("inf")
    config.optimizer.name = "adamw"
    with pytest.raises(InputError, match=r"optimizer.momentum=1.0: expected less than 1"):
        config_lib.check_config(config)


def test_configs_of_older_versions():
    """Fields were renamed, added and removed; lists are tuples."""
    fields = json.loads(config_lib.to_json(common.get_config("cut_mixmo")))
    fields["mixmo"]["prob"] = 0.25
    del fields["mixmo"]["patch_prob"], fields["mixmo"]["unmix"]
    fields["dataset"]["max_file_bytes"] = 2**28
    config = config_lib.from_json(json.dumps(fields))
    assert config.mixmo.patch_prob == 0.25 and config.mixmo.unmix is False
    assert "max_file_bytes" not in config.dataset
    assert config.optimizer.decay_epochs == (101, 201, 226)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"seed": -1}'])
def test_damaged_json_is_one_line(text):
    with pytest.raises(InputError) as error:
        config_lib.from_json(text)
    assert "\n" not in str(error.value)


def test_recorded_configs_are_readable():
    root = pathlib.Path(__file__).parent.parent / "experiments" / "results"
    files = sorted(root.rglob("config.json"))
    assert files
    for file in files:
        values = json.loads(file.read_text())
        for network in values.get("networks", [{"config": values}]):
            config_lib.from_json(json.dumps(network["config"]))
