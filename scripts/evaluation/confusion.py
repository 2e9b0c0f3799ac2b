"""Figures of merit that follow from counts of right and wrong predictions alone, for many resamples at once.

A resample gives every image an integer weight; the split itself has the weights 1. In the shapes below N is the number
of images, C that of classes or labels, r that of resamples. Whatever would be divided by 0 is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weights = NDArray[np.integer]  # how often each image is in each resample, shape (N, r)


def confusion_matrix(labels: Integers, predictions: Integers, num_classes: int) -> Integers:
    """Count the images of each true and predicted class.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C).
        predictions: The predicted ones, of the same shape.
        num_classes: Number of classes or labels, C.

    Returns:
        Shape (C, C), rows are true classes; with several labels per image (C, 2, 2), one matrix of absent and present
        for each label.
    """
    if labels.ndim == 2:
        columns = zip(labels.T, predictions.T, strict=True)
        return np.stack([confusion_matrix(truth, predicted, 2) for truth, predicted in columns])
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


@dataclass(frozen=True, slots=True, eq=False)
class ClassCounts:
    """Images of each class or label in every resample, shape (C, r) each."""

    true_positives: Integers
    predicted_positive: Integers
    positive: Integers


class Counter:
    """Counts weighted images; what the weights are multiplied by is prepared once.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C).
        predictions: The predicted ones, of the same shape.
        num_classes: Number of classes or labels, C.
    """

    def __init__(self, labels: Integers, predictions: Integers, num_classes: int) -> None:
        truth, predicted = (_membership(values, num_classes) for values in (labels, predictions))
        self._members = [truth.multiply(predicted).tocsr(), predicted, truth]
        # of classes in an order: how far each prediction is from the truth
        self._distances = np.abs(labels - predictions) if labels.ndim == 1 else None

    def class_counts(self, weights: Weights) -> ClassCounts:
        """Count the images of each class or label."""
        return ClassCounts(*(members @ weights for members in self._members))

    def figures(self, weights: Weights) -> dict[str, Floats]:
        """Compute every figure by its name, shape (r,) each.

        A class or label for which a part is undefined is left out of the mean over them. Class indices also have the
        figures that make sense where the classes are in an order.
        """
        counts, num_images = self.class_counts(weights), weights.sum(axis=0)
        f1 = ratio(2 * counts.true_positives, counts.predicted_positive + counts.positive)
        recall = ratio(counts.true_positives, counts.positive)
        if self._distances is None:
            negative = num_images - counts.positive
            true_negatives = negative - counts.predicted_positive + counts.true_positives
            num_right = (counts.true_positives + true_negatives).sum(axis=0)
            figures = {
                "accuracy": num_right / (num_images * len(recall)),
                "balanced_accuracy": mean_of_defined((ratio(true_negatives, negative) + recall) / 2, axis=0),
            }
        else:
            figures = {
                "accuracy": counts.true_positives.sum(axis=0) / num_images,
                "balanced_accuracy": mean_of_defined(recall, axis=0),
                "quadratic_weighted_kappa": _kappa(counts, self._distances**2 @ weights, num_images),
                "mean_absolute_error": self._distances @ weights / num_images,
            }
        return {"macro_f1": mean_of_defined(f1, axis=0)} | figures


def _kappa(counts: ClassCounts, observed: Integers, num_images: Integers) -> Floats:
    """Compute 1 - observed / by_chance of Σ (i - j)² over true and predicted classes i and j; shape (r,).

    By chance means what the same numbers of true and of predicted images would give. The kappa is undefined where all
    images are, and are predicted, of one class.

    Reference: Cohen, Weighted kappa, Psychological Bulletin 70, 1968.
    """
    true, predicted = counts.positive.astype(np.float64), counts.predicted_positive.astype(np.float64)
    classes = np.arange(len(true))
    # (i - j)² written out; all are whole numbers, which doubles add exactly
    squares = (classes**2 @ true + classes**2 @ predicted) * num_images
    by_chance = (squares - 2 * (classes @ true) * (classes @ predicted)) / num_images
    return 1 - ratio(observed, by_chance)


def _membership(values: Integers, num_classes: int) -> csr_array:
    """Which images are of which class or have which label, as 0 and 1, shape (C, N)."""
    if values.ndim == 2:
        return csr_array(values.T)
    images = np.arange(len(values))
    return csr_array((np.ones_like(values), (values, images)), shape=(num_classes, len(values)))


def ratio(parts: NDArray[np.number], wholes: NDArray[np.number]) -> Floats:
    """``parts / wholes``, NaN where the whole is 0."""
    result = np.full(parts.shape, np.nan)
    np.divide(parts, wholes, out=result, where=wholes > 0)
    return result


def mean_of_defined(values: Floats, *, axis: int) -> Floats:
    """The mean along ``axis`` of what is not NaN; NaN where all of it is."""
    is_defined = ~np.isnan(values)
    return ratio(np.where(is_defined, values, 0.0).sum(axis=axis), is_defined.sum(axis=axis))
