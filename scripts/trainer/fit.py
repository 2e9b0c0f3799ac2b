"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from tqdm import tqdm

from scripts.core.config import Config
from scripts.core.errors import DivergedError
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system.signals import StopRequest
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.data_handler.sources import DeviceSplit
from scripts.trainer.early_stopping import EarlyStopping
from scripts.trainer.schedule import cosine_lr
from scripts.trainer.state import TrainingState
from scripts.trainer.step import AucFunction, is_finite, train_epoch, validate
from scripts.trainer.writer import TrainingWriter


def fit(
    state: TrainingState,
    train: DeviceSplit,
    val: DeviceSplit,
    config: Config,
    *,
    paths: RunPaths,
    provenance: Mapping[str, Any],
    model_card: dict[str, Any],
    stop: StopRequest,
    auc: AucFunction | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingResult:
    """Train until the last epoch or until patience ends; the best weights are then in ``paths.best_model``.

    Args:
        state: The training before its first step, or as a checkpoint left it. It is changed in place.
        train: The training split.
        val: The validation split, which selects the best epoch.
        config: The settings as applied.
        paths: The run's folder.
        provenance: What the run is made of, kept in the checkpoint.
        model_card: What a user of the weights needs to know; written beside them with the epoch's figures.
        stop: Checked after every step for a signal.
        auc: Computes the validation AUC of each epoch; required where ``config.monitor`` is ``"auc"``.
        clock: Time in seconds, by which checkpoints are due.

    Raises:
        DivergedError: A loss is not finite.
        Interrupted: A signal requested a stop; the state is saved.
        StorageError: A file of the training cannot be written.
    """
    with TrainingWriter(state, paths, config, provenance=provenance, model_card=model_card, clock=clock) as writer:

        def check(place: str) -> None:
            """Stop where a write has failed or a signal has come."""
            writer.raise_failure()
            if stop.signal_number is not None:
                writer.save()
                stop.raise_if_received(f"Everything up to {place} is saved.")

        writer.begin()
        while not state.is_finished(config.epochs):
            record = _run_epoch(state, train, val, config, auc, check)
            if not is_finite(record.train_loss, record.val_loss):
                writer.join()
                raise DivergedError(_divergence(record, state, config, paths))
            writer.finish_epoch(record)
            log.info(epoch_line(record, config.epochs, _seconds_left(state, config), monitor=config.monitor))
        writer.join()
    return _result(state, config)


def _result(state: TrainingState, config: Config) -> TrainingResult:
    """Sum up a finished training, also in the log."""
    best = state.history[state.stopping.best_epoch - 1]
    stopped_early = len(state.history) < config.epochs
    if stopped_early:
        log.info("no better epoch in %d: stopped early", config.patience)
    auc = _auc(best, config.monitor)
    log.info("best epoch %d: val_acc %.4f  %sval_loss %.4f", best.epoch, best.val_accuracy, auc, best.val_loss)
    return TrainingResult(
        history=tuple(state.history),
        best_epoch=best.epoch,
        best_val_accuracy=best.val_accuracy,
        best_val_loss=best.val_loss,
        best_val_auc=best.val_auc,
        monitor=config.monitor,
        stopped_early=stopped_early,
        seconds=sum(record.seconds for record in state.history),
    )


def begin_training(model: nn.Module, config: Config, device: torch.device) -> TrainingState:
    """The state before the first step: SGD with momentum and L2 penalty, nothing trained yet."""
    optimizer = SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),  # one update of all parameters, where PyTorch has one
    )
    return TrainingState(model, optimizer, EarlyStopping(config.patience), torch.zeros((), device=device))


def _run_epoch(
    state: TrainingState,
    train: DeviceSplit,
    val: DeviceSplit,
    config: Config,
    auc: AucFunction | None,
    check: Callable[[str], None],
) -> EpochRecord:
    """Train and validate the current epoch, from where it stands; ``check`` may end it after every step."""
    epoch, seconds_before = state.epoch, state.seconds
    started = time.perf_counter()
    num_steps, first_step = -(-train.size // config.batch_size), state.steps_done

    def learning_rate(step: int) -> float:
        steps_before = (epoch - 1) * num_steps
        return cosine_lr(steps_before + step, num_steps=config.epochs * num_steps, initial=config.lr)

    def after_step() -> None:
        bar.update()
        state.seconds = seconds_before + time.perf_counter() - started
        check(f"epoch {epoch}, step {state.steps_done} of {num_steps},")

    title = f"epoch {epoch}/{config.epochs}"
    with tqdm(total=num_steps, initial=first_step, desc=title, unit="step", leave=False, disable=None) as bar:
        train_loss = train_epoch(
            state,
            train,
            _plan_of(epoch, train.size, config, train.targets.device),
            batch_size=config.batch_size,
            rotates=config.rotation_angle > 0,
            learning_rate=learning_rate,
            precision=config.precision,
            after_step=after_step,
        )
    train_seconds = time.perf_counter() - started
    after_batch = partial(check, f"the training steps of epoch {epoch}")
    validation = validate(state.model, val, precision=config.precision, auc=auc, after_batch=after_batch)
    trained_here = max(0, train.size - first_step * config.batch_size)
    figure = {"accuracy": validation.accuracy, "auc": validation.auc, "loss": -validation.loss}[config.monitor]
    finite = is_finite(train_loss, validation.loss)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=validation.loss,
        val_accuracy=validation.accuracy,
        val_auc=validation.auc,
        learning_rate=learning_rate(0),
        images_per_second=trained_here / train_seconds if trained_here else None,
        seconds=seconds_before + time.perf_counter() - started,
        is_best=finite and state.stopping.update(epoch, figure=figure, loss=validation.loss),
    )


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


def _divergence(record: EpochRecord, state: TrainingState, config: Config, paths: RunPaths) -> str:
    kept = f" The best weights before it are kept: {paths.best_model}." if state.history else ""
    return (
        f"Training diverged in epoch {record.epoch}: train_loss {record.train_loss}, val_loss {record.val_loss}. "
        f"Try a smaller --lr than {config.lr:g}.{kept}"
    )


def _seconds_left(state: TrainingState, config: Config) -> float:
    """Estimate the time that is left, at most: the mean epoch so far times the number of epochs left."""
    if state.is_finished(config.epochs):
        return 0.0
    epochs_left = config.epochs - len(state.history)
    return epochs_left * sum(record.seconds for record in state.history) / len(state.history)


def epoch_line(record: EpochRecord, num_epochs: int, seconds_left: float, *, monitor: str = "accuracy") -> str:
    """The line of one epoch, aligned with the lines of the others."""
    rate = "" if record.images_per_second is None else f"{record.images_per_second:,.0f} img/s  "
    return (
        f"epoch {record.epoch:{len(str(num_epochs))}d}/{num_epochs}  train_loss {record.train_loss:.3f}  "
        f"val_loss {record.val_loss:.3f}  val_acc {record.val_accuracy:.4f}  {_auc(record, monitor)}"
        f"lr {record.learning_rate:.1e}  {rate}eta {_duration(seconds_left)}{'  best' if record.is_best else ''}"
    )


def _auc(record: EpochRecord, monitor: str) -> str:
    """The validation AUC, where it selects the best epoch."""
    if monitor != "auc":
        return ""
    return "val_auc undefined  " if record.val_auc is None else f"val_auc {record.val_auc:.4f}  "


def _duration(seconds: float) -> str:
    """``3m10s``; hours appear where there are any.

    >>> _duration(190), _duration(7265)
    ('3m10s', '2h01m05s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"
