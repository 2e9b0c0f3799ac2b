"""Class probabilities of the test images, as they are and averaged over views of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import flip_and_rotate, normalise, to_float
from scripts.data_handler.dataset import Dataset
from scripts.data_handler.feed import Examples
from scripts.evaluation.metrics import EvaluationResult, Metrics, compute_metrics

BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a picture."""

    name: str
    flip: bool = False
    angle: float = 0.0  # degrees, counter-clockwise

    @property
    def is_plain(self) -> bool:
        """Whether the picture stays as it is."""
        return not self.flip and self.angle == 0


PLAIN = View("plain")


def tta_views(*, hflip: float, rotation_angle: float) -> tuple[View, ...]:
    """The views of test-time augmentation: only what training has shown the network too.

    Args:
        hflip: Probability of a flip in training; with 0 no view is flipped.
        rotation_angle: Largest rotation in training, in degrees; views are turned by half of it.
    """
    views = [PLAIN]
    if hflip > 0:
        views.append(View("flipped", flip=True))
    if rotation_angle > 0:
        half = rotation_angle / 2
        views += [View(f"turned {half:g}° left", angle=half), View(f"turned {half:g}° right", angle=-half)]
    return tuple(views)


def evaluate(
    model: nn.Module,
    test: Examples,
    labels: NDArray[np.int64],
    dataset: Dataset,
    views: tuple[View, ...],
    *,
    precision: str,
    seed: int,
) -> EvaluationResult:
    """Judge the model on the test split.

    Args:
        model: The best weights, on the device.
        test: The test split of N images.
        labels: Its class indices, shape (N,).
        dataset: Tells the task and the names of the classes.
        views: The plain view, and any others that TTA averages over.
        precision: ``"fp32"`` or ``"bf16"``.
        seed: Seeds the bootstrap of the intervals.
    """
    plain_scores, tta_scores = predict(model, test, views, precision=precision)

    def judge(scores: NDArray[np.float64]) -> Metrics:
        return compute_metrics(labels, scores, task=dataset.task, class_names=dataset.class_names, seed=seed)

    has_tta = len(views) > 1
    return EvaluationResult(
        labels=labels,
        plain_scores=plain_scores,
        tta_scores=tta_scores if has_tta else None,
        plain=judge(plain_scores),
        tta=judge(tta_scores) if has_tta else None,
        views=tuple(view.name for view in views) if has_tta else (),
    )


@torch.inference_mode()
def predict(
    model: nn.Module, examples: Examples, views: tuple[View, ...], *, precision: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Class probabilities of every image, all views of a batch one after another.

    Args:
        model: Maps (B, 3, H, W) to logits (B, K).
        examples: A split of N images.
        views: At least one view; the first is the plain one.
        precision: ``"fp32"`` or ``"bf16"`` for the network; softmax is always computed in fp32.

    Returns:
        Probabilities of the plain view and their mean over all views, both of shape (N, K).
    """
    model.eval()
    device = examples.targets.device
    plain, mean = torch.zeros_like(examples.targets), torch.zeros_like(examples.targets)
    start = 0
    for stored in examples.feed.batches(np.arange(examples.size), BATCH_SIZE):
        images = to_float(stored)
        window = slice(start, start + len(images))
        for number, view in enumerate(views):
            with autocast(device, precision):
                logits = model(normalise(look(images, view)).contiguous(memory_format=torch.channels_last))
            probabilities = logits.float().softmax(dim=1)
            if number == 0:
                plain[window] = probabilities
            mean[window] += probabilities / len(views)
        start = window.stop
    return _on_host(plain), _on_host(mean)


def look(images: Tensor, view: View) -> Tensor:
    """Show a batch of images, float32 of shape (B, C, H, W), in one view."""
    if view.is_plain:
        return images
    size, device = len(images), images.device
    flip = torch.full((size,), view.flip, device=device)
    return flip_and_rotate(images, flip, torch.full((size,), view.angle, device=device))


def _on_host(probabilities: Tensor) -> NDArray[np.float64]:
    return probabilities.cpu().double().numpy()
