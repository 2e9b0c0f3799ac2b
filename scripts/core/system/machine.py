"""Prepare the machine for one run: seeds, kernels and their environment, and the memory of freed tensors."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from scripts.core.config import Config
from scripts.core.environment import processor_name
from scripts.core.log import log
from scripts.core.system.device import select_device, select_precision

if TYPE_CHECKING:
    import torch

# torch.use_deterministic_algorithms requires one of two values; this is the faster one
CUBLAS_WORKSPACE = ":4096:8"
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


def restart_with_fixed_hashing(seed: int) -> None:
    """Restart this program with string hashes that follow from ``seed``; return if it has them already.

    Python reads ``PYTHONHASHSEED`` only at its start, and cuBLAS its variable when CUDA starts.
    """
    wanted = {"PYTHONHASHSEED": str(seed), "CUBLAS_WORKSPACE_CONFIG": CUBLAS_WORKSPACE}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    os.environ.update(wanted)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, from which libraries draw (the pipeline has its own)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def worker_init_fn(worker_id: int) -> None:
    """Seed Python, NumPy and PyTorch in a DataLoader worker, each worker differently."""
    import torch

    del worker_id  # PyTorch's initial seed is the DataLoader's seed plus this number
    seed_everything(torch.initial_seed() % 2**32)


def use_kernels(*, deterministic: bool) -> None:
    """Select PyTorch's kernels: those whose result is the same every time, or the fastest.

    Deterministic ones compute fp32 without TF32; an operation that has none raises ``RuntimeError`` from then on.
    Otherwise cuDNN measures its algorithms and takes the fastest for each shape, and TF32 is allowed.
    """
    import torch

    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
