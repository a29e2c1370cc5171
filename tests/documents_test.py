"""The documents say what the committed results say, and their commands are understood."""

import itertools
import json
import pathlib
import re
import shlex
import sys

import compare
import numpy as np
import pytest
import studies
from scipy import stats

from mixmo_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read_table(document, corner):
    """The cells of the table whose first cell is `corner`, row by row."""
    lines = (ROOT / document).read_text().split(f"| {corner} |")[1].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [re.split(r" *\| *", row)[1:-1] for row in rows]


def read_results(name, key="rows"):
    return json.loads((RESULTS / name / "results.json").read_text())[key]


def format_value(row, column, decimals):
    """A mean and its deviation as the tables show them."""
    if column not in row:
        return ""
    return " ± ".join(f"{value:.{decimals}f}" for value in row[column])


def test_first_page_has_the_scores_of_the_digits():
    columns = {"accuracy (%)": 2, "members (%)": 2, "NLL": 4, "ECE": 4, "disagreement (%)": 2}
    expected = [
        [row["label"], str(row["n"]), *(format_value(row, *column) for column in columns.items())]
        for row in read_results("digits")
    ]
    assert read_table("README.md", "method") == expected


def test_table_of_few_images_has_their_accuracies():
    tables = [read_results(f"few_images-{name}") for name in ("n50-w1", "n50-w2", "n50-w4")]
    tables += [read_results(f"few_images-{name}") for name in ("w1", "w2")]
    found = read_table("docs/methods.md", "variant")
    assert len(found) == len(tables[0]) == 9
    for i, (_, *cells) in enumerate(found):
        rows = [table[i] if i < len(table) else {} for table in tables]
        assert cells == [format_value(row, "accuracy (%)", 2) for row in rows]


@pytest.mark.parametrize(
    ("line", "name"), [(2, "cifar100-10k"), (3, "cifar100-10k-w4"), (4, "cifar100-16-8")]
)
def test_first_page_has_the_accuracies_on_cifar100_by_seed(line, name):
    _, *cells = read_table("README.md", "CIFAR-100, accuracy in %")[line]
    methods = ("vanilla", "mimo", "linear_mixmo", "cut_mixmo", "cut_mixmo+cutmix")
    assert cells == [by_seed(name, method, "accuracy (%)", 2) for method in methods]


@pytest.mark.parametrize(
    ("corner", "name", "more"),
    [
        ("WRN-10-4", "cifar100-10k-w4", {}),
        ("WRN-16-8", "cifar100-16-8", {"NLL scaled": 3, "ECE": 3, "disagreement (%)": 2}),
    ],
)
def test_wider_networks_have_their_scores_by_seed(corner, name, more):
    columns = {"accuracy (%)": 2, "members (%)": 2, "NLL": 3} | more
    expected = [
        [f"`{label}`", *(by_seed(name, label, *column) for column in columns.items())]
        for label in (row["label"] for row in read_results(name))
    ]
    assert read_table("docs/methods.md", corner) == expected


def by_seed(name, label, column, decimals):
    """The scores of a row's runs, in the order of their seeds."""
    runs = [run for run in read_results(name, "runs") if run["label"] == label]
    scores = [run[column] for run in sorted(runs, key=lambda run: run["seed"])]
    return ", ".join(f"{score:.{decimals}f}" for score in scores if score is not None)


def test_forms_of_unmixing_have_their_accuracies_by_seed():
    found = {label: cells for label, *cells in read_table("docs/methods.md", "unmixing")}
    expected = {}
    for name in ("cifar100-10k", "cifar100-10k-unmix"):
        for run in read_results(name, "runs"):
            row = f"{run['label']}, {'bfloat16' if 'unmix' in name else 'float32'}"
            expected.setdefault(row, [""] * 3)[run["seed"]] = f"{run['accuracy (%)']:.2f}"
    named = {
        "none, float32": "cut_mixmo, float32",
        "until 1/3 of the run, float32": "unmix, float32",
        "none, bfloat16": "cut_mixmo, bfloat16",
        "until 2/3, bfloat16": "unmix until 2/3, bfloat16",
        "until 1/3, `unmix_normalize`, bfloat16": "unmix normalized, bfloat16",
        "until 1/3, `unmix_resize=nearest`, bfloat16": "unmix nearest, bfloat16",
    }
    assert found == {label: expected[row] for label, row in named.items()}


def test_sentences_on_few_images_again_have_their_numbers():
    """The sentences on the ten seeds of one more table."""
    rows = {row["label"]: row for row in read_results("again/few_images-n50-w4")}
    plain, pixels, mixed = (
        rows[label] for label in ("vanilla, epochs x 3", "cutmix, epochs x 3", "cut_mixmo")
    )
    assert {row["n"] for row in rows.values()} == {10}
    accuracies = [f"{format_value(row, 'accuracy (%)', 2)} %" for row in (mixed, plain, pixels)]
    nlls, eces = ([f"{r[s][0]:.3f}" for r in (mixed, plain, pixels)] for s in ("NLL", "ECE"))
    sentences = [
        "has {}, the plain network {}, with CutMix {}".format(*accuracies),
        f"by {mixed['difference']:.1f} points (p = {mixed['p']:.3f}, corrected",
        f"CutMix by {pixels['difference']:.1f} (p = {pixels['p']:.2f})",
        f"is lower, {nlls[0]} against {nlls[2]} (p < 0.001) and against {nlls[1]} of the plain",
        f"ECE, {eces[0]}, is not far from the plain network's {eces[1]} (p = 0.26)",
        f"that of CutMix is {eces[2]}",
    ]
    runs = {(r["label"], r["seed"]): r for r in read_results("again/few_images-n50-w4", "runs")}
    fresh = [
        runs["cut_mixmo", seed]["accuracy (%)"] - runs["vanilla, epochs x 3", seed]["accuracy (%)"]
        for seed in range(10, 15)
    ]
    p = stats.ttest_1samp(fresh, 0).pvalue
    fresh = f"{np.mean(fresh):.1f} points above the plain network (p = {p:.2f}, and {2 * p:.2f}"
    text = " ".join((ROOT / "docs" / "methods.md").read_text().split())
    for sentence in (*sentences, fresh):
        assert sentence in text
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"(p = {mixed['p']:.3f}; 2.2 points and p = {2 * p:.2f} on the five" in text


def commands_of(document):
    """The commands in the blocks of a document."""
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                yield words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]


@pytest.mark.parametrize("script", [compare, studies], ids=["compare", "studies"])
def test_comparisons_in_the_documents_are_understood(monkeypatch, tmp_path, script):
    monkeypatch.chdir(tmp_path)  # where no runs are
    understood = []
    monkeypatch.setattr(script, "execute", lambda comparisons, _: understood.extend(comparisons))
    count = 0
    for document in DOCUMENTS:
        for words in commands_of(document):
            if words[:2] == ["python", f"experiments/{script.__name__}.py"]:
                monkeypatch.setattr(sys, "argv", words[1:])
                script.main()
                count += 1
    assert count >= 3
    for comparison in understood:
        comparison.check()
        for variant in comparison.variants:
            assert comparison.run(variant, comparison.seeds[0]).config.num_epochs


def test_training_commands_in_the_documents_are_understood():
    specs = []
    for document in DOCUMENTS:
        for words in commands_of(document):
            if "mixmo_jax.main" not in words or "--mode=evaluate" in words:
                continue
            fields = [word for word in words if word.startswith("--config.")]
            (spec,) = (word for word in words if word.startswith("--config="))
            specs.append(spec.removeprefix("--config="))
            if not specs[-1].startswith("docs/"):  # it registers what it brings
                config_lib.parse(specs[-1], fields)
    assert len(specs) >= 8
