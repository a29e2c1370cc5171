"""Trained networks: loaded, in ensembles, folded; and what they refuse."""

import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from reference import Reference
from scipy import special

import mixmo_jax
from mixmo_jax import datasets, distributed, metrics
from mixmo_jax.errors import InputError
from mixmo_jax.evaluation import calibration
from mixmo_jax.evaluation.evaluate import evaluate_ensemble, evaluate_run
from mixmo_jax.inference import model as model_lib
from mixmo_jax.inference.model import Model, make_logits_fn
from mixmo_jax.models import create_model, preact_resnet, wide_resnet
from mixmo_jax.runs.workdir import CONFIG, DATASET, METRICS, RESULTS, Workdir

PRETRAINED = pathlib.Path(__file__).parent.parent / "experiments/results/digits-cut_mixmo"

NETS = {
    "dev_wrn10_2_vanilla_c10": (wide_resnet, {"depth": 10, "width": 2, "num_classes": 10}),
    "dev_wrn10_2_m2_c10": (wide_resnet, {"depth": 10, "width": 2, "num_classes": 10}),
    "dev_wrn10_1_m3_c10": (wide_resnet, {"depth": 10, "width": 1, "num_classes": 10}),
    "dev_preact18_w1_m2_c200": (preact_resnet, {"depth": 18, "width": 1, "num_classes": 200}),
}


@pytest.fixture(scope="module")
def model(finished_run):
    return mixmo_jax.load(finished_run)


@pytest.fixture(scope="module")
def ensemble(finished_run, other_run):
    return mixmo_jax.load([finished_run, str(other_run)])


@pytest.fixture(scope="module")
def test_split(model):
    return datasets.load_dataset(model.config.dataset).test


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def temperature_of(folder):
    return json.loads((folder / RESULTS).read_text())["temperature"]


def edit(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def contents(folder):
    return {f: f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


def test_model_describes_itself(model, finished_run):
    assert model.class_names == tuple("0123456789")
    assert model.num_members == 2
    assert model.image_shape == (8, 8, 1)
    assert model.config == Workdir(finished_run).read_config()


def test_scores_are_those_of_the_results(model, finished_run, test_split):
    results = json.loads((finished_run / RESULTS).read_text())
    scores = metrics.ensemble_metrics(model.logits(test_split.images), test_split.labels)
    chex.assert_trees_all_close(scores, results["scores"], rtol=1e-5)


def test_loading_changes_nothing(run_copy):
    before = contents(run_copy)
    mixmo_jax.load(run_copy).logits(np.zeros((1, 8, 8, 1), np.uint8))
    assert contents(run_copy) == before


def test_probabilities_are_of_the_mean_logits_at_the_temperature(model, finished_run, test_split):
    logits = model.logits(test_split.images)
    probs = model.predict_proba(test_split.images)
    count = len(test_split)
    assert (logits.shape, logits.dtype) == ((count, 2, 10), np.float32)
    assert (probs.shape, probs.dtype) == ((count, 10), np.float32)
    chex.assert_trees_all_close(probs.sum(1), np.ones(count), atol=1e-6)
    temperature = temperature_of(finished_run)
    assert abs(temperature - 1) > 0.01
    expected = special.softmax(logits.mean(1) / temperature, axis=1)
    chex.assert_trees_all_close(probs, expected, atol=1e-6)
    chex.assert_trees_all_equal(model.predict(test_split.images), probs.argmax(1))


def test_image_files(finished_run, tmp_path):
    """Read as the command line does; those of the right size unchanged."""
    model = mixmo_jax.load(finished_run)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.repeat(4, axis=0)).save(tmp_path / "b.png")
    images = model.read([tmp_path / "a.png", str(tmp_path / "b.png")])
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    chex.assert_trees_all_equal(images[0, ..., 0], pixels)
    assert model.predict(images).shape == (2,)
    chex.assert_trees_all_equal(model.read(tmp_path / "a.png"), images[:1])
    with pytest.raises(InputError, match=r"missing\.png: cannot be read"):
        model.read([tmp_path / "missing.png"])


def test_models_describe_themselves(finished_run, other_run):
    single = repr(mixmo_jax.load(finished_run))
    assert single == "<mixmo_jax.Model: 2 members, 10 classes, images (8, 8, 1)>"
    assert "2 networks" in repr(mixmo_jax.load([finished_run, other_run]))


def test_run_without_a_temperature_is_not_scaled(run_copy):
    results = json.loads((run_copy / RESULTS).read_text())
    del results["temperature"], results["prediction_temperatures"]
    (run_copy / RESULTS).write_text(json.dumps(results))
    model = mixmo_jax.load(run_copy)
    assert model.temperature is None
    images = np.zeros((1, 8, 8, 1), np.uint8)
    expected = special.softmax(model.logits(images).mean(1), axis=1)
    chex.assert_trees_all_close(model.predict_proba(images), expected, atol=1e-6)


def test_predictions_do_not_depend_on_the_number_of_images(model, test_split):
    images = test_split.images
    logits = model.logits(images)
    for part in (slice(0, 1), slice(3, 10), slice(0, 256), slice(100, 357), slice(359, 360)):
        chex.assert_trees_all_close(model.logits(images[part]), logits[part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_scores_do_not_depend_on_batch_and_padding(model, test_split, batch_size):
    (network,) = model.networks
    images, labels = test_split.images[:300], test_split.labels[:300]
    logits_fn = make_logits_fn(
        network.module, batch_size=batch_size, mean=network.mean, std=network.std
    )
    variables, expected = distributed.replicate(network.variables), model.logits(images)
    for count in (1, 7, 300):
        logits = logits_fn(variables, images[:count])
        assert len(logits) == count
        chex.assert_trees_all_close(logits, expected[:count], rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(
            metrics.ensemble_metrics(logits, labels[:count]),
            metrics.ensemble_metrics(expected[:count], labels[:count]),
            rtol=1e-3,
            atol=1e-5,
        )


def test_gray_images_need_no_channel(model, test_split):
    images = test_split.images[:5]
    chex.assert_trees_all_equal(model.logits(images[..., 0]), model.logits(images))
    chex.assert_trees_all_equal(model.predict(list(images[..., 0])), model.predict(images))


def test_images_may_come_normalized(model, finished_run, test_split):
    images = test_split.images[:5]
    info = Workdir(finished_run).read_dataset_info()
    normalized = ((images / 255 - info["mean"]) / info["std"]).astype(np.float32)
    for method in (model.logits, model.predict_proba, model.predict):
        expected = method(images)
        chex.assert_trees_all_close(method(normalized, preprocess=False), expected, atol=1e-5)


def test_every_network_of_an_ensemble_counts_the_same(model, test_split):
    """Also one with fewer members, in both ways to combine them."""
    images = test_split.images[:20]
    (network,) = model.networks
    (folded,) = model.fold().networks
    logits = model.logits(images)
    for kind, expected in {
        "logits": special.softmax(logits.mean(1), axis=1),
        "probabilities": (
            special.softmax(logits.mean(1), axis=1) + special.softmax(logits, axis=2).mean(1)
        )
        / 2,
    }.items():
        mixed = Model([network, folded], kind)
        assert mixed.logits(images).shape == (20, 3, 10)
        chex.assert_trees_all_close(mixed.weights, np.array([0.25, 0.25, 0.5]))
        chex.assert_trees_all_close(mixed.predict_proba(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [pytest.param("logits", marks=pytest.mark.stress), "probabilities"]
)
def test_ensemble_predicts_what_its_evaluation_scored(
    run_copy, other_run, test_split, tmp_path, kind
):
    """One temperature, fitted on the pooled prediction, is stored and used by prediction."""
    folders = [run_copy, other_run]
    assert mixmo_jax.load(folders, ensemble=kind).temperature is None
    scores = evaluate_ensemble([Workdir(f) for f in folders], ensemble=kind)
    ensemble = mixmo_jax.load(folders, ensemble=kind)
    logits = ensemble.logits(test_split.images)
    plain = metrics.ensemble_metrics(logits, test_split.labels, kind, ensemble.weights)
    assert plain == pytest.approx(scores)
    fitted = calibration.fit_temperature(logits, test_split.labels, kind, ensemble.weights)
    assert ensemble.temperature == pytest.approx(fitted)
    assert abs(fitted - 1) > 0.01
    members = logits / fitted
    expected = {
        "logits": special.softmax(members.mean(1), axis=1),
        "probabilities": special.softmax(members, axis=2).mean(1),
    }
    probs = ensemble.predict_proba(test_split.images)
    chex.assert_trees_all_close(probs, expected[kind], atol=1e-5)
    # It holds for these runs in any order and place, combined in either way, and for nothing else.
    moved = [shutil.copytree(f, tmp_path / f"moved{i}") for i, f in enumerate(folders)]
    assert mixmo_jax.load(moved, ensemble=kind).temperature == ensemble.temperature
    assert mixmo_jax.load(folders[::-1], ensemble=kind).temperature == ensemble.temperature
    other = {"logits": "probabilities", "probabilities": "logits"}[kind]
    fitted = calibration.fit_temperature(logits, test_split.labels, other, ensemble.weights)
    assert mixmo_jax.load(folders, ensemble=other).temperature == pytest.approx(fitted)
    assert mixmo_jax.load([*folders, run_copy], ensemble=kind).temperature is None
    trained_again = run_copy / METRICS
    trained_again.write_bytes(trained_again.read_bytes().replace(b'"seconds": ', b'"seconds": 1'))
    assert mixmo_jax.load(folders, ensemble=kind).temperature is None


def test_other_way_to_combine_members(run_copy, model, test_split):
    """It can be chosen after training, for evaluation and for prediction."""
    images = test_split.images[:20]
    other = mixmo_jax.load(run_copy, ensemble="probabilities")
    scaled = model.logits(images) / other.temperature
    expected = special.softmax(scaled, axis=-1).mean(1)
    chex.assert_trees_all_close(other.predict_proba(images), expected, atol=1e-6)
    assert other.temperature != model.temperature
    evaluate_run(Workdir(run_copy), ensemble="probabilities")
    results = json.loads((run_copy / RESULTS).read_text())
    assert results["ensemble"] == "probabilities"
    assert results["temperature"] == other.temperature
    assert mixmo_jax.load(run_copy).temperature == model.temperature  # is kept
    with pytest.raises(InputError, match="ensemble='mean': expected logits or probabilities"):
        mixmo_jax.load(run_copy, ensemble="mean")


def test_run_of_an_older_version_has_its_one_temperature(run_copy):
    results = json.loads((run_copy / RESULTS).read_text())
    del results["prediction_temperatures"], results["ensemble"]
    (run_copy / RESULTS).write_text(json.dumps(results))
    assert mixmo_jax.load(run_copy).temperature == results["temperature"]
    assert mixmo_jax.load(run_copy, ensemble="probabilities").temperature is None


def test_calibrate_fits_a_temperature_on_any_images(model, test_split):
    images, labels = test_split.images[:100], test_split.labels[:100]
    sharper = Model(model.networks, model.ensemble, 0.1)
    calibrated = sharper.calibrate(images, labels)
    expected = calibration.fit_temperature(model.logits(images), labels)
    assert calibrated.temperature == pytest.approx(expected, rel=1e-4)
    assert sharper.temperature == 0.1  # left as it was
    assert calibrated.fold().temperature == calibrated.temperature
    for wrong in (labels[:-1], labels.astype(float), labels + 10, labels - 10):
        with pytest.raises(InputError, match="labels: "):
            model.calibrate(images, wrong)


def test_unfinished_run_is_loaded_when_asked_for(run_copy, model, test_split):
    edit(run_copy / CONFIG, num_epochs=2)
    with pytest.raises(InputError, match=r"epoch 1 of 2\): .*--allow_unfinished"):
        mixmo_jax.load(run_copy)
    loaded = mixmo_jax.load(run_copy, allow_unfinished=True)
    assert loaded.networks[0].epoch == 1
    edit(run_copy / RESULTS, epoch=0)  # evaluated before, at another epoch
    assert mixmo_jax.load(run_copy, allow_unfinished=True).temperature is None
    images = test_split.images[:5]
    chex.assert_trees_all_equal(loaded.logits(images), model.logits(images))


def test_one_image_costs_about_one_image(model, monkeypatch):
    """The padding goes to the next power of two, not to the size of a batch."""
    sizes = []

    def record(images, mean, std):
        sizes.append(len(images))
        return images / 255.0

    monkeypatch.setattr(model_lib, "normalize", record)
    (network,) = model.networks
    logits_fn = make_logits_fn(network.module, batch_size=100, mean=(0.25,), std=(1.0,))
    variables = distributed.replicate(network.variables)
    for count in (1, 3, 70, 100, 250):
        logits_fn(variables, np.zeros((count, 8, 8, 1), np.float32))
    assert sizes == [jax.local_device_count(), 4, 100, 64]  # each compiled once


def test_variables_are_placed_once(finished_run, test_split, monkeypatch):
    placed, replicate = [], distributed.replicate
    monkeypatch.setattr(
        distributed, "replicate", lambda tree: placed.append(tree) or replicate(tree)
    )
    model = mixmo_jax.load(finished_run)
    for _ in range(3):
        model.logits(test_split.images[:1])
    assert len(placed) == 1


def test_ensemble_of_one_run_twice_is_that_run(model, finished_run, test_split):
    images = test_split.images[:20]
    twice = Model(mixmo_jax.load([finished_run, finished_run]).networks)
    expected = Model(model.networks).predict_proba(images)
    chex.assert_trees_all_close(twice.predict_proba(images), expected, atol=1e-6)


@pytest.fixture(scope="module", params=NETS)
def reference_model(request):
    """A golden network, and the plain network of its core."""
    build, arguments = NETS[request.param]
    plain = build(**arguments, num_members=1, dtype=np.dtype("float32"))
    return mixmo_jax.from_torch(Reference(request.param).state_dict), plain


def shapes_of(network, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)


def flops_of(network, variables, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    apply = jax.jit(lambda v, x: network.apply(v, x, train=False))
    return apply.lower(variables, images).cost_analysis()["flops"]


def test_folded_logits_are_the_mean_of_the_members(reference_model):
    model, _ = reference_model
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(6, *model.image_shape), dtype=np.uint8)
    logits = model.logits(images)
    scale = abs(logits).max()
    folded = model.fold()
    assert folded.num_members == 1
    assert (folded.class_names, folded.image_shape) == (model.class_names, model.image_shape)
    expected = logits.mean(1, keepdims=True) / scale
    chex.assert_trees_all_close(folded.logits(images) / scale, expected, atol=1e-5)
    chex.assert_trees_all_close(folded.fold().logits(images) / scale, expected, atol=1e-5)


def test_folded_network_costs_what_the_plain_one_does(reference_model):
    model, plain = reference_model
    (folded,) = model.fold().networks
    shapes = shapes_of(plain, model.image_shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(folded.variables, shapes)
    flops = flops_of(plain, shapes, model.image_shape)
    assert flops > 0
    found = flops_of(folded.module, folded.variables, model.image_shape)
    assert found == pytest.approx(flops, rel=0.01)


def test_folding_a_run_keeps_its_probabilities(model, test_split):
    variables = jax.tree.map(np.array, model.networks[0].variables)
    folded = model.fold()
    expected = model.predict_proba(test_split.images)
    chex.assert_trees_all_close(folded.predict_proba(test_split.images), expected, atol=1e-5)
    plain = create_model(model.config.copy_and_resolve_references().model, 10).clone(num_members=1)
    shapes = shapes_of(plain, model.image_shape)
    chex.assert_trees_all_equal_shapes(folded.networks[0].variables, shapes)
    chex.assert_trees_all_equal(model.networks[0].variables, variables)  # left as they were


def test_only_one_network_of_mean_logits_folds(model, ensemble):
    for other in (ensemble, Model(model.networks, "probabilities")):
        with pytest.raises(InputError, match="fold: only one network"):
            other.fold()


@pytest.mark.parametrize(
    ("images", "preprocess", "message"),
    [
        (np.zeros((8, 8), np.uint8), True, r"shape \(8, 8\), expected \[N >= 1, 8, 8, 1\]"),
        (np.zeros((1, 1, 8, 8, 1), np.uint8), True, r"shape \(1, 1, 8, 8, 1\)"),
        (np.zeros((2, 8, 9, 1), np.uint8), True, r"shape \(2, 8, 9, 1\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), True, r"shape \(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), True, r"shape \(0, 8, 8, 1\)"),
        (np.zeros((0, 8, 8, 1), np.float32), False, r"shape \(0, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 1), np.float32), True, "images: float32, expected uint8"),
        (np.zeros((2, 8, 8, 1), np.int64), True, "images: int64, expected uint8"),
        (np.zeros((2, 8, 8, 1), np.uint8), False, "images: uint8, expected float32"),
        (np.zeros((2, 8, 8, 1), np.float64), False, "images: float64, expected float32"),
        (np.full((2, 8, 8, 1), np.nan, np.float32), False, "not finite"),
        (np.full((2, 8, 8, 1), -np.inf, np.float32), False, "not finite"),
        ([np.zeros((8, 8), np.uint8), np.zeros((9, 9), np.uint8)], True, "images: "),
    ],
)
@pytest.mark.parametrize("method", ["logits", "predict_proba", "predict"])
def test_wrong_images_are_named(model, method, images, preprocess, message):
    with pytest.raises(InputError, match=message) as error:
        getattr(model, method)(images, preprocess=preprocess)
    assert "\n" not in str(error.value)


def test_folder_without_a_finished_run(run_copy, tmp_path):
    with pytest.raises(InputError, match="holds no run: "):
        mixmo_jax.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no run: "):
        mixmo_jax.load(tmp_path)
    with pytest.raises(InputError, match="paths: none"):
        mixmo_jax.load([])


def test_run_without_checkpoint_is_refused_and_left_alone(run_copy):
    shutil.rmtree(Workdir(run_copy).checkpoint_dir)
    before = contents(run_copy)
    with pytest.raises(InputError, match="has no checkpoint"):
        mixmo_jax.load(run_copy)
    assert contents(run_copy) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": list("9876543210")}, "networks: they differ in their class_names"),
        ({"image_shape": [9, 9, 1]}, "networks: they differ in their image_shape"),
    ],
)
def test_runs_that_do_not_fit_together(finished_run, run_copy, fields, message):
    edit(run_copy / DATASET, **fields)
    with pytest.raises(InputError, match=message):
        mixmo_jax.load([finished_run, run_copy])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"temperature": "x"}'])
def test_damaged_results_are_one_line(run_copy, text):
    (run_copy / RESULTS).write_text(text)
    with pytest.raises(InputError, match=RESULTS) as error:
        mixmo_jax.load(run_copy)
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_network_is_refused(run_copy):
    config = json.loads((run_copy / CONFIG).read_text())
    config["model"]["width"] = 2
    (run_copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match="checkpoint") as error:
        mixmo_jax.load(run_copy)
    assert "\n" not in str(error.value)


def test_selected_members_are_those_of_the_whole(finished_run):
    model = mixmo_jax.load(finished_run)
    images = np.random.default_rng(0).integers(0, 256, (5, *model.image_shape), np.uint8)
    logits = model.logits(images)  # [N, M, K]
    for members in ([0], [1], [1, 0]):
        selected = model.select(members)
        np.testing.assert_allclose(
            selected.logits(images), logits[:, members], rtol=1e-4, atol=1e-5
        )
        assert selected.temperature is None
    chosen = model.select([1])
    np.testing.assert_allclose(
        chosen.fold().predict_proba(images), chosen.predict_proba(images), rtol=1e-4, atol=1e-5
    )
    for members in ([], [2], [-1], [0, 0]):
        with pytest.raises(InputError, match="expected distinct indices from 0 to 1"):
            model.select(members)


def test_run_of_which_some_members_predict(finished_run, tmp_path):
    """`evaluation.members` says which, in the results and wherever the run is loaded."""
    folder = shutil.copytree(finished_run, tmp_path / "run")
    whole = mixmo_jax.load(folder)
    config = json.loads((folder / CONFIG).read_text())
    config["evaluation"]["members"] = [1]
    (folder / CONFIG).write_text(json.dumps(config))
    scores = evaluate_run(Workdir(folder))
    assert "accuracy_member1" not in scores and "disagreement" not in scores
    before = json.loads((finished_run / "results.json").read_text())["scores"]
    assert scores["accuracy"] == before["accuracy_member1"]
    model = mixmo_jax.load(folder)
    assert model.num_members == 1
    assert model.temperature == json.loads((folder / "results.json").read_text())["temperature"]
    images = np.random.default_rng(0).integers(0, 256, (5, *model.image_shape), np.uint8)
    expected = whole.logits(images)[:, [1]]
    np.testing.assert_allclose(model.logits(images), expected, rtol=1e-4, atol=1e-5)
    config["evaluation"]["members"] = [2]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"members=\(2,\): expected indices below"):
        mixmo_jax.load(folder)


RUN_V02 = pathlib.Path(__file__).parent / "goldens" / "run_v02"


def test_runs_and_pretrained_models_of_version_0_2():
    """Logits recorded with that version, in a process with other XLA flags."""
    images, expected = np.load(f"{RUN_V02}_images.npy"), np.load(f"{RUN_V02}_logits.npy")
    model = mixmo_jax.load(RUN_V02)
    np.testing.assert_allclose(model.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert model.temperature == temperature_of(RUN_V02)
    shipped = mixmo_jax.load(PRETRAINED)
    assert shipped.results["scores"]["accuracy"] > 0.98 and shipped.temperature > 0
