"""The bootstrap of the metrics of a test split.

A resample draws N of the N images with replacement, which gives each image a weight. Images are sorted once, and the
metrics of all resamples are computed together from the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.dataset import members
from scripts.evaluation.confusion import Counter, Floats, Integers, Scores, mean_of_defined, ratio

CHUNK_WEIGHTS = 1 << 19  # weights computed at a time; bounds the memory
RARE = 32  # images; of a class with more, sums are cumulated, which is then faster than a product of matrices


def resample_metrics(
    labels: Integers, predictions: Integers, scores: Scores, *, auc_classes: Sequence[int], resamples: int, seed: int
) -> dict[str, Floats]:
    """Compute the metrics of R bootstrap resamples of the images.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each of C labels, shape (N, C).
        predictions: The predicted ones, of the same shape.
        scores: Scores of the classes or labels, shape (N, C).
        auc_classes: The classes or labels over whose AUCs against the rest the mean AUC is taken.
        resamples: R, at least 1.
        seed: The same seed draws the same images, so that two sets of scores are compared on the same resamples.

    Returns:
        The metrics of ``Counter.metrics`` and ``"auc"`` by name, shape (R,) each; NaN where one is undefined.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    counter = Counter(labels, predictions, scores.shape[1])
    ranked = [_RankedClass(members(labels, index), scores[:, index]) for index in auc_classes]
    chunks = [
        counter.metrics(weights) | {"auc": mean_of_defined(np.stack([one.auc(weights) for one in ranked]))}
        for weights in _weights(len(scores), resamples, np.random.default_rng(seed))
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def percentile_interval(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Compute the central interval of the share ``level`` of the defined values; NaN twice if none is defined."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(num_images: int, resamples: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Draw how often each image is in each resample, in chunks of shape (N, r) whose r add up to ``resamples``."""
    chunk = max(1, CHUNK_WEIGHTS // num_images)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        cells = generator.integers(num_images, size=(count, num_images)) * count + np.arange(count)[:, np.newaxis]
        counts = np.bincount(cells.ravel(), minlength=num_images * count)
        yield counts.astype(np.float64).reshape(num_images, count)


class _RankedClass:
    """One class against the rest, ranked once by its score; AUC is then arithmetic on weights."""

    def __init__(self, is_positive: NDArray[np.bool_], scores: Scores) -> None:
        self.positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
        self.negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        # for each positive, the number of negatives with a lower score, and with a lower or equal score
        ranked, wanted = scores[self.negatives], scores[self.positives]
        self.lower, self.lower_or_equal = np.searchsorted(ranked, wanted), np.searchsorted(ranked, wanted, "right")

    def auc(self, weights: Floats) -> Floats:
        """Compute the share of positive-negative pairs in the right order, ties counting half; shape (r,)."""
        positives, negatives = weights[self.positives], weights[self.negatives]
        if len(positives) <= RARE:
            rank, bounds = np.arange(len(negatives)), (self.lower[:, np.newaxis], self.lower_or_equal[:, np.newaxis])
            # for each positive and negative: 2 where the negative has a lower score, 1 for an equal one
            twice_lower = np.add(rank < bounds[0], rank < bounds[1], dtype=np.float64) @ negatives
        else:
            cumulated = np.zeros((len(negatives) + 1, weights.shape[1]))
            np.cumsum(negatives, axis=0, out=cumulated[1:])
            twice_lower = cumulated[self.lower] + cumulated[self.lower_or_equal]
        weight = positives.sum(axis=0)
        # all are whole numbers, which doubles add exactly
        return ratio(np.einsum("pr,pr->r", positives, twice_lower), 2 * weight * (len(weights) - weight))
