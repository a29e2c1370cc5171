"""The notebook runs, and what is committed of it is what a run left."""

import pathlib
import re

import nbclient
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec

ROOT = pathlib.Path(__file__).parent.parent
FILE = ROOT / "experiments" / "mixmo_colab.ipynb"
PARSE = 'settings = mixmo_jax.get_config("digits:cut_mixmo")'
EPOCHS = "settings.num_epochs = 20"
ABSOLUTE = re.compile(r"(?<![\w.])~?/[\w.]+/")  # addresses as well


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def test_it_runs_on_a_cpu(notebook, finished_run, tmp_path, monkeypatch):
    """With the config of a run that other tests read, whose programs are compiled already."""
    (cell,) = (cell for cell in notebook.cells if PARSE in cell.source)
    quick = f"Workdir({str(finished_run)!r}).read_config()"
    imports = "from mixmo_jax.runs.workdir import Workdir\n"
    assert EPOCHS in cell.source
    source = cell.source.replace(PARSE, f"settings = {quick}")
    cell.source = imports + source.replace(EPOCHS, "settings.num_epochs = 1")
    write_kernel_spec(str(tmp_path / "kernels" / "python3"))  # of this interpreter
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nothing of the user's
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=folder).execute()
    runs = [path.name for path in (tmp_path / "runs").iterdir()]
    assert sorted(runs) == ["notebook", "notebook-pretrained"]


def test_committed_outputs_are_those_of_one_run(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert FILE.stat().st_size < 600_000


def test_nothing_tells_of_the_machine(notebook):
    texts = [str(notebook.metadata)]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = {**output.get("data", {}), "image/png": ""}
            texts += [output.get("text", ""), *data.values()]
    assert not ABSOLUTE.search("\n".join(texts))
    assert ABSOLUTE.search("written to\n/home/me/runs")
