"""Tests of the scores against scikit-learn, loops, and the reference's numbers."""

import itertools
import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from mixmo_jax import metrics
from mixmo_jax.errors import InputError

N, M, K = 500, 3, 12


@pytest.fixture(scope="module")
def predictions():
    """Logits [N, M, K] that know something of the labels, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(K, size=N)
    logits = rng.standard_normal((N, M, K)) + 1.5 * np.eye(K)[labels][:, None]
    return logits.astype(np.float32), labels


@pytest.fixture(scope="module")
def golden(shared_goldens):
    """The reference's logits [N, M, K], its other arrays, and all its numbers."""
    folder = shared_goldens / "metrics"
    with np.load(folder / "m2_scale1.6.npz") as table:
        arrays = dict(table)
    logits = np.stack([arrays["logits_0"], arrays["logits_1"]], axis=1)
    return logits, arrays, json.loads((folder / "m2_scale1.6.json").read_text())


def nll(logits, labels, temperature=1.0, ensemble="logits"):
    """Mean NLL of logits / temperature."""
    log_probs = metrics.ensemble_log_probs(logits / temperature, ensemble)
    return log_loss(labels, np.exp(log_probs), labels=range(logits.shape[-1]))


def naive_calibration_error(probs, labels, num_bins):
    """ECE by a loop over bins (low, high]."""
    top, correct = probs.max(1), probs.argmax(1) == labels
    edges = np.linspace(0, 1, num_bins + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(len(top)) if low < top[i] <= high]
        if inside:
            error += abs(sum(top[i] - correct[i] for i in inside)) / len(top)
    return error


def naive_adaptive_error(probs, labels):
    """TACE by loops: of each class 15 bins of n // 15 probabilities, the rest in the last."""
    error = 0.0
    for k in range(probs.shape[1]):
        pairs = sorted((p, y == k) for p, y in zip(probs[:, k], labels, strict=True) if p > 1e-3)
        size = len(pairs) // 15
        for i in range(15):
            part = pairs[size * i : size * (i + 1) if i < 14 else None]
            if part:
                confidence = sum(p for p, _ in part) / len(part)
                frequency = sum(y for _, y in part) / len(part)
                error += len(part) * abs(confidence - frequency)
    return error / probs.size


def probs_with_top(top, num_classes):
    """[len(top), K] with a given highest probability, of class 0, the others equal."""
    top = np.asarray(top)[:, None]
    rest = np.broadcast_to((1 - top) / (num_classes - 1), (len(top), num_classes - 1))
    return np.concatenate([top, rest], axis=1)


def test_log_probs_of_the_mean_logits(predictions):
    logits, _ = predictions
    probs = special.softmax(logits.astype(np.float64).mean(1), axis=-1)
    log_probs = metrics.ensemble_log_probs(logits)
    assert log_probs.dtype == np.float64
    chex.assert_trees_all_close(log_probs, np.log(probs), atol=1e-12)
    chex.assert_trees_all_equal(metrics.ensemble_log_probs(logits, "logits"), log_probs)


def test_log_probs_of_the_mean_probabilities(predictions):
    logits, _ = predictions
    probs = special.softmax(logits.astype(np.float64), axis=-1).mean(1)
    log_probs = metrics.ensemble_log_probs(logits, "probabilities")
    chex.assert_trees_all_close(log_probs, np.log(probs), atol=1e-12)
    assert abs(log_probs - metrics.ensemble_log_probs(logits)).max() > 0.01


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_log_probs_of_extreme_logits_are_finite(ensemble):
    logits = np.array([[[0.0, 1e4], [1e4, 0.0]]], np.float32)
    expected = np.log([[0.5, 0.5]])
    chex.assert_trees_all_close(metrics.ensemble_log_probs(logits, ensemble), expected)
    chex.assert_tree_all_finite(metrics.ensemble_log_probs(logits[:, :1], ensemble))


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_scores_equal_scikit_learn(predictions, ensemble):
    logits, labels = predictions
    scores = metrics.ensemble_metrics(logits, labels, ensemble)
    log_probs = metrics.ensemble_log_probs(logits, ensemble)
    classes = range(K)
    expected = {
        "accuracy": accuracy_score(labels, log_probs.argmax(1)),
        "top5_accuracy": top_k_accuracy_score(labels, log_probs, k=5, labels=classes),
        "nll": log_loss(labels, np.exp(log_probs), labels=classes),
        "brier": sum(brier_score_loss(labels == k, np.exp(log_probs[:, k])) for k in classes),
        "ece": naive_calibration_error(np.exp(log_probs), labels, 15),
        "tace": naive_adaptive_error(np.exp(log_probs), labels),
        "auroc": roc_auc_score(log_probs.argmax(1) == labels, np.exp(log_probs).max(1)),
    }
    expected["brier_per_class"] = expected["brier"] / K
    members = [accuracy_score(labels, logits[:, m].argmax(1)) for m in range(M)]
    expected |= {f"accuracy_member{m}": value for m, value in enumerate(members)}
    expected["accuracy_members_mean"] = np.mean(members)
    assert scores.keys() == expected.keys() | {"ratio_error", "disagreement"}
    assert all(type(value) is float for value in scores.values())
    chex.assert_trees_all_close({key: scores[key] for key in expected}, expected, atol=1e-12)


def test_scores_equal_reference(golden):
    logits, arrays, numbers = golden
    scores = metrics.ensemble_metrics(logits, arrays["labels"])
    names = {
        "accuracy": "accuracy",
        "top5_accuracy": "accuracytop5",
        "nll": "nll",
        "brier_per_class": "brier",
        "ece": "ece",
        "tace": "tace",
        "auroc": "auc",
        "accuracy_member0": "accuracy_0",
        "accuracy_member1": "accuracy_1",
        "accuracy_members_mean": "accuracy_mean",
        "ratio_error": "diversity_ratioerrors",
    }
    expected = numbers["full_no_tempscale"]
    chex.assert_trees_all_close(
        {name: scores[name] for name in names},
        {name: expected[f"final/{key}"]["value"] for name, key in names.items()},
        atol=1e-6,  # the reference computed in float32
        rtol=1e-6,
    )
    probs = np.exp(metrics.ensemble_log_probs(logits)).astype(np.float32)
    chex.assert_trees_all_close(probs, arrays["ensemble_probs"], atol=1e-6)
    few = metrics.thresholded_adaptive_calibration_error(probs[:300], arrays["labels"][:300])
    assert few == pytest.approx(numbers["tace_on_first_300_rows"], abs=1e-6)


def test_single_member_has_no_diversity(predictions):
    logits, labels = predictions
    scores = metrics.ensemble_metrics(logits[:, :1], labels)
    assert scores.keys().isdisjoint({"ratio_error", "disagreement"})
    assert scores["accuracy"] == scores["accuracy_member0"] == scores["accuracy_members_mean"]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_equals_scikit_learn(predictions, k):
    logits, labels = predictions
    expected = top_k_accuracy_score(labels, logits[:, 0], k=k, labels=range(K))
    assert metrics.top_k_accuracy(logits[:, 0], labels, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_calibration_of_random_probabilities(predictions, num_bins):
    logits, labels = predictions
    probs = special.softmax(logits[:, 0].astype(np.float64), axis=-1)
    counts, confidence, accuracy = metrics.reliability_bins(probs, labels, num_bins)
    assert counts.sum() == N
    chex.assert_trees_all_close((counts * confidence).sum() / N, probs.max(1).mean())
    chex.assert_trees_all_close((counts * accuracy).sum() / N, (probs.argmax(1) == labels).mean())
    error = (counts * abs(confidence - accuracy)).sum() / N
    expected = naive_calibration_error(probs, labels, num_bins)
    chex.assert_trees_all_close(error, expected, atol=1e-12)


def test_bins_are_closed_above():
    probs = probs_with_top([0.25, 0.25, 0.26, 0.5, 0.75, 1.0], num_classes=8)
    counts, confidence, accuracy = metrics.reliability_bins(probs, np.array([0, 1, 0, 0, 1, 0]), 4)
    chex.assert_trees_all_equal(counts, np.array([2, 2, 1, 1]))
    chex.assert_trees_all_close(confidence, np.array([0.25, 0.38, 0.75, 1.0]), atol=1e-12)
    chex.assert_trees_all_close(accuracy, np.array([0.5, 1.0, 0.0, 1.0]), atol=1e-12)


def test_calibration_error_with_probabilities_on_every_edge():
    """Those on an edge are all right and those above it all wrong, so a wrong bin would show."""
    edges = np.linspace(0, 1, 16)[1:]
    probs = probs_with_top(np.concatenate([edges, edges[:-1] + 0.03]), num_classes=50)
    labels = np.repeat([0, 1], [15, 14])
    expected = naive_calibration_error(probs, labels, 15)
    assert metrics.expected_calibration_error(probs, labels) == pytest.approx(expected, abs=1e-12)
    counts, _, accuracy = metrics.reliability_bins(probs, labels)
    chex.assert_trees_all_equal(counts, np.array([1] + [2] * 14))
    chex.assert_trees_all_equal(accuracy, np.array([1] + [0.5] * 14))


def test_empty_bins_are_zero():
    probs = probs_with_top([0.9, 0.9], num_classes=2)
    counts, confidence, accuracy = metrics.reliability_bins(probs, np.array([0, 0]), 10)
    for values, expected in ((counts, 2), (confidence, 0.9), (accuracy, 1)):
        assert values[8] == pytest.approx(expected)
        assert not np.delete(values, 8).any()


def test_ratio_error_of_pairs():
    correct = np.array(
        [
            [1, 1, 1],
            [1, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
            [0, 0, 0],
        ],
        bool,
    )
    # Of each pair two samples have one wrong and two have both.
    assert metrics.ratio_error(correct) == 1
    # Now the first pair has three of the one and two of the other.
    extended = np.vstack([correct, [[1, 0, 1]]]).astype(bool)
    assert metrics.ratio_error(extended) == pytest.approx((3 / 2 + 2 / 2 + 3 / 2) / 3)


def test_ratio_error_without_common_errors():
    assert metrics.ratio_error(np.array([[1, 0], [0, 1], [1, 1]], bool)) == np.inf
    assert np.isnan(metrics.ratio_error(np.ones((4, 2), bool)))
    assert metrics.ratio_error(np.zeros((4, 2), bool)) == 0
    # A pair without errors does not count beside others.
    assert metrics.ratio_error(np.array([[1, 1, 0], [1, 1, 0]], bool)) == np.inf


def test_disagreement_is_the_mean_over_pairs():
    classes = np.array([[0, 0, 1], [2, 2, 2], [3, 4, 5], [1, 1, 0]])
    assert metrics.disagreement(classes) == pytest.approx((1 / 4 + 3 / 4 + 3 / 4) / 3)
    assert metrics.disagreement(classes[:, :1].repeat(2, axis=1)) == 0


def test_diversity_of_scores_is_that_of_the_members(predictions):
    logits, labels = predictions
    classes = logits.argmax(-1)
    scores = metrics.ensemble_metrics(logits, labels)
    assert scores["ratio_error"] == metrics.ratio_error(classes == labels[:, None])
    assert scores["disagreement"] == metrics.disagreement(classes)


def test_brier_of_certain_and_of_uniform_answers():
    labels = np.array([0, 3])
    certain = 1e4 * np.eye(4)[labels][:, None]
    assert metrics.ensemble_metrics(certain, labels)["brier"] == pytest.approx(0, abs=1e-12)
    assert metrics.ensemble_metrics(certain, 3 - labels)["brier"] == pytest.approx(2)
    assert metrics.ensemble_metrics(0 * certain, labels)["brier"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("count", [1, 14, 15, 16, 44, 500])
def test_adaptive_error_equals_loops(predictions, count):
    logits, labels = predictions
    probs = np.exp(metrics.ensemble_log_probs(3 * logits[:count]))  # some below the threshold
    error = metrics.thresholded_adaptive_calibration_error(probs, labels[:count])
    assert error == pytest.approx(naive_adaptive_error(probs, labels[:count]), abs=1e-12)


def test_adaptive_error_of_fewer_than_15_is_that_of_one_bin():
    probs = np.array([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.3, 0.6995, 0.0005]])
    labels = np.array([0, 1, 1])
    # The third class has no probability above the threshold.
    expected = (abs(1.7 - 1) + abs(1.2995 - 2)) / probs.size
    error = metrics.thresholded_adaptive_calibration_error(probs, labels)
    assert error == pytest.approx(expected, abs=1e-12)


def test_auroc_equals_scikit_learn_with_ties(predictions):
    logits, _ = predictions
    values, positive = logits[:, 0, 0].round(1), logits[:, 1, 1] > 0
    expected = roc_auc_score(positive, values)
    assert metrics.auroc(values, positive) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(0 * values, positive) == pytest.approx(0.5)


@pytest.mark.parametrize("positive", [True, False])
def test_auroc_of_one_kind_is_undefined(positive):
    assert np.isnan(metrics.auroc(np.arange(3.0), np.full(3, positive)))


@pytest.mark.parametrize(("indices", "name"), [("val_idx_A", "val_A"), ("test_idx_B", "test_B")])
def test_temperature_is_no_worse_than_the_reference(golden, indices, name):
    logits, arrays, numbers = golden
    logits, labels = logits[arrays[indices]], arrays["labels"][arrays[indices]]
    temperature = metrics.fit_temperature(logits, labels)
    optimum, least = numbers[f"optimal_temp_{name}"]
    assert temperature == pytest.approx(optimum, rel=1e-4)
    found = nll(logits, labels, temperature)
    assert found == pytest.approx(least, rel=1e-6)
    assert found <= nll(logits, labels, numbers[f"temp_learned_on_{name}"])


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_temperature_is_least_and_follows_the_scale(predictions, ensemble):
    logits, labels = predictions
    temperature = metrics.fit_temperature(logits, labels, ensemble)
    least = nll(logits, labels, temperature, ensemble)
    for factor in (0.5, 0.99, 1.01, 2):
        assert nll(logits, labels, factor * temperature, ensemble) > least
    refitted = metrics.fit_temperature(logits / temperature, labels, ensemble)
    assert refitted == pytest.approx(1, rel=1e-4)
    scaled = metrics.fit_temperature(7 * logits, labels, ensemble)
    assert scaled == pytest.approx(7 * temperature, rel=1e-4)


def test_temperature_recovers_a_known_scale():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((20_000, 1, 5))
    labels = (logits[:, 0] + rng.gumbel(size=(20_000, 5))).argmax(1)  # of the softmax
    for scale in (0.3, 1, 4):
        assert metrics.fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_scaled_scores_are_reproducible_and_cross_validated(predictions, ensemble):
    logits, labels = predictions
    logits = 4 * logits
    scores = metrics.ensemble_metrics(logits, labels, ensemble)
    scaled, temperatures = metrics.scaled_metrics(logits, labels, ensemble)
    again = metrics.scaled_metrics(logits, labels, ensemble)
    chex.assert_trees_all_equal((scaled, temperatures), again)
    assert scaled.keys() == scores.keys()
    for name in scores:
        if name.startswith("accuracy_member"):
            assert scaled[name] == pytest.approx(scores[name], abs=1e-12)
    assert scaled["nll"] < scores["nll"]
    overall = metrics.fit_temperature(logits, labels, ensemble)
    assert min(temperatures) < overall < max(temperatures)
    # On the halves that they were fitted on, they would score better than the overall one.
    assert scaled["nll"] > nll(logits, labels, overall, ensemble)


def test_scaled_metrics_of_calibrated_logits_are_not_inflated():
    """Averaged over halves, ECE and TACE grow with the halves' own noise; pooled, they do not."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (10_000, 1, 100))
    probs = special.softmax(logits[:, 0], axis=1)
    labels = (probs.cumsum(1) < rng.uniform(size=(10_000, 1))).sum(1).clip(0, 99)
    plain = metrics.ensemble_metrics(logits, labels)
    pooled, temperatures = metrics.scaled_metrics(logits, labels)
    averaged, same = metrics.scaled_metrics(logits, labels, pooled=False)
    assert temperatures == same == pytest.approx((1, 1), abs=0.05)
    assert pooled["ece"] < 1.2 * plain["ece"] < averaged["ece"]
    for name in ("accuracy", "top5_accuracy"):
        assert pooled[name] == plain[name]


def test_scaling_mean_logits_leaves_the_answers(predictions):
    logits, labels = predictions
    scores = metrics.ensemble_metrics(logits, labels)
    scaled, _ = metrics.scaled_metrics(logits, labels)
    for name in ("accuracy", "top5_accuracy", "disagreement"):
        assert scaled[name] == pytest.approx(scores[name], abs=1e-12)


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_all_scores_at_once(predictions, ensemble):
    logits, labels = predictions
    scores = metrics.compute_metrics(logits, labels, ensemble)
    assert all(type(value) is float for value in scores.values())
    scaled, temperatures = metrics.scaled_metrics(logits, labels, ensemble)
    assert (scores.pop("temperature0"), scores.pop("temperature1")) == temperatures
    for name, value in scaled.items():
        assert scores.pop(f"scaled_{name}") == value
    assert scores == metrics.ensemble_metrics(logits, labels, ensemble)


@pytest.mark.parametrize("convert", [np.ndarray.tolist, jnp.asarray])
def test_scores_of_what_is_no_numpy_array(predictions, convert):
    logits, labels = predictions
    scores = metrics.compute_metrics(convert(logits), convert(labels))
    chex.assert_trees_all_close(scores, metrics.compute_metrics(logits, labels), atol=1e-12)


def test_coarse_logits_are_scaled_exactly(predictions):
    logits, labels = predictions
    coarse = jnp.asarray(logits, jnp.bfloat16)
    expected = metrics.compute_metrics(np.asarray(coarse, np.float32), labels)
    chex.assert_trees_all_close(metrics.compute_metrics(coarse, labels), expected, atol=1e-12)


def test_scaled_scores_are_of_the_half_where_they_are_defined():
    """Without any error in one half, its AUROC is not."""
    labels = np.zeros(40, int)
    logits = np.random.default_rng(0).uniform(1, 2, (40, 1, 2)) * [[[1, 0]]]
    wrong = np.random.default_rng(0).permutation(40)[[3, 7]]  # of the first half
    logits[wrong, 0, 1] = 1.5 * logits[wrong, 0, 0]
    scaled, temperatures = metrics.scaled_metrics(logits, labels, pooled=False)
    assert temperatures[0] == 1 != temperatures[1]
    first = np.random.default_rng(0).permutation(40)[:20]
    assert scaled["auroc"] == metrics.ensemble_metrics(logits[first], labels[first])["auroc"]


def test_scores_of_one_sample():
    logits, labels = np.array([[[1.0, 2.0, 0.0]]]), np.array([1])
    scores = metrics.compute_metrics(logits, labels)
    assert scores["accuracy"] == scores["scaled_accuracy"] == 1
    assert scores["scaled_nll"] == scores["nll"] == pytest.approx(nll(logits, labels))


GOOD_LOGITS, GOOD_LABELS = np.zeros((4, 2, 3)), np.array([0, 1, 2, 2])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (GOOD_LOGITS[:, 0], GOOD_LABELS, r"shapes \(4, 3\) and \(4,\)"),
        (GOOD_LOGITS[:3], GOOD_LABELS, r"shapes \(3, 2, 3\) and \(4,\)"),
        (GOOD_LOGITS, GOOD_LABELS[:, None], r"shapes \(4, 2, 3\) and \(4, 1\)"),
        (GOOD_LOGITS[:0], GOOD_LABELS[:0], "expected .* N >= 1"),
        (GOOD_LOGITS[:, :0], GOOD_LABELS, "expected .* N >= 1"),
        (np.full((4, 2, 3), "x"), GOOD_LABELS, "expected arrays"),
        (GOOD_LOGITS, None, r"shapes \(4, 2, 3\) and \(\)"),
        (GOOD_LOGITS, GOOD_LABELS + 1, "labels: 3, expected 0 to 2"),
        (GOOD_LOGITS, GOOD_LABELS - 1, "labels: -1, expected 0 to 2"),
        (GOOD_LOGITS, GOOD_LABELS.astype(float), "labels: float64, expected integers"),
        (np.where(np.arange(3) == 1, np.nan, GOOD_LOGITS), GOOD_LABELS, "not finite"),
        (np.where(np.arange(3) == 1, np.inf, GOOD_LOGITS), GOOD_LABELS, "not finite"),
    ],
)
def test_what_cannot_be_scored_is_named(logits, labels, message):
    with pytest.raises(InputError, match=message) as error:
        metrics.compute_metrics(logits, labels)
    assert "\n" not in str(error.value)
    for scores in (metrics.ensemble_metrics, metrics.scaled_metrics):
        with pytest.raises(InputError, match=message):
            scores(logits, labels)


def test_unknown_kind_of_ensemble():
    with pytest.raises(InputError, match="ensemble='votes': expected logits or probabilities"):
        metrics.compute_metrics(GOOD_LOGITS, GOOD_LABELS, "votes")


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_no_temperature_where_every_answer_is_right(ensemble):
    labels = np.arange(K).repeat(3)
    logits = 2.0 * np.eye(K)[labels][:, None].repeat(M, axis=1)
    assert metrics.fit_temperature(logits, labels, ensemble) == 1
    scaled, temperatures = metrics.scaled_metrics(logits, labels, ensemble)
    assert temperatures == (1, 1)
    plain = metrics.ensemble_metrics(logits, labels, ensemble)
    chex.assert_trees_all_close(scaled["nll"], plain["nll"])


def test_temperature_where_a_majority_is_right():
    """The mean probability of a class stays below 1 then, however sharp the members are."""
    logits = np.array([[[10.0, 0], [10, 0], [0, 1]]]).repeat(4, axis=0)
    labels = np.zeros(4, int)
    assert metrics.fit_temperature(logits, labels, "logits") == 1
    temperature = metrics.fit_temperature(logits, labels, "probabilities")

    def nll(temperature):
        return metrics.ensemble_metrics(logits / temperature, labels, "probabilities")["nll"]

    assert nll(temperature) < min(nll(0.98 * temperature), nll(1.02 * temperature), nll(1))
