"""A finished toy run, from which reports are written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.config import Config
from scripts.core.files import write_json
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.duplicates import Duplicates
from scripts.data_handler.registry import MULTI_CLASS, MULTI_LABEL
from scripts.evaluation.metrics import EvaluationResult, Metrics, compute_metrics
from scripts.evaluation.reports import RunReport
from scripts.evaluation.trust import majority_class_accuracy, measure_trust

LONG_NAME = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
NAMES = ("basophil", LONG_NAME, "platelet")
TOY_DUPLICATES = Duplicates(
    within={"train": 2, "val": 0, "test": 0}, across={"train_val": 0, "train_test": 1, "val_test": 0}, contradictory=1
)
FINISHED = datetime(2026, 1, 31, 22, 15, 0)


def toy_split(
    num_images: int, num_classes: int, *, side: int = 28, width: int | None = None, channels: int = 3
) -> Split:
    """Noise images, ``side`` high and, by default, wide, whose labels cycle through the classes."""
    shape: tuple[int, ...] = (num_images, side, width or side)
    if channels > 1:
        shape = (*shape, channels)
    images = np.random.default_rng(num_images).integers(256, size=shape, dtype=np.uint8)
    return Split(images, np.arange(num_images) % num_classes)


def toy_dataset(
    *, names: Sequence[str] = NAMES, task: str = MULTI_CLASS, note: str | None = None, side: int = 28, key: str = "toy"
) -> Dataset:
    sizes = {"train": 60, "val": 12, "test": 30}
    return Dataset(
        key=key,
        title="Toy cells",
        task=task,
        class_names=tuple(names),
        height=side,
        width=side,
        channels=3,
        num_samples=sizes,
        md5="0" * 32,
        source="generated",
        note=note,
        load=lambda split: toy_split(sizes[split], len(names), side=side),
    )


def toy_evaluation(
    *, num_images: int = 30, names: Sequence[str] = NAMES, task: str = MULTI_CLASS, tta: bool = True, wrong: int = 4
) -> EvaluationResult:
    """Labels cycle through the classes; the first ``wrong`` images are predicted as the next class, ever more surely.

    With TTA the last of the wrong ones is right.
    """
    num_classes = len(names)
    labels = np.arange(num_images) % num_classes

    def scores_of(confidence: float, num_wrong: int) -> np.ndarray:
        predicted = labels.copy()
        predicted[:num_wrong] = (predicted[:num_wrong] + 1) % num_classes
        scores = np.full((num_images, num_classes), (1 - confidence) / (num_classes - 1))
        sure = confidence + 0.09 * np.arange(num_images) / num_images
        scores[np.arange(num_images), predicted] = sure
        return scores / scores.sum(axis=1, keepdims=True)

    return evaluation_of(
        labels, scores_of(0.9, wrong), scores_of(0.8, max(0, wrong - 1)) if tta else None, names=names, task=task
    )


def evaluation_of(
    labels: np.ndarray, plain: np.ndarray, tta: np.ndarray | None = None, *, names: Sequence[str], task: str
) -> EvaluationResult:
    """The evaluation of scores; temperatures are 1.5 and 0.8, and the labels of the training split are the same."""

    def metrics_of(scores: np.ndarray) -> Metrics:
        return compute_metrics(labels, scores, task=task, class_names=names, seed=1, resamples=50)

    return EvaluationResult(
        labels=labels,
        plain_scores=plain,
        tta_scores=tta,
        plain=metrics_of(plain),
        tta=None if tta is None else metrics_of(tta),
        plain_trust=measure_trust(labels, plain, 1.5, task),
        tta_trust=None if tta is None else measure_trust(labels, tta, 0.8, task),
        majority_class_accuracy=majority_class_accuracy(labels, labels, task),
        views=() if tta is None else ("plain", "flipped"),
    )


def toy_label_split(num_images: int, num_labels: int, *, side: int = 28, channels: int = 3) -> Split:
    """Noise images each of which has the label that comes next, and every fifth the one after that as well."""
    single = toy_split(num_images, num_labels, side=side, channels=channels)
    rows = np.eye(num_labels, dtype=np.int64)[single.labels]
    rows[::5] |= np.roll(rows[::5], 1, axis=1)
    return Split(single.images, rows)


def toy_label_evaluation(
    *, num_images: int = 30, names: Sequence[str] = NAMES, tta: bool = True, wrong: int = 4
) -> EvaluationResult:
    """The labels of ``toy_label_split``, of which the first ``wrong`` images have one missed and a false one instead.

    A predicted label has 0.9, any other 0.2; with TTA the last of the wrong images is right.
    """
    labels = toy_label_split(num_images, len(names)).labels

    def scores_of(num_wrong: int) -> np.ndarray:
        predicted = labels.copy()
        predicted[:num_wrong] = np.roll(predicted[:num_wrong], 1, axis=1)
        return np.where(predicted == 1, 0.9, 0.2)

    mean = scores_of(max(0, wrong - 1)) if tta else None
    return evaluation_of(labels, scores_of(wrong), mean, names=names, task=MULTI_LABEL)


def toy_training(
    num_epochs: int = 3, *, best_epoch: int = 2, best: float = 0.9, val_loss: float = 1.25, monitor: str = "accuracy"
) -> TrainingResult:
    """Validation accuracy is ``best`` at ``best_epoch`` and 0.5 at all others; losses and rate fall as 1 / epoch.

    AUC and images per second of the first epoch are unknown.
    """
    history = tuple(
        EpochRecord(
            epoch=epoch,
            train_loss=1.5 / epoch,
            val_loss=val_loss / epoch,
            val_accuracy=best if epoch == best_epoch else 0.5,
            val_auc=None if epoch == 1 else 0.75,
            learning_rate=0.008 / epoch,
            images_per_second=1234.5 if epoch > 1 else None,
            seconds=2.5,
            is_best=epoch in (1, best_epoch),
        )
        for epoch in range(1, num_epochs + 1)
    )
    return TrainingResult(
        history=history,
        monitor=monitor,
        stopped_early=False,
        seconds=3725.4,
    )


def toy_report(folder: Path, **changes: Any) -> RunReport:
    """The report of a finished toy run in a new run folder."""
    dataset = changes.get("dataset", toy_dataset())
    evaluation = changes.get("evaluation", toy_evaluation(names=dataset.class_names))
    num_classes = len(dataset.class_names)
    paths = RunPaths.create(folder, dataset.key, "resnet18", now=FINISHED)
    write_json(paths.best_model_card, {"architecture": "resnet18"})
    values = {
        "paths": paths,
        "config": Config(epochs=3, dataset="toy.npz", no_tta=True, lr=0.05),
        "dataset": dataset,
        "training": toy_training(3, best_epoch=2),
        "evaluation": evaluation,
        "environment": {"device": "cpu", "cuda": None, "packages": {"numpy": "2.4"}, "memory_bytes": 25_000_000_000},
        "train": (toy_label_split if dataset.task == MULTI_LABEL else toy_split)(60, num_classes),
        "test": toy_split(len(evaluation.labels), num_classes),
        "duplicates": TOY_DUPLICATES,
        "finished": FINISHED,
    }
    return RunReport(**(values | changes))
