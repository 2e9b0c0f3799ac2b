"""Predicted probabilities of the test images: of the plain view, and the mean over views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import normalise, to_float
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.sources import DeviceSplit
from scripts.data_handler.tasks import Task
from scripts.data_handler.views import PLAIN, View, apply_view
from scripts.evaluation.calibration import Temperatures, fit_temperature
from scripts.evaluation.metrics import EvaluationResult, compute_metrics
from scripts.evaluation.trust import majority_class_accuracy, measure_trust


def fit_temperatures(
    model: nn.Module,
    val: DeviceSplit,
    labels: NDArray[np.int64],
    task: str,
    views: tuple[View, ...],
    *,
    precision: str,
) -> Temperatures:
    """Fit the temperatures to the validation split; see :func:`evaluate` for the arguments."""
    plain, tta = predict(model, val, views, precision=precision)
    return Temperatures(
        fit_temperature(labels, plain, task), None if tta is None else fit_temperature(labels, tta, task)
    )


def evaluate(
    model: nn.Module,
    test: DeviceSplit,
    labels: NDArray[np.int64],
    dataset: Dataset,
    views: tuple[View, ...],
    *,
    precision: str,
    seed: int,
    temperatures: Temperatures,
    train_labels: NDArray[np.int64],
) -> EvaluationResult:
    """Evaluate the model on the test split.

    The true labels are class indices, shape (N,), or 0 and 1 for each of K labels, shape (N, K); ``seed`` seeds the
    bootstrap of the intervals. ``temperatures`` are those of :func:`fit_temperatures`, and the commonest class is that
    of ``train_labels``. The other arguments are those of :func:`predict`.
    """
    plain, tta = predict(model, test, views, precision=precision)
    metrics_of = partial(compute_metrics, labels, task=dataset.task, class_names=dataset.class_names, seed=seed)
    trust_of = partial(measure_trust, labels, task=dataset.task)
    return EvaluationResult(
        labels=labels,
        plain_scores=plain,
        tta_scores=tta,
        plain=metrics_of(plain),
        tta=None if tta is None else metrics_of(tta),
        plain_trust=trust_of(plain, temperatures.plain),
        tta_trust=None if tta is None or temperatures.tta is None else trust_of(tta, temperatures.tta),
        majority_class_accuracy=majority_class_accuracy(train_labels, labels, dataset.task),
        views=tuple(view.name for view in views),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A trained model with everything between stored images and probabilities."""

    model: nn.Module  # maps (B, 3, H, W) to logits (B, K); in evaluation mode
    task: Task
    mean: tuple[float, ...]  # of the channels of images in [0, 1], as the network expects them normalised
    std: tuple[float, ...]
    views: tuple[View, ...] = ()  # that TTA averages over; none without TTA
    precision: str = "fp32"  # or "bf16", of the network; softmax and sigmoid are always computed in fp32

    @torch.inference_mode()
    def __call__(self, stored: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict a batch, all views one after another.

        Args:
            stored: uint8 images (B, H, W) or (B, H, W, 3), on the device of the model.

        Returns:
            Probabilities of the plain view, and their mean over the views (None without views), float32 (B, K) each.
        """
        images = to_float(stored)
        plain = self.probabilities(images, PLAIN)
        if not self.views:
            return plain, None
        mean = torch.zeros_like(plain)
        for view in self.views:
            mean += (plain if view == PLAIN else self.probabilities(images, view)) / len(self.views)
        return plain, mean

    def probabilities(self, images: Tensor, view: View) -> Tensor:
        """Predict images (B, 3, H, W) in [0, 1] under one view: float32 (B, K)."""
        inputs = normalise(apply_view(images, view), self.mean, self.std).contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            logits = self.model(inputs)
        return self.task.probabilities(logits.float())


def predict(
    model: nn.Module, split: DeviceSplit, views: tuple[View, ...], *, precision: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Predict the probabilities of the classes or labels of every image of a split.

    The arguments are those of :class:`Predictor`. Returns the probabilities of the plain view, and their mean over the
    views (None without views), of shape (N, K) each.
    """
    predictor = Predictor(
        model=model.eval(), task=split.task, mean=split.mean, std=split.std, views=views, precision=precision
    )
    batches = split.source.batches(np.arange(split.size), split.eval_batch_size)
    plain, tta = zip(*map(predictor, batches), strict=True)
    return _as_array(plain), _as_array(tta) if views else None


def _as_array(parts: Iterable[Tensor]) -> NDArray[np.float64]:
    return torch.cat(tuple(parts)).cpu().double().numpy()
