"""Train a matrix of data sets, resolutions and seeds with main.py, and tabulate it beside the official results.

python tools/benchmark_suite.py                                       all twelve 2D sets at 28 pixels, seeds 1, 2, 3
python tools/benchmark_suite.py --datasets bloodmnist pathmnist --resolutions 28 64 --seeds 1 2 3 4 5
python tools/benchmark_suite.py --datasets synthblood --seeds 1 2 -- --weights none --epochs 2
python tools/benchmark_suite.py --datasets path/to/pbc28.npz --beside pbc28=bloodmnist
python tools/benchmark_suite.py --help

What follows ``--`` is given to every training. Typed again, the same command goes on where the suite was: finished
cells are kept, interrupted ones are resumed, failed ones are tried again.

Exit codes: 0 all cells are finished, 1 some failed, 2 command line, 4 another suite uses the folder, 6 storage, 130 and
143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from scripts.core import Config, ensure_single_instance, log, parse_command_line
from scripts.core.config import RESOLUTIONS, SETTINGS, STANDARD_RESOLUTION
from scripts.core.environment import PROJECT_ROOT
from scripts.core.errors import (
    ConfigError,
    DataError,
    Interrupted,
    LockHeldError,
    PipelineError,
    StorageError,
    storage_errors,
)
from scripts.core.log import file_log, screen_log
from scripts.core.paths import RunPaths, slug
from scripts.core.resume import FREE, start_command
from scripts.core.system import StopRequest, device_problems, stop_request
from scripts.data_handler import DATASET_REGISTRY, dataset_problems
from tools.suite.cells import (
    FINISHED,
    INTERRUPTED,
    NEW,
    Cell,
    command_words,
    file_problems,
    list_problems,
    make_cells,
    parse_numbers,
    read_state,
    setting_conflicts,
)
from tools.suite.official import OFFICIAL
from tools.suite.results import CellResult, make_rows, read_result, screen_table
from tools.suite.running import Ending, run_process

TRAINING_PROGRAM = PROJECT_ROOT / "main.py"
OWN_FLAGS = ("dataset", "resolution", "seed", "output_dir", "resume")  # of main.py, which the suite gives by itself
LOCK_HELD, STORAGE = LockHeldError.exit_code, StorageError.exit_code
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0  # between two looks at a lock that another training holds


@dataclass(frozen=True, slots=True)
class Suite:
    """A command line that is understood."""

    folder: Path
    cells: dict[Cell, Config]  # in the order in which they are run; every setting of each
    further: tuple[str, ...]  # words that every training is given
    beside: dict[str, str]  # own data, by their name in the folders' names: the set whose official values they get

    @property
    def common_settings(self) -> str:
        """What the trainings have in common that is not a default and may change a result."""
        config = next(iter(self.cells.values()))
        words = []
        for name, value in config.as_dict().items():
            known = SETTINGS[name]
            if name not in (*OWN_FLAGS, *FREE) and value != known.default:
                words.append(known.flag if known.kind is bool else f"{known.flag} {value}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that did not get to its end."""

    cell: Cell
    reason: str  # in one sentence


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = sys.argv[1:] if words is None else words
    with screen_log():
        try:
            with stop_request() as stop:
                stop.advice = f"Go on with: {start_command()}"
                return run_suite(parse_suite(words), stop)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.")


def build_parser() -> argparse.ArgumentParser:
    """The suite's own flags; their values are judged together, after parsing."""
    parser = _Parser(
        prog="tools/benchmark_suite.py",
        usage="benchmark_suite.py [--flag value ...] [-- further flags of main.py]",
        description="Train data sets x resolutions x seeds with main.py, one after another, and tabulate the results.",
        epilog="Typed again, the same command goes on where the suite was.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--datasets",
        nargs="*",
        default=list(DATASET_REGISTRY),
        metavar="NAME",
        help="MedMNIST sets, 'synthblood', or paths of .npz files (default: the twelve 2D sets)",
    )
    parser.add_argument(
        "--resolutions",
        nargs="*",
        default=["28"],
        metavar="N",
        help=f"any of {', '.join(map(str, RESOLUTIONS))} pixels; own files have a size of their own (default: 28)",
    )
    parser.add_argument(
        "--seeds", nargs="*", default=["1", "2", "3"], metavar="N", help="whole numbers (default: 1 2 3)"
    )
    parser.add_argument(
        "--suite_dir",
        nargs="?",  # to argparse alone, so that a missing value is reported with the other problems
        const="",
        default="outputs/suite",
        metavar="PATH",
        help="where all of it goes (default: outputs/suite)",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=[],
        metavar="FILE=SET",
        help="show an own file, by its name without .npz, beside the official values of a MedMNIST set",
    )
    return parser


def parse_suite(words: Sequence[str]) -> Suite:
    """The suite that a command line asks for.

    Raises:
        ConfigError: Every problem of the command line, one per line; or runs in the suite's folder were made with other
            settings.
        SystemExit: ``--help`` was asked for (code 0).
    """
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    further = tuple(words[cut + 1 :])
    given, strays = build_parser().parse_known_args(words[:cut])
    problems = [*map(_stray_problem, strays), *_reserved_problems(further)]
    resolutions, resolution_problems = parse_numbers("--resolutions", given.resolutions, RESOLUTIONS)
    seeds, seed_problems = parse_numbers("--seeds", given.seeds)
    cells = make_cells(dict.fromkeys(given.datasets), resolutions or [STANDARD_RESOLUTION], seeds or [0])
    beside, beside_problems = _parse_beside(given.beside, cells)
    problems += [*list_problems("--datasets", given.datasets), *resolution_problems, *seed_problems]
    problems += [*file_problems(cells), *beside_problems]
    if not given.suite_dir:
        problems.append("--suite_dir must be a path, got ''.")
    folder = Path(given.suite_dir)
    configs: dict[Cell, Config] = {}
    for cell in cells:
        try:
            configs[cell] = parse_command_line(
                [*cell.words(folder), *_without_reserved(further)], checks=(dataset_problems, device_problems)
            )
        except ConfigError as error:
            problems += error.problems
    problems = list(dict.fromkeys(problems)) or list(setting_conflicts(configs, folder))
    if problems:
        raise ConfigError(*problems)
    return Suite(folder, configs, further, beside)


def _stray_problem(word: str) -> str:
    name = word.partition("=")[0].removeprefix("--")
    if name in SETTINGS and name not in OWN_FLAGS:
        return f"{word} is a flag of the trainings: give it, and its value, after a --."
    return f"Unexpected argument {word!r}. See --help."


def _reserved_problems(further: Sequence[str]) -> Iterator[str]:
    for word in further:
        if _is_reserved(word):
            yield f"{word.partition('=')[0]} belongs to the suite, which gives it to each training: not after the --."


def _is_reserved(word: str) -> bool:
    return word.startswith("--") and word.partition("=")[0].removeprefix("--") in OWN_FLAGS


def _without_reserved(further: Sequence[str]) -> list[str]:
    """The words without what is already known to be wrong, so that it is not reported twice."""
    kept: list[str] = []
    skips_value = False
    for word in further:
        if _is_reserved(word):
            skips_value = "=" not in word
            continue
        if not (skips_value and not word.startswith("--")):
            kept.append(word)
        skips_value = False
    return kept


def _parse_beside(texts: Sequence[str], cells: Sequence[Cell]) -> tuple[dict[str, str], list[str]]:
    """The pairs of --beside, and its problems."""
    own = list(dict.fromkeys(cell.set_name for cell in cells if cell.is_own))
    beside, problems = {}, []
    for text in texts:
        name, _, reference = text.partition("=")
        name = slug(name.removesuffix(".npz"))
        if name not in own:
            problems.append(f"--beside {text}: {name} is none of the own files here ({', '.join(own) or 'none'}).")
        if reference not in OFFICIAL:
            problems.append(f"--beside {text}: give FILE=SET, SET one of {', '.join(OFFICIAL)}.")
        beside[name] = reference
    return beside, problems


def run_suite(suite: Suite, stop: StopRequest) -> int:
    """Run the cells that are not finished, write the tables before and after each, and return the exit code."""
    with storage_errors(suite.folder, "make the suite's folder"):
        suite.folder.mkdir(parents=True, exist_ok=True)
    try:
        with ensure_single_instance(suite.folder / ".lock") as lock, file_log(suite.folder / "suite.log"):
            lock.note(suite.folder)
            write_tables(suite)  # before the first hour, not after it: whatever prevents them is known at once
            failures = _run_cells(suite, stop)
            _say_end(suite, failures)
    except LockHeldError as error:
        raise LockHeldError(f"Another suite uses the folder {suite.folder}. {error}") from error
    except StorageError as error:
        raise StorageError(f"{error} {stop.advice}") from error
    return 1 if failures else 0


def write_tables(suite: Suite) -> None:
    """Write every table anew from what the disk holds."""
    # here rather than above: it takes seconds to import, which --help and a wrong flag should not
    from tools.suite.reports import write_suite_reports

    results = _read_results(suite)
    write_suite_reports(suite.folder, results, make_rows(results, suite.beside), suite.common_settings)


def _read_results(suite: Suite) -> dict[Cell, CellResult | None]:
    return {cell: _result_of(suite, cell) for cell in suite.cells}


def _result_of(suite: Suite, cell: Cell) -> CellResult | None:
    """What a cell contributes to the tables; None where it is not finished, or its result cannot be read."""
    state = read_state(suite.folder / cell.name)
    if state.paths is None or state.stage != FINISHED:
        return None
    try:
        return read_result(state.paths)
    except DataError:  # said, with what to do, where the cell has its turn: one cell takes no other along
        return None


def _run_cells(suite: Suite, stop: StopRequest) -> list[Failure]:
    stages = [read_state(suite.folder / cell.name).stage for cell in suite.cells]
    counts = ", ".join(f"{stages.count(stage)} {stage}" for stage in (FINISHED, INTERRUPTED, NEW))
    log.info(f"suite {suite.folder}: {len(stages)} cells, {counts}")
    widest, failures = max(len(cell.name) for cell in suite.cells), []
    for number, cell in enumerate(suite.cells, start=1):
        title = f"[{number:>{len(str(len(stages)))}}/{len(stages)}] {cell.name:<{widest}}"
        try:
            ending = _run_cell(suite, cell, title, stop)
        except DataError as error:
            log.warning(f"{title}  failed, {error}")
            failures.append(Failure(cell, str(error)))
            continue
        if ending is None:
            continue
        if ending.code == STORAGE:  # the next cell would write to the same disk
            raise StorageError(f"The suite stops at {cell.name}, which ended with {ending.reason}")
        if ending.code != 0:
            log.warning(f"{title}  failed, {ending.reason}")
            failures.append(Failure(cell, ending.reason))
        else:
            write_tables(suite)
    return failures


def _run_cell(suite: Suite, cell: Cell, title: str, stop: StopRequest) -> Ending | None:
    """Run one cell to its end; None if it was finished before.

    While another training holds the lock, it waits. The state is read anew each time: that other training may be this
    very cell, left behind by a suite that was killed.

    Raises:
        DataError: The cell's result cannot be read.
    """
    pause_s, holder, started = SHORTEST_PAUSE_S, "", time.monotonic()
    while (state := read_state(suite.folder / cell.name)).stage != FINISHED:
        if not holder:
            log.info(f"{title}  {'running' if state.stage == NEW else 'resuming'}")
        words = command_words(cell, suite.cells[cell], state, suite.folder, suite.further)
        screen = _PassedThrough()
        ending = run_process([sys.executable, str(TRAINING_PROGRAM), *words], stop, screen.show)
        if ending.code != LOCK_HELD:
            screen.release()
            if ending.code == 0:
                took = timedelta(seconds=round(time.monotonic() - started))
                log.info(f"{title}  done in {took}: {_figures(read_result(_finished_paths(suite, cell)))}")
            return ending
        if ending.last_line != holder:
            holder = ending.last_line
            log.info(f"{title}  waiting: {holder}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    log.info(f"{title}  finished before: {_figures(read_result(_finished_paths(suite, cell)))}")
    return None


class _PassedThrough:
    """Shows what a training prints, but not the only line of one that is refused the lock: that is said once."""

    def __init__(self) -> None:
        self._first: str | None = None
        self._is_released = False

    def show(self, line: str) -> None:
        """Show a line; the first waits for the second, since a refusal has only one."""
        if self._first is None:
            self._first = line
            return
        self.release()
        log.info(f"    {line}")

    def release(self) -> None:
        """Show the first line too."""
        if not self._is_released and self._first is not None:
            log.info(f"    {self._first}")
            self._is_released = True


def _finished_paths(suite: Suite, cell: Cell) -> RunPaths:
    state = read_state(suite.folder / cell.name)
    if state.paths is None or state.stage != FINISHED:
        raise DataError(f"{cell.name} ended well, but left no summary.json in {suite.folder / cell.name}.")
    return state.paths


def _figures(result: CellResult) -> str:
    """Accuracy and AUC in words, without TTA and, where there is TTA, with it."""
    titles = {"plain": "without TTA", "tta": "with TTA"}

    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    return ", ".join(
        f"{titles[variant]} ACC {shown(figures['accuracy'])} AUC {shown(figures['auc'])}"
        for variant, figures in result.figures.items()
    )


def _say_end(suite: Suite, failures: Sequence[Failure]) -> None:
    """The table, and what failed."""
    for line in screen_table(make_rows(_read_results(suite), suite.beside)):
        log.info(line)
    log.info(f"tables in {suite.folder}: results.md, results.xlsx, results.csv, results.png, cells.csv")
    for failure in failures:
        log.warning(f"{failure.cell.name} failed, {failure.reason}")
    if failures:
        log.warning(f"{len(failures)} of {len(suite.cells)} cells failed. Try them again with: {start_command()}")


if __name__ == "__main__":
    sys.exit(main())
