"""Exported networks, used without this package."""

import json
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import mixmo_jax
from mixmo_jax import export

USE = """
import sys
import jax
import numpy as np

exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
images = np.load("images.npy")
np.savez("probs.npz", one=exported.call(images[:1]), five=exported.call(images))
assert not {"flax", "mixmo_jax"} & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(5, 8, 8, 1), dtype=np.uint8)


def export_to(output, *arguments):
    return export.main(["", f"--output={output}", *map(str, arguments)])


@pytest.mark.parametrize("flags", [[], ["--no_fold"]])
def test_exported_probabilities_without_this_package(tmp_path, images, finished_run, flags):
    assert export_to(tmp_path / "model.stablehlo", f"--workdir={finished_run}", *flags) == 0
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    expected = mixmo_jax.load(finished_run).predict_proba(images)
    with np.load(tmp_path / "probs.npz") as probs:
        assert (probs["one"].dtype, probs["five"].dtype) == (np.float32, np.float32)
        chex.assert_trees_all_close(probs["one"], expected[:1], atol=1e-5)
        chex.assert_trees_all_close(probs["five"], expected, atol=1e-5)


def test_export_of_an_ensemble(images, finished_run, other_run):
    for ensemble in ("logits", "probabilities"):
        networks = mixmo_jax.load([finished_run, other_run]).networks
        model = mixmo_jax.Model(networks, ensemble)
        exported = jax.export.deserialize(bytearray(export.export(model)))
        expected = model.predict_proba(images)
        chex.assert_trees_all_close(np.asarray(exported.call(images)), expected, atol=1e-5)


def test_export_is_for_all_platforms_and_any_number_of_images(tmp_path, finished_run, capsys):
    file = tmp_path / "model.stablehlo"
    assert export_to(file, f"--workdir={finished_run}") == 0
    size = file.stat().st_size
    assert capsys.readouterr().out == f"{file}: {size:,} bytes, for cpu, cuda, tpu\n"
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    ((images,), _) = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    assert images.dtype == np.uint8
    assert images.shape[1:] == (8, 8, 1)
    assert not isinstance(images.shape[0], int)


def test_folded_file_is_smaller_than_that_of_the_members(tmp_path, finished_run):
    export_to(tmp_path / "folded", f"--workdir={finished_run}")
    export_to(tmp_path / "members", f"--workdir={finished_run}", "--no_fold")
    assert (tmp_path / "folded").stat().st_size < (tmp_path / "members").stat().st_size


def test_side_file_names_the_classes(tmp_path, finished_run):
    assert export_to(tmp_path / "model.stablehlo", f"--workdir={finished_run}") == 0
    assert {f.name for f in tmp_path.iterdir()} == {"model.stablehlo", "model.stablehlo.json"}
    description = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert description["class_names"] == list("0123456789")
    assert description["image_shape"] == [8, 8, 1]


@pytest.mark.parametrize("output", ["no/folder", "file/model", "folder", "taken", ".", ""])
def test_output_that_cannot_be_written_is_status_2(
    tmp_path, monkeypatch, finished_run, output, capsys
):
    inner = tmp_path / "inner"
    (inner / "folder").mkdir(parents=True)
    (inner / "taken.json").mkdir()  # where the side file would be
    (inner / "file").touch()
    monkeypatch.chdir(inner)
    before = sorted(tmp_path.rglob("*"))
    assert export_to(output, f"--workdir={finished_run}") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(("error: output=", f"error: {output}: cannot be written"))
    assert captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_special_files_are_not_replaced(tmp_path, finished_run, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert export_to(tmp_path / "pipe", f"--workdir={finished_run}") == 2
    assert "pipe is not a file that could be replaced" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_links_stay_and_their_files_are_written(tmp_path, finished_run):
    (tmp_path / "link").symlink_to("model")
    assert export_to(tmp_path / "link", f"--workdir={finished_run}") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "model").stat().st_size > 1000


def test_export_of_several_runs_and_of_probabilities(tmp_path, images, finished_run, other_run):
    output, runs = tmp_path / "model", [finished_run, other_run]
    flags = [f"--workdir={finished_run},{other_run}", "--ensemble=probabilities"]
    assert export_to(output, *flags) == 0
    exported = jax.export.deserialize(bytearray(output.read_bytes()))
    expected = mixmo_jax.load(runs, ensemble="probabilities").predict_proba(images)
    chex.assert_trees_all_close(np.asarray(exported.call(images)), expected, atol=1e-5)


def test_probabilities_of_one_run_do_not_fold(tmp_path, finished_run, capsys):
    flags = [f"--workdir={finished_run}", "--ensemble=probabilities"]
    assert export_to(tmp_path / "model", *flags) == 2
    assert "use --no_fold" in capsys.readouterr().err
    assert export_to(tmp_path / "model", *flags, "--no_fold") == 0


def test_no_run_is_status_2(tmp_path, capsys):
    assert export_to(tmp_path / "model", f"--workdir={tmp_path}") == 2
    assert "holds no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
