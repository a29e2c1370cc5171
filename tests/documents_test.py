"""Commands and links in the documents refer to what exists."""

import pathlib
import re
import shlex

import pytest

import mixmo_jax
from mixmo_jax.config import flatten

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(document):
    """The commands in the shell blocks of a document, as lists of words."""
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                yield words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]


def test_training_commands_name_configs_and_fields_that_exist():
    count = 0
    for document in DOCUMENTS:
        for words in commands_of(document):
            specs = [word[9:] for word in words if word.startswith("--config=")]
            if "mixmo_jax.main" not in words or not specs or specs[0].startswith("docs/"):
                continue
            known = flatten(mixmo_jax.get_config(specs[0]))
            fields = [word[9:].partition("=")[0] for word in words if word.startswith("--config.")]
            assert set(fields) <= set(known), words
            count += 1
    assert count >= 8


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(document):
    """mkdocs checks the links of the other documents."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert not missing
