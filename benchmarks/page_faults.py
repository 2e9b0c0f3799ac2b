"""Count the page faults that keeping freed memory saves (``keep_freed_memory``; glibc only).

python -m benchmarks.page_faults        some 5 seconds; ends with 1 if the required ratio was missed
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import torch

from scripts.core.environment import PROJECT_ROOT
from scripts.core.system.machine import keep_freed_memory

REQUIRED_RATIO = 3.0  # page faults without keeping memory over those with it
NUM_TENSORS, NUM_FLOATS = 5, 5_000_000  # of a batch: 20 MB each, 4,883 pages
NUM_BATCHES = 10


def count_page_faults(work: Callable[[], object]) -> int:
    """Page faults of this process during ``work``, which are pages newly mapped rather than read from a disk."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def allocate_batches(num_batches: int = NUM_BATCHES) -> None:
    """Fill the tensors of each batch and free them before the next."""
    for _ in range(num_batches):
        [torch.ones(NUM_FLOATS) for _ in range(NUM_TENSORS)]


def measure(mode: str) -> int:
    """Page faults in a process of its own, in which memory is kept (``"keep"``) or given back (``"release"``)."""
    command = [sys.executable, "-m", "benchmarks.page_faults", mode]
    return int(subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout)


def main(argv: list[str]) -> int:
    """Compare both modes; with a mode as argument, print the page faults of this process."""
    if argv:
        torch.set_num_threads(1)
        if argv[0] == "keep" and not keep_freed_memory():
            raise SystemExit("This C library has no setting to keep freed memory; glibc has one.")
        allocate_batches(1)  # warm-up
        print(count_page_faults(allocate_batches))
        return 0
    kept, released = measure("keep"), measure("release")
    is_met = released >= REQUIRED_RATIO * kept
    print(f"page faults in {NUM_BATCHES} batches: {kept:,} with freed memory kept, {released:,} without")
    print(f"ratio {released / max(kept, 1):.1f}, required {REQUIRED_RATIO:g}: {'met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
