"""The bootstrap: the same as computing each metric on the resampled images, one resample after the other."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
)

from scripts.evaluation import bootstrap
from scripts.evaluation.bootstrap import percentile_interval, resample_metrics


def toy(num_images, num_classes, *, decimals=16):
    generator = np.random.default_rng(num_images * num_classes)
    labels = generator.integers(num_classes, size=num_images)
    scores = generator.random((num_images, num_classes))
    scores[np.arange(num_images), labels] += 0.3
    return labels, scores.argmax(axis=1), np.round(scores / scores.sum(axis=1, keepdims=True), decimals)


def figures_of(labels, predictions, scores, *, resamples=50, seed=3, auc_classes=None):
    auc_classes = range(scores.shape[1]) if auc_classes is None else auc_classes
    return resample_metrics(labels, predictions, scores, auc_classes=auc_classes, resamples=resamples, seed=seed)


def drawn_images(num_images, resamples, seed):
    """The images of each resample: what the generator draws, without any of the module's arithmetic."""
    return np.random.default_rng(seed).integers(num_images, size=(resamples, num_images))


@pytest.mark.parametrize("decimals", [16, 1], ids=["distinct scores", "many ties"])
@pytest.mark.parametrize(("num_images", "num_classes"), [(90, 3), (400, 8)])
def test_the_figures_are_those_of_resampled_images(num_images, num_classes, decimals):
    labels, predictions, scores = toy(num_images, num_classes, decimals=decimals)
    figures = figures_of(labels, predictions, scores, resamples=12)
    for index, images in enumerate(drawn_images(num_images, 12, seed=3)):
        truth, predicted, drawn = labels[images], predictions[images], scores[images]
        aucs = [roc_auc_score(truth == one, drawn[:, one]) for one in range(num_classes)]
        assert figures["accuracy"][index] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
        assert figures["auc"][index] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert figures["macro_f1"][index] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
        assert figures["balanced_accuracy"][index] == pytest.approx(
            balanced_accuracy_score(truth, predicted), abs=1e-12
        )
        kappa = cohen_kappa_score(truth, predicted, weights="quadratic")
        assert figures["quadratic_weighted_kappa"][index] == pytest.approx(kappa, abs=1e-12)
        assert figures["mean_absolute_error"][index] == pytest.approx(mean_absolute_error(truth, predicted), abs=1e-12)


@pytest.mark.parametrize("decimals", [16, 1], ids=["distinct scores", "many ties"])
def test_the_figures_of_several_labels_are_those_of_resampled_images(decimals):
    generator = np.random.default_rng(5)
    labels = (generator.random((120, 3)) < 0.3).astype(np.int64)
    scores = np.round(0.6 * generator.random((120, 3)) + 0.3 * labels, decimals)
    predictions = (scores > 0.5).astype(np.int64)
    figures = figures_of(labels, predictions, scores, resamples=12)
    assert set(figures) == {"accuracy", "auc", "macro_f1", "balanced_accuracy"}
    for index, images in enumerate(drawn_images(120, 12, seed=3)):
        truth, predicted, drawn = labels[images], predictions[images], scores[images]
        balanced = [balanced_accuracy_score(truth[:, one], predicted[:, one]) for one in range(3)]
        assert figures["accuracy"][index] == pytest.approx(np.mean(truth == predicted), abs=1e-12)
        assert figures["auc"][index] == pytest.approx(roc_auc_score(truth, drawn, average="macro"), abs=1e-12)
        assert figures["macro_f1"][index] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
        assert figures["balanced_accuracy"][index] == pytest.approx(np.mean(balanced), abs=1e-12)


def test_a_kappa_that_a_resample_leaves_undefined_is_nan_not_perfect():
    labels = np.zeros(10, dtype=np.int64)
    figures = figures_of(labels, labels, np.full((10, 2), 0.5), auc_classes=[1])
    assert np.isnan(figures["quadratic_weighted_kappa"]).all()
    assert figures["mean_absolute_error"].tolist() == [0.0] * 50


def test_only_the_requested_classes_enter_the_auc():
    labels, predictions, scores = toy(90, 3)
    figures = figures_of(labels, predictions, scores, auc_classes=[2], resamples=5)
    for index, images in enumerate(drawn_images(90, 5, seed=3)):
        expected = roc_auc_score(labels[images] == 2, scores[images, 2])
        assert figures["auc"][index] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_a_resample_misses_is_left_out_of_its_means():
    labels = np.array([0] * 20 + [1] * 20 + [2])
    scores = np.eye(3)[labels]
    missing = [2 not in labels[images] for images in drawn_images(41, 60, seed=3)]
    assert any(missing)
    figures = figures_of(labels, labels, scores, resamples=60)
    # predicted perfectly, each figure is 1 over the classes that a resample has
    for values in (figures["accuracy"], figures["auc"], figures["macro_f1"], figures["balanced_accuracy"]):
        assert values.tolist() == [1.0] * 60


def test_an_auc_without_negatives_is_undefined_not_perfect():
    labels = np.zeros(10, dtype=np.int64)
    figures = figures_of(labels, labels, np.full((10, 2), 0.5), auc_classes=[1])
    assert np.isnan(figures["auc"]).all()
    assert figures["accuracy"].tolist() == [1.0] * 50


@pytest.mark.parametrize("pieces", [1, 150, 1000])
def test_dividing_the_work_changes_nothing(monkeypatch, pieces):
    whole = figures_of(*toy(150, 4))
    monkeypatch.setattr(bootstrap, "CHUNK_WEIGHTS", pieces)
    divided = figures_of(*toy(150, 4))
    for name in ("accuracy", "auc", "macro_f1", "balanced_accuracy"):
        assert np.array_equal(whole[name], divided[name])


def test_other_scores_are_evaluated_on_the_same_resamples():
    labels, predictions, scores = toy(80, 3)
    perfect = figures_of(labels, labels, np.eye(3)[labels])
    again = figures_of(labels, predictions, scores)
    share_right = [np.mean(predictions[images] == labels[images]) for images in drawn_images(80, 50, seed=3)]
    assert again["accuracy"] == pytest.approx(share_right, abs=1e-12)
    assert perfect["accuracy"].tolist() == [1.0] * 50


def test_the_same_seed_gives_the_same_figures_and_another_seed_others():
    case = toy(80, 3)
    assert np.array_equal(figures_of(*case)["auc"], figures_of(*case)["auc"])
    assert not np.array_equal(figures_of(*case)["auc"], figures_of(*case, seed=4)["auc"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        labels = generator.integers(2, size=150)
        is_right = generator.random(150) < 0.8
        predictions = np.where(is_right, labels, 1 - labels)
        figures = figures_of(labels, predictions, np.full((150, 2), 0.5), resamples=200, seed=seed, auc_classes=[1])
        low, high = percentile_interval(figures["accuracy"])
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_the_interval_is_the_middle_of_the_values():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
    assert percentile_interval(np.array([0.0, math.nan, 1.0]), level=0.5) == (0.25, 0.75)


def test_no_defined_value_gives_no_interval():
    assert all(math.isnan(edge) for edge in percentile_interval(np.full(5, np.nan)))


def test_a_thousand_resamples_of_a_usual_test_split_take_less_than_two_seconds():
    case = toy(3400, 8)
    start = time.process_time()
    figures_of(*case, resamples=1000)
    assert time.process_time() - start < 2.0
