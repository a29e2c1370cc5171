"""The program that TPUs run, from the compiler alone: no TPU is needed, only `jax[tpu]`."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install jax[tpu]",
)


def copies_of_the_dataset(*arguments: str) -> list[str]:
    script = pathlib.Path(__file__).with_name("tpu_program.py")
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["cifar100", "tiny_imagenet"])
def test_dataset_is_not_copied(name):
    assert copies_of_the_dataset(name) == []
