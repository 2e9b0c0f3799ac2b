"""Predicted probabilities of the test images: of the plain view, and the mean over views."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.sources import DeviceSplit
from scripts.data_handler.views import PLAIN, View, apply_view
from scripts.evaluation.metrics import EvaluationResult, compute_metrics


def evaluate(
    model: nn.Module,
    test: DeviceSplit,
    labels: NDArray[np.int64],
    dataset: Dataset,
    views: tuple[View, ...],
    *,
    precision: str,
    seed: int,
) -> EvaluationResult:
    """Evaluate the model on the test split.

    The true labels are class indices, shape (N,), or 0 and 1 for each of K labels, shape (N, K); ``seed`` seeds the
    bootstrap of the intervals. The other arguments are those of :func:`predict`.
    """
    plain, tta = predict(model, test, views, precision=precision)
    metrics_of = partial(compute_metrics, labels, task=dataset.task, class_names=dataset.class_names, seed=seed)
    names, with_tta = tuple(view.name for view in views), None if tta is None else metrics_of(tta)
    return EvaluationResult(
        labels=labels, plain_scores=plain, tta_scores=tta, plain=metrics_of(plain), tta=with_tta, views=names
    )


@torch.inference_mode()
def predict(
    model: nn.Module, split: DeviceSplit, views: tuple[View, ...], *, precision: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Predict the probabilities of the classes or labels of every image, all views of a batch one after another.

    Args:
        model: Maps (B, 3, H, W) to logits (B, K); on the device of the split.
        split: N images.
        views: The views that TTA averages over; none without TTA.
        precision: ``"fp32"`` or ``"bf16"`` for the network; softmax or sigmoid is always computed in fp32.

    Returns:
        Probabilities of the plain view, and their mean over the views (None without views), of shape (N, K) each.
    """
    model.eval()
    plain, mean = torch.zeros_like(split.targets), torch.zeros_like(split.targets)

    def probabilities(images: Tensor, view: View) -> Tensor:
        inputs = normalise(apply_view(images, view), split.mean, split.std).contiguous(
            memory_format=torch.channels_last
        )
        with autocast(images.device, precision):
            logits = model(inputs)
        return split.task.probabilities(logits.float())

    batches = split.source.batches(np.arange(split.size), split.eval_batch_size)
    rows = zip(plain.split(split.eval_batch_size), mean.split(split.eval_batch_size), strict=True)
    for stored, (of_plain, of_mean) in zip(batches, rows, strict=True):
        images = to_float(stored)
        of_plain[:] = probabilities(images, PLAIN)
        for view in views:
            of_mean += (of_plain if view == PLAIN else probabilities(images, view)) / len(views)
    return plain.cpu().double().numpy(), mean.cpu().double().numpy() if views else None
