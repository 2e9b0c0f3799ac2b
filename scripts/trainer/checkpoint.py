"""What a training leaves on the disk: the best weights, the history, and all that resuming needs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.core.config import Config
from scripts.core.errors import DataError, storage_errors
from scripts.core.files import require_free, write_bytes, write_json, write_text
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.trainer.state import StateDict, TrainingState

FORMAT_VERSION = 3

# A checkpoint is a zip archive, and a zip archive may end with a comment: the SHA-256 of everything before it. PyTorch
# reads the file as any other. The zip format's own checksums leave out its headers and its directory.
NO_COMMENT = b"\0\0"  # ends an archive: the length of its comment
COMMENT_START = b"sha256:"
COMMENT_BYTES = len(COMMENT_START) + 2 * hashlib.sha256().digest_size

MOMENTS = {"sgd": 1, "adamw": 2}  # tensors that an optimiser keeps for each parameter
REPORT_BYTES = 20_000_000


def seal(archive: io.BytesIO) -> bytes:
    """Append the SHA-256 of a zip archive to it, in place, as the archive's comment."""
    length_at = archive.seek(-len(NO_COMMENT), os.SEEK_END)
    if archive.read() != NO_COMMENT:
        raise ValueError("Expected a zip archive without a comment.")
    archive.seek(length_at)
    archive.write(struct.pack("<H", COMMENT_BYTES))
    with archive.getbuffer() as content:  # not a copy: a checkpoint is large
        digest = hashlib.sha256(content).hexdigest()
    archive.write(COMMENT_START + digest.encode())
    return archive.getvalue()


def is_sealed(archive: bytes) -> bool:
    """Whether an archive ends with the SHA-256 of the rest of it."""
    content, comment = memoryview(archive)[:-COMMENT_BYTES], archive[-COMMENT_BYTES:]
    return comment == COMMENT_START + hashlib.sha256(content).hexdigest().encode()


def save_checkpoint(paths: RunPaths, content: dict[str, Any]) -> None:
    """Write the newest checkpoint atomically and keep the one before it as the previous one."""
    archive = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION} | content, archive)
    write_bytes(paths.last_checkpoint, seal(archive), previous=paths.previous_checkpoint)


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one JSON object per epoch and line."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in history))


def write_best(paths: RunPaths, weights: StateDict, best: EpochRecord, model_card: Mapping[str, Any]) -> None:
    """Write the weights of the best epoch, and their card with the epoch's figures."""
    archive = io.BytesIO()  # to a path, PyTorch would write the path's name into the file
    # in the usual memory layout, whatever layout they were trained in
    torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, archive)
    write_bytes(paths.best_model, archive.getvalue())
    figures = {"epoch": best.epoch, "accuracy": best.val_accuracy, "auc": best.val_auc, "loss": best.val_loss}
    write_json(paths.best_model_card, {**model_card, "validation": figures})


def align_files(state: TrainingState, paths: RunPaths, model_card: Mapping[str, Any]) -> None:
    """Bring the history and the best weights back in line with a checkpoint; a killed run may have left later ones."""
    if state.history:
        write_history(paths.history, state.history)
        write_best(paths, state.best_weights, state.history[state.stopping.best_epoch - 1], model_card)
        return
    for path in (paths.history, paths.best_model, paths.best_model_card):
        with storage_errors(path, "remove the file of a later epoch"):
            path.unlink(missing_ok=True)


def load_checkpoint(paths: RunPaths) -> dict[str, Any] | None:
    """Read the newest valid checkpoint, None without one; the previous one replaces a damaged newest, with a warning.

    Raises:
        DataError: A checkpoint is valid, but of another version of the program.
        StorageError: A checkpoint exists and cannot be read, or cannot take a damaged one's place.
    """
    for path in (paths.last_checkpoint, paths.previous_checkpoint):
        if not path.exists():
            continue
        with storage_errors(path, "read the checkpoint"):
            archive = path.read_bytes()
        if not is_sealed(archive):
            log.warning("the checkpoint %s is damaged: its checksum does not fit; trying the previous one", path)
            continue
        content = _parse_checkpoint(path, archive)
        if path == paths.previous_checkpoint:
            # or the damaged one would become the previous one, and a kill before the next is written would lose both
            with storage_errors(paths.last_checkpoint, "put the previous checkpoint in place"):
                os.replace(path, paths.last_checkpoint)
        return content
    return None


def restore(state: TrainingState, saved: dict[str, Any] | None, provenance: Mapping[str, Any], paths: RunPaths) -> None:
    """Continue a training from what ``load_checkpoint`` returned; without a checkpoint it starts at the beginning.

    Raises:
        DataError: The checkpoint is of another run or program, or epochs were trained and no checkpoint is valid.
    """
    resume = f"--resume {paths.root}"
    if saved is None:
        if paths.history.exists():
            raise DataError(
                f"{resume}: none of its checkpoints is valid, so its training cannot go on. Start a new "
                f"run, from its best weights if you like (--weights {paths.best_model})."
            )
        log.info("there is no valid checkpoint yet: starting at the beginning")
        return
    if saved["provenance"] != provenance:
        raise DataError(
            f"{resume}: its config.json is not the one that its checkpoint was trained with. Put back "
            "what was changed there, or start a new run."
        )
    try:
        state.restore(saved)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{resume}: its checkpoint does not fit this version of the program ({error}).") from error
    log.info(f"resumed at epoch {state.epoch}, after {state.steps_done} of its steps")


def delete_previous_checkpoint(paths: RunPaths) -> None:
    """Remove the previous checkpoint, which a finished run does not need."""
    with storage_errors(paths.previous_checkpoint, "remove the previous checkpoint"):
        paths.previous_checkpoint.unlink(missing_ok=True)


def stored_copies(config: Config) -> int:
    """Count the copies of the model's parameters that a run may have on the disk at once.

    These are the best weights, and three checkpoints: the newest, the previous and the one being written. Each holds
    weights, best weights, the optimiser's moments and averaged weights.
    """
    return 1 + 3 * (2 + MOMENTS[config.optimizer] + (config.ema_decay > 0))


def require_space(folder: Path, model_bytes: int, config: Config) -> None:
    """Raise ``StorageError`` if the files that a run will write, less those in its folder, do not fit on the disk."""
    with storage_errors(folder, "look up the free space"):
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = max(0, stored_copies(config) * model_bytes + REPORT_BYTES - held)
    require_free(folder, needed, "Checkpoints and reports need", " with --output_dir")


def _parse_checkpoint(path: Path, archive: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        found = content["format_version"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The checkpoint {path} is whole, but cannot be read here ({type(error).__name__}).") from error
    if found != FORMAT_VERSION:
        raise DataError(
            f"The checkpoint {path} is of format {found}, and this version of the program reads {FORMAT_VERSION}: "
            "continue with the version that wrote it, or start a new run."
        )
    return content
