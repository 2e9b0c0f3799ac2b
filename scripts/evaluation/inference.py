"""Predicted probabilities of the test images, of the plain view and averaged over views."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.sources import DeviceSplit
from scripts.data_handler.views import PLAIN, View, apply_view
from scripts.evaluation.metrics import EvaluationResult, Metrics, compute_metrics


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

    Args:
        model: The best weights, on the device.
        test: The test split of N images.
        labels: Its class indices, shape (N,), or 0 and 1 for each label, shape (N, K).
        dataset: Gives the task and the names of the classes.
        views: What TTA averages over; none without TTA.
        precision: ``"fp32"`` or ``"bf16"``.
        seed: Seeds the bootstrap of the intervals.
    """
    plain_scores, tta_scores = predict(model, test, views, precision=precision)

    def metrics_of(scores: NDArray[np.float64]) -> Metrics:
        return compute_metrics(labels, scores, task=dataset.task, class_names=dataset.class_names, seed=seed)

    return EvaluationResult(
        labels=labels,
        plain_scores=plain_scores,
        tta_scores=tta_scores,
        plain=metrics_of(plain_scores),
        tta=None if tta_scores is None else metrics_of(tta_scores),
        views=tuple(view.name for view in views),
    )


@torch.inference_mode()
def predict(
    model: nn.Module, examples: DeviceSplit, views: tuple[View, ...], *, precision: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Predict the probabilities of the classes or labels of every image, all views of a batch one after another.

    Args:
        model: Maps (B, 3, H, W) to logits (B, K).
        examples: A split of N images.
        views: What TTA averages over; none without TTA.
        precision: ``"fp32"`` or ``"bf16"`` for the network; softmax or sigmoid is always computed in fp32.

    Returns:
        Probabilities of the plain view, and their mean over the views (None without views), of shape (N, K) each.
    """
    model.eval()
    plain, mean = torch.zeros_like(examples.targets), torch.zeros_like(examples.targets)

    def probabilities(images: Tensor, view: View) -> Tensor:
        inputs = normalise(apply_view(images, view)).contiguous(memory_format=torch.channels_last)
        with autocast(images.device, precision):
            logits = model(inputs)
        return examples.task.probabilities(logits.float())

    start = 0
    for stored in examples.source.batches(np.arange(examples.size), examples.eval_batch_size):
        images = to_float(stored)
        window = slice(start, start + len(images))
        plain[window] = probabilities(images, PLAIN)
        for view in views:
            mean[window] += (plain[window] if view == PLAIN else probabilities(images, view)) / len(views)
        start = window.stop
    return _on_host(plain), _on_host(mean) if views else None


def _on_host(probabilities: Tensor) -> NDArray[np.float64]:
    return probabilities.cpu().double().numpy()
