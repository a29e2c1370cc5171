"""The example of the documentation: a block, a network and a dataset from a file of one's own."""

import json

import numpy as np
import pytest
from tiny import EXAMPLE

import mixmo_jax
from mixmo_jax.datasets import DATASETS
from mixmo_jax.main import main
from mixmo_jax.mixing import MASKS
from mixmo_jax.models import NETWORKS

NAMES = ((MASKS, "stripes"), (NETWORKS, "tiny"), (DATASETS, "bars"))


def forget():
    """Leaves the registries as in a new process."""
    for registry, name in NAMES:
        registry.pop(name, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tiny = NETWORKS["tiny"]
    folder = tmp_path_factory.mktemp("runs") / "stripes"
    assert main(["", f"--config={EXAMPLE}", f"--workdir={folder}"]) == 0
    yield folder
    forget()
    NETWORKS["tiny"] = tiny  # other tests use it


def test_example_trains_with_its_own_parts(run):
    config = json.loads((run / "config.json").read_text())
    found = config["mixmo"]["block"], config["model"]["name"], config["dataset"]["name"]
    assert found == ("stripes", "tiny", "bars")
    assert json.loads((run / "results.json").read_text())["scores"]["accuracy"] > 0.8


@pytest.mark.stress
def test_core_without_batch_norm(run, tmp_path):
    """Nothing but the network's own layers is required of it."""
    code = EXAMPLE.read_text().splitlines(keepends=True)
    plain = tmp_path / "plain.py"
    plain.write_text("".join(line for line in code if "make_norm(" not in line))
    assert main(["", f"--config={plain}", f"--workdir={tmp_path}/run"]) == 0
    assert mixmo_jax.load(tmp_path / "run").predict(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1,)


def test_commands_take_it_as_a_plugin(run, capsys):
    forget()
    evaluate = ["", "--mode=evaluate", f"--workdir={run}"]
    assert main(evaluate) == 2
    message = capsys.readouterr().err
    assert "config.json: " in message and "='" in message
    assert "--plugin" in message
    assert main([*evaluate, f"--plugin={EXAMPLE}"]) == 0
    forget()
    images = str(EXAMPLE.parents[1] / "figures")
    predict = ["", "--mode=predict", f"--workdir={run}", f"--plugin={EXAMPLE}"]
    assert main([*predict, images]) == 0
    assert "overview.png" in capsys.readouterr().out
