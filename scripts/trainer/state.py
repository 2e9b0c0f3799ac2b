"""The state of a training, and the choice of its best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scripts.core.records import EpochRecord

StateDict = dict[str, Tensor]


class HostBuffers:
    """Copies of tensors on the host, in their own memory layout and in memory that the next copy reuses.

    From a CUDA device the copies go to pinned memory and the host does not wait for them: they are complete once the
    device has done the work that was queued before.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def copy(self, value: Any, *place: Any) -> Any:
        """Copy ``value`` with every tensor in it, at any depth of mappings and lists.

        ``place`` is where ``value`` is in a larger one; a place must hold a tensor of the same size each time.
        """
        if isinstance(value, Mapping):
            return {name: self.copy(item, *place, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.copy(item, *place, number) for number, item in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        if place not in self._buffers:
            self._buffers[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return self._buffers[place].copy_(value, non_blocking=value.is_cuda)


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
        """Take one epoch's result; return whether it is the best so far, as the first epoch always is.

        Higher figures are better; None, where the figure is undefined, is worse than any.
        """
        figure = -math.inf if figure is None else figure
        is_better = self.best_epoch == 0 or figure > self.best_figure
        self.epochs_without_improvement = 0 if is_better else self.epochs_without_improvement + 1
        is_best = is_better or (figure == self.best_figure and loss < self.best_loss)
        if is_best:
            self.best_epoch, self.best_figure, self.best_loss = epoch, figure, loss
        return is_best

    @property
    def should_stop(self) -> bool:
        """Whether ``patience`` epochs in a row brought no better figure."""
        return self.epochs_without_improvement >= self.patience


@dataclass(slots=True)
class TrainingState:
    """All that the rest of a training depends on.

    It holds no generator: random decisions are pure functions of the seed and of the place in the training. Nor does it
    hold a schedule: the learning rate and the momentum are pure functions of the step.
    """

    model: nn.Module
    optimizer: Optimizer
    stopping: EarlyStopping
    loss_sum: Tensor  # of the images of the current epoch, on the device, shape ()
    averaged: nn.Module | None = None  # a model of averaged weights, with --ema_decay
    history: list[EpochRecord] = field(default_factory=list)
    steps_done: int = 0  # in the current epoch; all of them if only its validation is left
    seconds: float = 0.0  # spent on the current epoch before an interruption
    best_weights: StateDict = field(default_factory=dict)  # of the best epoch, on the host; empty before the first
    _buffers: HostBuffers = field(default_factory=HostBuffers)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and whose best weights are kept."""
        return self.model if self.averaged is None else self.averaged

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 1."""
        return len(self.history) + 1

    def is_finished(self, num_epochs: int) -> bool:
        """Whether no epoch is left to train."""
        return self.epoch > num_epochs or self.stopping.should_stop

    def finish_epoch(self, record: EpochRecord) -> None:
        """Add an epoch's record and move on to the next epoch; new best weights overwrite the earlier ones."""
        self.history.append(record)
        self.loss_sum.zero_()
        self.steps_done, self.seconds = 0, 0.0
        if record.is_best:
            self.best_weights = self._buffers.copy(self.evaluated.state_dict(), "best_weights")

    def snapshot(self) -> dict[str, Any]:
        """Copy the state as values that ``torch.load(…, weights_only=True)`` reads.

        The tensors are on the host, in memory that the next snapshot reuses; see ``HostBuffers``.
        """
        best_is_current = self.steps_done == 0 and 0 < self.stopping.best_epoch == len(self.history)
        copy = self._buffers.copy
        # the same tensors are neither copied nor written twice
        evaluated = self.best_weights if best_is_current else copy(self.evaluated.state_dict(), "evaluated")
        return {
            "model": evaluated if self.averaged is None else copy(self.model.state_dict(), "model"),
            "averaged": None if self.averaged is None else evaluated,
            "optimizer": copy(self.optimizer.state_dict(), "optimizer"),
            "early_stopping": asdict(self.stopping),
            "history": [asdict(record) for record in self.history],
            "steps_done": self.steps_done,
            "loss_sum": copy(self.loss_sum, "loss_sum"),
            "seconds": self.seconds,
            "best_weights": None if best_is_current else self.best_weights,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Load what ``snapshot`` returned; KeyError, RuntimeError, TypeError or ValueError if it does not fit."""
        self.model.load_state_dict(saved["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.stopping = EarlyStopping(**saved["early_stopping"])
        self.history = [EpochRecord(**record) for record in saved["history"]]
        self.steps_done, self.seconds = saved["steps_done"], saved["seconds"]
        self.loss_sum.copy_(saved["loss_sum"])
        evaluated = saved["model"] if self.averaged is None else saved["averaged"]
        self.best_weights = evaluated if saved["best_weights"] is None else saved["best_weights"]
