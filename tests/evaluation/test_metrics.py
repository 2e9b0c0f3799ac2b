"""The figures of a split: the official ones to the last digit, the others computed explicitly."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medmnist.evaluator import getACC, getAUC
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    roc_auc_score,
)

from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation.bootstrap import percentile_interval, resample_metrics
from scripts.evaluation.metrics import TASKS, compute_metrics, predict_classes
from tests.evaluation.conftest import evaluation_of


def normalised(scores):
    return scores / scores.sum(axis=1, keepdims=True)


def random_case(task, *, num_images, share_of_first=None):
    """Labels in which every class occurs, and scores that are better than chance."""
    generator = np.random.default_rng(num_images)
    num_classes = 2 if task == BINARY else 5
    labels = generator.integers(num_classes, size=num_images)
    if share_of_first is not None:
        labels[generator.random(num_images) < share_of_first] = 0
    labels[:num_classes] = range(num_classes)
    scores = generator.random((num_images, num_classes))
    scores[np.arange(num_images), labels] += 0.4
    return labels, normalised(scores)


def random_label_rows(*, num_images, num_labels=4, share=0.3, seed=0):
    """Labels each of which some images have and others lack, and scores that are better than chance."""
    generator = np.random.default_rng(seed)
    rows = (generator.random((num_images, num_labels)) < share).astype(np.int64)
    rows[0], rows[1] = 0, 1
    scores = np.clip(0.7 * generator.random(rows.shape) + 0.3 * rows, 0, 1)
    return rows, scores


def metrics_of(labels, scores, task=MULTI_CLASS, **changes):
    names = [f"class {index}" for index in range(scores.shape[1])]
    return compute_metrics(
        np.asarray(labels), scores, **{"task": task, "class_names": names, "seed": 7, "resamples": 20, **changes}
    )


def assert_official(labels, scores, task):
    metrics = metrics_of(labels, scores, task)
    official = labels if task == MULTI_LABEL else labels[:, np.newaxis]
    assert metrics.accuracy.value == pytest.approx(getACC(official, scores, task), rel=0, abs=1e-12)
    assert metrics.auc.value == pytest.approx(getAUC(official, scores, task), rel=0, abs=1e-12)


def any_case(task, *, num_images):
    """Labels and scores for which the official code has every figure."""
    if task == MULTI_LABEL:
        return random_label_rows(num_images=num_images)
    return random_case(task, num_images=num_images)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_images", [12, 200, 3000])
def test_accuracy_and_auc_are_the_official_ones(task, num_images):
    labels, scores = any_case(task, num_images=num_images)
    assert_official(labels, scores, task)


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_and_auc_are_the_official_ones_among_many_ties(task):
    labels, scores = any_case(task, num_images=400)
    assert_official(labels, np.round(scores, 1), task)
    for same in (0.0, 0.5, 1.0):
        assert_official(labels, np.full_like(scores, same), task)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_accuracy_and_auc_are_the_official_ones_whatever_the_scores(task, data):
    num_images, num_classes = data.draw(st.integers(2, 12)), 2 if task == BINARY else data.draw(st.integers(2, 4))
    tenths = st.lists(st.integers(0, 10), min_size=num_classes, max_size=num_classes)
    scores = np.array(data.draw(st.lists(tenths, min_size=num_images, max_size=num_images))) / 10
    if task == MULTI_LABEL:
        bits = st.lists(st.integers(0, 1), min_size=num_classes, max_size=num_classes)
        labels = np.array(data.draw(st.lists(bits, min_size=num_images, max_size=num_images)))
    else:
        kinds = st.integers(0, num_classes - 1)
        labels = np.array(data.draw(st.lists(kinds, min_size=num_images, max_size=num_images)))
    metrics = metrics_of(labels, scores, task, resamples=1)
    official = labels if task == MULTI_LABEL else labels[:, np.newaxis]

    assert metrics.accuracy.value == pytest.approx(getACC(official, scores, task), rel=0, abs=1e-12)
    auc, has_every_curve = official_auc(official, scores, task), all(one.auc is not None for one in metrics.per_class)
    assert math.isnan(auc) == (not has_every_curve)
    if has_every_curve:
        assert metrics.auc.value == pytest.approx(auc, rel=0, abs=1e-12)


def official_auc(labels, scores, task):
    """The official AUC; NaN where older versions of scikit-learn raise an error, newer ones warn and return NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getAUC(labels, scores, task)
        except ValueError:
            return math.nan


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL, MULTI_LABEL])
def test_where_a_class_or_label_is_absent_the_official_auc_is_undefined_and_ours_is_of_the_others(task):
    labels, scores = any_case(task, num_images=100)
    if task == MULTI_LABEL:
        labels[:, 1] = 0
        others = [roc_auc_score(labels[:, index], scores[:, index]) for index in (0, 2, 3)]
        official = labels
    else:
        labels[labels == 1] = 2
        others = [roc_auc_score(labels == index, scores[:, index]) for index in (0, 2, 3, 4)]
        official = labels[:, np.newaxis]
    metrics = metrics_of(labels, scores, task)

    assert math.isnan(official_auc(official, scores, task))
    assert metrics.auc.value == pytest.approx(np.mean(others), rel=0, abs=1e-12)
    assert metrics.accuracy.value == pytest.approx(getACC(official, scores, task), rel=0, abs=1e-12)
    assert metrics.per_class[1].auc is None
    (note,) = metrics.notes
    assert note.startswith("No image of this split ")


@pytest.mark.parametrize("task", TASKS)
def test_where_all_images_are_of_one_kind_both_aucs_are_undefined_and_the_accuracies_equal(task):
    labels, scores = any_case(task, num_images=50)
    labels[:] = 1
    metrics = metrics_of(labels, scores, task)
    official = labels if task == MULTI_LABEL else labels[:, np.newaxis]

    assert math.isnan(official_auc(official, scores, task))
    assert not metrics.auc.is_defined
    assert metrics.accuracy.value == pytest.approx(getACC(official, scores, task), rel=0, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_a_split_of_one_image_has_an_accuracy_here_and_an_error_there(task):
    scores = np.array([[0.1, 0.9]])
    labels = np.array([[0, 1]]) if task == MULTI_LABEL else np.array([1])
    metrics = metrics_of(labels, scores, task)

    assert metrics.accuracy.value == 1.0
    assert metrics.num_correct == 1
    assert not metrics.auc.is_defined
    for official in (getACC, getAUC):
        with pytest.raises((IndexError, TypeError, ValueError)):
            official(labels if task == MULTI_LABEL else labels[:, np.newaxis], scores, task)


@pytest.mark.parametrize("task", [MULTI_CLASS, BINARY, ORDINAL])
def test_accuracy_and_auc_are_the_official_ones_when_one_class_is_nearly_all(task):
    labels, scores = random_case(task, num_images=500, share_of_first=0.99)
    assert_official(labels, scores, task)


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_and_auc_are_the_official_ones_for_single_precision_scores(task):
    labels, scores = any_case(task, num_images=300)
    assert_official(labels, scores.astype(np.float32), task)


def test_the_binary_auc_is_of_the_last_column_alone():
    labels, scores = random_case(BINARY, num_images=100)
    scores[:, 0] = np.random.default_rng(1).random(100)
    assert_official(labels, scores, BINARY)
    assert metrics_of(labels, scores, BINARY).per_class[0].auc != metrics_of(labels, scores, BINARY).auc.value


def test_a_binary_tie_is_negative_and_the_last_column_decides():
    scores = np.array([[0.5, 0.5], [0.2, 0.5000001], [0.9, 0.6], [0.1, 0.4]])
    assert predict_classes(scores, task=BINARY).tolist() == [0, 1, 1, 0]
    assert_official(np.array([1, 1, 0, 0]), scores, BINARY)


def test_a_tie_between_several_classes_goes_to_the_first():
    scores = np.array([[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3]])
    assert predict_classes(scores, task=MULTI_CLASS).tolist() == [1, 0]


def test_four_images_computed_explicitly():
    # predicted 0, 1, 1, 2 for the true 0, 0, 1, 2
    scores = np.array([[0.8, 0.1, 0.1], [0.3, 0.5, 0.2], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    metrics = metrics_of([0, 0, 1, 2], scores)

    assert metrics.accuracy.value == 3 / 4
    assert metrics.num_correct == 3
    assert metrics.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert metrics.confusion_by_row.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    first, second, third = metrics.per_class
    assert (first.precision, first.recall, first.support) == (1.0, 0.5, 2)
    assert (second.precision, second.recall, second.support) == (0.5, 1.0, 1)
    assert first.f1 == pytest.approx(2 / 3)
    assert second.f1 == pytest.approx(2 / 3)
    assert (third.f1, third.auc, third.name) == (1.0, 1.0, "class 2")
    assert metrics.macro_f1.value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert metrics.balanced_accuracy.value == pytest.approx((0.5 + 1 + 1) / 3)
    # every class's own images score higher in its column than all others
    assert metrics.auc.value == 1.0
    assert metrics.notes == ()


def test_one_swapped_pair_of_four_costs_a_quarter_of_the_auc():
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    assert metrics_of([0, 0, 1, 1], scores, BINARY).auc.value == 0.75


@pytest.mark.parametrize("task", [MULTI_CLASS, BINARY, ORDINAL])
def test_f1_and_balanced_accuracy_follow_from_the_same_predictions_as_accuracy(task):
    labels, scores = random_case(task, num_images=300)
    metrics = metrics_of(labels, np.round(scores, 1), task)
    assert np.mean(metrics.predictions == labels) == metrics.accuracy.value
    assert metrics.macro_f1.value == pytest.approx(f1_score(labels, metrics.predictions, average="macro"), abs=1e-12)
    expected = balanced_accuracy_score(labels, metrics.predictions)
    assert metrics.balanced_accuracy.value == pytest.approx(expected, abs=1e-12)
    assert metrics.confusion.sum() == 300
    assert np.trace(metrics.confusion) == round(metrics.accuracy.value * 300)


def test_an_absent_class_is_undefined_and_left_out_of_the_mean():
    scores = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
    metrics = metrics_of([0, 0, 1, 1], scores)
    absent = metrics.per_class[2]
    assert (absent.precision, absent.recall, absent.f1, absent.auc, absent.support) == (None, None, None, None, 0)
    assert metrics.auc.value == 1.0
    assert metrics.balanced_accuracy.value == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(metrics.confusion_by_row[2]).all()
    assert metrics.notes == (
        "No image of this split is of class 'class 2': what is undefined for it is left out of the means.",
    )


def test_a_class_that_is_absent_but_predicted_has_an_f1_of_zero():
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]])
    wrongly_predicted = metrics_of([0, 1, 1], scores).per_class[2]
    assert (wrongly_predicted.precision, wrongly_predicted.recall, wrongly_predicted.f1) == (0.0, None, 0.0)


@pytest.mark.parametrize("task", [MULTI_CLASS, BINARY])
def test_a_split_of_one_class_has_an_accuracy_but_no_auc(task):
    metrics = metrics_of([1, 1], np.array([[0.2, 0.8], [0.7, 0.3]]), task)
    assert metrics.accuracy.value == 0.5
    assert not metrics.auc.is_defined
    assert math.isnan(metrics.auc.low)
    assert metrics.notes == ("Every image of this split is of class 'class 1': AUC is undefined.",)


# two labels of three images: the first is found once, missed once and falsely predicted once, the second never
ROWS = np.array([[1, 0], [1, 1], [0, 0]])
ROW_SCORES = np.array([[0.9, 0.2], [0.4, 0.5], [0.6, 0.1]])


def test_three_images_with_two_labels_computed_explicitly():
    metrics = metrics_of(ROWS, ROW_SCORES, MULTI_LABEL)

    assert metrics.predictions.tolist() == [[1, 0], [0, 0], [1, 0]]  # 0.5 is negative
    assert metrics.confusion.tolist() == [[[0, 1], [1, 1]], [[2, 0], [1, 0]]]
    assert metrics.confusion_by_row.tolist() == [[[0, 1], [0.5, 0.5]], [[1, 0], [1, 0]]]
    assert metrics.num_correct == 1  # in both labels
    assert metrics.accuracy.value == pytest.approx((1 / 3 + 2 / 3) / 2)
    first, second = metrics.per_class
    assert (first.precision, first.recall, first.f1, first.support) == (0.5, 0.5, 0.5, 2)
    assert (second.precision, second.recall, second.f1, second.support) == (None, 0.0, 0.0, 1)
    # 0.9 lies above the 0.6 of the image without the first label, 0.4 below it; 0.5 is the largest of the second's
    assert (first.auc, second.auc) == (0.5, 1.0)
    assert metrics.auc.value == 0.75
    assert metrics.macro_f1.value == 0.25
    assert metrics.balanced_accuracy.value == pytest.approx(((0.5 + 0) / 2 + (0 + 1) / 2) / 2)
    assert metrics.notes == ()
    assert list(metrics.estimates) == ["accuracy", "auc", "macro_f1", "balanced_accuracy"]


def test_the_figures_of_labels_are_the_means_of_those_of_their_own():
    labels, scores = random_label_rows(num_images=400)
    metrics = metrics_of(labels, np.round(scores, 1), MULTI_LABEL)
    expected = precision_recall_fscore_support(labels, metrics.predictions)
    found = [(one.precision, one.recall, one.f1, one.support) for one in metrics.per_class]
    assert np.array(found) == pytest.approx(np.transpose(expected), abs=1e-12)
    assert metrics.macro_f1.value == pytest.approx(f1_score(labels, metrics.predictions, average="macro"), abs=1e-12)
    balanced = [balanced_accuracy_score(*pair) for pair in zip(labels.T, metrics.predictions.T, strict=True)]
    assert metrics.balanced_accuracy.value == pytest.approx(np.mean(balanced), abs=1e-12)
    assert metrics.num_correct == np.sum((labels == metrics.predictions).all(axis=1))


def test_a_label_that_no_image_or_every_image_has_is_left_out_of_the_means_and_named():
    rows = np.column_stack([ROWS, [0, 0, 0], [1, 1, 1]])
    scores = np.column_stack([ROW_SCORES, [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]])
    whole, part = metrics_of(rows, scores, MULTI_LABEL), metrics_of(ROWS, ROW_SCORES, MULTI_LABEL)

    never, always = whole.per_class[2:]
    assert (never.precision, never.recall, never.f1, never.auc) == (None, None, None, None)
    assert (always.recall, always.f1, always.auc) == (1.0, 1.0, None)
    assert whole.auc.value == part.auc.value
    assert whole.balanced_accuracy.value == part.balanced_accuracy.value
    assert whole.macro_f1.value == pytest.approx((0.5 + 0 + 1) / 3)  # of all but the label that is never there
    assert whole.notes == (
        "No image of this split has the label 'class 2': what is undefined for it is left out of the means.",
        "Every image of this split has the label 'class 3': what is undefined for it is left out of the means.",
    )


def test_where_no_label_varies_there_is_neither_an_auc_nor_a_balanced_accuracy():
    metrics = metrics_of(np.array([[0, 1], [0, 1]]), np.array([[0.2, 0.6], [0.7, 0.9]]), MULTI_LABEL)
    assert metrics.accuracy.value == 0.75
    assert not metrics.auc.is_defined
    assert not metrics.balanced_accuracy.is_defined
    assert metrics.notes[2:] == (
        "No label tells one image of this split from another: AUC and balanced accuracy are undefined.",
    )


def test_kappa_and_error_of_four_images_computed_explicitly():
    # true 0, 1, 2, 2 and predicted 0, 2, 2, 0
    metrics = metrics_of([0, 1, 2, 2], np.eye(3)[[0, 2, 2, 0]], ORDINAL)
    assert metrics.mean_absolute_error is not None
    assert metrics.quadratic_weighted_kappa is not None
    assert metrics.mean_absolute_error.value == (0 + 1 + 0 + 2) / 4
    # squared distances found: 0 + 1 + 0 + 4; by chance each true one meets 0, 2, 2, 0: (8 + 4 + 8 + 8) / 4
    assert metrics.quadratic_weighted_kappa.value == pytest.approx(1 - 5 / 7)
    assert list(metrics.estimates)[4:] == ["quadratic_weighted_kappa", "mean_absolute_error"]


@pytest.mark.parametrize("num_images", [12, 300])
def test_kappa_and_error_are_those_of_scikit_learn(num_images):
    labels, scores = random_case(ORDINAL, num_images=num_images)
    metrics = metrics_of(labels, scores, ORDINAL)
    assert metrics.quadratic_weighted_kappa is not None
    assert metrics.mean_absolute_error is not None
    kappa = cohen_kappa_score(labels, metrics.predictions, weights="quadratic")
    assert metrics.quadratic_weighted_kappa.value == pytest.approx(kappa, abs=1e-12)
    assert metrics.mean_absolute_error.value == pytest.approx(mean_absolute_error(labels, metrics.predictions))


def test_kappa_is_undefined_where_everything_is_and_is_predicted_as_one_class():
    scores = np.array([[0.1, 0.8, 0.1], [0.2, 0.6, 0.2]])
    metrics = metrics_of([1, 1], scores, ORDINAL)
    assert metrics.quadratic_weighted_kappa is not None
    assert metrics.mean_absolute_error is not None
    assert not metrics.quadratic_weighted_kappa.is_defined
    assert metrics.mean_absolute_error.value == 0
    assert metrics.notes[1:] == (
        "Every image is of class 'class 1' and predicted so: quadratic-weighted kappa is undefined.",
    )
    # with one of them predicted otherwise, the kappa is that of chance
    predicted_otherwise = metrics_of([1, 1], scores[:, [1, 0, 2]], ORDINAL)
    assert predicted_otherwise.quadratic_weighted_kappa is not None
    assert predicted_otherwise.quadratic_weighted_kappa.value == 0


@pytest.mark.parametrize("task", [MULTI_CLASS, BINARY, MULTI_LABEL])
def test_only_an_ordinal_task_has_kappa_and_error(task):
    labels, scores = any_case(task, num_images=30)
    metrics = metrics_of(labels, scores, task)
    assert (metrics.quadratic_weighted_kappa, metrics.mean_absolute_error) == (None, None)


def test_the_interval_narrows_with_the_number_of_images():
    few, many = (metrics_of(*random_case(MULTI_CLASS, num_images=count), resamples=300) for count in (60, 6000))
    for figure in ("accuracy", "auc", "macro_f1", "balanced_accuracy"):
        wide, narrow = getattr(few, figure), getattr(many, figure)
        assert narrow.low < narrow.value < narrow.high
        assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)


@pytest.mark.parametrize("task", [MULTI_CLASS, ORDINAL, MULTI_LABEL])
def test_each_figure_has_its_own_interval(task):
    labels, scores = any_case(task, num_images=200)
    metrics = metrics_of(labels, scores, task, seed=3, resamples=40)
    resampled = resample_metrics(
        labels,
        metrics.predictions,
        scores,
        auc_classes=range(scores.shape[1]),
        resamples=40,
        seed=3,
    )
    assert len(metrics.estimates) == (6 if task == ORDINAL else 4)
    for name, estimate in metrics.estimates.items():
        assert (estimate.low, estimate.high) == percentile_interval(resampled[name])
        assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    labels, scores = random_case(MULTI_CLASS, num_images=4000)
    accuracy = metrics_of(labels, scores, resamples=1000).accuracy
    spread = math.sqrt(accuracy.value * (1 - accuracy.value) / 4000)
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_the_seed_alone_decides_the_intervals():
    labels, scores = random_case(MULTI_CLASS, num_images=100)
    first, again, other = (metrics_of(labels, scores, seed=seed) for seed in (1, 1, 2))
    assert first.auc == again.auc
    assert first.auc != other.auc
    assert first.auc.value == other.auc.value


GOOD = np.array([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("labels", "scores", "changes", "message"),
    [
        (
            [0, 1],
            GOOD,
            {"task": "regression"},
            r"Expected a task among \('multi-class', 'binary-class', .*, got 'regression'.",
        ),
        ([0, 1], GOOD, {"class_names": ["a"]}, "Expected at least 2 class names for multi-class, got 1."),
        ([0, 1], GOOD, {"class_names": "abc", "task": BINARY}, "Expected 2 class names for binary-class, got 3."),
        ([0, 1], GOOD, {"class_names": "abc"}, r"scores \(N, 3\), got \(2,\) and \(2, 2\)."),
        ([0, 1, 1], GOOD, {}, r"got \(3,\) and \(2, 2\)."),
        ([[0], [1]], GOOD, {}, r"got \(2, 1\) and \(2, 2\)."),
        ([0, 2], GOOD, {}, "Expected whole labels from 0 to 1, got int64 from 0 to 2."),
        ([-1, 1], GOOD, {}, "Expected whole labels from 0 to 1, got int64 from -1 to 1."),
        ([0.0, 1.0], GOOD, {}, "got float64 from 0.0 to 1.0."),
        ([0, 1], GOOD * np.nan, {}, r"Expected finite scores in \[0, 1\], got some from nan to nan."),
        ([0, 1], GOOD * 2, {}, r"Expected finite scores in \[0, 1\], got some from 0.2 to 1.8."),
        ([0, 1], -GOOD, {}, "got some from -0.9 to -0.1."),
        ([0, 1], GOOD, {"resamples": 0}, "Expected at least 1 resample, got 0."),
        ([0, 1], GOOD, {"task": MULTI_LABEL}, r"labels \(N, 2\) with N >= 1 .* got \(2,\) and \(2, 2\)."),
        ([[0, 2]], GOOD[:1], {"task": MULTI_LABEL}, "Expected whole labels from 0 to 1, got int64 from 0 to 2."),
    ],
)
def test_bad_input_is_refused_by_name(labels, scores, changes, message):
    arguments = {"task": MULTI_CLASS, "class_names": "ab", "seed": 1, "resamples": 5, **changes}
    with pytest.raises(ValueError, match=message):
        compute_metrics(np.array(labels), scores, **arguments)


def test_a_probability_that_rounding_lifted_above_one_is_accepted():
    assert metrics_of([0, 1], GOOD + np.array([[1e-7 + 0.1, 0.0], [0.0, 0.0]])).accuracy.value == 1.0


def test_no_images_are_refused():
    with pytest.raises(ValueError, match=r"N >= 1 .* got \(0,\) and \(0, 2\)"):
        compute_metrics(np.empty(0, np.int64), np.empty((0, 2)), task=BINARY, class_names="ab", seed=1)


def test_the_headline_is_with_tta_where_there_is_tta():
    labels = np.array([0, 1])
    blind = np.array([[0.9, 0.1], [0.9, 0.1]])

    with_tta = evaluation_of(labels, blind, GOOD, names="ab", task=BINARY)
    assert with_tta.headline is with_tta.tta
    assert with_tta.variants[-1].scores is GOOD
    assert with_tta.variants[-1].trust is with_tta.tta_trust
    assert with_tta.headline.predictions.tolist() == [0, 1]

    without = evaluation_of(labels, blind, names="ab", task=BINARY)
    assert without.headline is without.plain
    assert without.variants[-1].trust is without.plain_trust
    assert without.variants[-1].scores is blind
    assert without.headline.predictions.tolist() == [0, 0]
