"""The machine of a run: device, lock, process guard, reproducibility, signals."""

from scripts.core.system.device import device_problems, memory_advice, select_device, select_precision
from scripts.core.system.guard import terminate_ghosts
from scripts.core.system.lock import ensure_single_instance
from scripts.core.system.machine import prepare_machine, restart_with_fixed_hashing, worker_init_fn
from scripts.core.system.signals import StopRequest, stop_request

__all__ = [
    "StopRequest",
    "device_problems",
    "ensure_single_instance",
    "memory_advice",
    "prepare_machine",
    "restart_with_fixed_hashing",
    "select_device",
    "select_precision",
    "stop_request",
    "terminate_ghosts",
    "worker_init_fn",
]
