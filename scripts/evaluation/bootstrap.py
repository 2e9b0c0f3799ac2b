"""How far the figures of a test split could have fallen otherwise: a bootstrap over its images.

A resample draws as many images as there are, with replacement, so it is nothing but an integer weight per image. Every
figure is written in terms of these weights: images are sorted once, and all resamples are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.dataset import members
from scripts.evaluation.confusion import figures_of, mean_of_defined, ratio

# weights held at a time; bounds the memory (about 16 bytes each) whatever the number of images and resamples
CHUNK_WEIGHTS = 1 << 19

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weights = NDArray[np.int32]  # how often each image is in each resample, shape (N, r)


def resample_figures(
    labels: Integers,
    predictions: Integers,
    scores: Floats,
    *,
    auc_classes: Sequence[int],
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, Floats]:
    """Compute the figures of ``resamples`` bootstrap resamples of the images.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each of C labels, shape (N, C).
        predictions: The predicted ones, of the same shape.
        scores: Scores of the classes or labels, shape (N, C).
        auc_classes: The classes or labels whose AUC against the rest enters the mean AUC.
        resamples: R, at least 1.
        generator: Where the resamples come from. Generators in the same state draw the same images, whatever the
            scores, so that two sets of scores are compared on the same resamples.

    Returns:
        The figures of ``figures_of`` and ``"auc"`` by name, shape (R,) each; NaN where a resample leaves one undefined.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    num_images, num_classes = scores.shape
    count = _counter(labels, predictions, num_classes)
    curves = [_RankedClass.of(members(labels, index), scores[:, index]) for index in auc_classes]
    chunks = []
    for weights in _weights(num_images, resamples, generator):
        mean_auc = mean_of_defined(np.stack([curve.auc(weights) for curve in curves]), axis=0)
        chunks.append(figures_of(count(weights)) | {"auc": mean_auc})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds the share ``level`` of the defined values; NaN twice if none is defined."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(num_images: int, resamples: int, generator: np.random.Generator) -> Iterator[Weights]:
    """How often each image is in each resample, shape (N, r) in pieces whose r add up to ``resamples``."""
    most = max(1, CHUNK_WEIGHTS // num_images)
    for start in range(0, resamples, most):
        count = min(most, resamples - start)
        drawn = generator.integers(num_images, size=(count, num_images))
        drawn *= count
        drawn += np.arange(count)[:, np.newaxis]
        yield np.bincount(drawn.ravel(), minlength=num_images * count).astype(np.int32).reshape(num_images, count)


def _counter(labels: Integers, predictions: Integers, num_classes: int) -> Callable[[Weights], Integers]:
    """From weights to what ``count_answers`` counts in their resamples, shape (C, C, r) or (L, 2, 2, r)."""
    if labels.ndim == 2:
        each = [_counter(truth, called, 2) for truth, called in zip(labels.T, predictions.T, strict=True)]
        return lambda weights: np.stack([count(weights) for count in each])
    cells = labels * num_classes + predictions
    by_cell = np.argsort(cells, kind="stable")
    filled, starts = np.unique(cells[by_cell], return_index=True)

    def count(weights: Weights) -> Integers:
        confusion = np.zeros((num_classes * num_classes, weights.shape[1]), dtype=np.int64)
        confusion[filled] = np.add.reduceat(weights[by_cell], starts, axis=0)
        return confusion.reshape(num_classes, num_classes, -1)

    return count


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

    def auc(self, weights: Weights) -> Floats:
        """The share of positive-negative pairs in the right order, ties counting half, shape (r,) for (N, r)."""
        cumulated = np.zeros((self.negatives.size + 1, weights.shape[1]), dtype=np.int32)
        np.cumsum(weights[self.negatives], axis=0, out=cumulated[1:])
        positives = weights[self.positives]
        # a sum over positives times negatives leaves 32 bits behind; a double counts exactly up to 2**53
        pairs = np.einsum("pr,pr->r", positives, cumulated[self.below] + cumulated[self.up_to], dtype=np.float64)
        return ratio(pairs, 2.0 * positives.sum(axis=0) * cumulated[-1])
