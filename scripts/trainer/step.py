"""One optimiser step, one pass over the training split, and one over the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from scripts.core.config import Config
from scripts.core.system.device import autocast
from scripts.data_handler.augmentation import augment, erase, normalise, to_float
from scripts.data_handler.plan import EpochPlan, Mix
from scripts.data_handler.sources import DeviceSplit
from scripts.data_handler.tasks import SINGLE_LABEL_TASK
from scripts.trainer.optimisation import ema_decay_of, make_schedule, set_rates, set_training_mode, update_average
from scripts.trainer.state import TrainingState

# from labels, class indices (N,) or 0 and 1 (N, L), and probabilities (N, K) to the AUC; None where it is undefined
AucFunction = Callable[[NDArray[np.integer[Any]], NDArray[np.floating[Any]]], "float | None"]
BatchLosses = Callable[[Tensor, Tensor], Tensor]  # from logits and targets (B, K) to the loss of each image, (B,)


class Validation(NamedTuple):
    """The figures of a split."""

    loss: float  # mean over the images
    accuracy: float  # a fraction in [0, 1]: of right images, or with several labels per image the mean of the labels'
    auc: float | None  # a fraction in [0, 1]; None where it is undefined or was not requested


def mix(images: Tensor, targets: Tensor, partner: Tensor, how: Mix) -> tuple[Tensor, Tensor]:
    """Mix images (B, C, H, W) and targets (B, K) with their partners': weight·own + (1 - weight)·partner's.

    MixUp blends every pixel, CutMix takes those of the box from the partner. ``partner`` holds each partner's place in
    the batch, int64, shape (B,).
    Sources: Zhang et al., "mixup", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    mixed_targets = targets[partner].lerp_(targets, how.weight)
    if how.box is None:
        return images[partner].lerp_(images, how.weight), mixed_targets
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right][partner]
    return mixed, mixed_targets


def training_step(
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    losses: BatchLosses = SINGLE_LABEL_TASK.losses,
    precision: str = "fp32",
    grad_clip: float = 0.0,
) -> Tensor:
    """Do forward, loss, backward and update; return the mean loss of the batch's images, on the device, shape ().

    ``model`` maps normalised float32 ``images`` (B, 3, H, W) to logits (B, K). ``targets`` are probabilities, float32,
    shape (B, K): one-hot rows, rows of 0 and 1, or mixtures of them. ``precision``, ``"fp32"`` or ``"bf16"``, is the
    network's; ``losses`` are always computed in fp32. A gradient whose norm is above ``grad_clip`` is scaled to it;
    0 clips none.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(images.device, precision):
        logits = model(images)
    loss = losses(logits.float(), targets).mean()
    loss.backward()
    if grad_clip > 0:
        clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], grad_clip)
    optimizer.step()
    return loss.detach()


def train_epoch(
    state: TrainingState,
    train: DeviceSplit,
    plan: EpochPlan,
    config: Config,
    *,
    after_step: Callable[[], None] = lambda: None,
) -> float:
    """Finish the state's epoch; return its mean training loss over all its images.

    The host does not wait for the device before the end. The state is up to date whenever ``after_step`` is called.
    ``plan`` holds every random decision of this epoch. Dropout and stochastic depth draw from PyTorch's global
    generators, which each step seeds by the plan.
    """
    set_training_mode(state.model)
    batch_size, losses = config.batch_size, training_losses(train, config)
    steps_per_epoch = -(-train.size // batch_size)
    rates_of = make_schedule(config, config.epochs * steps_per_epoch)
    for images in train.source.batches(plan.order[state.steps_done * batch_size :], batch_size):
        step = state.steps_done
        step_of_training = (state.epoch - 1) * steps_per_epoch + step
        window = slice(step * batch_size, (step + 1) * batch_size)
        augmentation = plan.augmentation.part(window)
        inputs = erase(normalise(augment(to_float(images), augmentation), train.mean, train.std), augmentation)
        targets = train.targets[plan.order_on_device[window]]
        if plan.mix:
            inputs, targets = mix(inputs, targets, plan.partner[window], plan.mix[step])
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        torch.manual_seed(plan.step_seeds[step])
        set_rates(state.optimizer, rates_of(step_of_training))
        loss = training_step(
            state.model,
            state.optimizer,
            inputs,
            targets,
            losses=losses,
            precision=config.precision,
            grad_clip=config.grad_clip,
        )
        if state.averaged is not None:
            update_average(state.averaged, state.model, ema_decay_of(step_of_training, config.ema_decay))
        state.loss_sum += loss * len(images)
        state.steps_done = step + 1
        after_step()
    return float(state.loss_sum) / train.size


def training_losses(train: DeviceSplit, config: Config) -> BatchLosses:
    """The losses that training minimises: with smoothed targets and weights of the classes, unlike the validation's."""
    task = train.task
    class_weights = task.class_weights(train.targets) if config.class_weights == "balanced" else None

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        if config.label_smoothing > 0:
            targets = task.smooth(targets, config.label_smoothing)
        return task.losses(logits, targets, class_weights)

    return losses


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
        inputs = normalise(to_float(images), val.mean, val.std).contiguous(memory_format=torch.channels_last)
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
