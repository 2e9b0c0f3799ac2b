"""What labels ask of a network: its targets, what its logits say about them, what they cost, and which are right."""

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
    """How images are labelled, and so how B rows of K logits are read and judged; logits come as float32."""

    targets: Callable[
        [Tensor, int], Tensor
    ]  # labels of N images and K: float32 rows, shape (N, K), which MixUp can mix
    probabilities: Callable[[Tensor], Tensor]  # logits (B, K): what they stand for, in [0, 1], shape (B, K)
    losses: Callable[[Tensor, Tensor], Tensor]  # logits and targets (B, K): the loss of each image, shape (B,)
    is_right: Callable[[Tensor, Tensor], Tensor]  # the same: whether each answer is right, bool, (B,) or (B, K)


def task_of(labels: NDArray[np.int64]) -> Task:
    """``SINGLE_LABEL_TASK`` for class indices of shape (N,), ``MULTI_LABEL_TASK`` for 0 and 1 of shape (N, L)."""
    return SINGLE_LABEL_TASK if labels.ndim == 1 else MULTI_LABEL_TASK


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(labels, num_classes).float()


def _as_they_are(labels: Tensor, num_labels: int) -> Tensor:
    if labels.shape[1] != num_labels:
        raise ValueError(f"Expected labels (N, {num_labels}), got {tuple(labels.shape)}.")
    return labels.float()


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def _is_class(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.argmax(dim=1) == targets.argmax(dim=1)


def _binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def _is_label(logits: Tensor, targets: Tensor) -> Tensor:
    # by the probability, not the logit's sign: of a tiny positive logit it is 0.5, as the evaluation will find
    return (logits.sigmoid() > THRESHOLD) == (targets > THRESHOLD)


SINGLE_LABEL_TASK = Task(targets=_one_hot, probabilities=_softmax, losses=_cross_entropy, is_right=_is_class)
MULTI_LABEL_TASK = Task(
    targets=_as_they_are, probabilities=torch.sigmoid, losses=_binary_cross_entropy, is_right=_is_label
)
