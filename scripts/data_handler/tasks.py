"""Two kinds of labels, for the four tasks of the registry: one class per image, or several labels per image.

Each kind defines the targets, the probabilities, the losses and the correct outputs of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scripts.data_handler.registry import THRESHOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How labels of N images and K classes become targets, and how logits of shape (B, K), float32, are read."""

    targets: Callable[[Tensor, int], Tensor]  # labels and K: float32 rows (N, K), which MixUp can mix
    probabilities: Callable[[Tensor], Tensor]  # logits: numbers in [0, 1], shape (B, K)
    losses: Callable[[Tensor, Tensor], Tensor]  # logits and targets (B, K): the loss of each image, shape (B,)
    is_right: Callable[[Tensor, Tensor], Tensor]  # logits and targets: whether each is correct, bool, (B,) or (B, K)


def task_of(labels: NDArray[np.int64]) -> Task:
    """``SINGLE_LABEL_TASK`` for class indices of shape (N,), ``MULTI_LABEL_TASK`` for 0 and 1 of shape (N, L)."""
    return SINGLE_LABEL_TASK if labels.ndim == 1 else MULTI_LABEL_TASK


def _label_rows(labels: Tensor, num_labels: int) -> Tensor:
    if labels.shape[1] != num_labels:
        raise ValueError(f"Expected labels (N, {num_labels}), got {tuple(labels.shape)}.")
    return labels.float()


SINGLE_LABEL_TASK = Task(
    targets=lambda labels, num_classes: F.one_hot(labels, num_classes).float(),
    probabilities=lambda logits: logits.softmax(dim=1),
    losses=lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"),
    is_right=lambda logits, targets: logits.argmax(dim=1) == targets.argmax(dim=1),
)
MULTI_LABEL_TASK = Task(
    targets=_label_rows,
    probabilities=torch.sigmoid,
    losses=lambda logits, targets: F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1),
    # by the probability, not the logit's sign: of a tiny positive logit it is 0.5, as in the evaluation
    is_right=lambda logits, targets: (logits.sigmoid() > THRESHOLD) == (targets > THRESHOLD),
)
