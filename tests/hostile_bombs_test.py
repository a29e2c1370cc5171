"""Files that would fill the memory are refused, or read, within a gigabyte."""

import json
import pathlib
import re
import subprocess
import sys

import hostile_bombs
import pytest

pytestmark = pytest.mark.stress


@pytest.mark.parametrize("name", hostile_bombs.BOMBS)
def test_memory(tmp_path, name):
    for step in ("write", "read"):
        program = pathlib.Path(hostile_bombs.__file__)
        command = [sys.executable, str(program), name, str(tmp_path), step]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    expected = hostile_bombs.BOMBS[name][2]
    assert re.search(expected or "^$", found["error"]), found["error"]
    assert found["megabytes"] < 1024
