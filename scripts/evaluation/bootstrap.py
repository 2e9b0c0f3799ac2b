"""The uncertainty of the figures of a test split: a bootstrap over its images.

A resample draws as many images as there are, with replacement, which is an integer weight per image. Every figure is
written in terms of these weights: images are sorted once, and all resamples are computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.dataset import members
from scripts.evaluation.confusion import Counter, mean_of_defined, ratio

# weights held at a time; bounds the memory (about 16 bytes each) whatever the number of images and resamples
CHUNK_WEIGHTS = 1 << 19
RARE = 32  # images of a class, at most

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
        The figures of ``Counter.figures`` and ``"auc"`` by name, shape (R,) each; NaN where one is undefined.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    num_images, num_classes = scores.shape
    counter = Counter(labels, predictions, num_classes)
    curves = [_RankedClass.of(members(labels, index), scores[:, index]) for index in auc_classes]
    chunks = []
    for weights in _weights(num_images, resamples, generator):
        doubles = weights.astype(np.float64)
        aucs = [curve.auc(doubles if curve.is_rare else weights) for curve in curves]
        chunks.append(counter.figures(weights) | {"auc": mean_of_defined(np.stack(aucs), axis=0)})
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


@dataclass(frozen=True, slots=True, eq=False)
class _RankedClass:
    """One class against the rest, ranked once by its score; AUC is then arithmetic on weights."""

    positives: Integers  # images of the class, shape (P,)
    negatives: Integers  # the other images by ascending score, shape (Q,)
    lower: Integers  # for each positive, how many negatives have a lower score, shape (P,)
    lower_or_equal: Integers  # for each positive, how many negatives have a lower or equal score, shape (P,)

    @classmethod
    def of(cls, is_positive: NDArray[np.bool_], scores: Floats) -> _RankedClass:
        positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ranked = scores[negatives]
        lower = np.searchsorted(ranked, scores[positives], side="left")
        lower_or_equal = np.searchsorted(ranked, scores[positives], side="right")
        return cls(positives, negatives, lower, lower_or_equal)

    @property
    def is_rare(self) -> bool:
        """Whether a product of matrices, for which weights must be doubles, is faster than cumulated sums."""
        return len(self.positives) <= RARE

    def auc(self, weights: Weights | Floats) -> Floats:
        """The share of positive-negative pairs in the right order, ties counting half, shape (r,) for (N, r)."""
        positives = weights[self.positives]
        num_positives = positives.sum(axis=0)
        if self.is_rare:
            twice_lower: Any = self._weights_of_pairs @ weights
        else:
            cumulated: Any = np.zeros((self.negatives.size + 1, weights.shape[1]), dtype=np.int32)
            np.cumsum(weights[self.negatives], axis=0, out=cumulated[1:])
            twice_lower = cumulated[self.lower] + cumulated[self.lower_or_equal]
        # a sum over positives times negatives leaves 32 bits behind; a double counts exactly up to 2**53
        pairs = np.einsum("pr,pr->r", positives, twice_lower, dtype=np.float64)
        return ratio(pairs, 2.0 * num_positives * (weights.sum(axis=0) - num_positives))

    @property
    def _weights_of_pairs(self) -> Floats:
        """For each positive and image: 2 where the image is a negative with a lower score, 1 for an equal one."""
        rank = np.full(len(self.positives) + len(self.negatives), len(self.negatives))
        rank[self.negatives] = np.arange(len(self.negatives))
        return np.add(rank < self.lower[:, np.newaxis], rank < self.lower_or_equal[:, np.newaxis], dtype=np.float64)
