"""How far the figures of a test split could have fallen otherwise: a bootstrap over its images.

A resample draws as many images as there are, with replacement, so it is nothing but an integer weight per image. Every
figure is written in terms of these weights: images are sorted once, and all resamples are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# weights held at a time; bounds the memory (about 16 bytes each) whatever the number of images and resamples
CHUNK_WEIGHTS = 1 << 19

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ResampledFigures:
    """The figures of each resample, shape (R,) each; NaN where a resample leaves one undefined."""

    accuracy: Floats
    auc: Floats
    macro_f1: Floats
    balanced_accuracy: Floats


def resample_figures(
    labels: Integers,
    predictions: Integers,
    scores: Floats,
    *,
    auc_classes: Sequence[int],
    resamples: int,
    generator: np.random.Generator,
) -> ResampledFigures:
    """Compute the figures of ``resamples`` bootstrap resamples of the images.

    Args:
        labels: True class indices, shape (N,), in [0, C).
        predictions: Predicted class indices, shape (N,), in [0, C).
        scores: Class scores, shape (N, C).
        auc_classes: The classes whose one-vs-rest AUC enters the mean AUC.
        resamples: R, at least 1.
        generator: Where the resamples come from. Generators in the same state draw the same images, whatever the
            scores, so that two sets of scores are compared on the same resamples.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    num_images, num_classes = scores.shape
    cells = labels * num_classes + predictions
    by_cell = np.argsort(cells, kind="stable")
    filled, starts = np.unique(cells[by_cell], return_index=True)
    curves = [_RankedClass.of(labels == index, scores[:, index]) for index in auc_classes]
    chunks = []
    for weights in _weights(num_images, resamples, generator):
        confusion = np.zeros((num_classes * num_classes, weights.shape[1]), dtype=np.int64)
        confusion[filled] = np.add.reduceat(weights[by_cell], starts, axis=0)
        from_confusion = _confusion_figures(confusion.reshape(num_classes, num_classes, -1))
        mean_auc = _mean_of_defined(np.stack([curve.auc(weights) for curve in curves]), axis=0)
        chunks.append(np.stack([*from_confusion, mean_auc]))
    accuracy, macro_f1, balanced_accuracy, auc = np.concatenate(chunks, axis=1)
    return ResampledFigures(accuracy, auc, macro_f1, balanced_accuracy)


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds the share ``level`` of the defined values; NaN twice if none is defined."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(num_images: int, resamples: int, generator: np.random.Generator) -> Iterator[NDArray[np.int32]]:
    """How often each image is in each resample, shape (N, r) in pieces whose r add up to ``resamples``."""
    most = max(1, CHUNK_WEIGHTS // num_images)
    for start in range(0, resamples, most):
        count = min(most, resamples - start)
        drawn = generator.integers(num_images, size=(count, num_images))
        drawn *= count
        drawn += np.arange(count)[:, np.newaxis]
        yield np.bincount(drawn.ravel(), minlength=num_images * count).astype(np.int32).reshape(num_images, count)


def _confusion_figures(confusion: Integers) -> tuple[Floats, Floats, Floats]:
    """Accuracy, macro-F1 and balanced accuracy, shape (r,) each, of confusion matrices of shape (C, C, r)."""
    hits = np.diagonal(confusion).T
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = hits.sum(axis=0) / support.sum(axis=0)
    macro_f1 = _mean_of_defined(_ratio(2 * hits, support + predicted), axis=0)
    return accuracy, macro_f1, _mean_of_defined(_ratio(hits, support), axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class _RankedClass:
    """One class against the rest, ranked once by its score; AUC is then arithmetic on weights."""

    positives: Integers  # images of the class, shape (P,)
    negatives: Integers  # the other images by ascending score, shape (Q,)
    below: Integers  # for each positive, how many negatives have a lower score, shape (P,)
    up_to: Integers  # for each positive, how many negatives have a lower or equal score, shape (P,)

    @classmethod
    def of(cls, is_positive: NDArray[np.bool_], scores: Floats) -> _RankedClass:
        positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ranked = scores[negatives]
        below = np.searchsorted(ranked, scores[positives], side="left")
        up_to = np.searchsorted(ranked, scores[positives], side="right")
        return cls(positives, negatives, below, up_to)

    def auc(self, weights: NDArray[np.int32]) -> Floats:
        """The share of positive-negative pairs in the right order, ties counting half, shape (r,) for (N, r)."""
        cumulated = np.zeros((self.negatives.size + 1, weights.shape[1]), dtype=np.int32)
        np.cumsum(weights[self.negatives], axis=0, out=cumulated[1:])
        positives = weights[self.positives]
        # a sum over positives times negatives leaves 32 bits behind; a double counts exactly up to 2**53
        pairs = np.einsum("pr,pr->r", positives, cumulated[self.below] + cumulated[self.up_to], dtype=np.float64)
        return _ratio(pairs, 2.0 * positives.sum(axis=0) * cumulated[-1])


def _ratio(parts: NDArray[np.number], wholes: NDArray[np.number]) -> Floats:
    """``parts / wholes``, NaN where the whole is 0."""
    result = np.full(parts.shape, np.nan)
    np.divide(parts, wholes, out=result, where=wholes > 0)
    return result


def _mean_of_defined(values: Floats, *, axis: int) -> Floats:
    """The mean along ``axis`` of what is not NaN; NaN where all of it is."""
    is_defined = ~np.isnan(values)
    return _ratio(np.where(is_defined, values, 0.0).sum(axis=axis), is_defined.sum(axis=axis))
