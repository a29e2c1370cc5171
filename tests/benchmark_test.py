"""The benchmark measures what it says it does."""

import json
import pathlib
import subprocess
import sys

import flops
import jax
import pytest
from benchmark import random_dataset, ready_batch

from mixmo_jax import config as config_lib
from mixmo_jax.errors import InputError
from mixmo_jax.training.loop import Trainer

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


def run(script, *arguments):
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def measure(folder, *arguments):
    """The report on a tiny network and small images, and what was printed."""
    output = folder / "report.json"
    example = EXPERIMENTS.parent / "docs" / "examples" / "stripes.py"
    fields = ("--config.dataset.image_size=8", "--config.batch_size=32")
    turns = ("--turns=2", "--seconds=0.05", f"--output={output}")
    done = run("benchmark.py", f"--config={example}", *fields, *turns, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


@pytest.mark.stress
def test_report_has_rates_ratios_and_what_they_were_measured_with(tmp_path):
    values, shown = measure(tmp_path)
    for name in (
        "train_images_per_second",
        "pipeline_efficiency",
        "multi_input_cost",
        "fold_cost",
        "evaluation_cost",
    ):
        assert 0 < values[name]["min"] <= values[name]["median"] <= values[name]["max"]
        assert name.replace("_", " ") in shown
    assert values["compile_seconds_cached"] < values["compile_seconds_cold"]
    assert values["config"]["batch_size"] == 32
    assert "jax" in values["environment"]


def test_flops_are_those_of_the_convolutions():
    """Encoders 3 → 8 and core 8 → 16 channels, 3x3, 32x32 pixels, 32 positions."""
    fields = ("model.name=tiny", "model.width=1", "batch_size=32")
    counted = {}
    for members in (1, 2, 3):
        given = [*fields, f"model.num_members={members}"]
        _, config = config_lib.parse("cifar10", [f"--config.{field}" for field in given])
        counted[members] = flops.model_flops(Trainer(config, random_dataset(config, 100)))
    products = 32 * (3 * 32 - 2) ** 2 * 2  # without what the kernel has beyond the edges
    encoder, core = products * 3 * 8, products * 8 * 16
    # No gradient of the images is needed. All that is no convolution comes on top.
    assert counted[3] - counted[2] == pytest.approx(2 * encoder, rel=0.1)
    assert 1 < counted[2] / (2 * 2 * encoder + 3 * core) < 1.15


def test_flops_need_the_cpu(monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    with pytest.raises(InputError, match="counting FLOPs needs the CPU"):
        flops.cpu()


@pytest.mark.stress
def test_blocks_are_compared_with_linear_mixing(tmp_path):
    values, shown = measure(tmp_path, "--blocks")
    assert set(values["cost_of_linear"].values()) == {1.0}
    for block in ("linear", "cow", "stripes"):  # the last one is the example's own
        assert values[f"cost_of_{block}"]["min"] > 0
        assert f"cost of {block}" in shown


def test_wrong_field_is_one_line():
    done = run("benchmark.py", "--config.batch_siz=3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "batch_siz: no such config field; did you mean batch_size" in done.stderr


def test_ready_batch_is_cut_for_the_devices():
    """Also the strength of unmixing, which all of them have."""
    fields = ("model.name=tiny", "batch_size=32", "mixmo.unmix=True")
    _, config = config_lib.parse("cifar10", [f"--config.{field}" for field in fields])
    batch = ready_batch(Trainer(config, random_dataset(config, 100)))
    count = jax.local_device_count()
    assert batch.unmix.shape == (count,)
    assert batch.images.shape == (count, 2, 32 // count, 32, 32, 3)
