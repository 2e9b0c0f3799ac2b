"""The files of a training, written while the training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch

from scripts.core.config import Config
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.trainer.checkpoint import align_files, save_checkpoint, write_best, write_history
from scripts.trainer.state import TrainingState


class TrainingWriter(AbstractContextManager["TrainingWriter"]):
    """Writes history, best weights and checkpoints of a training in one background thread.

    The training only copies its state; the thread serialises, seals and writes the copy. At most one write is in
    flight, and it ends before the memory that it reads is reused. Leaving the context waits for it, but only ``join``
    raises its error. ``provenance`` is kept in each checkpoint, ``model_card`` is written beside the best weights.

    A worker process that was forked during a write would inherit its open and locked temporary file. Workers start in
    the first epoch that a process trains, and the first background write follows that epoch.
    """

    def __init__(
        self,
        state: TrainingState,
        paths: RunPaths,
        config: Config,
        *,
        provenance: Mapping[str, Any],
        model_card: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._paths, self._config = state, paths, config
        self._provenance, self._model_card = dict(provenance), model_card
        self._clock, self._saved_at = clock, clock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training-writer")
        self._in_flight: Future[None] | None = None

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()
        if self._in_flight is not None and (failure := self._in_flight.exception()):  # another error ended the training
            log.warning("%s", failure)

    def begin(self) -> None:
        """Write a new training's first checkpoint; align a resumed one's files; ``StorageError`` if that fails."""
        if not self._state.history and self._state.steps_done == 0:
            self.save()  # on resuming, the file that the starting weights came from may have changed
        align_files(self._state, self._paths, self._model_card)

    def save(self) -> None:
        """Write a checkpoint to the disk; ``StorageError`` if that or the write in flight fails."""
        self.join()
        self._writing(with_checkpoint=True)()

    def finish_epoch(self, record: EpochRecord) -> None:
        """Finish the state's epoch; write history, new best weights and a due checkpoint in the background.

        After the last epoch a checkpoint is always due. A kill may leave the other files ahead of the checkpoint, which
        ``begin`` corrects. ``StorageError`` if the write in flight failed.
        """
        self.join()
        self._state.finish_epoch(record)
        is_due = self._clock() - self._saved_at >= self._config.checkpoint_every
        write = self._writing(with_checkpoint=is_due or self._state.is_finished(self._config.epochs), record=record)
        self._in_flight = self._thread.submit(write)

    def join(self) -> None:
        """Wait for the write in flight; ``StorageError`` if it failed."""
        if self._in_flight is not None:
            write, self._in_flight = self._in_flight, None
            write.result()

    def raise_failure(self) -> None:
        """Raise the error of a failed write without waiting for one in flight."""
        if self._in_flight is not None and self._in_flight.done():
            self.join()

    def _writing(self, *, with_checkpoint: bool, record: EpochRecord | None = None) -> Callable[[], None]:
        """Copy what is to be written now; return the function that writes it."""
        state, paths = self._state, self._paths
        history, weights = tuple(state.history), state.best_weights
        checkpoint = state.snapshot() | {"provenance": self._provenance} if with_checkpoint else None
        if with_checkpoint:
            self._saved_at = self._clock()
        device = state.loss_sum.device
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            # the checkpoint first: it holds the best weights, so a kill between two of these files loses nothing
            if checkpoint is not None:
                save_checkpoint(paths, checkpoint)
            if record is not None:
                write_history(paths.history, history)
                if record.is_best:
                    write_best(paths, weights, record, self._model_card)

        return write
