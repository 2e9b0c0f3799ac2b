"""Two kinds of labels, for the four tasks of the registry: one class per image, or several labels per image.

Each kind defines the targets, the probabilities, the losses and the correct outputs of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scripts.data_handler.registry import THRESHOLD


class Losses(Protocol):
    """The loss of each image."""

    def __call__(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """From logits and targets (B, K), and weights of the classes (K,), to losses (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How labels of N images and K classes become targets, and how logits of shape (B, K), float32, are read."""

    targets: Callable[[Tensor, int], Tensor]  # labels and K: float32 rows (N, K), which MixUp can mix
    probabilities: Callable[[Tensor], Tensor]  # logits: numbers in [0, 1], shape (B, K)
    losses: Losses
    class_weights: Callable[[Tensor], Tensor]  # targets (N, K) of a split: balanced weights of the classes, (K,)
    smooth: Callable[[Tensor, float], Tensor]  # targets, and the share of them that is spread evenly
    is_right: Callable[[Tensor, Tensor], Tensor]  # logits and targets: whether each is correct, bool, (B,) or (B, K)


def task_of(labels: NDArray[np.int64]) -> Task:
    """``SINGLE_LABEL_TASK`` for class indices of shape (N,), ``MULTI_LABEL_TASK`` for 0 and 1 of shape (N, L)."""
    return SINGLE_LABEL_TASK if labels.ndim == 1 else MULTI_LABEL_TASK


def _label_rows(labels: Tensor, num_labels: int) -> Tensor:
    if labels.shape[1] != num_labels:
        raise ValueError(f"Expected labels (N, {num_labels}), got {tuple(labels.shape)}.")
    return labels.float()


def _cross_entropies(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """A class's weight multiplies its part of the loss."""
    return F.cross_entropy(logits, targets, class_weights, reduction="none")


def _binary_cross_entropies(logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """A label's weight multiplies the loss of the images that have it."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=class_weights)
    return losses.mean(dim=1)


def _inverse_frequencies(targets: Tensor) -> Tensor:
    """N / (K · count of the class), so that the mean weight of the images is 1; 1 for a class without images."""
    counts = targets.sum(dim=0)
    return torch.where(counts > 0, targets.shape[0] / (targets.shape[1] * counts), 1.0)


def _negatives_per_positive(targets: Tensor) -> Tensor:
    """Images without a label / images with it; 1 for a label that no image or every image has."""
    counts = targets.sum(dim=0)
    is_mixed = (counts > 0) & (counts < len(targets))
    return torch.where(is_mixed, (len(targets) - counts) / counts, 1.0)


SINGLE_LABEL_TASK = Task(
    targets=lambda labels, num_classes: F.one_hot(labels, num_classes).float(),
    probabilities=lambda logits: logits.softmax(dim=1),
    losses=_cross_entropies,
    class_weights=_inverse_frequencies,
    smooth=lambda targets, share: (1 - share) * targets + share / targets.shape[1],
    is_right=lambda logits, targets: logits.argmax(dim=1) == targets.argmax(dim=1),
)
MULTI_LABEL_TASK = Task(
    targets=_label_rows,
    probabilities=torch.sigmoid,
    losses=_binary_cross_entropies,
    class_weights=_negatives_per_positive,
    smooth=lambda targets, share: (1 - share) * targets + share / 2,
    # by the probability, not the logit's sign: of a tiny positive logit it is 0.5, as in the evaluation
    is_right=lambda logits, targets: (logits.sigmoid() > THRESHOLD) == (targets > THRESHOLD),
)
