"""Compare two finished runs, or two groups of runs with several seeds, on the same test images.

python tools/compare.py RUN_A RUN_B                                    which of two trained models is better
python tools/compare.py RUN_A1 RUN_A2 --against RUN_B1 RUN_B2          which settings are better, over several seeds
python tools/compare.py RUN_A RUN_B --output comparison                also comparison.json and differences.png
python tools/compare.py RUN_A RUN_B --plain                            without test-time augmentation

Every headline figure gets the 95 % interval of its difference, accuracy McNemar's exact test, and the AUC of each
class DeLong's test with Holm's correction. See docs/compare.md.

Exit codes: 0 done, 1 unexpected error, 2 command line, a folder that is not a finished run, or other test data,
3 a damaged file, 6 storage, and 129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core.command_line import ArgumentParser
from scripts.core.errors import ConfigError
from scripts.core.log import log
from tools.command import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_tool(run, argv)


def run(argv: Sequence[str]) -> None:
    """Compare, show the result, and write the files that are requested."""
    given = parse(argv)
    # imported here: it takes seconds, which --help and a wrong flag should not
    from tools.comparison.files import write_comparison
    from tools.comparison.groups import open_pair
    from tools.comparison.result import compare, report_lines

    comparison = compare(open_pair(given.runs, given.against, plain=given.plain))
    for line in report_lines(comparison):
        log.info("%s", line)
    if given.output is not None:
        for sentence in write_comparison(comparison, given.output):
            log.info("%s", sentence)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; ``runs`` are those of A and ``against`` those of B.

    Raises:
        ConfigError: The command line is wrong.
        SystemExit: ``--help`` was given (code 0).
    """
    parser = ArgumentParser(
        prog="compare.py",
        usage="compare.py RUN_A RUN_B [--output FOLDER] [--plain]\n"
        "       compare.py RUN_A ... --against RUN_B ... [--output FOLDER] [--plain]",
        description="Compare two finished runs, or two groups of runs, on the same test images.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--against", nargs="+", type=Path, metavar="RUN_B", help="the runs of B; those before are A's")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for comparison.json and differences.png")
    parser.add_argument("--plain", action="store_true", help="compare the predictions without TTA")
    given = parser.parse_args(argv)
    if given.against is None:
        if len(given.runs) != 2:
            ways = "two runs, RUN_A RUN_B, or two groups, RUN_A ... --against RUN_B ..."
            raise ConfigError(f"Give {ways}; got {len(given.runs)} without --against.")
        given.runs, given.against = given.runs[:1], given.runs[1:]
    if given.output is not None and os.path.exists(given.output) and not os.path.isdir(given.output):  # noqa: PTH110, PTH112 (never raise)
        raise ConfigError(f"--output {given.output} is not a folder.")
    return given


if __name__ == "__main__":
    sys.exit(main())
