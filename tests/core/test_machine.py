from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import PROJECT_ROOT

PROGRAM = """
import resource, sys
import torch
from scripts.core.system.machine import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def batch():
    return [torch.ones(5_000_000) for _ in range(5)]  # 20 MB each, 4,883 pages

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
batch()
before = faults()
for _ in range(10):
    batch()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again_without_asking_the_system_for_it():
    def page_faults(word: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, word],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return int(done.stdout)

    assert page_faults("keep") < page_faults("leave") / 3
