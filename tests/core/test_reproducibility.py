from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from scripts.core.environment import PROJECT_ROOT
from scripts.core.system.machine import seed_everything, use_kernels, worker_init_fn

VARIABLES = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "PYTHONUNBUFFERED")
PROGRAM = """
import os, sys
from scripts.core.system.machine import restart_with_fixed_hashing
print("started")
restart_with_fixed_hashing(int(sys.argv[1]))
print(hash("x"), os.environ["PYTHONHASHSEED"], os.environ["CUBLAS_WORKSPACE_CONFIG"], sys.flags.dev_mode, sys.argv[1:])
"""


def run(program: str, *arguments: str, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-X", "dev", "-c", program, *arguments]
    found = subprocess.run(
        command, cwd=PROJECT_ROOT, env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    return found.stdout.splitlines()


def test_a_restarted_program_hashes_alike_every_time_with_both_variables_and_its_own_arguments():
    first, second, other = run(PROGRAM, "7", "a b"), run(PROGRAM, "7", "a b"), run(PROGRAM, "8", "a b")
    assert first == second
    assert first[:2] == ["started", "started"]  # nothing that was printed before is lost
    assert first[2].endswith(" 7 :4096:8 True ['7', 'a b']")
    assert first[2].split()[0] != other[2].split()[0]


def test_a_program_that_was_started_right_is_not_started_again():
    lines = run(PROGRAM, "7", PYTHONHASHSEED="7", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    assert lines.count("started") == 1


@pytest.mark.parametrize(
    "variables", [{"PYTHONHASHSEED": "7"}, {"PYTHONHASHSEED": "8", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}]
)
def test_one_wrong_variable_is_reason_enough_to_start_again(variables):
    lines = run(PROGRAM, "7", **variables)
    assert lines.count("started") == 2
    assert lines[2].endswith(" 7 :4096:8 True ['7']")


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_one_seed_gives_the_same_numbers_in_python_numpy_and_pytorch():
    seed_everything(42)
    first = drawn()
    second = drawn()
    seed_everything(42)
    assert drawn() == first
    assert all(one != other for one, other in zip(first, second, strict=True))
    seed_everything(43)
    assert all(one != other for one, other in zip(first, drawn(), strict=True))


class Draws(Dataset[tuple[float, float, float]]):
    """What the three generators give where an item is requested."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return drawn()


def items_drawn_by_workers(seed: int) -> list[tuple[float, ...]]:
    loader = DataLoader(
        Draws(),
        batch_size=None,
        num_workers=2,
        worker_init_fn=worker_init_fn,
        generator=torch.Generator().manual_seed(seed),
    )
    return [tuple(float(value) for value in item) for item in loader]


def test_workers_draw_differently_from_each_other_and_the_same_in_every_run():
    first = items_drawn_by_workers(42)
    for generator in range(3):
        assert len({item[generator] for item in first}) == 4
    assert items_drawn_by_workers(42) == first
    assert items_drawn_by_workers(43) != first


def kernel_settings() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


@pytest.fixture
def kernels_restored():
    deterministic, *backends = kernel_settings()
    yield
    torch.use_deterministic_algorithms(deterministic)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = backends


@pytest.mark.usefixtures("kernels_restored")
def test_the_kernels_are_those_that_were_selected_last():
    use_kernels(deterministic=False)
    assert kernel_settings() == (False, False, True, True, True)
    use_kernels(deterministic=True)
    assert kernel_settings() == (True, True, False, False, False)
    use_kernels(deterministic=False)
    assert kernel_settings() == (False, False, True, True, True)


@pytest.mark.usefixtures("kernels_restored")
def test_an_operation_without_a_deterministic_kernel_is_refused_in_reproducibility_mode():
    use_kernels(deterministic=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
