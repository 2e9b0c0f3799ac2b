"""Malformed input in bulk, judged by worker processes with limits.

So a crash, a hang or a flood of memory is a figure in the table and not the end of the campaign.
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

LONGEST_S = 30.0  # for one input, the making of it included
MAX_EXTRA_BYTES = 1 << 29  # of memory, beyond what the worker has at its start
NUM_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Judge:
    """How one kind of input is made and judged; both functions are a module's own, so that a worker can find them."""

    name: str
    judge: Callable[[random.Random, Path], str]  # the verdict in a word; anything raised is a failure
    prepare: Callable[[Path], None]  # load what is loaded lazily, and limit the memory


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one input."""

    number: int
    word: str  # such as "valid" or "refused"; empty for a failure
    failure: str
    extra_bytes: int  # of memory, at its highest so far, beyond what the worker had at its start


def judge_many(judge: Judge, seed: int, tries: int) -> Result:
    """Judge so many inputs, some workers at a time."""
    result, started = Result(tries), time.monotonic()
    edges = [tries * part // NUM_WORKERS for part in range(NUM_WORKERS + 1)]
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        parts = list(pool.map(lambda ends: _judge_part(judge, seed, *ends), pairwise(edges)))
    words = [word for part in parts for word in part.notes["words"]]
    result.failures = [failure for part in parts for failure in part.failures]
    result.notes = {word: words.count(word) for word in sorted(set(words))}
    result.notes["largest extra memory, MB"] = round(max(part.notes["extra_bytes"] for part in parts) / 1e6)
    result.notes["per second"] = round(tries / (time.monotonic() - started))
    return result


def _judge_part(judge: Judge, seed: int, first: int, end: int) -> Result:
    """Judge the inputs from ``first`` up to ``end``; after a crash or a hang, go on behind it with a new worker."""
    result = Result(end - first, notes={"words": [], "extra_bytes": 0})
    while first < end:
        first = _judge_until_trouble(judge, seed, first, end, result)
    return result


def _judge_until_trouble(judge: Judge, seed: int, first: int, end: int, result: Result) -> int:
    """The number of the input to go on with."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(theirs, judge, seed, first, end), daemon=True)
    worker.start()
    theirs.close()
    try:
        while first < end:
            if not ours.poll(LONGEST_S):
                result.failures.append(f"{judge.name} {first}: no answer within {LONGEST_S:g} s")
                return first + 1
            first = _note(ours.recv(), judge, result) + 1
    except EOFError:
        worker.join()
        result.failures.append(f"{judge.name} {first}: the process died (exit code {worker.exitcode})")
        return first + 1
    finally:
        worker.kill()
        worker.join()
    return first


def _note(verdict: Verdict, judge: Judge, result: Result) -> int:
    """Add a verdict to the result; the number of its input."""
    if verdict.extra_bytes > MAX_EXTRA_BYTES >= result.notes["extra_bytes"]:
        result.failures.append(f"{judge.name} {verdict.number}: {verdict.extra_bytes:,} bytes of memory")
    result.notes["extra_bytes"] = max(result.notes["extra_bytes"], verdict.extra_bytes)
    result.notes["words"] += [verdict.word] if verdict.word else []
    result.failures += [f"{judge.name} {verdict.number}: {verdict.failure}"] if verdict.failure else []
    return verdict.number


def _work(connection: Connection, judge: Judge, seed: int, first: int, end: int) -> None:
    """The worker: judge one input after the other and tell of each."""
    log.addHandler(logging.NullHandler())
    log.propagate = False
    with tempfile.TemporaryDirectory(prefix="survival_") as name:
        folder = Path(name)
        judge.prepare(folder)
        baseline = _memory_bytes("VmRSS")
        for number in range(first, end):
            chance = random.Random(f"{seed}/{judge.name}/{number}")  # noqa: S311 (no secret)
            try:
                word, failure = judge.judge(chance, folder), ""
            except BaseException:  # whatever it is, it was not to be raised
                word, failure = "", " | ".join(traceback.format_exc().splitlines()[-3:])
            connection.send(Verdict(number, word, failure, _memory_bytes("VmHWM") - baseline))


def _memory_bytes(which: str) -> int:
    """Resident memory of this process: ``VmRSS`` now, ``VmHWM`` at its highest."""
    # not getrusage: what it calls the highest of a process began with that of the one that started it
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024
