"""The folder of a run."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.datasets import Split
from mixmo_jax.errors import InputError
from mixmo_jax.runs import plots, workdir


@pytest.fixture
def config():
    return config_lib.parse("digits")[1]


@pytest.fixture(scope="module")
def dataset():
    return datasets.load_dataset(config_lib.parse("digits")[1].dataset)


def open_checkpointed_run(folder, config, dataset):
    workdir.open_run(folder, config, dataset)
    (folder / workdir.CHECKPOINTS / "29").mkdir(parents=True)


def test_open_run_makes_the_folder_and_finds_it_again(tmp_path, config, dataset):
    folder = tmp_path / "a" / "b"
    workdir.open_run(folder, config, dataset)
    workdir.open_run(folder, config, dataset)
    assert workdir.read_config(folder) == config


@pytest.mark.parametrize("field", sorted(workdir.NEUTRAL_FIELDS))
def test_fields_that_may_change(tmp_path, config, dataset, field):
    open_checkpointed_run(tmp_path, config, dataset)
    value = config_lib.flatten(config)[field]
    other = "/elsewhere" if isinstance(value, str) else value + 1
    other = "host" if field == "dataset.placement" else other
    config.update_from_flattened_dict({field: other})
    workdir.open_run(tmp_path, config, dataset)
    assert config_lib.flatten(workdir.read_config(tmp_path))[field] == other != value


def test_fields_set_for_one_reading(tmp_path, config, dataset):
    workdir.open_run(tmp_path, config, dataset)
    moved = workdir.read_config(tmp_path, ["--config.dataset.data_dir=/elsewhere"])
    assert moved.dataset.data_dir == "/elsewhere"
    assert workdir.read_config(tmp_path) == config
    with pytest.raises(InputError, match=r"^seed: the config is that of the run; only .*data_dir"):
        workdir.read_config(tmp_path, ["--config.seed=1"])


def test_other_config_is_named(tmp_path, config, dataset):
    open_checkpointed_run(tmp_path, config, dataset)
    config.num_epochs = 19
    config.mixmo.alpha = 1.0
    message = r"another config: mixmo.alpha=2.0 \(now 1.0\), num_epochs=20 \(now 19\)"
    with pytest.raises(InputError, match=message):
        workdir.open_run(tmp_path, config, dataset)
    assert workdir.read_config(tmp_path).num_epochs == 20


def test_run_without_a_checkpoint_makes_room_for_another_config(tmp_path, config, dataset):
    workdir.open_run(tmp_path, config, dataset)
    (tmp_path / workdir.BEST / "5").mkdir(parents=True)
    config.num_epochs = 19
    other = dataset.replace(mean=(0.5,))
    workdir.open_run(tmp_path, config, other)
    assert workdir.read_config(tmp_path).num_epochs == 19
    assert workdir.read_dataset_info(tmp_path)["mean"] == (0.5,)
    assert not (tmp_path / workdir.BEST).exists()


def test_folder_with_something_else(tmp_path, config, dataset):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="expected a run or an empty folder"):
        workdir.open_run(tmp_path, config, dataset)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_written(tmp_path, config, dataset):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        workdir.open_run(file / "run", config, dataset)
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        workdir.open_run(file, config, dataset)
    assert file.read_text() == "x"


def test_run_of_an_older_version_is_read(tmp_path, config, dataset):
    """Fields that were renamed, and some that did not exist yet."""
    workdir.open_run(tmp_path, config, dataset)
    old = json.loads((tmp_path / workdir.CONFIG).read_text())
    mixmo = old["mixmo"]
    for name, new in {
        "prob": "patch_prob",
        "prob_until": "patch_prob_until",
        "root": "weight_root",
    }.items():
        mixmo[name] = mixmo.pop(new)
    mixmo["root"] = 2.5
    del old["input_repetition"], old["augment"]
    (tmp_path / workdir.CONFIG).write_text(json.dumps(old))
    config.mixmo.weight_root = 2.5
    assert workdir.read_config(tmp_path) == config


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"seed": 1}', b"\xff\xfe"])
def test_damaged_config(tmp_path, config, dataset, text):
    (tmp_path / workdir.CONFIG).write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json"):
        workdir.open_run(tmp_path, config, dataset)
    assert (tmp_path / workdir.CONFIG).read_bytes() == text


def test_statistics_of_the_data_are_kept(tmp_path, config, dataset):
    """A run is resumed and evaluated with the statistics it began with."""
    open_checkpointed_run(tmp_path, config, dataset)
    other = workdir.restore_statistics(tmp_path, dataset.replace(mean=(0.5,), std=(0.1,)))
    assert (other.mean, other.std) == (dataset.mean, dataset.std)


def test_other_data_are_refused(tmp_path, config, dataset):
    open_checkpointed_run(tmp_path, config, dataset)
    with pytest.raises(InputError, match="began with data of another class_names"):
        workdir.restore_statistics(tmp_path, dataset.replace(class_names=("a", "b")))
    permuted = dataset.replace(class_names=dataset.class_names[::-1])
    with pytest.raises(InputError, match="began with the same classes in another order"):
        workdir.restore_statistics(tmp_path, permuted)
    larger = dataset.train.replace(images=dataset.train.images.repeat(2, axis=1))
    with pytest.raises(InputError, match="began with data of another image_shape"):
        workdir.restore_statistics(tmp_path, dataset.replace(train=larger))


@pytest.mark.parametrize(
    "fields",
    [
        {"mean": ["x"]},
        {"mean": 1},
        {"std": []},
        {"image_shape": [8]},
        {"image_shape": [8, 8, 3]},
        {"num_images": None},
        {"num_images": {}},
    ],
)
def test_wrong_dataset_info(tmp_path, config, dataset, fields):
    workdir.open_run(tmp_path, config, dataset)
    info = json.loads((tmp_path / workdir.DATASET).read_text())
    (tmp_path / workdir.DATASET).write_text(json.dumps({**info, **fields}))
    with pytest.raises(InputError, match=r"dataset\.json: damaged"):
        workdir.read_dataset_info(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"mean": 1}'])
def test_damaged_dataset_info(tmp_path, dataset, text):
    (tmp_path / workdir.CHECKPOINTS / "29").mkdir(parents=True)
    (tmp_path / workdir.DATASET).write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json: damaged"):
        workdir.restore_statistics(tmp_path, dataset)


def test_other_test_images_are_warned_of(tmp_path, config, dataset, capsys):
    """As where images were added and removed; the run keeps what it began with."""
    open_checkpointed_run(tmp_path, config, dataset)
    before = (tmp_path / workdir.DATASET).read_text()
    assert workdir.restore_statistics(tmp_path, dataset) == dataset
    assert capsys.readouterr().err == ""
    other = dataset.replace(test=dataset.train.subset(np.arange(360)))
    assert workdir.restore_statistics(tmp_path, other).test is other.test
    assert "its run began with other test images" in capsys.readouterr().err
    workdir.open_run(tmp_path, config, other)
    assert (tmp_path / workdir.DATASET).read_text() == before
    relabeled = Split(dataset.train.images, np.roll(dataset.train.labels, 1))
    workdir.restore_statistics(tmp_path, dataset.replace(train=relabeled))
    assert "its run began with other train images or labels" in capsys.readouterr().err


def test_class_names_are_no_formulas():
    figure = Figure()
    plots._show(figure.add_subplot(), np.zeros((8, 8, 3)), "$$: 0.60\n$%_$: 0.40")
    figure.canvas.draw()


def test_more_images_than_at_the_start_are_refused(tmp_path, config, dataset):
    open_checkpointed_run(tmp_path, config, dataset)
    fewer = dataset.replace(test=dataset.test.subset(np.arange(90)))
    message = "began with 1,437 train, 360 test images, now 1,437 train, 90 test"
    with pytest.raises(InputError, match=message):
        workdir.restore_statistics(tmp_path, fewer)
