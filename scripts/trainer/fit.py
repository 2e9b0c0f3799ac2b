"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from tqdm import tqdm

from scripts.core.config import Config
from scripts.core.errors import DivergedError
from scripts.core.files import write_bytes, write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord, TrainingResult
from scripts.core.system.signals import StopRequest
from scripts.data_handler.plan import EpochPlan, draw_plan
from scripts.data_handler.sources import DeviceSplit
from scripts.trainer.checkpoint import save_checkpoint, tensors_as_bytes, write_history
from scripts.trainer.early_stopping import EarlyStopping
from scripts.trainer.schedule import cosine_lr
from scripts.trainer.state import TrainingState
from scripts.trainer.step import is_finite, train_epoch, validate


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
) -> TrainingResult:
    """Train until the last epoch or until patience ends; the best weights are then in ``paths.best_model``.

    Args:
        state: Where the training stands: at its beginning, or where a checkpoint left it. It ends at the end.
        train: The training split.
        val: The validation split, by which the best epoch is chosen.
        config: The settings as applied.
        paths: Where checkpoints go.
        provenance: What the run is made of, kept in the checkpoint.
        model_card: What a user of the weights needs to know; written beside them with the epoch's figures.
        stop: Asked after every step whether a signal has come.

    Raises:
        DivergedError: A loss is not a finite number.
        Interrupted: A signal asked to stop; the state is saved.
        StorageError: A checkpoint cannot be written.
    """

    def save() -> None:
        save_checkpoint(paths, state.as_dict() | {"provenance": dict(provenance)})

    def stop_if_asked(place: str) -> None:
        if stop.signal_number is not None:
            save()
            stop.raise_if_received(f"Everything up to {place} is saved.")

    if not state.history and state.steps_done == 0:
        save()  # what training began with: by the time of a resumption the file it came from may be another
    if state.history:
        # a kill may have left the files one epoch behind the checkpoint, or a damaged checkpoint one epoch ahead of it
        write_results(state, paths, model_card)
    while not state.is_finished(config.epochs):
        record = _run_epoch(state, train, val, config, stop_if_asked)
        if not is_finite(record.train_loss, record.val_loss):
            raise DivergedError(_divergence(record, config, paths))
        state.finish_epoch(record)
        # the checkpoint first: it holds the best weights, so that any moment to be killed in is as good as any other
        save()
        write_results(state, paths, model_card, with_weights=record.is_best)
        log.info(epoch_line(record, config.epochs, _seconds_left(state, config)))
    stopped_early = len(state.history) < config.epochs
    if stopped_early:
        log.info(f"no better epoch in {config.patience}: stopped early")
    best = state.stopping
    log.info(f"best epoch {best.best_epoch}: val_acc {best.best_accuracy:.4f}  val_loss {best.best_loss:.4f}")
    return TrainingResult(
        history=tuple(state.history),
        best_epoch=best.best_epoch,
        best_val_accuracy=best.best_accuracy,
        best_val_loss=best.best_loss,
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
    state: TrainingState, train: DeviceSplit, val: DeviceSplit, config: Config, stop_if_asked: Callable[[str], None]
) -> EpochRecord:
    """Train and validate the epoch at hand, from where it stands."""
    epoch, seconds_before = state.epoch, state.seconds
    started = time.perf_counter()
    num_steps, first_step = -(-train.size // config.batch_size), state.steps_done

    def learning_rate(step: int) -> float:
        steps_before = (epoch - 1) * num_steps
        return cosine_lr(steps_before + step, num_steps=config.epochs * num_steps, initial=config.lr)

    def after_step() -> None:
        bar.update()
        state.seconds = seconds_before + time.perf_counter() - started
        stop_if_asked(f"epoch {epoch}, step {state.steps_done} of {num_steps},")

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
    val_loss, val_accuracy = validate(
        state.model,
        val,
        precision=config.precision,
        after_batch=lambda: stop_if_asked(f"the training steps of epoch {epoch}"),
    )
    trained_here = min((num_steps - first_step) * config.batch_size, train.size)
    finite = is_finite(train_loss, val_loss)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        learning_rate=learning_rate(0),
        images_per_second=trained_here / train_seconds,
        seconds=seconds_before + time.perf_counter() - started,
        is_best=finite and state.stopping.update(epoch, accuracy=val_accuracy, loss=val_loss),
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


def write_results(
    state: TrainingState, paths: RunPaths, model_card: dict[str, Any], *, with_weights: bool = True
) -> None:
    """Write the history, and the best weights with their card."""
    write_history(paths.history, state.history)
    if with_weights:
        best = state.history[state.stopping.best_epoch - 1]
        write_bytes(paths.best_model, tensors_as_bytes(state.best_weights))
        figures = {"epoch": best.epoch, "accuracy": best.val_accuracy, "loss": best.val_loss}
        write_json(paths.best_model_card, model_card | {"validation": figures})


def _divergence(record: EpochRecord, config: Config, paths: RunPaths) -> str:
    kept = f"The best weights before it are kept: {paths.best_model}." if paths.best_model.exists() else ""
    return (
        f"Training diverged in epoch {record.epoch}: train_loss {record.train_loss}, val_loss {record.val_loss}. "
        f"Try a smaller --lr than {config.lr:g}. {kept}"
    ).strip()


def _seconds_left(state: TrainingState, config: Config) -> float:
    """At most: the mean epoch so far, times the epochs that are left."""
    if state.is_finished(config.epochs):
        return 0.0
    epochs_left = config.epochs - len(state.history)
    return epochs_left * sum(record.seconds for record in state.history) / len(state.history)


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
