"""The folder of a run: what it takes, keeps and refuses."""

import json

import numpy as np
import pytest
from setups import tiny_config

from mixmo_jax.config import flatten
from mixmo_jax.datasets import Split, load_dataset
from mixmo_jax.errors import InputError
from mixmo_jax.runs.workdir import CONFIG, DATASET, METRICS, NEUTRAL_FIELDS, Workdir


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny_config().dataset)


@pytest.fixture
def workdir(tmp_path, config, dataset):
    """A run that has reached a checkpoint."""
    workdir = Workdir(tmp_path / "run")
    workdir.open(config, dataset)
    (workdir.checkpoint_dir / "29").mkdir(parents=True)
    return workdir


def test_open_creates_the_folder_and_finds_it_again(tmp_path, config, dataset):
    workdir = Workdir(tmp_path / "a" / "b")
    workdir.open(config, dataset)
    workdir.open(config, dataset)
    assert workdir.read_config() == config


@pytest.mark.parametrize("field", sorted(NEUTRAL_FIELDS))
def test_fields_that_may_change(workdir, config, dataset, field):
    value = flatten(config)[field]
    other = "/elsewhere" if isinstance(value, str) else value + 1
    other = "host" if field == "dataset.placement" else other
    config.update_from_flattened_dict({field: other})
    workdir.open(config, dataset)
    assert flatten(workdir.read_config())[field] == other != value


def test_fields_overridden_for_one_reading(workdir, config):
    moved = workdir.read_config({"dataset.data_dir": "/elsewhere"})
    assert moved.dataset.data_dir == "/elsewhere"
    assert workdir.read_config() == config
    with pytest.raises(InputError, match=r"^seed: .*data_dir"):
        workdir.read_config({"seed": 1})


def test_other_config_is_named_with_a_free_folder(workdir, config, dataset):
    config.num_epochs = 2
    config.mixmo.alpha = 1.0
    with pytest.raises(InputError) as error:
        workdir.open(config, dataset)
    for part in ("mixmo.alpha=2.0 (now 1.0)", "num_epochs=3 (now 2)", f"{workdir.path}-2"):
        assert part in str(error.value)
    assert workdir.read_config().num_epochs == 3


def test_run_without_a_checkpoint_makes_room(tmp_path, config, dataset):
    workdir = Workdir(tmp_path)
    workdir.open(config, dataset)
    config.num_epochs = 2
    workdir.open(config, dataset.replace(mean=(0.5,)))
    assert workdir.read_config().num_epochs == 2
    assert workdir.read_dataset_info()["mean"] == (0.5,)


def test_folder_with_something_else(tmp_path, config, dataset):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="expected a run or an empty folder"):
        Workdir(tmp_path).open(config, dataset)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_written(tmp_path, config, dataset):
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file / "run", file):
        with pytest.raises(InputError, match="Not a directory"):
            Workdir(path).open(config, dataset)
    assert file.read_text() == "x"


@pytest.mark.parametrize("name", [CONFIG, DATASET, METRICS])
@pytest.mark.parametrize("content", [b"\n", b"[]\n", b'{"mean": 1\n', b"\xff\xfe\n"])
def test_damaged_files_are_one_line(workdir, name, content):
    (workdir.path / name).write_bytes(content)
    read = {
        CONFIG: workdir.read_config,
        DATASET: workdir.read_dataset_info,
        METRICS: workdir.read_metrics,
    }[name]
    if name == METRICS and content == b"[]\n":
        return  # a line that is JSON
    with pytest.raises(InputError, match=name) as error:
        read()
    assert "\n" not in str(error.value)
    assert (workdir.path / name).read_bytes() == content


def test_last_line_of_the_metrics_may_be_cut_off(workdir):
    lines = [json.dumps({"epoch": epoch, "loss": "nan"}) for epoch in (1, 2)]
    (workdir.path / METRICS).write_text("\n".join(lines)[:-3])
    (first,) = workdir.read_metrics()
    assert first["epoch"] == 1 and np.isnan(first["loss"])


def test_writers_discard_later_epochs(workdir):
    def metrics(epoch):
        return {"epoch": epoch, "step": 5 * epoch, "loss": 1.0, "test": {"ratio_error": np.inf}}

    for start in (0, 1):
        for writer in workdir.metric_writers():
            writer.start([metrics(epoch) for epoch in range(1, start + 1)])
            for epoch in range(start + 1, 4):
                writer.write(metrics(epoch))
            writer.close()
    assert workdir.read_metrics() == [metrics(epoch) for epoch in (1, 2, 3)]
    assert len(list(workdir.path.glob("events.out.tfevents.*"))) >= 1


def test_statistics_are_those_that_the_run_began_with(workdir, dataset):
    other = workdir.restore_statistics(dataset.replace(mean=(0.5,), std=(0.1,)))
    assert (other.mean, other.std) == (dataset.mean, dataset.std)


def test_other_data_are_refused(workdir, dataset):
    larger = dataset.train.replace(images=dataset.train.images.repeat(2, axis=1))
    fewer = dataset.test.subset(np.arange(90))
    for other, message in (
        (dataset.replace(class_names=("a", "b")), "class_names="),
        (dataset.replace(class_names=dataset.class_names[::-1]), "in another order"),
        (dataset.replace(train=larger), "image_shape="),
        (dataset.replace(test=fewer), "num_images="),
    ):
        with pytest.raises(InputError, match=message):
            workdir.restore_statistics(other)


def test_other_images_are_warned_of(workdir, config, dataset, capsys):
    before = (workdir.path / DATASET).read_text()
    workdir.restore_statistics(dataset)
    assert capsys.readouterr().err == ""
    other = dataset.replace(test=dataset.train.subset(np.arange(360)))
    assert workdir.restore_statistics(other).test is other.test
    assert "its run began with other test images" in capsys.readouterr().err
    workdir.open(config, other)
    assert (workdir.path / DATASET).read_text() == before
    relabeled = Split(dataset.train.images, np.roll(dataset.train.labels, 1))
    workdir.restore_statistics(dataset.replace(train=relabeled))
    assert "its run began with other train images or labels" in capsys.readouterr().err
    with pytest.raises(InputError, match="other train images or labels"):
        workdir.restore_statistics(dataset.replace(train=relabeled), exact=True)
