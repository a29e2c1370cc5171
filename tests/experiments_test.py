"""The scripts that compare methods, without training."""

import json
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from mixmo_jax import config as config_lib
from mixmo_jax.errors import InputError
from mixmo_jax.schema import flatten

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="module")
def scripts():
    """The modules compare, published and studies."""
    sys.path.append(str(EXPERIMENTS))
    import compare
    import published
    import studies

    yield compare, published, studies
    sys.path.remove(str(EXPERIMENTS))


def write_run(folder, accuracies, seconds=1.0):
    """What a finished run leaves, as far as the comparison reads it."""
    folder.mkdir(parents=True)
    scores = {"accuracy": accuracies[-1], "nll": 1.0, "ece": 0.1, "brier": 0.5}
    results = {"scores": scores, "scaled_scores": scores, "environment": {"jax": "x"}}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"epoch": i + 1, "step": i + 1, "loss": 1.0, "seconds": seconds, "images_per_second": 9.0}
        for i in range(len(accuracies))
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_comparison_of_finished_runs(tmp_path, scripts, capsys):
    compare, *_ = scripts
    found = {"vanilla": (0.90, 0.92, 0.91), "mimo": (0.95, 0.97, 0.965), "cutmix": (0.9, 0.93, 0.9)}
    variants = [compare.Variant(method, method) for method in found]
    for variant in variants:
        for seed, accuracy in enumerate(found[variant.label]):
            write_run(variant.folder(tmp_path, seed), [accuracy])
    results = compare.compare("digits", variants, [0, 1, 2], tmp_path, ["--config.num_epochs=1"])
    vanilla, mimo, cutmix = results["rows"]
    assert vanilla["accuracy (%)"] == pytest.approx((91, 1))
    assert mimo["difference"] == pytest.approx(np.mean([5, 5, 5.5]))
    p = stats.ttest_rel(found["mimo"], found["vanilla"]).pvalue
    assert mimo["p"] == pytest.approx(2 * p)  # the smaller of two
    assert vanilla["p"] is None
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "**96.17 ± 1.04**" in table
    assert "| 91.00 ± 1.00 |" in table
    assert cutmix["p"] > 0.05
    assert "published" not in table
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 10
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_holm_corrects_in_order(scripts):
    compare, *_ = scripts
    assert compare.holm([]) == []
    np.testing.assert_allclose(compare.holm([0.04, 0.01, 0.5]), [0.08, 0.03, 0.5])
    np.testing.assert_allclose(compare.holm([0.9, 0.6]), [1, 1])


def test_variants_and_seeds_as_written(scripts):
    compare, *_ = scripts
    variant = compare.parse_variant("my way=cut_mixmo mixmo.alpha=1.0 model.width=2")
    assert variant == ("my way", "cut_mixmo", ("mixmo.alpha=1.0", "model.width=2"))
    assert variant.folder(pathlib.Path("x"), 3) == pathlib.Path("x/my_way-s3")
    assert compare.parse_seeds("3") == [0, 1, 2]
    assert compare.parse_seeds("1,4") == [1, 4]
    for text in ("cut_mixmo", "=mimo", "a=", "a=mimo alpha"):
        with pytest.raises(InputError, match="expected 'LABEL=METHOD FIELD=VALUE …'"):
            compare.parse_variant(text)
    with pytest.raises(InputError, match="seeds=x: expected a number"):
        compare.parse_seeds("x")
    flags = compare.merge(["--config.seed=1", "--config.model.width=2"], ("seed=4",))
    assert flags == ["--config.seed=4", "--config.model.width=2"]


def test_published_numbers_stand_beside_the_papers_configs_only(scripts):
    _, published, _ = scripts
    for spec, overrides, expected in [
        ("cifar100:cut_mixmo", [], (85.52, 85.59)),
        ("cifar10:mimo", [], (96.71,)),
        ("cifar100:cut_mixmo", ["--config.model.width=2"], None),
        ("cifar100:cut_mixmo", ["--config.num_epochs=15"], None),
        ("tiny_imagenet:cut_mixmo", ["--config.model.width=2"], (69.12,)),
        ("tiny_imagenet:mixup", [], None),
    ]:
        assert published.find(flatten(config_lib.parse(spec, overrides)[1])) == expected


def test_every_study_names_what_there_is(scripts):
    """Each of its rows is a config that can be trained, at any scale."""
    _, _, studies = scripts
    compare = scripts[0]
    for variants in studies.STUDIES.values():
        assert len({v.label for v in variants}) == len(variants)
        for variant in variants:
            scaled = studies.scaled(f"cifar100:{variant.method}", [], 0.05)
            flags = compare.merge([], (*variant.fields, *scaled))
            _, config = config_lib.parse(f"cifar100:{variant.method}", flags)
            assert (config.num_epochs, config.optimizer.warmup_steps) == (15, 39)
            assert config.optimizer.decay_epochs == (6, 11, 12)
