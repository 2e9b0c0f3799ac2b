"""What a step changes, and by how much: trainable layers, optimisers, schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scripts.core.config import Config

SECOND_BETA = 0.999  # of AdamW
# one cycle: as in torch.optim.lr_scheduler.OneCycleLR
RISING_SHARE = 0.3  # of the steps, without --warmup_epochs
FIRST_DIVISOR, LAST_DIVISOR = 25.0, 1e4  # of the largest rate, and of the first one
HALF_RANGE = 0.05  # of the momentum, around --momentum


class Rates(NamedTuple):
    """The hyperparameters of one step."""

    lr: float
    momentum: float


def select_trainable(model: nn.Module, train_layers: str, head: str) -> None:
    """Freeze all parameters but those of the module named ``head``, if ``train_layers`` is ``"head"``."""
    if train_layers == "head":
        model.requires_grad_(False)
        model.get_submodule(head).requires_grad_(True)


def set_training_mode(model: nn.Module) -> None:
    """Set the model to training, but modules that hold only frozen parameters to evaluation.

    So a frozen batch normalisation keeps its running statistics, and dropout in a frozen block drops nothing.
    """
    model.train()
    for module in model.modules():
        needs_grad = [parameter.requires_grad for parameter in module.parameters()]
        if needs_grad and not any(needs_grad):
            module.eval()


def make_optimizer(model: nn.Module, config: Config, device: torch.device) -> Optimizer:
    """Make SGD or AdamW for the trainable parameters, fused where PyTorch has that."""
    groups = parameter_groups(model, config.weight_decay, config.decay_params)
    fused = device.type in ("cpu", "cuda")  # one update of all parameters
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, betas=(config.momentum, SECOND_BETA), fused=fused)
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float, decay_params: str) -> list[dict[str, Any]]:
    """Group the trainable parameters by their weight decay.

    With ``decay_params`` ``"weights"`` vectors are not decayed: biases, and scales and shifts of normalisations.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if decay_params == "all" or parameter.ndim > 1]
    others = [parameter for parameter in trainable if decay_params != "all" and parameter.ndim <= 1]
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Set learning rate and momentum, which is AdamW's first beta, of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
        if "betas" in group:
            group["betas"] = (rates.momentum, group["betas"][1])
        else:
            group["momentum"] = rates.momentum


def make_schedule(config: Config, num_steps: int) -> Callable[[int], Rates]:
    """Make the function from a step, counted from 0 over the whole training of ``num_steps``, to its rates."""
    if config.schedule == "onecycle":
        return _one_cycle(config, num_steps)
    warmup = round(config.warmup_epochs / config.epochs * num_steps)

    def rates(step: int) -> Rates:
        if step < warmup:
            return Rates(config.lr * (step + 1) / (warmup + 1), config.momentum)
        if config.schedule == "constant":
            return Rates(config.lr, config.momentum)
        return Rates(cosine_lr(step - warmup, num_steps=num_steps - warmup, initial=config.lr), config.momentum)

    return rates


def cosine_lr(step: int, *, num_steps: int, initial: float) -> float:
    """Anneal from ``initial`` to 0 at ``num_steps`` (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts)."""
    return 0.5 * initial * (1 + math.cos(math.pi * step / num_steps))


def _one_cycle(config: Config, num_steps: int) -> Callable[[int], Rates]:
    """Raise the rate to --lr, then lower it to nearly 0; the momentum moves the other way, always within [0, 1).

    Source: Smith and Topin, "Super-Convergence", 2018, with the cosines of PyTorch's OneCycleLR.
    """
    last = num_steps - 1
    peak = (config.warmup_epochs / config.epochs or RISING_SHARE) * num_steps - 1
    first_lr, half = config.lr / FIRST_DIVISOR, min(HALF_RANGE, config.momentum, 0.9 * (1 - config.momentum))
    start, top = Rates(first_lr, config.momentum + half), Rates(config.lr, config.momentum - half)
    end = Rates(first_lr / LAST_DIVISOR, config.momentum + half)

    def rates(step: int) -> Rates:
        if step < peak:
            return _between(start, top, step / peak)
        return _between(top, end, (step - peak) / (last - peak))

    return rates


def _between(first: Rates, second: Rates, share: float) -> Rates:
    """Go from ``first`` to ``second`` along half a cosine."""
    own = 0.5 * (1 + math.cos(math.pi * share))
    return Rates(*(after + (before - after) * own for before, after in zip(first, second, strict=True)))


def ema_decay_of(step: int, decay: float) -> float:
    """The decay of a step, counted from 0: small in the first steps, so that the starting weights are soon forgotten.

    Source: TensorFlow's ExponentialMovingAverage with ``num_updates``.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every parameter and buffer of ``averaged`` towards the model's; integers, such as counters, are copied."""
    averages, current = [], []
    own, others = (chain(module.parameters(), module.buffers()) for module in (averaged, model))
    for average, other in zip(own, others, strict=True):
        if average.is_floating_point():
            averages.append(average)
            current.append(other)
        else:
            average.copy_(other)
    get_ema_multi_avg_fn(decay)(averages, current, None)
