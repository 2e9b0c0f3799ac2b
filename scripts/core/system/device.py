"""The device, its precision and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripts.core.config import Config
from scripts.core.environment import processor_flags
from scripts.core.errors import ResourceError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# the instruction sets with which a CPU multiplies bf16 matrices faster than fp32 ones
BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def device_problems(config: Config) -> Iterator[str]:
    """One sentence if the requested device does not exist."""
    if config.device in ("auto", "cpu"):
        return  # always there, and torch is slow to import
    import torch

    kind, _, index = config.device.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        yield "--device mps was requested, but there is no Apple GPU here. Use --device auto or cpu."
    elif kind == "cuda" and not torch.cuda.is_available():
        yield f"--device {config.device} was requested, but no CUDA device is available. Use --device auto or cpu."
    elif kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        yield f"--device {config.device} was requested, but the CUDA devices here are cuda:0 to cuda:{last}."


def select_device(requested: str) -> torch.device:
    """The device of ``--device``; ``auto`` takes CUDA, then Apple's GPU, then the CPU."""
    import torch

    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(requested)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def select_precision(requested: str, device: torch.device, *, reproducible: bool) -> tuple[str, str]:
    """The precision of the network's arithmetic, ``"fp32"`` or ``"bf16"``, and the reason for it in words."""
    if requested != "auto":
        return requested, "as requested"
    if reproducible:
        return "fp32", "reproducibility mode"
    if has_fast_bf16(device):
        return "bf16", f"the {device.type} has bf16 arithmetic"
    return "fp32", f"the {device.type} has no bf16 arithmetic"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed by the hardware rather than emulated by software."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere brought bf16 to the tensor cores
    return device.type == "cpu" and bool(BF16_INSTRUCTIONS & processor_flags())


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network computes, in ``"bf16"`` or ``"fp32"``."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; the host does not wait for the copy."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # only pinned memory is copied without waiting
    return tensor.to(device)


@contextmanager
def memory_advice(config: Config) -> Iterator[None]:
    """Turn an out-of-memory error raised inside into a ``ResourceError`` that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"The memory of {config.device} is used up with --batch_size {config.batch_size} and --feed {config.feed}. "
            "Take a smaller --batch_size, --feed streamed, or a device that no other program uses."
        ) from error
