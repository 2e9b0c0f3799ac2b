"""The metrics of a test split: those of MedMNIST's own ``Evaluator`` and a few more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from scripts.data_handler.dataset import members
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL, THRESHOLD
from scripts.evaluation.bootstrap import percentile_interval, resample_metrics
from scripts.evaluation.confusion import Counter, Floats, Integers, Labels, Scores, confusion_matrix, ratio

if TYPE_CHECKING:
    from scripts.evaluation.trust import Trust

TASKS = (MULTI_CLASS, BINARY, ORDINAL, MULTI_LABEL)
HEADLINES = ("accuracy", "auc", "macro_f1", "balanced_accuracy")
ORDINAL_HEADLINES = (*HEADLINES, "quadratic_weighted_kappa", "mean_absolute_error")
LEFT_OUT = "what is undefined for it is left out of the means."
ROUNDING = 1e-6  # a mean of probabilities in single precision may be a little above 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric with its 95 % percentile bootstrap interval; all three are NaN where the metric is undefined."""

    value: float
    low: float
    high: float

    @property
    def is_defined(self) -> bool:
        """Whether the metric has a value."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class against the rest, or of one label; ``None`` where a metric is undefined."""

    name: str
    precision: float | None  # share of the predicted positive images that are positive
    recall: float | None  # share of the positive images that are predicted positive
    f1: float | None
    auc: float | None  # None if no image, or every image, is of this class
    support: int  # images of this class, or with this label


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """The corners of the ROC curve of one label, shape (K,) each."""

    false_positive_rate: Floats
    true_positive_rate: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """Every metric of one set of scores; C is the number of classes, or of labels in a multi-label task."""

    accuracy: Estimate
    auc: Estimate
    macro_f1: Estimate
    balanced_accuracy: Estimate
    quadratic_weighted_kappa: Estimate | None = None  # only of an ordinal task
    mean_absolute_error: Estimate | None = None  # only of an ordinal task, in classes
    per_class: tuple[ClassMetrics, ...]
    # counts, shape (C, C), rows are true classes; multi-label: (C, 2, 2), a matrix per label
    confusion: Integers
    predictions: Integers  # class indices, shape (N,), or 0 and 1 for each label, shape (N, C)
    num_correct: int  # images whose class, or whose every label, is predicted right
    notes: tuple[str, ...]  # sentences about undefined metrics
    roc_curves: tuple[RocCurve | None, ...] = ()  # multi-label: one for each label, None where undefined

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The headline metrics of this task by name."""
        found = {name: getattr(self, name) for name in ORDINAL_HEADLINES}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    @property
    def confusion_by_row(self) -> Floats:
        """``confusion`` as shares of its rows; NaN in the rows of absent classes."""
        return ratio(self.confusion, self.confusion.sum(axis=-1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of scores of the test split with its metrics."""

    key: str  # in file names and in JSON
    title: str
    scores: Floats
    metrics: Metrics
    trust: Trust

    @property
    def phrase(self) -> str:
        """The title inside a sentence."""
        return f"{self.title[0].lower()}{self.title[1:]}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationResult:
    """Scores of the test split and their metrics, without and with test-time augmentation (TTA)."""

    labels: Integers  # true class indices, shape (N,), or 0 and 1 for each label, shape (N, C)
    plain_scores: Floats  # probabilities of the classes or labels, shape (N, C)
    tta_scores: Floats | None  # their mean over ``views``; None without TTA
    plain: Metrics
    tta: Metrics | None
    plain_trust: Trust
    tta_trust: Trust | None
    majority_class_accuracy: float  # of predicting the commonest class of the training split for every image
    views: tuple[str, ...]  # names of the views; empty without TTA

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All sets of scores; the last one is the headline."""
        plain = Variant("plain", "Without TTA", self.plain_scores, self.plain, self.plain_trust)
        if self.tta is None or self.tta_scores is None or self.tta_trust is None:
            return (plain,)
        return plain, Variant("tta", "With TTA", self.tta_scores, self.tta, self.tta_trust)

    @property
    def headline(self) -> Metrics:
        """The metrics to quote: with TTA where TTA is on."""
        return self.variants[-1].metrics


def compute_metrics(
    labels: Labels, scores: Scores, *, task: str, class_names: Sequence[str], seed: int, resamples: int = 1000
) -> Metrics:
    """Compute every metric of a split, each headline metric with a 95 % bootstrap interval over the images.

    Accuracy and AUC are MedMNIST's: the accuracy of :func:`predict_classes`, as the mean over labels where there are
    several; the AUC of the last column for two classes, else the unweighted mean of the AUCs of the classes against
    the rest, or of the labels. Macro-F1 is the mean over the classes that occur among labels or predictions, balanced
    accuracy the mean recall; with several labels, the mean over labels of the label's F1, and of the mean of recall
    and specificity. Ordinal classes also have Cohen's quadratic-weighted kappa and the mean absolute error. An
    undefined part is left out of a mean, and a note says so.

    Args:
        labels: True class indices, shape (N,), in [0, C), N >= 1; for ``MULTI_LABEL`` 0 and 1, shape (N, C).
        scores: Probabilities in [0, 1] up to rounding, shape (N, C).
        task: One of ``TASKS``.
        class_names: C names of classes or labels, at least two; exactly two for ``binary-class``.
        seed: Seeds the bootstrap; the same seed resamples the same images, with and without TTA.
        resamples: Number of bootstrap resamples, at least 1.

    Raises:
        ValueError: The arguments break one of these conditions.

    Reference: Yang et al., MedMNIST v2, Scientific Data 10, 2023; https://github.com/MedMNIST/MedMNIST
    """
    _check_input(labels, scores, task, class_names, resamples)
    num_images, num_classes = scores.shape
    truth: Integers = labels.astype(np.int64)
    predictions = predict_classes(scores, task=task)
    confusion = confusion_matrix(truth, predictions, num_classes)
    counter, each_once = Counter(truth, predictions, num_classes), np.ones((num_images, 1))
    aucs = _one_vs_rest_aucs(truth, scores)
    per_class = _per_class(counter.class_counts(each_once), aucs, class_names)
    auc_classes = [1] if task == BINARY else range(num_classes)
    values = counter.metrics(each_once) | {"auc": np.array([_mean_of_defined(aucs[auc_classes])], np.float64)}
    resampled = resample_metrics(truth, predictions, scores, auc_classes=auc_classes, resamples=resamples, seed=seed)
    names = ORDINAL_HEADLINES if task == ORDINAL else HEADLINES
    return Metrics(
        **{name: Estimate(float(values[name][0]), *percentile_interval(resampled[name])) for name in names},
        per_class=per_class,
        confusion=confusion,
        predictions=predictions,
        num_correct=int((predictions == truth).reshape(num_images, -1).all(axis=1).sum()),
        notes=tuple(_label_notes(per_class, num_images) if task == MULTI_LABEL else _notes(per_class, confusion, task)),
        roc_curves=tuple(map(_roc_curve, truth.T, scores.T)) if task == MULTI_LABEL else (),
    )


def predict_classes(scores: Scores, *, task: str) -> Integers:
    """Predict from probabilities, shape (N, C), as MedMNIST's accuracy does.

    Returns:
        Class indices, shape (N,). For ``binary-class``: 1 where the last column is above 0.5, so that a tie is
        negative; otherwise the first of the largest scores. For ``MULTI_LABEL``: 1 wherever a score is above 0.5,
        else 0, shape (N, C).
    """
    if task == MULTI_LABEL:
        return (scores > THRESHOLD).astype(np.int64)
    chosen = scores[:, -1] > THRESHOLD if task == BINARY else scores.argmax(axis=1)
    return np.asarray(chosen, dtype=np.int64)


def mean_auc(labels: Labels, scores: Scores, *, task: str) -> float | None:
    """Compute MedMNIST's AUC of a split, in [0, 1], from the arguments of :func:`compute_metrics`.

    It is that of the last column for ``BINARY``, else the mean over the classes or labels for which it is defined;
    None if there is none.
    """
    aucs = _one_vs_rest_aucs(labels, scores)
    return _mean_of_defined(aucs[1:] if task == BINARY else aucs)


def _one_vs_rest_aucs(labels: Labels, scores: Scores) -> Floats:
    """Compute the area under the ROC curve of each class against the rest, or of each label; NaN if undefined."""
    aucs = np.full(scores.shape[1], math.nan)
    for index, column in enumerate(scores.T):
        is_class = members(labels, index)
        if 0 < is_class.sum() < len(is_class):
            aucs[index] = roc_auc_score(is_class, column)
    return aucs


def _roc_curve(labels: Integers, scores: Scores) -> RocCurve | None:
    return RocCurve(*roc_curve(labels, scores)[:2]) if 0 < labels.sum() < len(labels) else None


def _per_class(counts: Sequence[Floats], aucs: Floats, class_names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    right, predicted, positive = (count[:, 0] for count in counts)
    columns = ratio(right, predicted), ratio(right, positive), ratio(2 * right, predicted + positive), aucs
    rows = [[None if math.isnan(value) else float(value) for value in row] for row in zip(*columns, strict=True)]
    return tuple(
        ClassMetrics(name, precision, recall, f1, auc, int(support))
        for name, (precision, recall, f1, auc), support in zip(class_names, rows, positive, strict=True)
    )


def _notes(per_class: Sequence[ClassMetrics], confusion: Integers, task: str) -> Iterator[str]:
    present = [metrics.name for metrics in per_class if metrics.support]
    absent = [metrics.name for metrics in per_class if not metrics.support]
    if len(present) == 1:
        yield f"Every image of this split is of class {present[0]!r}: AUC is undefined."
        if task == ORDINAL and np.trace(confusion) == confusion.sum():
            yield f"Every image is of class {present[0]!r} and predicted so: quadratic-weighted kappa is undefined."
    elif absent:
        yield f"No image of this split is of class {', '.join(map(repr, absent))}: {LEFT_OUT}"


def _label_notes(per_class: Sequence[ClassMetrics], num_images: int) -> Iterator[str]:
    for subject, support in (("No image", 0), ("Every image", num_images)):
        if names := [metrics.name for metrics in per_class if metrics.support == support]:
            yield f"{subject} of this split has the label {', '.join(map(repr, names))}: {LEFT_OUT}"
    if all(metrics.auc is None for metrics in per_class):
        yield "No label tells one image of this split from another: AUC and balanced accuracy are undefined."


def _check_input(labels: Labels, scores: Scores, task: str, class_names: Sequence[str], resamples: int) -> None:
    num_classes, is_multi_label = len(class_names), task == MULTI_LABEL
    highest = 1 if is_multi_label else num_classes - 1
    shape, rows = scores.shape if is_multi_label else scores.shape[:1], f"(N, {num_classes})"
    if task not in TASKS:
        problem = f"a task among {TASKS}, got {task!r}"
    elif num_classes < 2 or (task == BINARY and num_classes != 2):
        problem = f"{'2' if task == BINARY else 'at least 2'} class names for {task}, got {num_classes}"
    elif scores.shape[1:] != (num_classes,) or labels.shape != shape or labels.size == 0:
        wanted = f"labels {rows if is_multi_label else '(N,)'} with N >= 1 and scores {rows}"
        problem = f"{wanted}, got {labels.shape} and {scores.shape}"
    elif not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > highest:
        problem = f"whole labels from 0 to {highest}, got {labels.dtype} from {labels.min()} to {labels.max()}"
    elif not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 + ROUNDING):
        problem = f"finite scores in [0, 1], got some from {scores.min()} to {scores.max()}"
    elif resamples < 1:
        problem = f"at least 1 resample, got {resamples}"
    else:
        return
    raise ValueError(f"Expected {problem}.")


def _mean_of_defined(values: Floats) -> float | None:
    defined = values[~np.isnan(values)].tolist()
    return sum(defined) / len(defined) if defined else None
