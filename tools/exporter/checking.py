"""Run the bytes of an exported file on test images, and compare its probabilities with those of the trained model."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.data_handler.dataset import Split
from scripts.data_handler.registry import BINARY, MULTI_LABEL, THRESHOLD
from scripts.evaluation.confusion import Floats
from scripts.evaluation.inference import Predictor
from scripts.evaluation.metrics import predict_classes
from tools.exporter.conversion import INPUT, OUTPUT

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # from N images to their probabilities (N, K)

TIE = 1e-5  # probabilities this close are equal but for rounding, which no two programs do alike


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Test images and what the trained model predicts of them in fp32."""

    split: Split
    task: str  # as in DatasetInfo
    batch_size: int
    scores: Floats  # (N, K)

    @property
    def accuracy(self) -> float:
        """MedMNIST's accuracy of the trained model, a fraction."""
        return accuracy(self.scores, self)


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an exported file differs from the trained model on the test images."""

    num_images: int
    max_difference: float  # of probabilities
    num_changed: int  # images with another decision, without the ties
    num_ties: int  # images with another decision where the trained model's own is a tie, within ``TIE``
    accuracy: float  # of the file, a fraction
    reference_accuracy: float  # of the trained model in fp32
    images_per_second: float  # of the file, on this machine's CPU


def run_onnx(content: bytes) -> Run:
    """Make a function that runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def run_torch(content: bytes) -> Run:
    """Make a function that runs a .pt2 file with PyTorch on the CPU."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


def predict_reference(predictor: Predictor, split: Split, *, task: str, batch_size: int) -> Reference:
    """Predict the test images with the trained model."""
    scores, _ = _run_all(lambda images: predictor(torch.from_numpy(images))[0].numpy(), split, batch_size)
    return Reference(split=split, task=task, batch_size=batch_size, scores=scores)


def check(run: Run, reference: Reference) -> Check:
    """Run an exported file on the test images and compare."""
    scores, seconds = _run_all(run, reference.split, reference.batch_size)
    changed = predict_classes(scores, task=reference.task) != predict_classes(reference.scores, task=reference.task)
    is_tie = _margins(reference.scores, reference.task) <= TIE
    num_images = len(scores)
    changed_images, beyond_ties = (
        int(part.reshape(num_images, -1).any(axis=1).sum()) for part in (changed, changed & ~is_tie)
    )
    return Check(
        num_images=num_images,
        max_difference=float(np.abs(scores - reference.scores).max()),
        num_changed=beyond_ties,
        num_ties=changed_images - beyond_ties,
        accuracy=accuracy(scores, reference),
        reference_accuracy=reference.accuracy,
        images_per_second=num_images / seconds,
    )


def accuracy(scores: Floats, reference: Reference) -> float:
    """MedMNIST's accuracy of probabilities of the test images, a fraction."""
    return float((predict_classes(scores, task=reference.task) == reference.split.labels).mean())


def _margins(scores: Floats, task: str) -> Floats:
    """How far probabilities are from another decision: (N,), or of a multi-label task (N, K)."""
    if task == MULTI_LABEL:
        return np.abs(scores - THRESHOLD)
    if task == BINARY:
        return np.abs(scores[:, -1] - THRESHOLD)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    return first - second


def _run_all(run: Run, split: Split, batch_size: int) -> tuple[Floats, float]:
    """The probabilities of all images of a split, and the seconds that they took."""
    starts, parts, begin = range(0, len(split.images), batch_size), [], time.perf_counter()
    for start in tqdm(starts, desc="check", leave=False, disable=None):  # a bar on a terminal
        parts.append(run(split.images[start : start + batch_size]))
    return np.concatenate(parts).astype(np.float64), time.perf_counter() - begin
