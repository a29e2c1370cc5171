"""Exported networks, used without this package."""

import json
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import mixmo_jax
from mixmo_jax.errors import InputError
from mixmo_jax.inference.export import export, export_model

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


@pytest.mark.parametrize("fold", [True, False])
def test_exported_probabilities_without_this_package(tmp_path, images, finished_run, fold):
    model = mixmo_jax.load(finished_run)
    export_model(model, tmp_path / "model.stablehlo", fold=fold)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    expected = model.predict_proba(images)
    with np.load(tmp_path / "probs.npz") as probs:
        assert (probs["one"].dtype, probs["five"].dtype) == (np.float32, np.float32)
        chex.assert_trees_all_close(probs["one"], expected[:1], atol=1e-5)
        chex.assert_trees_all_close(probs["five"], expected, atol=1e-5)
    description = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert description["class_names"] == list("0123456789")


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_export_of_an_ensemble(images, finished_run, other_run, ensemble):
    networks = mixmo_jax.load([finished_run, other_run]).networks
    model = mixmo_jax.Model(networks, ensemble)
    exported = jax.export.deserialize(bytearray(export(model)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    expected = model.predict_proba(images)
    chex.assert_trees_all_close(np.asarray(exported.call(images)), expected, atol=1e-5)


def test_averaged_probabilities_do_not_fold(tmp_path, finished_run):
    model = mixmo_jax.load(finished_run, ensemble="probabilities")
    with pytest.raises(InputError, match="--nofold"):
        export_model(model, tmp_path / "model")
    export_model(model, tmp_path / "model", fold=False)


def test_output_that_cannot_be_written(tmp_path, finished_run):
    with pytest.raises(InputError, match="cannot be written"):
        export_model(mixmo_jax.load(finished_run), tmp_path / "no" / "model")
    assert list(tmp_path.iterdir()) == []
