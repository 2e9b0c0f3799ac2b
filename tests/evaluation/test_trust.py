"""Risk against coverage, and the accuracy of the commonest class, on toys that are computed explicitly."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL
from scripts.evaluation.metrics import TASKS, compute_metrics
from scripts.evaluation.trust import majority_class_accuracy, measure_risks, measure_trust
from tests.evaluation.test_calibration import drawn_case


def test_the_risk_of_the_most_certain_decisions_and_its_area():
    confidence = np.array([0.6, 0.9, 0.8, 0.7])
    is_right = np.array([False, True, False, True])

    curve = measure_risks(confidence, is_right)

    assert curve.risks.tolist() == [0, 1 / 2, 1 / 3, 2 / 4]
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert curve.at(np.array([0.01, 0.25, 0.26, 0.75, 1.0])).tolist() == [0, 0, 1 / 2, 1 / 3, 1 / 2]


def test_a_coverage_is_not_rounded_up_to_one_decision_too_many():
    curve = measure_risks(np.linspace(1, 0, 100), np.arange(100) < 55)
    assert curve.at(np.array([0.55]))[0] == 0  # in floating point 0.55 · 100 is above 55


def test_the_order_of_equally_certain_decisions_does_not_matter():
    confidence, is_right = np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, False, True, True])
    curves = [measure_risks(confidence[order], is_right[order]).risks for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    for risks in curves:
        assert risks == pytest.approx([0, (1 / 3) / 2, (2 / 3) / 3, 1 / 4])


def test_errors_that_are_least_certain_give_the_smallest_area():
    confidence, is_right = np.linspace(1, 0.5, 100), np.arange(100) < 90
    areas = [measure_risks(values, is_right).area for values in (confidence, np.ones(100), confidence[::-1])]
    assert areas[0] < areas[1] < areas[2]
    assert areas[1] == pytest.approx(0.1)


@pytest.mark.parametrize("task", TASKS)
def test_the_risk_of_all_decisions_is_one_minus_the_accuracy(task):
    labels, scores = drawn_case(task, num_images=200)
    names = [f"class {index}" for index in range(scores.shape[1])]
    metrics = compute_metrics(labels, scores, task=task, class_names=names, seed=0, resamples=1)

    trust = measure_trust(labels, scores, 1.5, task)

    assert trust.risk_coverage.risks[-1] == pytest.approx(1 - metrics.accuracy.value, abs=1e-12)
    assert trust.calibration.temperature == 1.5


def test_the_accuracy_of_the_commonest_class_takes_it_from_the_training_split():
    train, test = np.array([0, 2, 2, 1]), np.array([0, 0, 0, 2])
    assert majority_class_accuracy(train, test, MULTI_CLASS) == 0.25
    assert majority_class_accuracy(np.array([1, 0]), np.array([0, 1, 1, 1]), BINARY) == 0.25  # the first of equals


def test_of_several_labels_each_is_predicted_as_it_is_more_often():
    train = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0]])
    test = np.array([[1, 0, 0], [0, 1, 0]])
    assert majority_class_accuracy(train, test, MULTI_LABEL) == pytest.approx((0.5 + 0.5 + 1) / 3)
