"""The machine made ready for one run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scripts.core.config import Config
from scripts.core.environment import processor_name
from scripts.core.log import log
from scripts.core.system.device import select_device, select_precision
from scripts.core.system.reproducibility import seed_everything, use_deterministic_kernels, use_fast_kernels

if TYPE_CHECKING:
    import torch


def prepare_machine(config: Config) -> tuple[Config, torch.device]:
    """Choose device and precision, choose the kind of kernels, seed the global generators.

    Returns:
        The settings with device and precision as applied, and the device.
    """
    import torch

    device = select_device(config.device)
    precision, reason = select_precision(config.precision, device, reproducible=config.reproducible)
    if config.reproducible:
        use_deterministic_kernels()
    else:
        use_fast_kernels()
    seed_everything(config.seed)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    log.info("device %s: %s, %d CPU threads", device, name, torch.get_num_threads())
    log.info("precision %s: %s; memory format channels_last", precision, reason)
    if config.reproducible:
        log.info("reproducibility mode: deterministic kernels, no worker processes, seed %d", config.seed)
    return replace(config, device=str(device), precision=precision), device
