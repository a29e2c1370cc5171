"""Configs: methods, overrides, and what is refused."""

import json

import pytest

from mixmo_jax import config as config_lib
from mixmo_jax.configs import common
from mixmo_jax.errors import InputError

CONFIGS = config_lib.names()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", common.METHODS)
def test_every_method_of_every_config_is_valid(name, method):
    stem, config = config_lib.parse(f"{name}:{method}")
    assert (stem, config.method) == (name, method)


def test_default_method():
    config = config_lib.parse("digits")[1]
    assert (config.method, config.model.num_members, config.mixmo.block) == (
        "cut_mixmo",
        2,
        "cutmix",
    )


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


def test_overrides():
    config = config_lib.parse(
        "cifar100:vanilla",
        [
            "--config.seed=3",
            "--config.optimizer.decay_epochs=10,20",
            "--noconfig.dataset.flip",
            "--config.model.dtype=float32",
        ],
    )[1]
    assert config.seed == 3
    assert config.optimizer.decay_epochs == (10, 20)
    assert config.dataset.flip is False
    assert config.model.dtype == "float32"


def test_config_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from mixmo_jax.configs import cifar10\n"
        "def get_config(method='mimo'):\n"
        "    config = cifar10.get_config(method)\n"
        "    config.num_epochs = 7\n"
        "    return config\n"
    )
    name, config = config_lib.parse(str(file))
    assert (name, config.method, config.num_epochs) == ("mine", "mimo", 7)


def test_config_file_may_define_dataclasses(tmp_path):
    """With postponed annotations, dataclasses look for their module."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from mixmo_jax.configs.digits import get_config\n"
        "@dataclasses.dataclass\n"
        "class A:\n"
        "    x: dataclasses.InitVar[int] = 3\n"
    )
    assert config_lib.parse(str(tmp_path / "mine.py"))[1].method == "cut_mixmo"


def test_packaged_config_by_its_path_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_lib.parse("configs/digits.py")[1] == config_lib.parse("digits")[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_json_round_trip(name):
    config = config_lib.parse(name)[1]
    assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_members=0", r"model.num_members=0: expected an integer >= 1"),
        ("model.num_members=two", r"model.num_members=two: expected an integer >= 1"),
        ("model.name=vgg", r"model.name='vgg': expected one of wide_resnet, preact_resnet"),
        ("model.dtype=int8", r"model.dtype='int8': expected one of auto"),
        ("seed=-1", r"seed=-1: expected an integer from 0"),
        ("num_epochs=1.5", r"num_epochs=1.5: expected an integer >= 1"),
        ("mixmo.alpha=-1", r"mixmo.alpha=-1.0: expected 0, or a number from 0.001"),
        ("mixmo.alpha=nan", r"mixmo.alpha=nan: expected 0, or a number from 0.001"),
        ("mixmo.alpha=1e-9", r"mixmo.alpha=1e-09: expected 0, or a number from 0.001"),
        ("msda.beta=1e-9", r"msda.beta=1e-09: expected a number from 0.001 to 1e"),
        ("mixmo.weight_root=0", r"mixmo.weight_root=0.0: expected a number > 0"),
        ("mixmo.patch_prob=1.01", r"mixmo.patch_prob=1.01: expected a number from 0 to 1"),
        ("dataset.std=0.2,0,0.2", r"dataset.std=.*: expected a tuple of numbers > 0"),
        ("dataset.mean=a,b,c", r"dataset.mean=.*: expected a tuple of numbers"),
        ("dataset.flip=perhaps", r"dataset.flip=perhaps: expected True or False"),
        ("optimizer.decay_epochs=20,10", r"decay_epochs=\(20, 10\): expected epochs in rising"),
        ("optimizer.learning_rate=inf", r"learning_rate=inf: expected a number > 0"),
        ("batch_size=10", r"batch_size=10: expected a multiple of batch_repetitions=4"),
        ("dataset.mean=a,b,c", r"expected a tuple of numbers$"),
        ("mixmo.patch_prob_until=1", r"mixmo.patch_prob_until=1.0: expected a number >= 0 and < 1"),
        ("method=cutmix", r"^method: cannot be set alone; choose it by --config=FILE:METHOD"),
        ("num_epoch=3", r"num_epoch: no such config field; did you mean num_epochs"),
        ("model.widht=3", r"model.widht: no such config field; did you mean model.width"),
        ("model=3", r"model: no such config field"),
        ("seed", r"Missing value for seed"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(InputError, match=message) as error:
        config_lib.parse("digits", [f"--config.{override}"])
    assert "\n" not in str(error.value)


def test_momentum_of_1_is_for_sgd_only():
    fields = ["--config.optimizer.momentum=1.0", "--config.optimizer.name=adamw"]
    config_lib.parse("digits", fields[:1])
    with pytest.raises(InputError, match=r"optimizer.momentum=1.0: expected less than 1 for adamw"):
        config_lib.parse("digits", fields)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py", "config=nowhere.py: no such file; the package has cifar10, cifar100"),
        ("digits:mixmoo", "method='mixmoo': expected one of vanilla, mixup"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(InputError, match=message):
        config_lib.parse(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = ", "SyntaxError"),
        ("x = 1", "expected a function get_config"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named"),
        ("def get_config(): return 3", "get_config returned int"),
        (
            "from mixmo_jax.configs import common\n"
            "def get_config():\n"
            "    c = common.get_config(); c.unlock(); c.new = 1; return c",
            "new: no such config field",
        ),
        (
            "from mixmo_jax.configs import common\n"
            "def get_config():\n"
            "    c = common.get_config(); c.unlock(); del c.seed; return c",
            "seed: missing, expected an integer from 0",
        ),
    ],
)
def test_broken_config_files(tmp_path, code, message):
    file = tmp_path / "broken.py"
    file.write_text(code)
    with pytest.raises(InputError, match=message) as error:
        config_lib.parse(str(file))
    assert "\n" not in str(error.value)


def test_what_the_code_of_a_config_raises_is_not_about_its_file(tmp_path):
    (tmp_path / "mine.py").write_text("open('missing.txt')")
    with pytest.raises(FileNotFoundError) as error:
        config_lib.parse(str(tmp_path / "mine.py"))
    assert error.value.filename == "missing.txt"


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"seed": "x"}'])
def test_broken_json(text):
    with pytest.raises(InputError):
        config_lib.from_json(text)


def test_whole_numbers_are_numbers_but_not_booleans():
    config = common.get_config()
    config.mixmo.alpha = 1  # an int where a float is usual
    config_lib.check(config)
    config = config_lib.from_json(config_lib.to_json(config).replace('"seed": 0', '"seed": 1'))
    assert config.seed == 1
    with pytest.raises(InputError, match="seed=True"):
        config_lib.from_json(config_lib.to_json(config).replace('"seed": 1', '"seed": true'))


def test_fields_that_an_older_version_did_not_write():
    _, config = config_lib.parse("digits:mimo", ["--config.mixmo.patch_prob=0.7"])
    fields = json.loads(config_lib.to_json(config))
    del fields["mixmo"]["patch_prob_until"], fields["evaluation"]
    assert config_lib.from_json(json.dumps(fields)) == config


def test_a_colon_in_a_path(tmp_path):
    file = tmp_path / "a:b" / "mine.py"
    file.parent.mkdir()
    file.write_text("from mixmo_jax.configs.digits import get_config")
    assert config_lib.parse(str(file))[1].method == "cut_mixmo"
    name, config = config_lib.parse(f"{file}:mimo")
    assert (name, config.method) == ("mine", "mimo")


def test_defects_of_a_config_file_keep_their_traceback(tmp_path):
    """It is the code of its author, who wants to know the line."""
    (tmp_path / "defect.py").write_text("def get_config(): return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        config_lib.parse(str(tmp_path / "defect.py"))


def test_paths_of_the_data_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, config = config_lib.parse("cifar10", ["--config.dataset.data_dir=data"])
    assert config.dataset.data_dir == str(tmp_path / "data")
    assert config.dataset.cache_dir == ""
