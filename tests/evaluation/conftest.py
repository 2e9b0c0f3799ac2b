"""A finished toy run: what reports are written from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.core.records import EpochRecord, TrainingResult
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.registry import MULTI_CLASS, MULTI_LABEL
from scripts.evaluation.metrics import EvaluationResult, Metrics, compute_metrics

LONG_NAME = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
NAMES = ("basophil", LONG_NAME, "platelet")


def toy_split(
    num_images: int, num_classes: int, *, side: int = 28, width: int | None = None, channels: int = 3
) -> Split:
    """Noise images, ``side`` high and, if not told otherwise, wide, whose labels go round the classes."""
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
    """Labels that go round the classes; the first ``wrong`` images are taken for the next class, ever more surely.

    TTA puts the last of the wrong ones right.
    """
    num_classes = len(names)
    labels = np.arange(num_images) % num_classes

    def scores_of(confidence: float, num_wrong: int) -> np.ndarray:
        called = labels.copy()
        called[:num_wrong] = (called[:num_wrong] + 1) % num_classes
        scores = np.full((num_images, num_classes), (1 - confidence) / (num_classes - 1))
        sure = confidence + 0.09 * np.arange(num_images) / num_images
        scores[np.arange(num_images), called] = sure
        return scores / scores.sum(axis=1, keepdims=True)

    def judge(scores: np.ndarray) -> Metrics:
        return compute_metrics(labels, scores, task=task, class_names=names, seed=1, resamples=50)

    plain, mean = scores_of(0.9, wrong), scores_of(0.8, max(0, wrong - 1))
    return EvaluationResult(
        labels=labels,
        plain_scores=plain,
        tta_scores=mean if tta else None,
        plain=judge(plain),
        tta=judge(mean) if tta else None,
        views=("plain", "flipped") if tta else (),
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

    What is called has 0.9, what is not has 0.2; TTA puts the last of the wrong images right.
    """
    labels = toy_label_split(num_images, len(names)).labels

    def scores_of(num_wrong: int) -> np.ndarray:
        called = labels.copy()
        called[:num_wrong] = np.roll(called[:num_wrong], 1, axis=1)
        return np.where(called == 1, 0.9, 0.2)

    def judge(scores: np.ndarray) -> Metrics:
        return compute_metrics(labels, scores, task=MULTI_LABEL, class_names=names, seed=1, resamples=50)

    plain, mean = scores_of(wrong), scores_of(max(0, wrong - 1))
    return EvaluationResult(
        labels=labels,
        plain_scores=plain,
        tta_scores=mean if tta else None,
        plain=judge(plain),
        tta=judge(mean) if tta else None,
        views=("plain", "flipped") if tta else (),
    )


def toy_training(
    num_epochs: int = 3, *, best_epoch: int = 2, best: float = 0.9, val_loss: float = 1.25
) -> TrainingResult:
    """Validation accuracy is ``best`` at ``best_epoch`` and 0.5 at all others; losses and rate fall as 1 / epoch."""
    history = tuple(
        EpochRecord(
            epoch=epoch,
            train_loss=1.5 / epoch,
            val_loss=val_loss / epoch,
            val_accuracy=best if epoch == best_epoch else 0.5,
            learning_rate=0.008 / epoch,
            images_per_second=1234.5,
            seconds=2.5,
            is_best=epoch in (1, best_epoch),
        )
        for epoch in range(1, num_epochs + 1)
    )
    return TrainingResult(
        history=history,
        best_epoch=best_epoch,
        best_val_accuracy=best,
        best_val_loss=val_loss / best_epoch,
        stopped_early=False,
        seconds=3725.4,
    )
