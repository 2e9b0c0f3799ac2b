"""From a data set's name to batches on the device.

Names whose modules need NumPy are imported on first use, so that ``--help`` need not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scripts.core.system.machine import worker_init_fn
from scripts.data_handler.registry import DATASET_REGISTRY, dataset_problems

if TYPE_CHECKING:
    from scripts.data_handler.npz import validate_npz_keys
    from scripts.data_handler.opening import open_dataset

__all__ = ["DATASET_REGISTRY", "dataset_problems", "open_dataset", "validate_npz_keys", "worker_init_fn"]
_LAZY = {"validate_npz_keys": "npz", "open_dataset": "opening"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
