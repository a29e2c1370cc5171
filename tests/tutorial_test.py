"""The tutorial runs as it stands."""

import pathlib
import re

import matplotlib
import matplotlib.pyplot as plt

TUTORIAL = pathlib.Path(__file__).parent.parent / "docs" / "tutorial.md"


def test_tutorial_trains_an_ensemble_and_draws_its_pictures(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    text = TUTORIAL.read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    plt.close("all")
    assert namespace["accuracy"] > 0.8  # 0.1 by chance
    pictures = re.findall(r"figures/(tutorial_\w+\.png)", text)
    assert len(pictures) == 2
    assert all((tmp_path / picture).exists() for picture in pictures)
