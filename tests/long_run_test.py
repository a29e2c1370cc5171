"""A long run needs no more memory and no more open files than a short one."""

import json
import pathlib
import statistics
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("long_run.py")


def measure(
    folder: pathlib.Path, method: str, num_epochs: int, *placements: str
) -> dict[str, list[dict]]:
    """What a process of its own measured at the end of each epoch, by placement."""
    # It ends with an error if a training step is traced twice.
    command = [sys.executable, str(SCRIPT), str(folder), method, str(num_epochs), *placements]
    assert subprocess.run(command, timeout=600).returncode == 0
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def memory_after(measured: list[dict], steps: int) -> float:
    """The median of three measurements after a number of steps."""
    return statistics.median([m["bytes"] for m in measured if m["steps"] >= steps][:3])


@pytest.mark.stress
def test_files_are_closed_and_the_step_is_traced_once(tmp_path):
    (values,) = measure(tmp_path, "linear_mixmo", 3, "host").values()
    assert {m["steps"] for m in values} == {39, 78, 117}
    assert len({m["files"] for m in values}) == 1


@pytest.mark.stress
def test_memory_and_open_files_do_not_grow(tmp_path):
    for values in measure(tmp_path, "cut_mixmo+cutmix", 54, "device", "host").values():
        assert len({m["files"] for m in values}) == 1
        early, late = (memory_after(values, steps) for steps in (200, 2000))
        assert late <= 1.02 * early
