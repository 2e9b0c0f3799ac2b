"""Prepare the machine for one run."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

from scripts.core.config import Config
from scripts.core.environment import processor_name
from scripts.core.log import log
from scripts.core.system.device import select_device, select_precision
from scripts.core.system.reproducibility import seed_everything, use_kernels

if TYPE_CHECKING:
    import torch

# parameters of glibc's mallopt (malloc.h), and the values for them: the largest that it takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER_TRIM, MAX_HEAP_BLOCK = 2**31 - 1, 2**25  # bytes


def prepare_machine(config: Config) -> tuple[Config, torch.device]:
    """Choose device, precision and kernels, and seed the global generators; returns the applied settings too."""
    import torch

    keep_freed_memory()
    device = select_device(config.device)
    precision, reason = select_precision(config.precision, device, reproducible=config.reproducible)
    if config.resume:
        reason = "as the run began"
    use_kernels(deterministic=config.reproducible)
    seed_everything(config.seed)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    log.info("device %s: %s, %d CPU threads", device, name, torch.get_num_threads())
    log.info("precision %s: %s; memory format channels_last", precision, reason)
    if config.reproducible:
        log.info("reproducibility mode: deterministic kernels, no worker processes, seed %d", config.seed)
    return replace(config, device=str(device), precision=precision), device


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors up to 32 MiB for the next ones.

    By default it returns the pages of every large tensor to the system, which fills them with zeros before it hands
    them out again: half of the augmentation's time on a CPU. The peak memory of a process hardly changes.
    Returns whether the C library has such a setting; only glibc has.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK) and mallopt(M_TRIM_THRESHOLD, NEVER_TRIM))
