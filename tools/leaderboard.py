"""List all runs below a folder on one HTML page and in one CSV.

python tools/leaderboard.py                                    outputs/leaderboard.html and outputs/leaderboard.csv
python tools/leaderboard.py outputs/suite                      the runs of a suite
python tools/leaderboard.py outputs --output board.html        elsewhere; the CSV beside it

Unfinished, running, failed and damaged runs are listed as such. The page needs no network. See docs/compare.md.

Exit codes: 0 done, 1 unexpected error, 2 command line, or no run below the folder, 6 storage, and 129, 130 and 143
stopped by a signal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.config import SETTINGS
from scripts.core.errors import ConfigError, storage_errors
from scripts.core.files import write_text
from scripts.core.log import log
from tools.command import run_tool

NAME = "leaderboard.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(run, argv)


def run(argv: Sequence[str]) -> None:
    """Read all runs, and write both files."""
    given = parse(argv)
    from tools.board.page import as_csv, as_html, ordered
    from tools.board.runs import find_runs, read_run

    rows = ordered([read_run(folder) for folder in find_runs(given.outputs)])
    if not rows:
        raise ConfigError(f"There is no run below {given.outputs}.")
    page, table = given.output, given.output.with_suffix(".csv")
    with storage_errors(page.parent, "make the folder"):
        page.parent.mkdir(parents=True, exist_ok=True)
    write_text(table, as_csv(rows, given.outputs))
    write_text(page, as_html(rows, given.outputs, page.parent, datetime.now()))
    counts = Counter(row.state for row in rows)
    log.info("%s", ", ".join(f"{count:,} {state}" for state, count in counts.items()))
    log.info("wrote %s and %s", page, table)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        ConfigError: The command line is wrong.
        SystemExit: ``--help`` was given (code 0).
    """
    parser = ArgumentParser(
        prog="leaderboard.py",
        usage="leaderboard.py [OUTPUTS] [--output FILE.html]",
        description="List all runs below a folder on one HTML page and in one CSV.",
        allow_abbrev=False,
    )
    default = SETTINGS["output_dir"].default
    help_text = f"folder with runs at any depth (default: {default})"
    parser.add_argument("outputs", nargs="?", type=Path, default=Path(default), metavar="OUTPUTS", help=help_text)
    help_text = f"the page; the CSV is written beside it (default: OUTPUTS/{NAME})"
    parser.add_argument("--output", type=Path, metavar="FILE.html", help=help_text)
    given = parser.parse_args(argv)
    if not os.path.isdir(given.outputs):  # noqa: PTH112 (never raises)
        raise ConfigError(f"OUTPUTS must be a folder with runs, but {given.outputs} is none.")
    given.output = given.outputs / NAME if given.output is None else given.output
    if given.output.suffix != ".html" or os.path.isdir(given.output):  # noqa: PTH112
        raise ConfigError(f"--output must be a file whose name ends in .html, got {given.output}.")
    return given


if __name__ == "__main__":
    sys.exit(main())
