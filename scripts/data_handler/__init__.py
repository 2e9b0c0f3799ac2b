"""From a data set's name to batches on the device.

What reads arrays needs NumPy and is imported when it is first asked for, so that ``--help`` need not wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scripts.core.system.reproducibility import worker_init_fn
from scripts.data_handler.registry import DATASET_REGISTRY, dataset_problems

if TYPE_CHECKING:
    from scripts.data_handler.npz import validate_npz_keys
    from scripts.data_handler.opening import open_dataset

__all__ = ["DATASET_REGISTRY", "dataset_problems", "open_dataset", "validate_npz_keys", "worker_init_fn"]


def __getattr__(name: str) -> Any:
    if name == "validate_npz_keys":
        from scripts.data_handler.npz import validate_npz_keys

        return validate_npz_keys
    if name == "open_dataset":
        from scripts.data_handler.opening import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
