"""Which epoch is the best so far, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """Selection by the monitored validation figure; equal figures are decided by the lower validation loss.

    Only a better figure resets the patience: a loss can shrink for ever while the figure stays at its maximum.
    """

    patience: int
    best_epoch: int = 0  # counted from 1; 0 before the first
    best_figure: float = -math.inf  # -inf as well where the figure is undefined
    best_loss: float = math.inf
    epochs_without_improvement: int = 0

    def update(self, epoch: int, *, figure: float | None, loss: float) -> bool:
        """Take one epoch's result; the first epoch is always an improvement.

        Args:
            epoch: Its number, counted from 1.
            figure: The monitored figure, higher is better; None where it is undefined, worse than any defined one.
            loss: Validation loss, finite.

        Returns:
            Whether this epoch is the best so far.
        """
        figure = -math.inf if figure is None else figure
        is_first = self.best_epoch == 0
        is_better = is_first or figure > self.best_figure
        self.epochs_without_improvement = 0 if is_better else self.epochs_without_improvement + 1
        is_best = is_better or (figure == self.best_figure and loss < self.best_loss)
        if is_best:
            self.best_epoch, self.best_figure, self.best_loss = epoch, figure, loss
        return is_best

    @property
    def should_stop(self) -> bool:
        """Whether ``patience`` epochs in a row brought no better figure."""
        return self.epochs_without_improvement >= self.patience
