"""Image files, prepared as the training images of a run were."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import ConfigError
from scripts.trained_run import TrainedRun
from tools.dataset_builder.decode import Recipe, UnusableImageError, decode

MAX_FILE_BYTES = 1 << 30  # of an image file, which is read at once


def recipe_of(run: TrainedRun) -> Recipe:
    """How image files become images for the run's model.

    Raises:
        ConfigError: The model takes images that are not square.
    """
    height, width = run.image_size
    if height != width:
        raise ConfigError(f"{run.paths.root} takes images of {width} × {height} pixels, and files become squares.")
    preparation = run.card.get("preparation") or {}
    return Recipe(size=height, crop=preparation.get("crop"), grey=run.is_grey)


def prepare(content: bytes, recipe: Recipe) -> NDArray[np.uint8]:
    """Decode the content of an image file; ``UnusableImageError`` says why it cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decode handles what Pillow warns of
        return decode(content, recipe).pixels


def read_content(path: Path) -> bytes:
    """Read an image file; ``UnusableImageError`` says why it cannot be used."""
    try:
        if not path.is_file():
            raise UnusableImageError("it is not a regular file" if path.exists() else "it does not exist")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnusableImageError(f"it cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UnusableImageError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    return content
