"""One optimiser step with MixUp, one pass over the training split, and one over the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import augment, normalise, to_float
from scripts.data_handler.plan import EpochPlan
from scripts.data_handler.sources import DeviceSplit
from scripts.data_handler.tasks import SINGLE_LABEL_TASK, Task
from scripts.trainer.state import TrainingState

# from labels, class indices (N,) or 0 and 1 (N, L), and probabilities (N, K) to the AUC; None where it is undefined
AucFunction = Callable[[NDArray[np.integer[Any]], NDArray[np.floating[Any]]], "float | None"]


class Validation(NamedTuple):
    """The figures of a split."""

    loss: float  # mean over the images
    accuracy: float  # a fraction in [0, 1]: of right images, or with several labels per image the mean of the labels'
    auc: float | None  # a fraction in [0, 1]; None where it is undefined or was not requested


def mix(images: Tensor, targets: Tensor, partner: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Blend images (B, C, H, W) and targets (B, K) with their partners': weight·own + (1 - weight)·partner's.

    ``partner`` holds each partner's place in the batch, int64, shape (B,); ``weight`` is lambda, in [0, 1].
    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    return images[partner].lerp_(images, weight), targets[partner].lerp_(targets, weight)


def training_step(
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    task: Task = SINGLE_LABEL_TASK,
    precision: str = "fp32",
) -> Tensor:
    """Do forward, loss, backward and update; return the mean loss of the batch's images, on the device, shape ().

    ``model`` maps normalised float32 ``images`` (B, 3, H, W) to logits (B, K). ``targets`` are probabilities, float32,
    shape (B, K): one-hot rows, rows of 0 and 1, or mixtures of them. ``precision``, ``"fp32"`` or ``"bf16"``, is the
    network's; the loss, which ``task`` defines, is always computed in fp32.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device, precision):
        logits = model(images)
    loss = task.losses(logits.float(), targets).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_epoch(
    state: TrainingState,
    train: DeviceSplit,
    plan: EpochPlan,
    *,
    batch_size: int,
    rotates: bool,
    learning_rate: Callable[[int], float],
    precision: str,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Finish the state's epoch; return its mean training loss over all its images.

    The host does not wait for the device before the end. The state is up to date whenever ``after_step`` is called.
    ``plan`` holds every random decision of this epoch; ``rotates`` is whether its angles may differ from 0.
    ``learning_rate`` maps the number of a step in this epoch, counted from 0, to its rate.
    """
    state.model.train()
    for images in train.source.batches(plan.order[state.steps_done * batch_size :], batch_size):
        step = state.steps_done
        window = slice(step * batch_size, (step + 1) * batch_size)
        inputs = normalise(augment(to_float(images), plan.augmentation.part(window), rotates=rotates))
        targets = train.targets[plan.order_on_device[window]]
        if plan.mix:
            inputs, targets = mix(inputs, targets, plan.partner[window], plan.mix[step])
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        loss = training_step(state.model, state.optimizer, inputs, targets, task=train.task, precision=precision)
        state.loss_sum += loss * len(images)
        state.steps_done = step + 1
        after_step()
    return float(state.loss_sum) / train.size


@torch.inference_mode()
def validate(
    model: nn.Module,
    val: DeviceSplit,
    *,
    precision: str,
    auc: AucFunction | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """Compute the figures of a split, without augmentation; without ``auc`` there is no AUC."""
    model.eval()
    device = val.targets.device
    loss_sum, num_right = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    num_answers, probabilities = 0, list[Tensor]()
    batches = val.source.batches(np.arange(val.size), val.eval_batch_size)
    for targets, images in zip(val.targets.split(val.eval_batch_size), batches, strict=True):
        inputs = normalise(to_float(images)).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = model(inputs).float()
        loss_sum += val.task.losses(logits, targets).sum()
        is_right = val.task.is_right(logits, targets)
        num_right += is_right.sum()
        num_answers += is_right.numel()
        if auc is not None:
            probabilities.append(val.task.probabilities(logits))
        after_batch()
    loss, accuracy = float(loss_sum) / val.size, int(num_right) / num_answers
    if auc is None or not math.isfinite(loss):
        return Validation(loss, accuracy, None)
    labels = val.targets.argmax(dim=1) if val.task is SINGLE_LABEL_TASK else val.targets.long()
    return Validation(loss, accuracy, auc(labels.cpu().numpy(), torch.cat(probabilities).cpu().numpy()))
