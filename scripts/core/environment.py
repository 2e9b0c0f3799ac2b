"""The environment of a run: versions, hardware and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "numpy", "pandas", "scikit-learn", "matplotlib", "seaborn", "openpyxl"),
    *("psutil", "requests", "tqdm"),
)


def code_version() -> str:
    """The commit of the code, ``-dirty`` where tracked files differ from it; ``unknown`` outside a checkout.

    The variable ``MEDMNIST_COMMIT`` names it where the code has no history, as in a container.
    """
    if commit := os.environ.get("MEDMNIST_COMMIT"):
        return commit
    command = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()
    return "unknown"


def describe_environment(device: str) -> dict[str, Any]:
    """Versions and hardware as JSON values; ``device`` is the one that trains, such as ``"cuda:0"``."""
    import psutil
    import torch

    is_cuda = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "commit": code_version(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else processor_name(),
        "cuda": torch.version.cuda if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def processor_name() -> str:
    """The processor's name as the system reports it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """The processor's instruction sets as Linux names them; empty where it does not report them."""
    return frozenset(_cpu_info("flags", "Features").split())


def _cpu_info(*names: str) -> str:
    """The first value with one of ``names`` in /proc/cpuinfo; empty where there is none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(names):
                return line.split(":", 1)[1].strip()
    return ""


def _version_of(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "not installed"
