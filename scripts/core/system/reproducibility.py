"""Seeds, deterministic kernels and their environment: the same command gives the same bits."""

from __future__ import annotations

import os
import random
import sys

# torch.use_deterministic_algorithms requires one of two values; this is the faster one
CUBLAS_WORKSPACE = ":4096:8"


def restart_with_fixed_hashing(seed: int) -> None:
    """Restart this program with string hashes that follow from ``seed``; return if it has them already.

    Python reads ``PYTHONHASHSEED`` only at its start, and cuBLAS its variable when CUDA starts. Setting them in a
    running program is too late, so the process replaces itself with one that has both set.
    """
    wanted = {"PYTHONHASHSEED": str(seed), "CUBLAS_WORKSPACE_CONFIG": CUBLAS_WORKSPACE}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    os.environ.update(wanted)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch.

    The pipeline uses generators of its own; this covers what libraries draw.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def worker_init_fn(worker_id: int) -> None:
    """Seed Python, NumPy and PyTorch in a DataLoader worker, each worker differently.

    Args:
        worker_id: The worker's number; the DataLoader's base seed and this number make PyTorch's initial seed.
    """
    import torch

    del worker_id  # already part of torch.initial_seed() when a DataLoader calls this
    seed_everything(torch.initial_seed() % 2**32)


def use_deterministic_kernels() -> None:
    """Let PyTorch use only kernels whose result is the same every time, in fp32 without TF32.

    An operation that has no deterministic kernel raises ``RuntimeError``.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def use_fast_kernels() -> None:
    """Let cuDNN measure its algorithms and take the fastest for each shape; allow TF32 for fp32."""
    import torch

    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
