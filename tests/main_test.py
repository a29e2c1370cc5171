"""The command line, as a user meets it."""

import csv
import io
import json
import os
import pathlib
import pty
import subprocess
import sys
import termios

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from mixmo_jax import metrics
from mixmo_jax.main import main
from mixmo_jax.runs.workdir import Workdir

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
def command_run(tmp_path_factory):
    """A run made in a process of its own, on a pseudo terminal; and its output."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 150))
    process = subprocess.Popen(
        [sys.executable, "-m", "mixmo_jax.main", *QUICK, f"--workdir={folder}"],
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    terminal = b""
    try:
        while chunk := os.read(leader, 4096):
            terminal += chunk
    except OSError:  # the other end is closed
        pass
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, terminal.decode()
    return folder, output.decode(), terminal.decode()


def test_run_leaves_everything_in_its_folder(command_run):
    folder, _, _ = command_run
    assert json.loads((folder / "config.json").read_text())["num_epochs"] == 2
    lines = Workdir(folder).read_metrics()
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["step"] == 2 * (1437 * 4 // 192)
    results = json.loads((folder / "results.json").read_text())
    assert results["test_images"] == 360
    assert results["scores"] == pytest.approx(lines[-1]["test"], rel=1e-5)
    assert results["environment"]["jax"] == jax.__version__
    assert results["training_seconds"] == sum(line["seconds"] for line in lines)
    with np.load(folder / "logits.npz") as arrays:
        assert metrics.ensemble_metrics(arrays["logits"], arrays["labels"]) == results["scores"]
    events = read_events(folder)
    assert events["loss"] == pytest.approx([line["loss"] for line in lines])
    assert events["test/nll"] == pytest.approx([line["test"]["nll"] for line in lines])
    for picture in ("learning_curves", "reliability", "training_inputs"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_terminal_shows_a_bar_and_a_table(command_run):
    _, output, terminal = command_run
    for part in ("img/s", "loss ", "lr ", "test "):
        assert part in terminal, terminal
    for name in ("accuracy", "nll", "ece"):
        assert f"  {name} " in output


def test_same_command_and_evaluate_mode_find_it_finished(command_run, capsys):
    folder, _, _ = command_run
    before = (folder / "results.json").read_text()
    assert main(["", *QUICK, f"--workdir={folder}"]) == 0
    assert "is finished (epoch 2)" in capsys.readouterr().out
    assert (folder / "results.json").read_text() == before
    (folder / "results.json").unlink()
    assert main(["", "--mode=evaluate", f"--workdir={folder}", "--config.dataset.data_dir=/x"]) == 0
    assert (folder / "results.json").read_text() == before


def test_ensemble_of_runs(finished_run, other_run, tmp_path, capsys):
    import shutil

    first = shutil.copytree(finished_run, tmp_path / "first")
    assert main(["", "--mode=evaluate", f"--workdir={first},{other_run}"]) == 0
    assert json.loads((first / "ensemble.json").read_text())["scores"]["accuracy"] > 0.05
    assert "4 members" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_predict(finished_run, tmp_path, capsys, form):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11), np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    command = ["", "--mode=predict", f"--workdir={finished_run}", str(tmp_path), f"--format={form}"]
    assert main(command) == 0
    output = capsys.readouterr().out
    if form == "table":
        assert len(output.splitlines()) == 2 and "%" in output
        return
    rows = json.loads(output) if form == "json" else list(csv.DictReader(io.StringIO(output)))
    assert [pathlib.Path(row["file"]).name for row in rows] == ["a.png", "b.jpg"]
    assert {"class", "probability", "votes", "disagree"} <= rows[0].keys()


def test_export(finished_run, tmp_path, capsys):
    output = tmp_path / "model.stablehlo"
    assert main(["", "--mode=export", f"--workdir={finished_run}", f"--output={output}"]) == 0
    exported = jax.export.deserialize(bytearray(output.read_bytes()))
    assert exported.call(np.zeros((3, 8, 8, 1), np.uint8)).shape == (3, 10)
    assert len(json.loads((tmp_path / "model.stablehlo.json").read_text())["class_names"]) == 10


DIGITS = "--config=digits"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "config: missing"),
        (["--config=digit"], "did you mean digits?"),
        (["--config=digits:cutmixmo"], "did you mean cut_mixmo"),
        ([DIGITS, "--lr=0.1"], "did you mean --config.optimizer.learning_rate?"),
        ([DIGITS, "--seed=1"], "did you mean --config.seed?"),
        ([DIGITS, "--config.lr=3"], "did you mean --config.optimizer.learning_rate?"),
        ([DIGITS, "--config.model.widht=3"], "did you mean --config.model.width?"),
        ([DIGITS, "--config.model=3"], "config.model"),
        ([DIGITS, "--config.batch_size=abc"], "batch_size=abc: expected an integer"),
        ([DIGITS, "--config.batch_size", "10"], "batch_size=10"),
        ([DIGITS, "--config.dataset.flip=perhaps"], "dataset.flip=perhaps"),
        ([DIGITS, "--config.optimizer.decay_epochs=20,10"], "optimizer.decay_epochs=(20, 10)"),
        ([DIGITS, "--config.method=mimo"], "--config=FILE:METHOD"),
        ([DIGITS, "--config.seed"], "config.seed"),
        ([DIGITS, "--workdri=x"], "did you mean --workdir"),
        ([DIGITS, "photo.png"], "photo.png"),
        ([DIGITS, "--plugin=nix.py"], "plugin=nix.py"),
        ([DIGITS, "--corruptions=x"], "corruptions: only with --mode=evaluate"),
        (["--mode=evaluate", "--workdir=x", "--corruptions=x"], "workdir=x"),
        (["--mode=eval"], "mode=eval"),
        (["--mode=evaluate"], "workdir: missing"),
        (["--mode=evaluate", "--workdir=nix"], "workdir=nix"),
        (["--mode=evaluate", DIGITS, "--workdir=x"], "config: --mode=evaluate"),
        (["--mode=predict", "--workdir=x"], "images: missing"),
        (["--mode=predict", "--workdir=x", "nix.png"], "nix.png"),
        (["--mode=export", "--workdir=x"], "output: missing"),
        (["--mode=import_torch", DIGITS, "--workdir=x"], "checkpoint: missing"),
        (["--config=cifar10", "--config.dataset.data_dir=/nix"], "dataset.data_dir"),
    ],
)
def test_mistakes_are_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert named in errors[0]
    assert not list(tmp_path.rglob("config.json"))


def test_help_names_modes_methods_and_configs(capsys):
    command = [sys.executable, "-m", "mixmo_jax.main", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("import_torch", "cut_mixmo+cutmix", "tiny_imagenet", "common.py", "--plugin"):
        assert part in output


def test_reader_that_ends_early():
    command = f"{sys.executable} -m mixmo_jax.main --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
