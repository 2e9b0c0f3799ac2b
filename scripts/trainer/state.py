"""Where a training stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scripts.core.records import EpochRecord
from scripts.trainer.early_stopping import EarlyStopping

StateDict = dict[str, Tensor]


@dataclass(slots=True)
class TrainingState:
    """All that the rest of a training depends on.

    There is no generator in it: every random decision is a pure function of the seed and of the place in the training,
    and the learning rate one of the step. So going on from here gives what never stopping would have given.
    """

    model: nn.Module
    optimizer: Optimizer
    stopping: EarlyStopping
    loss_sum: Tensor  # of the images of the epoch at hand, on the device, shape ()
    history: list[EpochRecord] = field(default_factory=list)
    steps_done: int = 0  # in the epoch at hand; all of them if only its validation is left
    seconds: float = 0.0  # spent on the epoch at hand before an interruption
    best_weights: StateDict = field(default_factory=dict)  # of the best epoch, on the CPU; empty before the first

    @property
    def epoch(self) -> int:
        """The epoch at hand, counted from 1."""
        return len(self.history) + 1

    def is_finished(self, num_epochs: int) -> bool:
        """Whether no epoch is left to train."""
        return self.epoch > num_epochs or self.stopping.should_stop

    def finish_epoch(self, record: EpochRecord) -> None:
        """Add an epoch's record; the next epoch is at hand then."""
        self.history.append(record)
        self.loss_sum.zero_()
        self.steps_done, self.seconds = 0, 0.0
        if record.is_best:
            self.best_weights = plain_state_dict(self.model)

    def as_dict(self) -> dict[str, Any]:
        """The state as values that ``torch.load(…, weights_only=True)`` reads."""
        best_is_current = self.steps_done == 0 and self.stopping.best_epoch == len(self.history)
        return {
            "model": plain_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "early_stopping": asdict(self.stopping),
            "history": [asdict(record) for record in self.history],
            "steps_done": self.steps_done,
            "loss_sum": self.loss_sum.cpu(),
            "seconds": self.seconds,
            # the same tensors are not written twice
            "best_weights": None if best_is_current else self.best_weights,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what ``as_dict`` gave.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: ``saved`` is of another model or program.
        """
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.stopping = EarlyStopping(**saved["early_stopping"])
        self.history = [EpochRecord(**record) for record in saved["history"]]
        self.steps_done, self.seconds = saved["steps_done"], saved["seconds"]
        self.loss_sum.copy_(saved["loss_sum"])
        self.best_weights = saved["model"] if saved["best_weights"] is None else saved["best_weights"]


def plain_state_dict(model: nn.Module) -> StateDict:
    """The model's tensors on the CPU in their usual memory layout, whatever device and layout they trained in."""
    # torch.clone keeps a tensor's layout, so contiguous has to come after it
    return {name: torch.clone(tensor.detach()).cpu().contiguous() for name, tensor in model.state_dict().items()}
