"""The command line, as a user meets it."""

import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import termios
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from mixmo_jax import config as config_lib
from mixmo_jax import errors, metrics
from mixmo_jax.main import main
from mixmo_jax.runs.metric_writer import read_metrics

QUICK = [
    "--config=configs/digits.py",
    "--config.num_epochs=2",
    "--config.model.name=tiny",
    "--config.batch_size=192",
    f"--plugin={pathlib.Path(__file__).with_name('tiny.py')}",
]


def read_events(folder: pathlib.Path) -> dict[str, list[float]]:
    """The scalars of the TensorBoard events (TFRecords) in a folder, by name."""
    scalars = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, position = file.read_bytes(), 0
        while position < len(data):  # length (8 bytes), its checksum (4), event, its checksum (4)
            length = int.from_bytes(data[position : position + 8], "little")
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append(value.simple_value)
    return scalars


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run made in a process of its own, on a pseudo terminal; and what it showed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 150))
    process = subprocess.Popen(
        [sys.executable, "-m", "mixmo_jax.main", *QUICK, f"--workdir={folder}"],
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, shown.decode()
    return folder, output.decode(), shown.decode()


def test_run_leaves_everything_in_its_folder(finished_run):
    folder, _, _ = finished_run
    assert json.loads((folder / "config.json").read_text())["num_epochs"] == 2
    lines = read_metrics(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["step"] == 2 * (1437 * 4 // 192)
    results = json.loads((folder / "results.json").read_text())
    assert results["test_images"] == 360
    assert results["scores"] == pytest.approx(lines[-1]["test"], rel=1e-5)
    assert sorted(int(f.name) for f in (folder / "checkpoints").iterdir()) == [29, 58]
    assert results["environment"]["jax"] == jax.__version__
    assert results["environment"]["xla_flags"] == os.environ.get("XLA_FLAGS")
    assert results["training_seconds"] == sum(line["seconds"] for line in lines)
    with np.load(folder / "logits.npz") as arrays:
        assert metrics.ensemble_metrics(arrays["logits"], arrays["labels"]) == results["scores"]
    events = read_events(folder)
    assert events["loss"] == pytest.approx([line["loss"] for line in lines])
    assert events["test/nll"] == pytest.approx([line["test"]["nll"] for line in lines])
    for picture in ("learning_curves", "reliability", "training_inputs"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_terminal_shows_a_bar_and_the_table(finished_run):
    _, output, shown = finished_run
    for part in ("img/s", "loss ", "lr ", "<", "test "):
        assert part in shown, shown
    assert "epoch 1/2" not in output  # the bar stands for the epochs' lines
    for name in ("accuracy", "top5 accuracy", "accuracy member0", "nll", "ece", "ratio error"):
        assert f"  {name} " in output


def test_finished_run_is_found_finished(finished_run, capsys):
    folder, _, _ = finished_run
    before = (folder / "results.json").read_text()
    assert main(["", *QUICK, f"--workdir={folder}"]) == 0
    output = capsys.readouterr().out
    assert f"{folder} is finished (epoch 2)" in output
    assert "accuracy member1" in output
    assert (folder / "results.json").read_text() == before


def test_evaluate_mode_needs_only_the_folder(finished_run, capsys):
    folder, _, _ = finished_run
    before = (folder / "results.json").read_text()
    (folder / "results.json").unlink()
    assert main(["", "--mode=evaluate", f"--workdir={folder}"]) == 0
    assert "360 test images, epoch 2 (of 2)" in capsys.readouterr().out
    assert (folder / "results.json").read_text() == before


def test_evaluation_finds_what_cannot_be_written(finished_run, capsys, monkeypatch):
    """The scores are shown all the same."""
    folder, _, _ = finished_run

    def refuse(file, *arguments):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("mixmo_jax.runs.plots.reliability_diagram", refuse)
    assert main(["", "--mode=evaluate", f"--workdir={folder}"]) == 2
    captured = capsys.readouterr()
    assert "accuracy member1" in captured.out
    assert captured.err == f"error: {folder / 'reliability.png'}: Permission denied\n"


def test_other_config_in_the_folder_is_refused(finished_run, capsys):
    folder, _, _ = finished_run
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.name != ".lock"}
    assert main(["", *QUICK, "--config.seed=1", f"--workdir={folder}"]) == 2
    message = capsys.readouterr().err
    assert "holds a run of another config: seed=0 (now 1)" in message
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_epoch_lines_without_a_terminal_and_the_default_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["", *QUICK, "--config.seed", "5"]) == 0
    captured = capsys.readouterr()
    assert "epoch 1/2  loss" in captured.out
    assert "images/s" in captured.out
    folder = pathlib.Path("runs", "digits-cut_mixmo-s5")
    assert f"results in {folder}/results.json; pictures: learning_curves.png, " in captured.out
    assert captured.err.startswith("warning: the learning rate rises for 88 steps, and the run has")
    assert captured.err.count("\n") == 1
    assert (tmp_path / folder / "results.json").exists()


def test_run_of_one_epoch_is_told_that_it_never_mixes_by_patches(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mixmo_jax.train.Trainer.train", stop)
    flags = [flag for flag in QUICK if "epochs" not in flag]
    assert main(["", *flags, "--config.num_epochs=1", f"--workdir={tmp_path}/run"]) == 130
    assert "a run of one epoch never mixes by patches\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "config: missing; for example --config=digits"),
        (["--config=nope"], "config=nope: no such file"),
        (["--config=digits:nope"], "method='nope': expected one of vanilla"),
        (["--config=digits", "--config.model.depth=11"], "model.depth=11: expected 6n + 4"),
        (["--config=digits", "--config.model.num_members=0"], "model.num_members=0: expected"),
        (["--config=digits", "--config.batch_size=30"], "batch_size=30: expected a multiple of"),
        (["--config=digits", "--config.seeed=3"], "seeed: no such config field; did you mean seed"),
        (["--config=digits", "--mod=train"], "--mod=train: no such flag; did you mean --mode"),
        (["--config=digits", "--mode=test"], "should be one of <train|evaluate>"),
        (["--config=digits", "--method=mimo"], "a method is chosen by --config=FILE:METHOD"),
        (["--config=digits", "--seed=1"], "--seed=1: no such flag; did you mean --config.seed?"),
        (["--config=digits", "--depth", "10"], "did you mean --config.model.depth?"),
        (["--config=digits", "--cfg.optimizer.momentum=0"], "mean --config.optimizer.momentum?"),
        (["--config=digits", "--config.lr=1"], "did you mean optimizer.learning_rate?"),
        (["--config=digits", "--lr=1"], "did you mean --config.optimizer.learning_rate?"),
        (["--config=digits", "--epochs=1"], "did you mean --config.num_epochs?"),
        (["--config=digits", "--config.epochs=1"], "did you mean num_epochs?"),
        (["--config=digits", "--config.optimizer.beta=0"], "optimizer has name, schedule, "),
        (["--config=digits", "--config.optimizer.name=adam"], "expected one of sgd, adamw"),
        (["--config=digits", "--config.xyz=1"], "xyz: no such config field; see configs/common"),
        (["--config=digits", "--workdir=a", "--workdir=b"], "--workdir: given 2 times"),
        (["--config=digits", "--config.seed=1", "--config.seed=1"], "config.seed: given 2 times"),
        (["--config=digits", "--config.mixmo.block=cows"], "mixmo.block='cows': expected one of l"),
        (["--config=digits", "--config.msda.method=cows"], "msda.method='cows': expected one of n"),
        (["--config=digits", "--config.model.name=vit"], "model.name='vit': expected one of wid"),
        (["--config=digits", "--config.dataset.name=x"], "dataset.name='x': expected one of di"),
        (["--config=digits", "--ensemble=logits"], "ensemble: only with --mode=evaluate"),
        (["--config=digits", "--plugin=nothing.py"], "plugin=nothing.py: expected a Python file"),
        (["--mode=evaluate", "--workdir=,"], "workdir: missing"),
        ([f"--config={'a' * 300}"], ": File name too long"),
        (["--config=digits", "stray"], "stray: no such flag"),
        (["--mode=evaluate"], "workdir: missing"),
        (["--mode=evaluate", "--config=digits", "--workdir=x"], "config: --mode=evaluate takes it"),
        (["--mode=evaluate", "--workdir=x"], "workdir=x: holds no run"),
        (["--config=digits", "--config.dataset.mean=0.1,0.2"], "dataset.mean=(0.1, 0.2): expected"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_on_the_real_command_line(tmp_path):
    """The package is a command, the same as its module `main`."""
    command = [sys.executable, "-m", "mixmo_jax", "--config=digits", "--config.model.depth=12"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.depth=12: expected 6n + 4 for a Wide ResNet")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_one_line_and_status_1(tmp_path, capsys):
    command = [*QUICK, "--config.optimizer.learning_rate=1e30", f"--workdir={tmp_path}/run"]
    assert main(["", *command]) == 1
    assert "a lower optimizer.learning_rate than 1e+30 may help" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_flags_methods_configs_and_fields(flag, capsys):
    assert main(["", flag]) == 0
    shown = capsys.readouterr().out
    for part in ("--workdir", "--plugin", "cut_mixmo+cutmix", "tiny_imagenet", "mixmo.alpha = 2.0"):
        assert part in shown
    fields = re.findall(r"^  ([\w.]+) = ", shown, re.MULTILINE)
    assert set(fields) == set(config_lib.field_names()) - {"method"}


def test_defective_jaxlib_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr("jaxlib.__version__", "0.10.2")
    assert main(["", "--config=nope"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: jaxlib 0.10.2 computes wrong results on CPU")
    assert error.startswith("error: config=nope")


def test_interrupted(monkeypatch, capsys):
    def interrupt(*_, signals):
        assert not signals._own_process  # which a second signal would end
        raise KeyboardInterrupt

    monkeypatch.setattr("mixmo_jax.train.train", interrupt)
    assert main(["", "--config=digits"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_compilation_cache_is_used_unless_jax_has_one(tmp_path, monkeypatch, capsys):
    from mixmo_jax import distributed

    config = types.SimpleNamespace(jax_compilation_cache_dir="taken", update=None)
    monkeypatch.setattr(jax, "config", config)
    distributed.use_compilation_cache(str(tmp_path / "cache"))
    config.jax_compilation_cache_dir = None
    distributed.use_compilation_cache("")
    assert list(tmp_path.iterdir()) == []
    set_to = {}
    config.update = set_to.__setitem__
    distributed.use_compilation_cache(str(tmp_path / "cache"))
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "cache")
    (tmp_path / "file").touch()
    distributed.use_compilation_cache(str(tmp_path / "file" / "cache"))
    assert "cannot be written: Not a directory\n" in capsys.readouterr().err


def test_values_too_long_to_be_shown_are_cut_off():
    assert errors.shown(10**5000) == "<int>"
    assert errors.shown("x" * 500).endswith("…")
