"""Test what a training survives: kills, signals, damaged checkpoints, full disks, many starts and malformed input.

python -m benchmarks.survival                      the whole campaign, about 25 minutes on two idle cores
python -m benchmarks.survival --short              a few tries of each fault, on a smaller training
python -m benchmarks.survival --only kill --only damage
python -m benchmarks.survival --json FILE          also writes the figures, with machine, versions, commit and seed

A small training is started through ``main.py``, as a user does. "The same result" means that best weights, predictions
and history, without its times, are byte-identical to those of an uninterrupted run. Random moments follow from
``--seed``. The exit code is 1 if any try of any fault was not survived.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import faults, mutated_command_lines, mutated_files
from benchmarks.faults import Result, make_tries
from benchmarks.fuzzing import FuzzTarget, fuzz
from benchmarks.trainings import SMALL, TINY, Campaign, NotSurvivedError, restore_interrupts
from scripts.core.environment import describe_environment
from scripts.core.files import write_json

SEED = 20260131
MAX_FAILURES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and how often it is tried."""

    name: str
    description: str
    required: str
    tries: int
    short_tries: int
    run: Callable[[Campaign, int], Result]
    needs_reference: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: the result of one fault."""

    name: str
    fault: str
    tries: int
    survived: int
    required: str
    seconds: float
    notes: dict[str, Any]
    failures: list[str]

    @property
    def is_survived(self) -> bool:
        """Whether every try was survived."""
        return self.survived == self.tries and not self.failures


def _tries(name: str, attempt: faults.Try, *, at_once: int = 2) -> Callable[[Campaign, int], Result]:
    return lambda campaign, tries: make_tries(campaign, name, attempt, tries, at_once=at_once)


def _fuzz(target: FuzzTarget) -> Callable[[Campaign, int], Result]:
    return lambda campaign, tries: fuzz(target, campaign.seed, tries)


NPZ = FuzzTarget("npz", mutated_files.check_file, mutated_files.prepare)
COMMAND_LINES = FuzzTarget("command_line", mutated_command_lines.fuzz_command_line, mutated_command_lines.prepare)
THE_SAME = "the same result"

FAULTS = (
    Fault("kill", "SIGKILL at random moments, resumed until done", THE_SAME, 25, 2, _tries("kill", faults.kill)),
    Fault("sigterm", "SIGTERM at a random moment, resumed", THE_SAME, 10, 1, _tries("sigterm", faults.terminate)),
    Fault("sigint", "SIGINT at a random moment, resumed", THE_SAME, 10, 1, _tries("sigint", faults.interrupt)),
    Fault(
        "damage",
        "newest checkpoint cut or a bit flipped",
        f"{THE_SAME}, warned",
        20,
        2,
        _tries("damage", faults.damage),
    ),
    Fault(
        "disk", "disk full at a random write, resumed", f"exit 6, {THE_SAME}", 10, 2, _tries("disk", faults.fill_disk)
    ),
    Fault(
        "starts",
        "four simultaneous starts",
        "one runs, three exit 4",
        50,
        2,
        _tries("starts", faults.start_together, at_once=1),
        needs_reference=False,
    ),
    Fault("npz", "mutated NPZ files", "valid or DataError", 10_000, 200, _fuzz(NPZ), needs_reference=False),
    Fault(
        "command_line",
        "mutated command lines",
        "Config or ConfigError",
        5_000,
        300,
        _fuzz(COMMAND_LINES),
        needs_reference=False,
    ),
    Fault(
        "repeat",
        "reproducibility mode, same command twice",
        "same SHA-256",
        5,
        1,
        _tries("repeat", faults.repeat, at_once=1),
        needs_reference=False,
    ),
    Fault("feed", "resident, or streamed by 0, 1, 4 workers", "same SHA-256", 4, 1, _tries("feed", faults.feed)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return 0 if every try was survived, 1 otherwise."""
    parser = argparse.ArgumentParser(description="What a training survives.", allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="a few tries of each fault, on a smaller training")
    parser.add_argument("--only", action="append", choices=[fault.name for fault in FAULTS], help="may be repeated")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of all random choices (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if options.only is None or fault.name in options.only]
    restore_interrupts()
    started = datetime.now()
    print(f"survival campaign, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="survival_") as folder:
        campaign = Campaign(Path(folder), options.seed, TINY if options.short else SMALL)
        rows = [_run(fault, campaign, fault.short_tries if options.short else fault.tries) for fault in chosen]
    print("\n" + "\n".join(table(rows)))
    if options.json:
        _write(options.json, rows, campaign, started, is_short=options.short)
    return 0 if all(row.is_survived for row in rows) else 1


def _run(fault: Fault, campaign: Campaign, tries: int) -> Row:
    """Make all tries of one fault; the uninterrupted run that they are compared with is not timed."""
    try:
        if fault.needs_reference:
            _ = campaign.reference
        started = time.monotonic()
        result = fault.run(campaign, tries)
    except NotSurvivedError as error:
        started, result = time.monotonic(), Result(tries, [f"the uninterrupted run: {error}"] * tries)
    seconds = time.monotonic() - started
    failed = min(tries, len(result.failures))
    survived, notes, failures = tries - failed, result.notes, result.failures
    row = Row(fault.name, fault.description, tries, survived, fault.required, seconds, notes, failures)
    print(f"{fault.name}: {survived} of {tries} in {seconds:.0f} s  {notes}", flush=True)
    for failure in failures[:MAX_FAILURES_SHOWN]:
        print(f"  NOT SURVIVED  {failure}", flush=True)
    return row


def table(rows: Sequence[Row]) -> list[str]:
    """Format the table as aligned lines of Markdown."""
    header = ("fault", "tries", "survived", "required", "seconds")
    cells = [(row.fault, f"{row.tries:,}", f"{row.survived:,}", row.required, f"{row.seconds:,.0f}") for row in rows]
    widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
    is_number = (False, True, True, False, True)

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, is_number, strict=True)
        )
        return f"| {' | '.join(aligned)} |"

    rule = "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, is_number, strict=True))
    return [line(header), f"|{rule}|", *map(line, cells)]


def _write(path: Path, rows: Sequence[Row], campaign: Campaign, started: datetime, *, is_short: bool) -> None:
    content = {
        "command": ["python", "-m", "benchmarks.survival", *sys.argv[1:]],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now() - started).total_seconds()),
        "seed": campaign.seed,
        "short": is_short,
        "training": asdict(campaign.size) | {"seconds": round(campaign.seconds, 1)},
        "environment": describe_environment("cpu"),
        "rows": [asdict(row) | {"seconds": round(row.seconds, 1)} for row in rows],
    }
    write_json(path, content)


if __name__ == "__main__":
    sys.exit(main())
