"""The figures of a test split, as MedMNIST's own ``Evaluator`` computes them and a few more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from scripts.data_handler.registry import BINARY, MULTI_CLASS, ORDINAL
from scripts.evaluation.bootstrap import percentile_interval, resample_figures

SUPPORTED_TASKS = (MULTI_CLASS, BINARY, ORDINAL)
BINARY_THRESHOLD = 0.5
ROUNDING = 1e-6  # a mean of probabilities, taken in single precision, may end a little above 1

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % percentile bootstrap interval; all three are NaN where the figure is undefined."""

    value: float
    low: float
    high: float

    @property
    def is_defined(self) -> bool:
        """Whether there is a figure at all."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """What is known of one class against the rest; ``None`` where its definition divides by nothing."""

    name: str
    precision: float | None  # of the images called so, the share that is so; None if none is called so
    recall: float | None  # of the images that are so, the share called so; None if there are none
    f1: float | None
    auc: float | None  # None if no image, or every image, is of this class
    support: int  # images of this class


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """Every figure that one set of scores earns."""

    accuracy: Estimate
    auc: Estimate
    macro_f1: Estimate
    balanced_accuracy: Estimate
    per_class: tuple[ClassMetrics, ...]
    confusion: Integers  # counts, shape (C, C); rows are true classes, columns predicted ones
    predictions: Integers  # class indices, shape (N,), by the rule that the accuracy goes by
    notes: tuple[str, ...]  # sentences about what is undefined

    @property
    def confusion_by_row(self) -> Floats:
        """The confusion matrix as shares of the true class, shape (C, C); NaN in rows of absent classes."""
        support = self.confusion.sum(axis=1, keepdims=True)
        shares = np.full(self.confusion.shape, np.nan)
        np.divide(self.confusion, support, out=shares, where=support > 0)
        return shares

    @property
    def num_correct(self) -> int:
        """How many images are predicted right."""
        return int(np.trace(self.confusion))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationResult:
    """Scores of the test split and what they earn, without and with test-time augmentation (TTA)."""

    labels: Integers  # true class indices, shape (N,)
    plain_scores: Floats  # class probabilities, shape (N, C)
    tta_scores: Floats | None  # the same as a mean over ``views``; None if TTA was off
    plain: Metrics
    tta: Metrics | None
    views: tuple[str, ...]  # the names of TTA's views; empty if TTA was off

    @property
    def headline(self) -> Metrics:
        """The figures to quote: with TTA where there is TTA."""
        return self.plain if self.tta is None else self.tta

    @property
    def headline_scores(self) -> Floats:
        """The scores behind ``headline``, shape (N, C)."""
        return self.plain_scores if self.tta_scores is None else self.tta_scores

    @property
    def predictions(self) -> Integers:
        """The predicted class indices behind ``headline``, shape (N,)."""
        return self.headline.predictions


def compute_metrics(
    labels: NDArray[np.integer],
    scores: NDArray[np.floating],
    *,
    task: str,
    class_names: Sequence[str],
    seed: int,
    resamples: int = 1000,
) -> Metrics:
    """Every figure of a split, each headline one with a 95 % bootstrap interval over the images.

    Accuracy and AUC are MedMNIST's: the accuracy of :func:`predict_classes`; the AUC of the last column for two
    classes, else the unweighted mean of the one-vs-rest AUCs. Macro-F1 is the mean over the classes that occur among
    labels or predictions, balanced accuracy the mean recall. An undefined part is left out of a mean, and a note says
    so. The same seed resamples the same images, so that intervals with and without TTA are comparable.

    Args:
        labels: True class indices, shape (N,), in [0, C), N >= 1.
        scores: Class probabilities in [0, 1] up to rounding, shape (N, C).
        task: One of ``SUPPORTED_TASKS``.
        class_names: C names, at least two; exactly two for ``binary-class``.
        seed: Seeds the bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        ValueError: The arguments break one of these conditions.

    Reference: Yang et al., MedMNIST v2, Scientific Data 10, 2023; https://github.com/MedMNIST/MedMNIST
    """
    _refuse_bad_input(labels, scores, task, class_names, resamples)
    truth: Integers = labels.astype(np.int64)
    predictions = predict_classes(scores, task=task)
    aucs = one_vs_rest_aucs(truth, scores)
    per_class = _per_class(truth, predictions, aucs, class_names)
    auc_classes = [1] if task == BINARY else range(len(class_names))
    resampled = resample_figures(
        truth,
        predictions,
        scores.astype(np.float64),
        auc_classes=auc_classes,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )

    def estimate(value: float, values: Floats) -> Estimate:
        return Estimate(value, *percentile_interval(values))

    return Metrics(
        accuracy=estimate(float(np.mean(predictions == truth)), resampled.accuracy),
        auc=estimate(_mean_of_defined(aucs[index] for index in auc_classes), resampled.auc),
        macro_f1=estimate(_mean_of_defined(figures.f1 for figures in per_class), resampled.macro_f1),
        balanced_accuracy=estimate(
            _mean_of_defined(figures.recall for figures in per_class), resampled.balanced_accuracy
        ),
        per_class=per_class,
        confusion=confusion_matrix(truth, predictions, labels=range(len(class_names))).astype(np.int64),
        predictions=predictions,
        notes=tuple(_notes(per_class)),
    )


def predict_classes(scores: NDArray[np.floating], *, task: str) -> Integers:
    """The class that MedMNIST's accuracy takes each row of scores for.

    Args:
        scores: Class probabilities, shape (N, C).
        task: One of ``SUPPORTED_TASKS``.

    Returns:
        Class indices, shape (N,). For ``binary-class``: 1 where the last column is above 0.5, so that a tie is
        negative; otherwise the first of the largest scores.
    """
    chosen = scores[:, -1] > BINARY_THRESHOLD if task == BINARY else scores.argmax(axis=1)
    return np.asarray(chosen, dtype=np.int64)


def one_vs_rest_aucs(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> list[float | None]:
    """Area under the ROC curve of each class against the rest by its own column; ``None`` where there is no curve.

    Args:
        labels: True class indices, shape (N,), in [0, C).
        scores: Class scores, shape (N, C).
    """
    aucs: list[float | None] = []
    for index in range(scores.shape[1]):
        is_class = labels == index
        has_curve = is_class.any() and not is_class.all()
        aucs.append(float(roc_auc_score(is_class, scores[:, index])) if has_curve else None)
    return aucs


def _per_class(
    labels: Integers, predictions: Integers, aucs: Sequence[float | None], class_names: Sequence[str]
) -> tuple[ClassMetrics, ...]:
    figures = precision_recall_fscore_support(labels, predictions, labels=range(len(class_names)), zero_division=np.nan)
    return tuple(
        ClassMetrics(
            name=name,
            precision=_or_none(precision),
            recall=_or_none(recall),
            f1=_or_none(f1),
            auc=auc,
            support=int(support),
        )
        for name, auc, precision, recall, f1, support in zip(class_names, aucs, *figures, strict=True)
    )


def _notes(per_class: Sequence[ClassMetrics]) -> Iterator[str]:
    absent = [figures.name for figures in per_class if not figures.support]
    if len(absent) == len(per_class) - 1:
        (present,) = (figures.name for figures in per_class if figures.support)
        yield f"Every image of this split is of class {present!r}: AUC is undefined."
    elif absent:
        names = ", ".join(map(repr, absent))
        yield f"No image of this split is of class {names}: what is undefined for it is left out of the means."


def _refuse_bad_input(
    labels: NDArray[np.integer], scores: NDArray[np.floating], task: str, class_names: Sequence[str], resamples: int
) -> None:
    num_classes = len(class_names)
    if task not in SUPPORTED_TASKS:
        raise ValueError(f"Expected a task among {', '.join(SUPPORTED_TASKS)}, got {task!r}.")
    if num_classes < 2 or (task == BINARY and num_classes != 2):
        allowed = "2" if task == BINARY else "at least 2"
        raise ValueError(f"Expected {allowed} class names for {task}, got {num_classes}.")
    if labels.ndim != 1 or labels.size == 0 or scores.shape != (labels.size, num_classes):
        raise ValueError(
            f"Expected labels (N,) with N >= 1 and scores (N, {num_classes}), got {labels.shape} and {scores.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Expected whole labels from 0 to {num_classes - 1}, "
            f"got {labels.dtype} from {labels.min()} to {labels.max()}."
        )
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 + ROUNDING):
        raise ValueError(f"Expected finite scores in [0, 1], got some from {scores.min()} to {scores.max()}.")
    if resamples < 1:
        raise ValueError(f"Expected at least 1 resample, got {resamples}.")


def _mean_of_defined(figures: Iterable[float | None]) -> float:
    defined = [figure for figure in figures if figure is not None]
    return sum(defined) / len(defined) if defined else math.nan


def _or_none(figure: float) -> float | None:
    return None if math.isnan(figure) else float(figure)
