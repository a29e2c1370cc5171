"""Predicting image files on the command line."""

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mixmo_jax
from mixmo_jax import datasets, export, predict
from mixmo_jax.errors import InputError
from mixmo_jax.inference.model import Model

COUNT = 12


@pytest.fixture(scope="module")
def images(finished_run):
    """Some digits [N, 8, 8] uint8, on half of which the members agree."""
    model = mixmo_jax.load(finished_run)
    images = datasets.load_dataset(model.config.dataset).test.images
    votes = model.logits(images).argmax(-1)
    agree = votes[:, 0] == votes[:, 1]
    half = COUNT // 2
    return np.concatenate([images[agree][:half], images[~agree][:half]])[..., 0]


@pytest.fixture
def folder(tmp_path, images):
    """The digits as files, some in a folder within the folder, and a file that is no image."""
    inner = tmp_path / "images" / "inner"
    inner.mkdir(parents=True)
    for i, pixels in enumerate(images):
        parent = inner if i % 2 else inner.parent
        Image.fromarray(pixels).save(parent / f"{i:02}.png")
    (inner / "notes.txt").write_text("not an image")
    return inner.parent


@pytest.fixture
def run(capsys):
    """Runs a command line and returns its output."""

    def run(*arguments, warning=""):
        capsys.readouterr()
        status = predict.main(["", *map(str, arguments)])
        captured = capsys.readouterr()
        assert status == 0
        assert captured.err[: len(warning) or None] == warning
        assert captured.err.count("\n") == bool(warning)
        return captured.out

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command line that is wrong and returns the line on stderr."""

    def refused(*arguments):
        capsys.readouterr()
        assert predict.main(["", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return refused


def numbers(rows):
    """The digits' numbers, from the files' names."""
    return [int(row["file"][-6:-4]) for row in rows]


def test_json_equals_the_model(run, folder, images, finished_run):
    rows = json.loads(run(f"--workdir={finished_run}", "--format=json", folder))
    order = numbers(rows)
    assert sorted(order) == list(range(COUNT))
    model = mixmo_jax.load(finished_run)
    probs = model.predict_proba(images[order])
    votes = model.logits(images[order]).argmax(-1)
    for row, prob, vote in zip(rows, probs, votes, strict=True):
        assert row["class"] == str(prob.argmax())
        assert row["probability"] == pytest.approx(prob.max(), abs=1e-5)
        assert row["votes"] == [str(v) for v in vote]
        assert row["disagree"] == (len(set(vote)) > 1)


def test_csv_equals_json(run, folder, finished_run, other_run):
    arguments = (f"--workdir={finished_run},{other_run}", folder)
    # Nobody evaluated this ensemble.
    table = run("--format=csv", *arguments, warning="warning: no temperature was fitted")
    assert table.splitlines()[0] == "file,class,probability,votes,disagree"
    rows = list(csv.DictReader(io.StringIO(table)))
    output = run("--format=json", *arguments, warning="warning: no temperature was fitted")
    expected = json.loads(output)
    assert len(rows) == COUNT
    for row, other in zip(rows, expected, strict=True):
        assert len(other["votes"]) == 4
        assert row["votes"].split("|") == other["votes"]
        assert float(row["probability"]) == other["probability"]
        assert row["disagree"] == str(other["disagree"])
        assert (row["file"], row["class"]) == (other["file"], other["class"])


def test_names_with_commas_and_quotes_survive_csv(run, tmp_path, images, finished_run):
    file = tmp_path / 'a, "b".png'
    Image.fromarray(images[0]).save(file)
    table = run(f"--workdir={finished_run}", "--format=csv", file)
    assert [row["file"] for row in csv.DictReader(io.StringIO(table))] == [str(file)]


def test_table_has_a_line_for_each_file_and_shows_disagreement(run, folder, finished_run):
    rows = json.loads(run(f"--workdir={finished_run}", "--format=json", folder))
    assert {row["disagree"] for row in rows} == {True, False}
    lines = run(f"--workdir={finished_run}", folder).splitlines()
    for row, line in zip(rows, lines, strict=True):
        name, share, answer = line.split()[:3]
        assert (name, answer) == (row["file"], row["class"])
        assert share == f"{row['probability']:.2%}"
        assert ("members disagree: " + ", ".join(row["votes"]) in line) == row["disagree"]
        assert ("disagree" in line) == row["disagree"]


def test_files_and_folders_in_the_order_given(run, folder, finished_run):
    files = [folder / "04.png", folder / "inner", folder / "00.png"]
    rows = json.loads(run(f"--workdir={finished_run}", "--format=json", *files))
    assert numbers(rows) == [4, 1, 3, 5, 7, 9, 11, 0]


def test_hidden_files_of_a_folder_are_not_seen(run, folder, finished_run):
    """Such as those that macOS adds."""
    arguments = (f"--workdir={finished_run}", folder, "--format=csv")
    before = run(*arguments)
    (folder / "._a.png").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "b.png").write_text("x")
    assert run(*arguments) == before


def test_images_of_linked_folders_are_seen_as_in_training(run, folder, tmp_path, finished_run):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "there").symlink_to(folder, target_is_directory=True)
    arguments = (f"--workdir={finished_run}", "--format=json")
    seen, linked = (json.loads(run(*arguments, f)) for f in (folder, tmp_path / "links"))
    assert [row["probability"] for row in linked] == [row["probability"] for row in seen]


@pytest.mark.parametrize("field", ["max_image_pixels", "max_file_bytes"])
def test_images_may_be_as_large_as_in_training(finished_run, folder, field):
    model = mixmo_jax.load(finished_run)
    config = model.config.copy_and_resolve_references().unlock()
    config.dataset[field] = 10
    limited = Model([dataclasses.replace(model.networks[0], config=config)])
    with pytest.raises(InputError, match=r"more than dataset\.max_image_pixels=10|at most 10"):
        limited.read(folder / "00.png")
    assert model.read(folder / "00.png").shape == (1, 8, 8, 1)


def test_color_becomes_gray_for_a_gray_network(run, tmp_path, images, finished_run):
    for i, pixels in enumerate(images):
        gray = Image.fromarray(pixels)
        gray.save(tmp_path / f"gray{i:02}.png")
        gray.convert("RGB").save(tmp_path / f"rgb{i:02}.png")
        gray.convert("RGBA").save(tmp_path / f"rgba{i:02}.png")
    answers = {}
    for row in json.loads(run(f"--workdir={finished_run}", "--format=json", tmp_path)):
        answers.setdefault(row.pop("file")[-6:-4], []).append(row)
    assert len(answers) == COUNT
    assert all(rows == [rows[0]] * 3 for rows in answers.values())


def test_other_sizes_are_brought_to_that_of_the_network(run, tmp_path, images, finished_run):
    large = Image.fromarray(np.kron(images[0], np.ones((6, 6), np.uint8)))
    large.save(tmp_path / "large.png")
    Image.new("L", (1, 3)).save(tmp_path / "tiny.PNG")
    large.save(tmp_path / "any_name", format="BMP")
    files = [tmp_path, tmp_path / "any_name"]
    rows = json.loads(run(f"--workdir={finished_run}", "--format=json", *files))
    assert [row["file"].rpartition("/")[2] for row in rows] == ["large.png", "tiny.PNG", "any_name"]
    assert rows[0]["class"] == rows[2]["class"]


def test_wrong_files_are_one_line_and_status_2(refused, tmp_path, folder, finished_run):
    workdir = f"--workdir={finished_run}"
    assert "nothing.png: no such file or folder" in refused(workdir, tmp_path / "nothing.png")
    (tmp_path / "empty").mkdir()
    message = refused(workdir, folder, tmp_path / "empty")
    assert "empty: no images (.png, .jpg, .jpeg, .webp, .bmp)" in message
    assert "notes.txt: not an image" in refused(workdir, folder / "inner" / "notes.txt")
    (folder / "damaged.png").write_bytes((folder / "00.png").read_bytes()[:60])
    assert "damaged.png: damaged: OSError" in refused(workdir, folder)


def test_wrong_runs_are_one_line_and_status_2(refused, tmp_path, folder, finished_run):
    assert "holds no run" in refused(f"--workdir={tmp_path}", folder)
    assert "holds no run" in refused(f"--workdir={finished_run},{tmp_path}", folder)


@pytest.mark.parametrize(
    "arguments", [["x.png"], ["--workdir=x"], ["--workdir=x", "--form=y", "z"]]
)
def test_wrong_usage_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        predict.main(["", *arguments])
    assert error.value.code == 2
    assert "usage: python -m mixmo_jax.predict" in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end(finished_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    command = [sys.executable, "-m", "mixmo_jax.predict", f"--workdir={finished_run}"]
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*command, str(tmp_path)], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


def test_which_weights_are_taken(finished_run, tmp_path, folder, capsys):
    """Of a run that is not finished, or their moving average: `export` has the same flags."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    values["num_epochs"] = 2
    (run / "config.json").write_text(json.dumps(values))
    command = ["", f"--workdir={run}", str(folder)]
    assert predict.main(command) == 2
    assert "take what it has: --allow_unfinished" in capsys.readouterr().err
    assert predict.main([*command, "--allow_unfinished"]) == 0
    assert predict.main([*command, "--allow_unfinished", "--ema"]) == 2
    assert "has no moving average: optimizer.ema_decay=0.0" in capsys.readouterr().err
    command = ["", f"--workdir={run}", f"--output={tmp_path / 'x'}", "--ema"]
    assert export.main(command) == 2
    assert "has no moving average" in capsys.readouterr().err
