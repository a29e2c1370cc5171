"""The metrics of each epoch in the files of a run and elsewhere; the final results."""

import csv
import json
import sys
import types

import pytest
from tiny import EXAMPLE

from mixmo_jax.errors import InputError, execute_module, read_json
from mixmo_jax.runs import metric_writer


def line(epoch, **others):
    return {"epoch": epoch, "step": 10 * epoch, "loss": float(epoch), "seconds": 1.0, **others}


def write(folder, epochs_done, *lines):
    """Writes some epochs as a run does that resumes after others."""
    writers = metric_writer.create_writers(folder)
    with metric_writer.started(writers, metric_writer.read_done(folder, epochs_done)):
        for epoch_metrics in lines:
            for writer in writers:
                writer.write(epoch_metrics)


def read_csv(folder):
    with (folder / metric_writer.CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_beyond_the_checkpoint_are_discarded(tmp_path):
    write(tmp_path, 0, line(1), line(2), line(3))
    write(tmp_path, 2, line(3, loss=0.5))
    losses = [line["loss"] for line in metric_writer.read_metrics(tmp_path)]
    assert losses == [1.0, 2.0, 0.5]
    assert [float(row["loss"]) for row in read_csv(tmp_path)] == losses


def test_csv_has_a_column_for_every_number(tmp_path):
    """Also for those that only later epochs have, before a resume and after it."""
    scores = {"test": {"accuracy": 0.25, "auroc": float("nan")}}
    columns = ["epoch", "step", "loss", "seconds"]
    for epoch, others, added in (
        (1, {}, []),
        (2, scores, ["test/accuracy", "test/auroc"]),
        (3, {}, []),
        (4, {"ema_test": {"accuracy": float("inf")}}, ["ema_test/accuracy"]),
    ):
        write(tmp_path, epoch - 1, line(epoch, **others))
        columns += added
        rows = read_csv(tmp_path)
        assert [list(row) for row in rows] == epoch * [columns]
    whole, at_once = (tmp_path / metric_writer.CSV).read_text(), tmp_path / "at_once"
    assert [row["test/auroc"] for row in rows] == ["", "nan", "", ""]
    assert [row["ema_test/accuracy"] for row in rows] == ["", "", "", "inf"]
    at_once.mkdir()
    write(at_once, 0, *metric_writer.read_done(tmp_path, 4))
    assert (at_once / metric_writer.CSV).read_text() == whole


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    write(tmp_path, 0, line(1), line(2))
    file = tmp_path / metric_writer.METRICS
    text = file.read_text()
    file.write_text(text[:-20])
    assert [line["epoch"] for line in metric_writer.read_metrics(tmp_path)] == [1]
    write(tmp_path, 1, line(2))
    assert file.read_text() == text
    wrong = '{"epoch": "x", "step": 1, "loss": 1.0, "seconds": 1.0}\n'
    for damage in (text[20:], "{}\n", "5\n", "\0\n", wrong):
        file.write_text(damage)
        with pytest.raises(InputError, match=r"metrics\.jsonl: damaged"):
            metric_writer.read_metrics(tmp_path)
    file.write_text(json.dumps(line(1, test={"accuracy": 1.0, "nll": "x"})) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: damaged"):
        metric_writer.read_done(tmp_path, 1)


@pytest.mark.parametrize("name", [metric_writer.METRICS, metric_writer.CSV])
def test_file_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    writer = {
        metric_writer.METRICS: metric_writer.JsonLinesWriter,
        metric_writer.CSV: metric_writer.CsvWriter,
    }[name](tmp_path)
    with pytest.raises(InputError, match=rf"{name}: cannot be written: Is a directory"):
        writer.start([])


def test_writers_are_closed_if_one_fails():
    calls = []

    class Writer:
        def __init__(self, name):
            self.name = name

        def start(self, epochs):
            calls.append(f"start {self.name}")
            if self.name == "c":
                raise OSError

        def close(self):
            calls.append(f"close {self.name}")
            if self.name == "b":
                raise OSError

    with pytest.raises(OSError), metric_writer.started([Writer(name) for name in "abc"], []):
        calls.append("never")
    assert calls == ["start a", "start b", "start c", "close b", "close a"]


def test_results_are_valid_json(tmp_path):
    """Infinities and NaN, which JSON lacks, are texts that `float` reads back."""
    numbers = {"ratio_error": float("inf"), "auroc": float("nan"), "low": -float("inf")}
    results = {"scores": {**numbers, "nll": 0.5}}
    metric_writer.write_results(tmp_path, results, step=3)
    expected = {"scores": {"ratio_error": "inf", "auroc": "nan", "low": "-inf", "nll": 0.5}}
    assert json.loads((tmp_path / metric_writer.RESULTS).read_text()) == expected
    assert read_json(tmp_path / metric_writer.RESULTS) == expected
    events, results = sorted(f.name for f in tmp_path.iterdir())
    assert events.startswith("events.out.tfevents")
    assert results == metric_writer.RESULTS


def test_example_of_the_documentation(monkeypatch):
    """With a stand-in for the package that it imports."""
    logged = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: logged.append("finished"),
    )
    wandb = types.SimpleNamespace(init=lambda **options: logged.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    module = execute_module(EXAMPLE.with_name("wandb_writer.py"))
    writer = module.WandbWriter(project="mixmo")
    with metric_writer.started([writer], []):
        writer.write(line(1))
    assert logged == [{"project": "mixmo"}, (1, line(1)), "finished"]
