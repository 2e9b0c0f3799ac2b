"""The results of an epoch and of a training, which the trainer returns and the reports read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """The figures of one epoch."""

    epoch: int  # counted from 1
    train_loss: float  # mean over the images of the epoch, on mixed and augmented images
    val_loss: float
    val_accuracy: float  # a fraction in [0, 1]
    val_auc: float | None = None  # as the evaluation computes it; None where it is undefined
    learning_rate: float  # at the first step of the epoch
    images_per_second: float | None  # of training alone; None where a resumed run had only the validation left
    seconds: float  # training and validation
    is_best: bool  # whether its weights became best_model.pth


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """The figures of a training; its weights are in the run folder's ``best_model.pth``."""

    history: tuple[EpochRecord, ...]
    monitor: str = "accuracy"  # the validation figure that selected the best epoch: accuracy, auc or loss
    stopped_early: bool
    seconds: float

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights were kept."""
        return next(record for record in reversed(self.history) if record.is_best)
