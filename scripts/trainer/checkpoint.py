"""What a training leaves on the disk: the best weights, and all that going on from here needs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.core.errors import DataError, StorageError, storage_errors
from scripts.core.files import write_bytes, write_text
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import EpochRecord
from scripts.trainer.state import TrainingState

FORMAT_VERSION = 1

# A checkpoint is a zip archive, and a zip archive may end with a comment: there stands the SHA-256 of all before it.
# PyTorch reads the file as any other; its own reader compares no checksum.
END_RECORD = b"PK\x05\x06"
END_RECORD_BYTES = 22
COMMENT_START = b"sha256:"
COMMENT_BYTES = len(COMMENT_START) + 2 * hashlib.sha256().digest_size

# of the model's parameters, what a run may have on the disk at once: the best weights; three checkpoints (the newest,
# its previous, the one being written) of weights, momentum and best weights
STORED_COPIES = 1 + 3 * 3
REPORT_BYTES = 20_000_000


def tensors_as_bytes(content: Any) -> bytes:
    """The file that ``torch.load(path, weights_only=True)`` reads back; the same content gives the same bytes."""
    buffer = io.BytesIO()  # to a path, PyTorch would write the path's name into the file
    torch.save(content, buffer)
    return buffer.getvalue()


def save_checkpoint(paths: RunPaths, content: dict[str, Any]) -> None:
    """Write the newest checkpoint whole or not at all; the one before it becomes its previous.

    Raises:
        StorageError: It cannot be written.
    """
    sealed = seal(tensors_as_bytes({"format_version": FORMAT_VERSION} | content))
    write_bytes(paths.last_checkpoint, sealed, previous=paths.previous_checkpoint)


def load_checkpoint(paths: RunPaths) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None if there is none.

    A damaged newest one gives way to its previous, with a warning.

    Raises:
        DataError: A checkpoint is whole, but of another version of the program.
        StorageError: A checkpoint is there and cannot be read, or cannot take a damaged one's place.
    """
    newest, previous = paths.last_checkpoint, paths.previous_checkpoint
    for path in (newest, previous):
        if not path.exists():
            continue
        content = _read_checkpoint(path)
        if content is None:
            log.warning(f"the checkpoint {path} is damaged: its checksum does not fit; looking for the one before it")
            continue
        if path == previous:
            # or the damaged one would become the previous, and a kill before its successor is written lose both
            with storage_errors(newest, "put the checkpoint before it in place"):
                os.replace(previous, newest)
        return content
    return None


def restore(state: TrainingState, saved: dict[str, Any] | None, provenance: Mapping[str, Any], paths: RunPaths) -> None:
    """Put a resumed training where its newest valid checkpoint left it; without one it starts at the beginning.

    Args:
        state: A training before its first step; it is changed in place.
        saved: What ``load_checkpoint`` gave.
        provenance: What ``config.json`` says of the run.
        paths: The run's folder.

    Raises:
        DataError: The checkpoint is of another run or program, or epochs were trained and no checkpoint is valid.
    """
    if saved is None:
        if paths.history.exists():
            raise DataError(
                f"--resume {paths.root}: none of its checkpoints is valid, so its training cannot go on. Start a new "
                f"run, from its best weights if you like (--weights {paths.best_model})."
            )
        log.info("there is no valid checkpoint yet: starting at the beginning")
        return
    if saved["provenance"] != provenance:
        raise DataError(
            f"--resume {paths.root}: its config.json is not the one that its checkpoint was trained with. Put back "
            "what was changed there, or start a new run."
        )
    try:
        state.restore(saved)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"--resume {paths.root}: its checkpoint does not fit this version of the program ({error})."
        ) from error
    log.info(f"resumed at epoch {state.epoch}, after {state.steps_done} of its steps")


def delete_previous_checkpoint(paths: RunPaths) -> None:
    """Remove the checkpoint before the last one, which a finished run has no use for."""
    with storage_errors(paths.previous_checkpoint, "remove the checkpoint before"):
        paths.previous_checkpoint.unlink(missing_ok=True)


def seal(archive: bytes) -> bytes:
    """Append the SHA-256 of a zip archive to it, as the archive's comment."""
    start, length_field = archive[:-2], archive[-2:]
    if archive[-END_RECORD_BYTES : -END_RECORD_BYTES + 4] != END_RECORD or length_field != b"\0\0":
        raise ValueError("Expected a zip archive without a comment.")
    unsigned = start + struct.pack("<H", COMMENT_BYTES)
    return unsigned + COMMENT_START + hashlib.sha256(unsigned).hexdigest().encode()


def is_sealed(archive: bytes) -> bool:
    """Whether an archive ends with the right SHA-256 of itself."""
    unsigned, comment = archive[:-COMMENT_BYTES], archive[-COMMENT_BYTES:]
    return comment == COMMENT_START + hashlib.sha256(unsigned).hexdigest().encode()


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one JSON object per epoch and line, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in history))


def require_space(folder: Path, model_bytes: int) -> None:
    """Make sure, before hours of training, that what it will write fits on the disk.

    Args:
        folder: The run's folder; what it holds already need not be written anew.
        model_bytes: Size of the model's parameters.

    Raises:
        StorageError: It does not fit.
    """
    with storage_errors(folder, "look for free space"):
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
    needed = max(0, STORED_COPIES * model_bytes + REPORT_BYTES - held)
    if free < needed:
        raise StorageError(
            f"The run needs {needed / 1e6:,.0f} MB for checkpoints and reports, but only {free / 1e6:,.0f} MB are free "
            f"at {folder}. Free some space, or choose another place with --output_dir."
        )


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if its checksum does not fit."""
    with storage_errors(path, "read the checkpoint"):
        archive = path.read_bytes()
    if not is_sealed(archive):
        return None
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        found = content["format_version"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The checkpoint {path} is whole, but cannot be read here ({type(error).__name__}).") from error
    if found != FORMAT_VERSION:
        raise DataError(
            f"The checkpoint {path} is of format {found}, and this version of the program reads {FORMAT_VERSION}: go "
            "on with the version that wrote it, or start a new run."
        )
    return content
