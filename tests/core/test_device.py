from __future__ import annotations

import pytest
import torch

from scripts.core.command_line import parse_command_line
from scripts.core.config import Config
from scripts.core.errors import ConfigError, ResourceError
from scripts.core.system import device as device_module
from scripts.core.system.device import (
    BF16_INSTRUCTIONS,
    autocast,
    device_problems,
    has_fast_bf16,
    memory_advice,
    select_device,
    select_precision,
)

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, *, num_cuda: int = 0, has_mps: bool = False) -> None:
    """Stand in for hardware that the machine of the tests may not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)


@pytest.mark.parametrize(
    ("requested", "num_cuda", "has_mps", "device"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 0, True, "mps"),
        ("auto", 1, True, "cuda:0"),
        ("cpu", 1, True, "cpu"),
        ("cuda", 2, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 1, True, "mps"),
    ],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch, requested, num_cuda, has_mps, device):
    pretend(monkeypatch, num_cuda=num_cuda, has_mps=has_mps)
    assert str(select_device(requested)) == device


@pytest.mark.parametrize(
    ("requested", "num_cuda", "has_mps", "problems"),
    [
        ("auto", 0, False, []),
        ("cpu", 0, False, []),
        ("mps", 0, True, []),
        ("cuda", 1, False, []),
        ("cuda:1", 2, False, []),
        ("cuda", 0, False, ["--device cuda was requested, but no CUDA device is available. Use --device auto or cpu."]),
        (
            "cuda:0",
            0,
            True,
            ["--device cuda:0 was requested, but no CUDA device is available. Use --device auto or cpu."],
        ),
        ("cuda:2", 2, False, ["--device cuda:2 was requested, but the CUDA devices here are cuda:0 to cuda:1."]),
        ("mps", 1, False, ["--device mps was requested, but there is no Apple GPU here. Use --device auto or cpu."]),
    ],
)
def test_a_device_that_is_not_there_is_one_problem(monkeypatch, requested, num_cuda, has_mps, problems):
    pretend(monkeypatch, num_cuda=num_cuda, has_mps=has_mps)
    assert list(device_problems(Config(device=requested))) == problems


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has the device that must be missing")
def test_cuda_is_refused_here_together_with_the_other_problems():
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--device=cuda", "--epochs=0"], {}, checks=(device_problems,))
    assert caught.value.problems == (
        "--epochs must be at least 1, got 0.",
        "--device cuda was requested, but no CUDA device is available. Use --device auto or cpu.",
    )


@pytest.mark.parametrize(
    ("requested", "reproducible", "has_bf16", "precision", "reason"),
    [
        ("fp32", False, True, "fp32", "as requested"),
        ("bf16", False, False, "bf16", "as requested"),
        ("fp32", True, True, "fp32", "as requested"),
        ("auto", False, True, "bf16", "the cpu has bf16 arithmetic"),
        ("auto", False, False, "fp32", "the cpu has no bf16 arithmetic"),
        ("auto", True, True, "fp32", "reproducibility mode"),
    ],
)
def test_the_precision_comes_with_its_reason(monkeypatch, requested, reproducible, has_bf16, precision, reason):
    monkeypatch.setattr(device_module, "processor_flags", lambda: BF16_INSTRUCTIONS if has_bf16 else frozenset())
    assert select_precision(requested, CPU, reproducible=reproducible) == (precision, reason)


@pytest.mark.parametrize(
    ("flags", "is_fast"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx512f", "avx512_bf16"}, True),
        ({"amx_bf16", "amx_tile"}, True),
        ({"asimd", "bf16"}, True),
        (set(), False),
    ],
)
def test_a_cpu_has_bf16_where_it_has_instructions_for_it(monkeypatch, flags, is_fast):
    monkeypatch.setattr(device_module, "processor_flags", lambda: frozenset(flags))
    assert has_fast_bf16(CPU) is is_fast


@pytest.mark.parametrize(("capability", "is_fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_bf16_from_ampere_on(monkeypatch, capability, is_fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bf16(torch.device("cuda", 0)) is is_fast


def test_apples_gpu_computes_in_fp32():
    assert select_precision("auto", torch.device("mps"), reproducible=False)[0] == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_network_computes_in_the_chosen_precision(precision, dtype):
    with autocast(CPU, precision):
        assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype is dtype


def test_used_up_memory_is_an_error_with_advice_and_other_errors_pass():
    with (
        pytest.raises(ResourceError) as caught,
        memory_advice(Config(device="cuda:0", batch_size=512, feed="resident")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert str(caught.value) == (
        "The memory of cuda:0 is used up with --batch_size 512 and --feed resident. Take a smaller --batch_size, "
        "--feed streamed, or a device that no other program uses."
    )
    with pytest.raises(ValueError, match="unchanged"), memory_advice(Config()):
        raise ValueError("unchanged")
