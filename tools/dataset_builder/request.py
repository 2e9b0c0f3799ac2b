"""The settings of ``tools/make_dataset.py``, as a command line gives them; imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A valid command line."""

    source: Path  # a folder per class, or a CSV
    out: Path
    size: int  # side of the stored images, in pixels
    crop: int | None  # as in ``decode.Recipe``
    split: tuple[float, float, float] | None  # shares of train, val and test; None if they were not given
    grey: bool
    seed: int
    group_by_folder: bool
    skip_unreadable: bool
    skip_contradictions: bool
    drop_duplicates: bool
    index: Path | None  # where to write the table of images and rows; None for nowhere
    overwrite: bool
    num_workers: int
