"""Probabilities against their definitions, and the temperature that is fitted to a validation split."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    UNDETERMINED,
    Temperatures,
    apply_temperature,
    bin_decisions,
    calibrate,
    decide,
    fit_temperature,
    measure_probabilities,
)
from scripts.evaluation.metrics import TASKS, predict_classes


def drawn_case(task, *, num_images=4000, sharpness=1.0, seed=0):
    """Labels that are drawn from known probabilities, and these with their logits multiplied by ``sharpness``."""
    generator = np.random.default_rng(seed)
    num_classes = 2 if task == BINARY else 5
    logits = 2 * generator.standard_normal((num_images, num_classes))
    if task == MULTI_LABEL:
        labels = (generator.random(logits.shape) < expit(logits)).astype(np.int64)
        return labels, expit(sharpness * logits)
    drawn = generator.random((num_images, 1))
    labels = (drawn > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=num_classes - 1)
    return labels, softmax(sharpness * logits, axis=1)


def plain_ece(labels, scores, task):
    """The calibration error in plain Python, one decision at a time."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for truth, row in zip(labels.reshape(len(labels), -1).tolist(), scores.tolist(), strict=True):
        if task == MULTI_LABEL:
            found = [(max(p, 1 - p), (p > 0.5) == (label == 1)) for label, p in zip(truth, row, strict=True)]
        else:
            found = [(max(row), row.index(max(row)) == truth[0])]
        for confidence, is_right in found:
            number = next(index for index in range(1, 16) if confidence <= index / 15)
            bins.setdefault(number, []).append((confidence, is_right))
    gaps = [abs(sum(p for p, _ in inside) - sum(right for _, right in inside)) for inside in bins.values()]
    return sum(gaps) / labels.size


@pytest.mark.parametrize("task", TASKS)
def test_the_metrics_are_those_of_independent_implementations(task):
    labels, scores = drawn_case(task, num_images=300, sharpness=1.7)

    found = measure_probabilities(labels, scores, task)

    assert found.ece == pytest.approx(plain_ece(labels, scores, task), abs=1e-12)
    if task == MULTI_LABEL:
        columns = list(zip(labels.T, scores.T, strict=True))
        assert found.nll == pytest.approx(np.mean([log_loss(*column) for column in columns]), abs=1e-12)
        assert found.brier == pytest.approx(np.mean([brier_score_loss(*column) for column in columns]), abs=1e-12)
    else:
        assert found.nll == pytest.approx(log_loss(labels, scores), abs=1e-12)
        classes = range(scores.shape[1])
        of_classes = [brier_score_loss(labels == index, scores[:, index]) for index in classes]
        assert found.brier == pytest.approx(sum(of_classes), abs=1e-12)


def test_the_metrics_of_a_split_small_enough_to_compute_explicitly():
    labels, scores = np.array([0, 1, 1]), np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])

    found = measure_probabilities(labels, scores, BINARY)

    assert found.reliability.counts.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0]  # of 0.6, 0.7 and 0.8
    assert found.reliability.accuracy[[8, 10, 11]].tolist() == [0, 1, 1]
    assert np.isnan(found.reliability.confidence[0])
    assert found.ece == pytest.approx((0.6 + 0.3 + 0.2) / 3)
    assert found.nll == pytest.approx(-np.log([0.8, 0.7, 0.4]).mean())
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.3**2 + 2 * 0.6**2) / 3)


def test_each_bin_is_closed_on_the_right_and_rounding_above_one_falls_into_the_last():
    bins = bin_decisions(np.array([0.0, 0.25, 0.2500001, 1.0, 1 + 1e-7]), np.ones(5, bool), num_bins=4)
    assert bins.counts.tolist() == [2, 1, 0, 2]
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_a_label_that_is_predicted_absent_has_the_confidence_of_its_absence():
    confidence, is_right = decide(np.array([[0, 1]]), np.array([[0.1, 0.4]]), MULTI_LABEL)
    assert confidence.tolist() == [0.9, 0.6]
    assert is_right.tolist() == [True, False]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_finds_how_much_too_sharp_the_scores_are(task, sharpness):
    labels, scores = drawn_case(task, num_images=20_000, sharpness=sharpness)

    temperature = fit_temperature(labels, scores, task)
    labels, scores = drawn_case(task, sharpness=sharpness, seed=1)  # of images that were not fitted
    found = calibrate(labels, scores, temperature, task)

    assert temperature == pytest.approx(sharpness, rel=0.03)
    assert found.after.ece < 0.02
    if sharpness != 1:
        assert found.after.ece < found.before.ece / 2
        assert found.after.nll < found.before.nll
        assert found.after.brier < found.before.brier


@pytest.mark.parametrize("task", TASKS)
def test_no_temperature_nearby_is_better_than_the_fitted_one(task):
    labels, scores = drawn_case(task, num_images=200, sharpness=2.0)
    best = fit_temperature(labels, scores, task)
    fitted, *others = (
        measure_probabilities(labels, apply_temperature(scores, factor * best, task), task).nll
        for factor in (1, 0.99, 1.01, 0.5, 2)
    )
    assert fitted < min(others)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, 0.7, 3.0, MAX_TEMPERATURE])
def test_a_temperature_changes_no_decision_and_no_order_within_a_label(task, temperature):
    _, scores = drawn_case(task)
    scores = scores.astype(np.float32).astype(np.float64)

    after = apply_temperature(scores, temperature, task)

    assert np.array_equal(predict_classes(after, task=task), predict_classes(scores, task=task))
    ranks, ranks_after = (values if task == MULTI_LABEL else values.T for values in (scores, after))
    for column in range(ranks.shape[1]):  # every label over the images, or every image over the classes
        order = np.argsort(ranks[:, column])
        assert (np.diff(ranks_after[order, column]) >= 0).all()
    if task != MULTI_LABEL:
        np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-12)
    assert (np.abs(after - 0.5).max() < np.abs(scores - 0.5).max()) == (temperature > 1)


@pytest.mark.parametrize("task", TASKS)
def test_a_temperature_of_one_changes_nothing(task):
    labels, scores = drawn_case(task, num_images=100)
    found = calibrate(labels, scores, 1.0, task)
    np.testing.assert_allclose(apply_temperature(scores, 1.0, task), scores, atol=1e-12)
    for name in ("ece", "nll", "brier"):
        assert getattr(found.after, name) == pytest.approx(getattr(found.before, name), abs=1e-12)


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL, BINARY, MULTI_LABEL])
def test_scores_of_exactly_zero_and_one_stay_finite_and_ordered(task):
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [1 - 2.0**-24, 2.0**-24], [1.0 + 1e-7, 1e-45]])
    labels = np.array([[0, 1], [0, 1], [1, 0], [1, 0]]) if task == MULTI_LABEL else np.array([1, 1, 0, 0])

    temperature = fit_temperature(labels, scores, task)
    found, after = calibrate(labels, scores, temperature, task), apply_temperature(scores, 0.5, task)

    assert MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
    for metrics in (found.before, found.after):
        assert np.isfinite([metrics.ece, metrics.nll, metrics.brier]).all()
    assert after[0, 0] >= after[2, 0] > after[2, 1] >= after[0, 1] >= 0
    assert np.isfinite(after).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_split_without_an_error_determines_no_temperature(task):
    _, scores = drawn_case(task, num_images=50, sharpness=2.0)
    labels = predict_classes(scores, task=task)
    assert fit_temperature(labels, scores, task) == UNDETERMINED
    certain = np.eye(scores.shape[1])[np.zeros(50, int)]
    assert fit_temperature(predict_classes(certain, task=task), certain, task) == UNDETERMINED


def test_a_temperature_that_is_undetermined_is_called_so():
    assert str(Temperatures(1.25, None)) == "1.250 without TTA"
    assert str(Temperatures(UNDETERMINED, 0.5)) == (
        "1.000 without TTA (undetermined, as no decision is wrong), 0.500 with TTA"
    )


def test_a_split_of_one_class_with_errors_has_a_temperature():
    _, scores = drawn_case(MULTI_CLASS, num_images=500, sharpness=3.0)
    assert 1 < fit_temperature(np.zeros(500, int), scores, MULTI_CLASS) <= MAX_TEMPERATURE


def test_a_network_that_is_worse_than_chance_gets_the_largest_temperature():
    labels, scores = np.zeros(4, int), np.array([[0.1, 0.9]] * 4)
    assert fit_temperature(labels, scores, BINARY) == pytest.approx(MAX_TEMPERATURE, rel=1e-4)


def test_a_temperature_at_a_bound_of_the_search_is_called_so():
    largest = fit_temperature(np.zeros(4, int), np.array([[0.1, 0.9]] * 4), BINARY)
    smallest = fit_temperature(np.array([0] * 99 + [1]), np.array([[0.51, 0.49]] * 99 + [[0.501, 0.499]]), BINARY)
    assert str(Temperatures(largest, smallest)) == (
        "20.000 without TTA (at the bound of the search), 0.050 with TTA (at the bound of the search)"
    )
    assert str(Temperatures(19.5, 0.06)) == "19.500 without TTA, 0.060 with TTA"
