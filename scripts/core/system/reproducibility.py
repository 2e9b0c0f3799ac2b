"""Seeds, deterministic kernels and their environment: the same command gives the same bits."""

from __future__ import annotations

import os
import random
import sys

# torch.use_deterministic_algorithms requires one of two values; this is the faster one
CUBLAS_WORKSPACE = ":4096:8"


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
