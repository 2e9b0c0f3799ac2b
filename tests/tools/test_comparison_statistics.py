"""Intervals and tests of a difference: as published, as in statsmodels, and right in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm  # type: ignore[attr-defined]
from sklearn.metrics import roc_auc_score
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests

from scripts.data_handler.registry import BINARY, MULTI_LABEL, ORDINAL
from scripts.evaluation.bootstrap import percentile_interval
from scripts.evaluation.metrics import TASKS
from tools.comparison.statistics import (
    Difference,
    bootstrap_differences,
    delong,
    holm,
    mcnemar,
    mean_of_drawn,
    widened_interval,
)

# 113 patients after a bleeding in the brain: outcome good or poor, WFNS score, S100β and NDKA in the blood
# (Turck et al., Intensive Care Medicine 36, 2010), the example data of the R package pROC
PATIENTS = """
G,1,0.13,3.01 G,1,0.14,8.54 G,1,0.1,8.09 G,1,0.04,10.42 P,3,0.13,17.4 P,2,0.1,12.75 G,5,0.47,6.0 P,4,0.16,13.2
G,1,0.18,15.54 G,2,0.1,6.01 P,5,0.12,15.96 G,2,0.1,17.86 P,5,0.44,5.18 P,5,0.71,8.9 G,1,0.04,13.41 G,2,0.08,20.75
P,5,0.49,11.6 G,2,0.04,16.11 P,2,0.07,32.37 P,5,0.33,54.82 P,2,0.09,32.41 G,1,0.09,49.94 P,1,0.07,40.34 G,1,0.11,9.47
G,1,0.07,6.29 G,2,0.17,12.53 G,1,0.07,6.54 G,2,0.11,6.3 G,1,0.13,80.3 G,1,0.19,12.8 G,3,0.05,9.8 G,4,0.16,9.81
P,2,0.41,9.85 G,1,0.14,18.21 G,4,0.34,5.03 P,5,0.35,14.04 P,4,0.48,21.93 G,1,0.09,8.02 P,4,0.96,7.42 P,2,0.25,8.38
G,5,0.5,6.59 G,5,0.46,9.63 G,1,0.16,13.12 G,1,0.07,7.96 G,2,0.43,14.34 G,4,0.45,41.43 G,1,0.11,7.63 G,1,0.08,7.06
G,2,0.09,12.59 P,5,0.86,13.56 P,5,0.52,3.87 G,2,0.08,9.44 G,1,0.06,7.66 G,2,0.13,12.98 P,5,2.07,419.19 G,1,0.1,27.19
G,2,0.14,22.27 G,2,0.15,9.95 P,2,0.07,21.22 G,1,0.06,11.73 P,5,0.77,10.4 G,1,0.05,58.83 G,1,0.09,6.39 P,2,0.3,11.09
P,5,0.03,12.22 P,2,0.09,13.67 G,1,0.04,17.21 P,4,0.23,22.63 P,5,0.7,12.9 G,2,0.09,9.7 P,4,0.27,21.57 P,4,0.71,8.23
P,1,0.08,72.57 P,4,0.26,15.54 G,1,0.08,10.51 G,2,0.16,10.6 G,1,0.09,14.57 P,4,0.13,5.19 P,2,0.1,9.63 G,1,0.08,4.61
P,2,0.11,21.48 G,3,0.33,17.3 G,2,0.11,12.71 G,4,0.28,9.44 G,2,0.07,11.07 G,1,0.1,19.46 G,4,0.32,10.83 P,5,0.22,5.37
G,1,0.07,11.97 G,1,0.05,7.75 G,5,0.24,9.83 G,4,0.38,10.55 G,2,0.1,28.49 G,2,0.15,8.53 G,1,0.08,12.57 G,1,0.14,12.9
G,1,0.1,46.83 G,3,0.07,11.68 G,1,0.04,12.67 G,2,0.19,9.01 P,5,0.56,9.57 P,2,0.14,34.06 P,2,0.58,11.72 P,5,0.32,14.26
P,5,0.82,47.61 P,5,0.74,11.67 G,2,0.15,24.58 G,4,0.47,10.33 G,4,0.17,13.87 P,5,0.44,15.89 G,1,0.15,22.43 G,1,0.5,6.79
G,1,0.48,13.45
"""
ROWS = [line.split(",") for line in PATIENTS.split()]
IS_POOR = np.array([row[0] == "P" for row in ROWS])
WFNS, S100B, NDKA = (np.array([float(row[column]) for row in ROWS]) for column in (1, 2, 3))


@pytest.mark.parametrize(
    ("one", "other", "z", "p"),  # of roc.test in pROC's own tests, tests/testthat/test-roc.test.R
    [
        (WFNS, S100B, 2.20898359144091, 0.0271757822291882),
        (WFNS, NDKA, 2.79777591868904, 0.00514557970691098),
        (NDKA, S100B, -1.39077002573558, 0.164295175223054),
    ],
)
def test_delongs_test_gives_the_published_numbers(one, other, z, p):
    found = delong(IS_POOR, other, one)
    assert (found.b - found.a) / found.standard_error == pytest.approx(z, rel=1e-12)
    assert found.p == pytest.approx(p, rel=1e-12)


def test_the_published_areas_are_found():
    found = delong(IS_POOR, WFNS, NDKA)
    assert (found.a, found.b) == pytest.approx((0.823678861788618, 0.611957994579946), rel=1e-12)


def direct_delong(is_positive, a, b):
    """The formulas of the paper: every positive against every negative."""
    kernels = []
    for scores in (a, b):
        positives, negatives = scores[is_positive][:, np.newaxis], scores[~is_positive]
        kernels.append((positives > negatives) + 0.5 * (positives == negatives))
    areas = [kernel.mean() for kernel in kernels]
    of_positives, of_negatives = (np.cov([kernel.mean(axis=axis) for kernel in kernels]) for axis in (1, 0))
    covariance = of_positives / is_positive.sum() + of_negatives / (~is_positive).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return areas, math.sqrt(variance)


@pytest.mark.parametrize("decimals", [16, 1], ids=["distinct scores", "many ties"])
def test_the_fast_formula_is_the_direct_one(decimals):
    random = np.random.default_rng(3)
    is_positive = random.random(300) < 0.3
    a, b = (np.round(random.random(300) + 0.4 * is_positive, decimals) for _ in range(2))
    found = delong(is_positive, a, b)
    areas, error = direct_delong(is_positive, a, b)
    assert (found.a, found.b, found.standard_error) == pytest.approx((*areas, error), rel=1e-12)
    assert found.a == pytest.approx(roc_auc_score(is_positive, a), rel=1e-12)


def test_delongs_test_rejects_a_true_hypothesis_as_often_as_its_level_says():
    random, rejected = np.random.default_rng(0), 0
    for _ in range(400):
        is_positive, common = random.random(120) < 0.4, random.normal(size=120)
        a, b = (common + random.normal(size=120) + is_positive for _ in range(2))
        rejected += delong(is_positive, a, b).p < 0.05
    assert 0.03 < rejected / 400 < 0.07


def test_delongs_p_is_that_of_exchanging_the_scores_of_images():
    random = np.random.default_rng(1)
    is_positive = random.random(400) < 0.5
    common = random.normal(size=400)
    a, b = (common + random.normal(size=400) + shift * is_positive for shift in (1.0, 1.3))
    # scores on one scale, as an exchange requires
    a, b = (scores.argsort().argsort().astype(float) for scores in (a, b))
    observed, larger = abs(roc_auc_score(is_positive, b) - roc_auc_score(is_positive, a)), 0
    for _ in range(500):
        is_exchanged = random.random(400) < 0.5
        one, other = np.where(is_exchanged, b, a), np.where(is_exchanged, a, b)
        found = delong(is_positive, one, other)
        larger += abs(found.b - found.a) >= observed
    assert delong(is_positive, a, b).p == pytest.approx(larger / 500, abs=0.03)


def test_delongs_test_of_equal_scores_finds_nothing():
    found = delong(IS_POOR, WFNS, WFNS)
    assert (found.b - found.a, found.standard_error, found.p) == (0, 0, 1)


@pytest.mark.parametrize(("num_positive", "has_area"), [(0, False), (1, True), (9, True), (10, False)])
def test_delongs_test_is_undefined_with_fewer_than_two_images_of_a_kind(num_positive, has_area):
    scores = np.linspace(0, 1, 10)
    found = delong(np.arange(10) < num_positive, scores, scores[::-1])
    assert math.isnan(found.p)
    assert math.isnan(found.a) != has_area


def test_delongs_test_is_undefined_where_there_is_no_variance():
    is_positive = np.arange(6) < 3
    found = delong(is_positive, np.zeros(6), is_positive.astype(float))
    assert (found.a, found.b) == (0.5, 1.0)
    assert math.isnan(found.p)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (3, 9), (22, 47), (100, 101)])
def test_mcnemars_test_is_that_of_statsmodels(only_a, only_b):
    both, neither = 30, 12
    right_a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    right_b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    found = mcnemar(right_a, right_b)
    expected = contingency_tables.mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(min(expected, 1.0), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_holms_correction_is_that_of_statsmodels(count):
    p_values = np.random.default_rng(count).random(count) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)


def test_an_undefined_p_is_no_test():
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([]) == []


def binormal(random, labels, separations, spread=0.0):
    """Probabilities of one run for each separation of the two classes, whose errors on an image are alike."""
    common, runs = random.normal(size=len(labels)), []
    for separation in separations:
        own = separation + spread * random.normal()
        logits = own * (labels - 0.5) + 0.8 * common + 0.6 * random.normal(size=len(labels))
        positive = 1 / (1 + np.exp(-logits))
        runs.append(np.stack([1 - positive, positive], axis=1))
    return runs


def differences(labels, runs_a, runs_b, *, task=BINARY, resamples=200, seed=0):
    return bootstrap_differences(labels, runs_a, runs_b, task=task, resamples=resamples, seed=seed)


def test_the_intervals_of_two_runs_cover_the_true_difference():
    true = {"accuracy": norm.cdf(1.0) - norm.cdf(0.7), "auc": norm.cdf(2.0 / 2**0.5) - norm.cdf(1.4 / 2**0.5)}
    random, covered, trials = np.random.default_rng(0), dict.fromkeys(true, 0), 200
    for seed in range(trials):
        labels = random.integers(0, 2, 150)
        a, b = binormal(random, labels, (1.4, 2.0))
        found = differences(labels, [a], [b], seed=seed)
        for name, value in true.items():
            covered[name] += found[name].low <= value <= found[name].high
    assert all(0.91 <= count / trials <= 0.985 for count in covered.values()), covered


def test_the_intervals_of_two_groups_cover_a_difference_that_depends_on_the_seed():
    """Runs differ by their seed much more than by the images, so that intervals over images alone are too short."""
    random, covered, covered_by_images, trials = np.random.default_rng(0), 0, 0, 60
    separations = 1.4 + 0.4 * random.normal(size=100_000), 2.0 + 0.4 * random.normal(size=100_000)
    true = float(norm.cdf(separations[1] / 2).mean() - norm.cdf(separations[0] / 2).mean())
    for seed in range(trials):
        labels = random.integers(0, 2, 500)
        runs = binormal(random, labels, [1.4] * 3 + [2.0] * 3, spread=0.4)
        found = differences(labels, runs[:3], runs[3:], resamples=100, seed=seed)["accuracy"]
        covered += found.low <= true <= found.high
        single = differences(labels, runs[:1], runs[3:4], resamples=100, seed=seed)["accuracy"]
        covered_by_images += single.low <= true <= single.high
    assert 0.92 <= covered / trials <= 1.0
    assert covered_by_images / trials < 0.6


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("spread", "image_error"), [(1.0, 0.05), (0.05, 1.0)], ids=["seeds", "images"])
def test_intervals_over_few_runs_cover_as_often_as_they_state(count, spread, image_error):
    random, covered, trials = np.random.default_rng(0), 0, 500
    for _ in range(trials):
        error = image_error * random.normal()
        groups = [spread * random.normal(size=count) + shift for shift in (0, error)]
        means = [
            mean_of_drawn([np.full(300, one) for one in group], random.integers(count, size=(count, 300)))
            for group in groups
        ]
        low, high = widened_interval(means[1] - means[0] + image_error * random.normal(size=300), *groups)
        covered += low <= 0 <= high
    assert 0.925 <= covered / trials <= 0.985


def test_the_interval_of_single_runs_is_not_widened():
    resampled = np.random.default_rng(0).normal(size=1000)
    assert widened_interval(resampled, np.zeros(1), np.ones(1)) == percentile_interval(resampled)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_means_of_drawn_runs_vary_as_means_of_as_many_new_runs_do(count):
    random = np.random.default_rng(0)
    figures, drawn = random.random(count), random.integers(count, size=(count, 40_000))
    means = mean_of_drawn([np.full(40_000, figure) for figure in figures], drawn)
    assert means.mean() == pytest.approx(figures.mean(), abs=0.005)
    assert means.var() == pytest.approx(figures.var(ddof=1) / count, rel=0.05)


def toy(task, *, num_images=80, quality=1.0):
    """Labels and scores of one run of each task, better with a higher quality."""
    random = np.random.default_rng(7)
    if task == MULTI_LABEL:
        labels = random.integers(0, 2, (num_images, 4))
        return labels, 1 / (1 + np.exp(-(quality * (2 * labels - 1) + random.normal(size=labels.shape))))
    count = 2 if task == BINARY else 4
    labels = random.integers(0, count, num_images)
    scores = np.exp(random.normal(size=(num_images, count)) + quality * np.eye(count)[labels])
    return labels, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("task", TASKS)
def test_identical_runs_differ_by_exactly_nothing(task):
    labels, scores = toy(task)
    found = differences(labels, [scores], [scores.copy()], task=task)
    assert {"accuracy", "auc", "macro_f1", "balanced_accuracy"} <= found.keys()
    assert ("mean_absolute_error" in found) == (task == ORDINAL)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in found.values())
    assert all(one.better(name) is None for name, one in found.items())


@pytest.mark.parametrize("task", TASKS)
def test_the_better_run_is_recognised_in_every_figure(task):
    labels, bad = toy(task, num_images=400, quality=0.3)
    _, good = toy(task, num_images=400, quality=2.0)
    found = differences(labels, [bad], [good], task=task)
    assert {one.better(name) for name, one in found.items()} == {"B"}
    found = differences(labels, [good], [bad], task=task)
    assert {one.better(name) for name, one in found.items()} == {"A"}


def test_the_figure_of_a_group_is_the_mean_over_its_runs():
    labels, bad = toy(BINARY, quality=0.3)
    _, good = toy(BINARY, quality=2.0)
    apart = differences(labels, [bad], [good])["accuracy"]
    found = differences(labels, [bad, good], [good])["accuracy"]
    assert found.a == pytest.approx((apart.a + apart.b) / 2)
    assert found.b == apart.b


@pytest.mark.parametrize("task", TASKS)
def test_all_runs_are_resampled_on_the_same_images(task):
    labels, scores = toy(task)
    found = differences(labels, [scores, scores], [scores], task=task)
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in found.values())


def test_the_same_seed_gives_the_same_intervals():
    labels, bad = toy(BINARY, quality=0.3)
    _, good = toy(BINARY, quality=2.0)
    groups = labels, [bad, good], [good, bad, bad]
    assert differences(*groups) == differences(*groups)
    assert differences(*groups) != differences(*groups, seed=1)


def test_an_undefined_figure_has_no_interval_and_no_winner():
    found = Difference(math.nan, 0.5, math.nan, math.nan)
    assert (found.is_defined, found.better("auc")) == (False, None)
    one_class = np.zeros(20, dtype=np.int64)
    _, scores = toy(BINARY, num_images=20)
    assert not differences(one_class, [scores], [scores])["auc"].is_defined
