"""Metrics that follow from counts of right and wrong predictions, for many resamples at once.

In the shapes below N is the number of images, C of classes or labels, r of resamples. A division by 0 gives NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Scores = NDArray[np.floating]
Labels = NDArray[np.integer]  # class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C)


def confusion_matrix(labels: Integers, predictions: Integers, num_classes: int) -> Integers:
    """Count the images of each true and predicted class.

    Labels and predictions are class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, C).

    Returns:
        Shape (C, C), rows are true classes; with several labels per image (C, 2, 2), one matrix of absent and present
        for each label.
    """
    if labels.ndim == 2:
        return np.stack([confusion_matrix(*pair, 2) for pair in zip(labels.T, predictions.T, strict=True)])
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


class Counter:
    """Counts weighted images from the arguments of :func:`confusion_matrix`.

    A weight is how often an image is in a resample, shape (N, r); each resample adds up to N. The split has weights 1.
    """

    def __init__(self, labels: Integers, predictions: Integers, num_classes: int) -> None:
        truth, predicted = _membership(labels, num_classes), _membership(predictions, num_classes)
        self._members = (truth.multiply(predicted).tocsr(), predicted, truth)
        # for classes in an order: the distance of each prediction from the truth
        self._distances = np.abs(labels - predictions) if labels.ndim == 1 else None

    def class_counts(self, weights: Floats) -> list[Floats]:
        """Count the true positives, predicted positives and positives of each class or label, shape (C, r) each."""
        return [members @ weights for members in self._members]

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Compute every metric by its name, shape (r,) each; for class indices also those of classes in an order.

        A class or label for which a part is undefined is left out of the mean over them.
        """
        true_positives, predicted, positive = self.class_counts(weights)
        num_images, recall = len(weights), ratio(true_positives, positive)
        metrics = {"macro_f1": mean_of_defined(ratio(2 * true_positives, predicted + positive))}
        if self._distances is None:
            negative = num_images - positive
            true_negatives = negative - predicted + true_positives
            metrics["accuracy"] = (true_positives + true_negatives).sum(axis=0) / (num_images * len(recall))
            metrics["balanced_accuracy"] = mean_of_defined((ratio(true_negatives, negative) + recall) / 2)
        else:
            metrics["accuracy"] = true_positives.sum(axis=0) / num_images
            metrics["balanced_accuracy"] = mean_of_defined(recall)
            metrics["quadratic_weighted_kappa"] = _kappa(positive, predicted, self._distances**2 @ weights, num_images)
            metrics["mean_absolute_error"] = self._distances @ weights / num_images
        return metrics


def _kappa(true: Floats, predicted: Floats, observed: Floats, num_images: int) -> Floats:
    """Compute 1 - observed / by_chance of Σ (i - j)² over true classes i and predicted classes j, shape (r,).

    By chance is the sum expected from the images of each true and of each predicted class alone; 0 gives NaN.

    Reference: Cohen, Weighted kappa, Psychological Bulletin 70, 1968.
    """
    classes = np.arange(len(true))
    # (i - j)² expanded; all are whole numbers, which doubles add exactly
    squares = (classes**2 @ true + classes**2 @ predicted) * num_images
    return 1 - ratio(observed, (squares - 2 * (classes @ true) * (classes @ predicted)) / num_images)


def _membership(values: Integers, num_classes: int) -> csr_array:
    """Return 1 where an image is of a class or has a label and 0 elsewhere, shape (C, N)."""
    if values.ndim == 2:
        return csr_array(values.T, dtype=np.float64)
    images = np.arange(len(values))
    return csr_array((np.ones(len(values)), (values, images)), shape=(num_classes, len(values)))


def ratio(parts: NDArray[np.number], wholes: NDArray[np.number]) -> Floats:
    """Compute ``parts / wholes``, NaN where the whole is 0."""
    return np.divide(parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0)


def mean_of_defined(values: Floats) -> Floats:
    """Compute the mean over the first axis of the values that are not NaN; NaN where there is none."""
    is_defined = ~np.isnan(values)
    return ratio(np.where(is_defined, values, 0.0).sum(axis=0), is_defined.sum(axis=0))
