"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from tqdm import tqdm

from scripts.core.config import Config
from scripts.core.errors import DivergedError
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system.signals import StopRequest
from scripts.data_handler.feed import Examples
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.trainer.checkpoint import plain_state_dict, save_tensors, training_state, write_history
from scripts.trainer.early_stopping import EarlyStopping
from scripts.trainer.schedule import cosine_lr
from scripts.trainer.step import is_finite, train_epoch, validate


def fit(
    model: nn.Module,
    train: Examples,
    val: Examples,
    config: Config,
    *,
    paths: RunPaths,
    provenance: dict[str, Any],
    model_card: dict[str, Any],
    stop: StopRequest,
) -> TrainingResult:
    """Train until the last epoch or until patience ends; the best weights are then in ``paths.best_model``.

    Args:
        model: The network, on the device; it ends with the last epoch's weights.
        train: The training split.
        val: The validation split, by which the best epoch is chosen.
        config: The settings as applied.
        paths: Where checkpoints go.
        provenance: What the run is made of, kept in the checkpoint.
        model_card: What a user of the weights needs to know; written beside them with the epoch's figures.
        stop: Asked after every step whether a signal has come.

    Raises:
        DivergedError: A loss is not a finite number.
        Interrupted: A signal asked to stop.
        StorageError: A checkpoint cannot be written.
    """
    device = train.targets.device
    optimizer = make_optimizer(model, config, device)
    stopping = EarlyStopping(config.patience)
    history: list[EpochRecord] = []
    started = time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        record = _run_epoch(model, optimizer, train, val, config, epoch=epoch, stopping=stopping, stop=stop)
        if not is_finite(record.train_loss, record.val_loss):
            raise DivergedError(_divergence(record, config, paths))
        history.append(record)
        if record.is_best:
            save_tensors(paths.best_model, plain_state_dict(model))
            write_json(paths.best_model_card, model_card | {"validation": _validation_figures(record)})
        save_tensors(paths.last_checkpoint, training_state(model, optimizer, stopping, history, provenance))
        write_history(paths.history, history)
        log.info(epoch_line(record, config.epochs, _seconds_left(history, config, stopping)))
        stop.raise_if_received(f"{len(history)} epochs are done; the best weights so far are {paths.best_model}.")
        if stopping.should_stop:
            log.info("no better epoch in %d: stopped early", config.patience)
            break
    log.info(
        "best epoch %d: val_acc %.4f  val_loss %.4f", stopping.best_epoch, stopping.best_accuracy, stopping.best_loss
    )
    return TrainingResult(
        history=tuple(history),
        best_epoch=stopping.best_epoch,
        best_val_accuracy=stopping.best_accuracy,
        best_val_loss=stopping.best_loss,
        stopped_early=len(history) < config.epochs,
        seconds=time.perf_counter() - started,
    )


def make_optimizer(model: nn.Module, config: Config, device: torch.device) -> SGD:
    """SGD with momentum and L2 penalty; one fused update of all parameters where PyTorch has one."""
    return SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def _run_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    train: Examples,
    val: Examples,
    config: Config,
    *,
    epoch: int,
    stopping: EarlyStopping,
    stop: StopRequest,
) -> EpochRecord:
    """Train and validate once."""
    started = time.perf_counter()
    num_steps = -(-train.size // config.batch_size)

    def learning_rate(step: int) -> float:
        steps_before = (epoch - 1) * num_steps
        return cosine_lr(steps_before + step, num_steps=config.epochs * num_steps, initial=config.lr)

    with tqdm(total=num_steps, desc=f"epoch {epoch}/{config.epochs}", unit="step", leave=False, disable=None) as bar:
        train_loss = train_epoch(
            model,
            optimizer,
            train,
            _plan_of(epoch, train.size, config, train.targets.device),
            batch_size=config.batch_size,
            rotates=config.rotation_angle > 0,
            learning_rate=learning_rate,
            precision=config.precision,
            after_step=partial(_after_step, bar.update, stop),
        )
    train_seconds = time.perf_counter() - started
    val_loss, val_accuracy = validate(model, val, precision=config.precision)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        learning_rate=learning_rate(0),
        images_per_second=train.size / train_seconds,
        seconds=time.perf_counter() - started,
        is_best=is_finite(train_loss, val_loss) and stopping.update(epoch, accuracy=val_accuracy, loss=val_loss),
    )


def _after_step(advance_bar: Callable[[], object], stop: StopRequest) -> None:
    advance_bar()
    stop.raise_if_received("The epoch was not finished.")


def _plan_of(epoch: int, num_images: int, config: Config, device: torch.device) -> EpochPlan:
    return draw_plan(
        num_images,
        seed=config.seed,
        epoch=epoch,
        batch_size=config.batch_size,
        hflip=config.hflip,
        rotation_angle=config.rotation_angle,
        jitter=config.jitter_val,
        mixup_alpha=config.mixup_alpha,
        device=device,
    )


def _divergence(record: EpochRecord, config: Config, paths: RunPaths) -> str:
    kept = f"The best weights before it are kept: {paths.best_model}." if paths.best_model.exists() else ""
    return (
        f"Training diverged in epoch {record.epoch}: train_loss {record.train_loss}, val_loss {record.val_loss}. "
        f"Try a smaller --lr than {config.lr:g}. {kept}"
    ).strip()


def _validation_figures(record: EpochRecord) -> dict[str, float]:
    return {"epoch": record.epoch, "accuracy": record.val_accuracy, "loss": record.val_loss}


def _seconds_left(history: list[EpochRecord], config: Config, stopping: EarlyStopping) -> float:
    """At most: the mean epoch so far, times the epochs that are left."""
    epochs_left = 0 if stopping.should_stop else config.epochs - len(history)
    return epochs_left * sum(record.seconds for record in history) / len(history)


def epoch_line(record: EpochRecord, num_epochs: int, seconds_left: float) -> str:
    """The line of one epoch, aligned with those before and after it."""
    width = len(str(num_epochs))
    return (
        f"epoch {record.epoch:{width}d}/{num_epochs}  train_loss {record.train_loss:.3f}  "
        f"val_loss {record.val_loss:.3f}  val_acc {record.val_accuracy:.4f}  lr {record.learning_rate:.1e}  "
        f"{record.images_per_second:,.0f} img/s  eta {_duration(seconds_left)}{'  best' if record.is_best else ''}"
    )


def _duration(seconds: float) -> str:
    """``3m10s``; hours appear where there are any.

    >>> _duration(190), _duration(7265)
    ('3m10s', '2h01m05s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"
