"""What a training leaves on the disk: the best weights, and all that going on from here needs."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scripts.core.files import write_bytes, write_text
from scripts.core.records import EpochRecord
from scripts.trainer.early_stopping import EarlyStopping

FORMAT_VERSION = 1


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors on the CPU in their usual memory layout, whatever device and layout they trained in."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def save_tensors(path: Path, content: Any) -> None:
    """Write what ``torch.load(path, weights_only=True)`` reads back, whole or not at all.

    The same content gives the same bytes: PyTorch writes the file's own name into it, so it is made in memory.

    Raises:
        StorageError: The file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def training_state(
    model: nn.Module,
    optimizer: Optimizer,
    stopping: EarlyStopping,
    history: list[EpochRecord],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Everything that the rest of a training depends on, after the last epoch of ``history``."""
    return {
        "format_version": FORMAT_VERSION,
        "model": plain_state_dict(model),
        "optimizer": optimizer.state_dict(),
        "early_stopping": asdict(stopping),
        "history": [asdict(record) for record in history],
        "provenance": provenance,
    }


def write_history(path: Path, history: list[EpochRecord]) -> None:
    """Write one JSON object per epoch and line, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in history))
