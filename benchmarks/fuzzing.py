"""Check malformed input in bulk, in worker processes with limits on time and memory.

A crash, a hang or excessive memory is then a figure in the table and does not end the campaign.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.faults import Result
from scripts.core.log import log

TIMEOUT_S = 30.0  # for one input, including making it
MAX_EXTRA_BYTES = 1 << 29  # of memory, beyond what the worker has at its start
NUM_WORKERS = 2


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """How one kind of input is made and checked; both functions are at module level, so that a worker finds them."""

    name: str
    check: Callable[[random.Random, Path], str]  # returns a word such as "valid" or "refused"; raising is a failure
    prepare: Callable[[Path], None]  # loads what is loaded lazily, and limits the memory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input."""

    number: int
    word: str  # what ``check`` returned; empty after a failure
    failure: str
    extra_bytes: int  # the worker's peak memory so far, beyond what it had at its start


def fuzz(target: FuzzTarget, seed: int, tries: int) -> Result:
    """Check ``tries`` inputs in ``NUM_WORKERS`` processes."""
    result, started = Result(tries), time.monotonic()
    edges = [tries * part // NUM_WORKERS for part in range(NUM_WORKERS + 1)]
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        parts = list(pool.map(lambda ends: _fuzz_part(target, seed, *ends), pairwise(edges)))
    words = [word for part in parts for word in part.notes["words"]]
    result.failures = [failure for part in parts for failure in part.failures]
    result.notes = {word: words.count(word) for word in sorted(set(words))}
    result.notes["largest extra memory, MB"] = round(max(part.notes["extra_bytes"] for part in parts) / 1e6)
    result.notes["per second"] = round(tries / (time.monotonic() - started))
    return result


def _fuzz_part(target: FuzzTarget, seed: int, first: int, end: int) -> Result:
    """Check the inputs from ``first`` up to ``end``; after a crash or a hang, continue behind it with a new worker."""
    result = Result(end - first, notes={"words": [], "extra_bytes": 0})
    while first < end:
        first = _run_worker(target, seed, first, end, result)
    return result


def _run_worker(target: FuzzTarget, seed: int, first: int, end: int, result: Result) -> int:
    """Run one worker until it is done, crashes or hangs; return the number of the input to continue with."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(theirs, target, seed, first, end), daemon=True)
    worker.start()
    theirs.close()
    try:
        while first < end:
            if not ours.poll(TIMEOUT_S):
                result.failures.append(f"{target.name} {first}: no answer within {TIMEOUT_S:g} s")
                return first + 1
            first = _record(ours.recv(), target, result) + 1
    except EOFError:
        worker.join()
        result.failures.append(f"{target.name} {first}: the process died (exit code {worker.exitcode})")
        return first + 1
    finally:
        worker.kill()
        worker.join()
    return first


def _record(outcome: Outcome, target: FuzzTarget, result: Result) -> int:
    """Add an outcome to the result; return the number of its input."""
    if outcome.extra_bytes > MAX_EXTRA_BYTES >= result.notes["extra_bytes"]:
        result.failures.append(f"{target.name} {outcome.number}: {outcome.extra_bytes:,} bytes of memory")
    result.notes["extra_bytes"] = max(result.notes["extra_bytes"], outcome.extra_bytes)
    result.notes["words"] += [outcome.word] if outcome.word else []
    result.failures += [f"{target.name} {outcome.number}: {outcome.failure}"] if outcome.failure else []
    return outcome.number


def _work(connection: Connection, target: FuzzTarget, seed: int, first: int, end: int) -> None:
    """Check one input after the other in the worker, and send each outcome."""
    log.addHandler(logging.NullHandler())
    log.propagate = False
    with tempfile.TemporaryDirectory(prefix="survival_") as name:
        folder = Path(name)
        target.prepare(folder)
        baseline = _memory_bytes("VmRSS")
        for number in range(first, end):
            chance = random.Random(f"{seed}/{target.name}/{number}")  # noqa: S311 (not a secret)
            try:
                word, failure = target.check(chance, folder), ""
            except BaseException:  # any exception is a failure, MemoryError and SystemExit too
                word, failure = "", " | ".join(traceback.format_exc().splitlines()[-3:])
            connection.send(Outcome(number, word, failure, _memory_bytes("VmHWM") - baseline))


def _memory_bytes(field: str) -> int:
    """Resident memory of this process: ``VmRSS`` is the present value, ``VmHWM`` the peak."""
    # not getrusage: its peak includes that of the parent process at the fork
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
