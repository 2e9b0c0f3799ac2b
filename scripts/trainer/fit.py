"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from scripts.core.config import Config
from scripts.core.errors import DivergedError, ResourceError
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system.signals import StopRequest
from scripts.data_handler.plan import draw_plan
from scripts.data_handler.sources import DeviceSplit
from scripts.trainer.optimisation import make_optimizer, make_schedule, select_trainable
from scripts.trainer.state import EarlyStopping, TrainingState
from scripts.trainer.step import AucFunction, train_epoch, validate
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
    observe: Callable[[Sequence[EpochRecord]], None] = lambda _history: None,
) -> TrainingResult:
    """Train until the last epoch or until patience ends; the best weights are then in ``paths.best_model``.

    ``state``, a new one or that of a checkpoint, is changed in place. ``provenance`` is kept in each checkpoint, to
    recognise it on resuming. ``model_card`` is written beside the best weights, with their epoch's figures. ``stop`` is
    checked after every step and batch. ``auc`` computes the validation AUC of each epoch; it is required where
    ``config.monitor`` is ``"auc"``. ``observe`` is called with the epochs so far, at the beginning and after each.

    Raises:
        DivergedError: A loss is not finite.
        Interrupted: A signal requested a stop; the state is saved.
        StorageError: A file of the training cannot be written.
    """
    with TrainingWriter(state, paths, config, provenance=provenance, model_card=model_card) as writer:

        def check(place: str) -> None:
            """Stop where a write has failed or a signal has come."""
            writer.raise_failure()
            if stop.signal_number is not None:
                writer.save()
                stop.raise_if_received(f"Everything up to {place} is saved.")

        writer.begin()
        observe(state.history)
        while not state.is_finished(config.epochs):
            try:
                record = _run_epoch(state, train, val, config, auc, check)
            except ResourceError:  # a worker was killed: the state is that of the last step
                writer.save()
                raise
            if not all(map(math.isfinite, (record.train_loss, record.val_loss))):
                writer.join()
                kept = f" The best weights before it are kept: {paths.best_model}." if state.history else ""
                raise DivergedError(
                    f"Training diverged in epoch {record.epoch}: train_loss {record.train_loss}, val_loss "
                    f"{record.val_loss}. Try a smaller --lr than {config.lr:g}.{kept}"
                )
            writer.finish_epoch(record)
            log.info(epoch_line(record, config.epochs, _seconds_left(state, config), monitor=config.monitor))
            observe(state.history)
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
        monitor=config.monitor,
        stopped_early=stopped_early,
        seconds=sum(record.seconds for record in state.history),
    )


def begin_training(model: nn.Module, config: Config, device: torch.device, *, head: str) -> TrainingState:
    """Make the state before the first step; ``head`` is the name of the model's last layer, for --train_layers."""
    select_trainable(model, config.train_layers, head)
    optimizer, loss_sum = make_optimizer(model, config, device), torch.zeros((), device=device)
    averaged = deepcopy(model).eval().requires_grad_(False) if config.ema_decay > 0 else None
    return TrainingState(model, optimizer, EarlyStopping(config.patience), loss_sum, averaged)


def _run_epoch(
    state: TrainingState,
    train: DeviceSplit,
    val: DeviceSplit,
    config: Config,
    auc: AucFunction | None,
    check: Callable[[str], None],
) -> EpochRecord:
    """Train and validate the current epoch, from where it stands; ``check`` is called after every step and batch."""
    epoch, seconds_before = state.epoch, state.seconds
    started = time.perf_counter()
    num_steps, first_step = -(-train.size // config.batch_size), state.steps_done

    def after_step() -> None:
        bar.update()
        state.seconds = seconds_before + time.perf_counter() - started
        check(f"epoch {epoch}, step {state.steps_done} of {num_steps},")

    plan = draw_plan(config, train.size, epoch=epoch, image_size=train.image_size, device=train.targets.device)
    title = f"epoch {epoch}/{config.epochs}"
    with tqdm(total=num_steps, initial=first_step, desc=title, unit="step", leave=False, disable=None) as bar:
        train_loss = train_epoch(state, train, plan, config, after_step=after_step)
    train_seconds = time.perf_counter() - started
    after_batch = partial(check, f"the training steps of epoch {epoch}")
    validation = validate(state.evaluated, val, precision=config.precision, auc=auc, after_batch=after_batch)
    trained_here = max(0, train.size - first_step * config.batch_size)
    figure = {"accuracy": validation.accuracy, "auc": validation.auc, "loss": -validation.loss}[config.monitor]
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=validation.loss,
        val_accuracy=validation.accuracy,
        val_auc=validation.auc,
        learning_rate=make_schedule(config, config.epochs * num_steps)((epoch - 1) * num_steps).lr,
        images_per_second=trained_here / train_seconds if trained_here else None,
        seconds=seconds_before + time.perf_counter() - started,
        is_best=state.stopping.update(epoch, figure=figure, loss=validation.loss),
    )


def _seconds_left(state: TrainingState, config: Config) -> float:
    """Estimate the time that is left at most: the mean epoch's so far, for each epoch left."""
    epochs_left = 0 if state.is_finished(config.epochs) else config.epochs - len(state.history)
    return epochs_left * sum(record.seconds for record in state.history) / len(state.history)


def epoch_line(record: EpochRecord, num_epochs: int, seconds_left: float, *, monitor: str = "accuracy") -> str:
    """Format the figures of one epoch, aligned with those of the others."""
    rate = "" if record.images_per_second is None else f"{record.images_per_second:,.0f} img/s  "
    return (
        f"epoch {record.epoch:{len(str(num_epochs))}d}/{num_epochs}  train_loss {record.train_loss:.3f}  "
        f"val_loss {record.val_loss:.3f}  val_acc {record.val_accuracy:.4f}  {_auc(record, monitor)}"
        f"lr {record.learning_rate:.1e}  {rate}eta {_duration(seconds_left)}{'  best' if record.is_best else ''}"
    )


def _auc(record: EpochRecord, monitor: str) -> str:
    """Format the validation AUC if it is monitored."""
    figure = "undefined" if record.val_auc is None else f"{record.val_auc:.4f}"
    return f"val_auc {figure}  " if monitor == "auc" else ""


def _duration(seconds: float) -> str:
    """Format a time as ``3m10s``, or from an hour on as ``2h01m05s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"
