"""The figures of a test split, as MedMNIST's own ``Evaluator`` computes them and a few more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from scripts.data_handler.dataset import members
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL, THRESHOLD
from scripts.evaluation.bootstrap import percentile_interval, resample_figures
from scripts.evaluation.confusion import ClassCounts, Counter, confusion_matrix, ratio

TASKS = (MULTI_CLASS, BINARY, ORDINAL, MULTI_LABEL)
FIGURES = ("accuracy", "auc", "macro_f1", "balanced_accuracy")
ORDINAL_FIGURES = (*FIGURES, "quadratic_weighted_kappa", "mean_absolute_error")
LEFT_OUT = "what is undefined for it is left out of the means."
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
    """The figures of one class against the rest, or of one label; ``None`` where a figure is undefined."""

    name: str
    precision: float | None  # share of the predicted positive images that are positive
    recall: float | None  # share of the positive images that are predicted positive
    f1: float | None
    auc: float | None  # None if no image, or every image, is of this class
    support: int  # images of this class, or with this label


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """The ROC curve of one label; it has steps where the scores that occur separate images."""

    false_positive_rate: Floats
    true_positive_rate: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metrics:
    """Every figure of one set of scores; C is the number of classes, or of labels in a multi-label task."""

    accuracy: Estimate
    auc: Estimate
    macro_f1: Estimate
    balanced_accuracy: Estimate
    quadratic_weighted_kappa: Estimate | None = None  # of an ordinal task alone
    mean_absolute_error: Estimate | None = None  # of an ordinal task alone, in classes
    per_class: tuple[ClassMetrics, ...]
    # counts, shape (C, C), rows are true classes, columns predicted ones; multi-label: (C, 2, 2), a matrix per label
    confusion: Integers
    predictions: Integers  # those that the accuracy is computed from: class indices (N,), or 0 and 1 (N, C)
    num_correct: int  # images predicted right, in all of their labels if they have several
    notes: tuple[str, ...]  # sentences about what is undefined
    roc_curves: tuple[RocCurve | None, ...] = ()  # of a multi-label task: one for each label, None where undefined

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The headline figures that there are for this task, by name."""
        found = ((name, getattr(self, name)) for name in ORDINAL_FIGURES)
        return {name: estimate for name, estimate in found if estimate is not None}

    @property
    def confusion_by_row(self) -> Floats:
        """The confusion counts as shares of what is true, of the same shape; NaN in rows of what is absent."""
        support = np.broadcast_to(self.confusion.sum(axis=-1, keepdims=True), self.confusion.shape)
        return ratio(self.confusion, support)


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of scores of the test split with its figures."""

    key: str  # in file names and in JSON
    title: str
    scores: Floats
    metrics: Metrics

    @property
    def phrase(self) -> str:
        """The title as it stands within a sentence."""
        return f"{self.title[0].lower()}{self.title[1:]}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationResult:
    """Scores of the test split and their figures, without and with test-time augmentation (TTA)."""

    labels: Integers  # true class indices, shape (N,), or 0 and 1 for each label, shape (N, C)
    plain_scores: Floats  # probabilities of the classes or labels, shape (N, C)
    tta_scores: Floats | None  # the same as a mean over ``views``; None if TTA was off
    plain: Metrics
    tta: Metrics | None
    views: tuple[str, ...]  # the names of TTA's views; empty if TTA was off

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All sets of scores; the last one is the headline."""
        plain = Variant("plain", "Without TTA", self.plain_scores, self.plain)
        if self.tta is None or self.tta_scores is None:
            return (plain,)
        return plain, Variant("tta", "With TTA", self.tta_scores, self.tta)

    @property
    def headline(self) -> Metrics:
        """The figures to quote: with TTA where TTA is on."""
        return self.variants[-1].metrics

    @property
    def headline_scores(self) -> Floats:
        """The scores behind ``headline``, shape (N, C)."""
        return self.variants[-1].scores

    @property
    def predictions(self) -> Integers:
        """The predictions behind ``headline``, of the shape of ``labels``."""
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
    """Compute every figure of a split, each headline figure with a 95 % bootstrap interval over the images.

    Accuracy and AUC are MedMNIST's: the accuracy of :func:`predict_classes`, as the mean over labels where there are
    several; the AUC of the last column for two classes, else the unweighted mean of the AUCs of the classes against
    the rest, or of the labels. Macro-F1 is the mean over the classes that occur among labels or predictions, balanced
    accuracy the mean recall; with several labels, the mean over labels of the label's F1, and of the mean of recall
    and specificity. Ordinal classes also have Cohen's quadratic-weighted kappa and the mean absolute error. An
    undefined part is left out of a mean, and a note says so. The same seed resamples the same images, so that
    intervals with and without TTA are comparable.

    Args:
        labels: True class indices, shape (N,), in [0, C), N >= 1; for ``MULTI_LABEL`` 0 and 1, shape (N, C).
        scores: Probabilities in [0, 1] up to rounding, shape (N, C).
        task: One of ``TASKS``.
        class_names: C names of classes or labels, at least two; exactly two for ``binary-class``.
        seed: Seeds the bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        ValueError: The arguments break one of these conditions.

    Reference: Yang et al., MedMNIST v2, Scientific Data 10, 2023; https://github.com/MedMNIST/MedMNIST
    """
    _check_input(labels, scores, task, class_names, resamples)
    truth: Integers = labels.astype(np.int64)
    predictions = predict_classes(scores, task=task)
    confusion = confusion_matrix(truth, predictions, len(class_names))
    counter, each_once = Counter(truth, predictions, len(class_names)), np.ones((len(truth), 1), np.int64)
    aucs = one_vs_rest_aucs(truth, scores)
    auc_classes = [1] if task == BINARY else range(len(class_names))
    values = {name: float(figure[0]) for name, figure in counter.figures(each_once).items()}
    values["auc"] = _mean_of_defined(aucs[index] for index in auc_classes)
    resampled = resample_figures(
        truth,
        predictions,
        scores.astype(np.float64),
        auc_classes=auc_classes,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )
    per_class = _per_class(counter.class_counts(each_once), aucs, class_names)
    return Metrics(
        **{
            name: Estimate(values[name], *percentile_interval(resampled[name]))
            for name in (ORDINAL_FIGURES if task == ORDINAL else FIGURES)
        },
        per_class=per_class,
        confusion=confusion,
        predictions=predictions,
        num_correct=int((predictions == truth).reshape(len(truth), -1).all(axis=1).sum()),
        notes=tuple(_label_notes(per_class, len(truth)) if task == MULTI_LABEL else _notes(per_class, confusion, task)),
        roc_curves=_roc_curves(truth, scores) if task == MULTI_LABEL else (),
    )


def predict_classes(scores: NDArray[np.floating], *, task: str) -> Integers:
    """Predict as MedMNIST's accuracy does.

    Args:
        scores: Probabilities, shape (N, C).
        task: One of ``TASKS``.

    Returns:
        Class indices, shape (N,). For ``binary-class``: 1 where the last column is above 0.5, so that a tie is
        negative; otherwise the first of the largest scores. For ``MULTI_LABEL``: 1 wherever a score is above 0.5,
        else 0, shape (N, C).
    """
    if task == MULTI_LABEL:
        return (scores > THRESHOLD).astype(np.int64)
    chosen = scores[:, -1] > THRESHOLD if task == BINARY else scores.argmax(axis=1)
    return np.asarray(chosen, dtype=np.int64)


def one_vs_rest_aucs(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> list[float | None]:
    """Compute the area under the ROC curve of each class against the rest, or of each label; ``None`` if undefined.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C).
        scores: A column for each class or label, shape (N, C).
    """
    aucs: list[float | None] = []
    for index in range(scores.shape[1]):
        is_class = members(labels, index)
        aucs.append(float(roc_auc_score(is_class, scores[:, index])) if _varies(is_class) else None)
    return aucs


def _roc_curves(labels: Integers, scores: NDArray[np.floating]) -> tuple[RocCurve | None, ...]:
    return tuple(
        RocCurve(*roc_curve(labels[:, index], scores[:, index])[:2]) if _varies(labels[:, index] == 1) else None
        for index in range(scores.shape[1])
    )


def _varies(is_class: NDArray[np.bool_]) -> bool:
    """Whether there are images of the class and others, as a ROC curve needs."""
    return bool(is_class.any() and not is_class.all())


def mean_auc(labels: NDArray[np.integer], scores: NDArray[np.floating], *, task: str) -> float | None:
    """Compute MedMNIST's AUC of a split: of the last column for ``BINARY``, else the mean over classes or labels.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C).
        scores: A column for each class or label, shape (N, C).
        task: One of ``TASKS``.

    Returns:
        A figure in [0, 1]; undefined classes are left out, and None is returned where all of them are.
    """
    aucs = one_vs_rest_aucs(labels, scores)
    mean = _mean_of_defined(aucs[1:] if task == BINARY else aucs)
    return _or_none(mean)


def _per_class(
    counts: ClassCounts, aucs: Sequence[float | None], class_names: Sequence[str]
) -> tuple[ClassMetrics, ...]:
    true_positives, predicted, positive = (
        count[:, 0] for count in (counts.true_positives, counts.predicted_positive, counts.positive)
    )
    figures = (
        ratio(true_positives, predicted),
        ratio(true_positives, positive),
        ratio(2 * true_positives, predicted + positive),
    )
    return tuple(
        ClassMetrics(
            name=name,
            precision=_or_none(precision),
            recall=_or_none(recall),
            f1=_or_none(f1),
            auc=auc,
            support=int(support),
        )
        for name, auc, support, precision, recall, f1 in zip(class_names, aucs, positive, *figures, strict=True)
    )


def _notes(per_class: Sequence[ClassMetrics], confusion: Integers, task: str) -> Iterator[str]:
    absent = [figures.name for figures in per_class if not figures.support]
    if len(absent) == len(per_class) - 1:
        (present,) = (figures.name for figures in per_class if figures.support)
        yield f"Every image of this split is of class {present!r}: AUC is undefined."
        if task == ORDINAL and np.trace(confusion) == confusion.sum():
            yield f"Every image is of class {present!r} and predicted so: quadratic-weighted kappa is undefined."
    elif absent:
        yield f"No image of this split is of class {_quoted(absent)}: {LEFT_OUT}"


def _label_notes(per_class: Sequence[ClassMetrics], num_images: int) -> Iterator[str]:
    for whose, support in (("No image", 0), ("Every image", num_images)):
        names = [figures.name for figures in per_class if figures.support == support]
        if names:
            yield f"{whose} of this split has the label {_quoted(names)}: {LEFT_OUT}"
    if all(figures.auc is None for figures in per_class):
        yield "No label tells one image of this split from another: AUC and balanced accuracy are undefined."


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _check_input(
    labels: NDArray[np.integer], scores: NDArray[np.floating], task: str, class_names: Sequence[str], resamples: int
) -> None:
    num_classes = len(class_names)
    if task not in TASKS:
        raise ValueError(f"Expected a task among {TASKS}, got {task!r}.")
    if num_classes < 2 or (task == BINARY and num_classes != 2):
        allowed = "2" if task == BINARY else "at least 2"
        raise ValueError(f"Expected {allowed} class names for {task}, got {num_classes}.")
    is_multi_label = task == MULTI_LABEL
    shape = scores.shape if is_multi_label else scores.shape[:1]
    if scores.shape[1:] != (num_classes,) or labels.shape != shape or labels.size == 0:
        rows = f"(N, {num_classes})"
        raise ValueError(
            f"Expected labels {rows if is_multi_label else '(N,)'} with N >= 1 and scores {rows}, "
            f"got {labels.shape} and {scores.shape}."
        )
    highest = 1 if is_multi_label else num_classes - 1
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > highest:
        raise ValueError(
            f"Expected whole labels from 0 to {highest}, got {labels.dtype} from {labels.min()} to {labels.max()}."
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
