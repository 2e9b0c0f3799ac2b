"""Figures of merit that follow from the counts of right and wrong answers alone, for many resamples at once.

Counts come in two shapes: a confusion matrix (C, C, r) of class indices, rows true and columns predicted, or for each
of L labels such a matrix of absent (0) and present (1), shape (L, 2, 2, r). The last axis counts resamples: with
r = 1 it is the split itself. What divides by 0 is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def count_answers(labels: Integers, predictions: Integers, num_classes: int) -> Integers:
    """The counts that the functions below read, without their last axis.

    Args:
        labels: True class indices, shape (N,), in [0, C), or 0 and 1 for each label, shape (N, L).
        predictions: The predicted ones, of the same shape.
        num_classes: Number of classes or labels.

    Returns:
        Shape (C, C), or (L, 2, 2) for several labels per image.
    """
    if labels.ndim == 2:
        columns = zip(labels.T, predictions.T, strict=True)
        return np.stack([count_answers(truth, called, 2) for truth, called in columns])
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return cells.astype(np.int64).reshape(num_classes, num_classes)


def class_counts(counts: Integers) -> tuple[Integers, Integers, Integers]:
    """Of how many images each class or label is rightly said, said, and true; shape (C, r) each."""
    if counts.ndim == 4:
        return counts[:, 1, 1], counts[:, :, 1].sum(axis=1), counts[:, 1].sum(axis=1)
    return np.diagonal(counts).T, counts.sum(axis=0), counts.sum(axis=1)


def figures_of(counts: Integers) -> dict[str, Floats]:
    """Every figure of the counts by its name, shape (r,) each, whichever of the two shapes the counts have.

    What is undefined for a class or label is left out of a mean over them. Of class indices there are also the
    figures that make sense where the classes are in an order.
    """
    hits, said, true = class_counts(counts)
    macro_f1 = mean_of_defined(ratio(2 * hits, said + true), axis=0)
    return {"macro_f1": macro_f1} | (_label_figures(counts) if counts.ndim == 4 else _class_figures(counts))


def _class_figures(confusion: Integers) -> dict[str, Floats]:
    """The balanced accuracy is the mean recall of the classes. The mean absolute error says by how many classes.

    The quadratic-weighted kappa is 1 - Σ (i - j)² O_ij / Σ (i - j)² E_ij with E_ij what the same margins would give by
    chance; it is undefined where all images are, and are called, of one class.

    Reference: Cohen, Weighted kappa, Psychological Bulletin 70, 1968.
    """
    hits, said, true = class_counts(confusion)
    num_images = true.sum(axis=0)
    classes = np.arange(len(confusion))
    steps = np.abs(np.subtract.outer(classes, classes)).astype(np.float64)
    by_chance = np.einsum("ij,ir,jr->r", steps**2, true, said) / num_images
    return {
        "accuracy": hits.sum(axis=0) / num_images,
        "balanced_accuracy": mean_of_defined(ratio(hits, true), axis=0),
        "quadratic_weighted_kappa": 1 - ratio(np.einsum("ij,ijr->r", steps**2, confusion), by_chance),
        "mean_absolute_error": np.einsum("ij,ijr->r", steps, confusion) / num_images,
    }


def _label_figures(counts: Integers) -> dict[str, Floats]:
    """The accuracy is the mean of the labels' accuracies, and the balanced accuracy the mean of their balanced ones.

    The balanced accuracy of one label is the mean of the shares found right among the images with it and among those
    without it; it is undefined where one of the two kinds is missing.
    """
    right = np.diagonal(counts, axis1=1, axis2=2).swapaxes(1, 2)  # without and with the label, shape (L, 2, r)
    of_each_kind = ratio(right, counts.sum(axis=2))
    return {
        "accuracy": right.sum(axis=(0, 1)) / counts.sum(axis=(0, 1, 2)),
        "balanced_accuracy": mean_of_defined(of_each_kind.mean(axis=1), axis=0),
    }


def ratio(parts: NDArray[np.number], wholes: NDArray[np.number]) -> Floats:
    """``parts / wholes``, NaN where the whole is 0."""
    result = np.full(parts.shape, np.nan)
    np.divide(parts, wholes, out=result, where=wholes > 0)
    return result


def mean_of_defined(values: Floats, *, axis: int) -> Floats:
    """The mean along ``axis`` of what is not NaN; NaN where all of it is."""
    is_defined = ~np.isnan(values)
    return ratio(np.where(is_defined, values, 0.0).sum(axis=axis), is_defined.sum(axis=axis))
