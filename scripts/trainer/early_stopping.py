"""Which epoch is the best so far, and when to give up hoping for a better one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """Selection by validation accuracy, ties broken by lower validation loss.

    One order serves both questions: an epoch that wins by its loss alone becomes the best and resets the patience.
    """

    patience: int
    best_epoch: int = 0  # counted from 1; 0 before the first
    best_accuracy: float = 0.0
    best_loss: float = 0.0
    epochs_without_improvement: int = 0

    def update(self, epoch: int, *, accuracy: float, loss: float) -> bool:
        """Take one epoch's result; the first always counts as an improvement.

        Args:
            epoch: Its number, counted from 1.
            accuracy: Validation accuracy, in [0, 1].
            loss: Validation loss, a finite number.

        Returns:
            Whether this epoch is the best so far.
        """
        is_first = self.best_epoch == 0
        if is_first or (accuracy, -loss) > (self.best_accuracy, -self.best_loss):
            self.best_epoch, self.best_accuracy, self.best_loss = epoch, accuracy, loss
            self.epochs_without_improvement = 0
            return True
        self.epochs_without_improvement += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether ``patience`` epochs in a row brought no improvement."""
        return self.epochs_without_improvement >= self.patience
