"""One run as its steps see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from scripts.core.config import Config
from scripts.core.paths import RunPaths
from scripts.core.system import StopRequest
from scripts.data_handler.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every step of a run needs; made once the settings are resolved, and never changed."""

    config: Config  # the settings as applied
    dataset: Dataset
    device: torch.device
    paths: RunPaths
    provenance: Mapping[str, Any]  # what config.json records: settings, data, environment at the start
    stop: StopRequest
