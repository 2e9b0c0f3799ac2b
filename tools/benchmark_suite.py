"""Train data sets, resolutions, backbones, recipes and seeds with main.py, and compare with the official results.

python tools/benchmark_suite.py                                       all twelve 2D sets at 28 pixels, seeds 1, 2, 3
python tools/benchmark_suite.py --datasets bloodmnist pathmnist --resolutions 28 64 --seeds 1 2 3 4 5
python tools/benchmark_suite.py --datasets bloodmnist --backbones resnet18 convnext_tiny --recipes seed strong
python tools/benchmark_suite.py --datasets synthblood --seeds 1 2 -- --weights none --epochs 2
python tools/benchmark_suite.py --datasets path/to/pbc28.npz --beside pbc28=bloodmnist
python tools/benchmark_suite.py --help

The arguments after ``--`` are passed to every training. The same command, entered again, continues the suite: finished
cells are kept, interrupted ones are resumed, failed ones are tried again.

Exit codes: 0 all cells are finished, 1 some failed, 2 command line, 4 another suite uses the folder, 6 storage, and
129, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from main import CHECKS
from scripts.core import Config, ensure_single_instance, log, parse_command_line
from scripts.core.command_line import ArgumentParser
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
from scripts.core.paths import slug
from scripts.core.recipes import RECIPES
from scripts.core.resume import FREE, start_command
from scripts.core.system import StopRequest, stop_request
from scripts.data_handler import DATASET_REGISTRY
from scripts.models.backbones import BACKBONES
from tools.suite.cells import (
    BACKBONE,
    FINISHED,
    INTERRUPTED,
    NEW,
    RECIPE,
    VARIED,
    Cell,
    as_flag,
    file_problems,
    list_problems,
    make_cells,
    parse_numbers,
    read_state,
    setting_conflicts,
    training_arguments,
)
from tools.suite.official import OFFICIAL
from tools.suite.results import CellResult, read_result
from tools.suite.running import Ending, run_process

if TYPE_CHECKING:
    from tools.suite.tables import Tables

TRAINING_PROGRAM = PROJECT_ROOT / "main.py"
UNLISTED = ("dataset", "resolution", "seed", "output_dir", "resume")  # not among the settings above a table
OWN_FLAGS = (*UNLISTED, *VARIED)  # of main.py, which the suite itself passes
LOCK_HELD, STORAGE = LockHeldError.exit_code, StorageError.exit_code
MIN_PAUSE_S, MAX_PAUSE_S = 2.0, 30.0  # between two attempts to get a lock that another training holds


@dataclass(frozen=True, slots=True)
class Suite:
    """A valid command line."""

    folder: Path
    cells: dict[Cell, Config]  # in the order in which they are run; all settings of each
    extra_arguments: tuple[str, ...]  # of every training
    references: dict[str, str]  # own data, by their name in the folders' names: the set they are compared with

    @property
    def common_settings(self) -> str:
        """The settings of all trainings that are not those of the recipe and may change a result."""
        configs = list(self.cells.values())
        recipes = [RECIPES[config.recipe].settings(config.epochs) for config in configs]
        flags = []
        for name in (name for name in SETTINGS if name not in (*UNLISTED, *FREE)):
            values = [getattr(config, name) for config in configs]
            usual = [recipe.get(name, SETTINGS[name].default) for recipe in recipes]
            if len(set(values)) == 1 and values != usual:
                flags.append(as_flag(name, values[0]))
        return " ".join(flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    with screen_log():
        try:
            with stop_request() as stop:
                stop.advice = f"Continue with: {start_command()}"
                return run_suite(parse_suite(sys.argv[1:] if argv is None else argv), stop)
        except (PipelineError, Interrupted) as error:
            log.error(str(error))
            return error.exit_code


def build_parser() -> ArgumentParser:
    """Make the parser of the suite's own flags; their values are checked together, after parsing."""
    parser = ArgumentParser(
        prog="tools/benchmark_suite.py",
        usage="benchmark_suite.py [--flag value ...] [-- more flags of main.py]",
        description="Train data sets x resolutions x backbones x recipes x seeds with main.py, and tabulate them.",
        epilog="The same command, entered again, continues the suite.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    sets = "MedMNIST sets, 'synthblood', or paths of .npz files (default: the twelve 2D sets)"
    add("--datasets", nargs="*", default=list(DATASET_REGISTRY), metavar="NAME", help=sets)
    sides = f"any of {', '.join(map(str, RESOLUTIONS))} pixels; own files have a size of their own (default: 28)"
    add("--resolutions", nargs="*", default=["28"], metavar="N", help=sides)
    add("--seeds", nargs="*", default=["1", "2", "3"], metavar="N", help="whole numbers (default: 1 2 3)")
    for name, values, default in (("backbones", (*BACKBONES, "timm/NAME"), BACKBONE), ("recipes", RECIPES, RECIPE)):
        about = f"any of {', '.join(values)} (default: {default})"
        add(f"--{name}", nargs="*", default=[default], metavar="NAME", help=about)
    beside = "compare an own file, named without .npz, with the official values of a MedMNIST set"
    add("--beside", nargs="*", default=[], metavar="FILE=SET", help=beside)
    folder = "outputs/suite"
    # the value is optional to argparse only: a missing one is then reported with the other problems
    add("--suite_dir", nargs="?", const="", default=folder, metavar="PATH", help=f"output folder (default: {folder})")
    return parser


def parse_suite(argv: Sequence[str]) -> Suite:
    """Parse a command line.

    Raises:
        ConfigError: Every problem of the command line, one per line; or runs in the suite's folder have other settings.
        SystemExit: ``--help`` was given (code 0).
    """
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    extra = tuple(argv[cut + 1 :])
    given, unexpected = build_parser().parse_known_args(argv[:cut])
    not_reserved, reserved_problems = _split_reserved(extra)
    problems = [*map(_unexpected_problem, unexpected), *reserved_problems]
    resolutions, resolution_problems = parse_numbers("--resolutions", given.resolutions, RESOLUTIONS)
    seeds, seed_problems = parse_numbers("--seeds", given.seeds)
    backbones, recipes = dict.fromkeys(given.backbones or [BACKBONE]), dict.fromkeys(given.recipes or [RECIPE])
    sizes = resolutions or [STANDARD_RESOLUTION]
    cells = make_cells(dict.fromkeys(given.datasets), sizes, seeds or [0], backbones, recipes)
    references, reference_problems = _parse_references(given.beside, cells)
    for name in ("datasets", "backbones", "recipes"):
        problems += list_problems(f"--{name}", getattr(given, name))
    problems += [*resolution_problems, *seed_problems]
    problems += [*file_problems(cells), *reference_problems]
    if not given.suite_dir:
        problems.append("--suite_dir must be a path, got ''.")
    folder = Path(given.suite_dir)
    configs: dict[Cell, Config] = {}
    for cell in cells:
        try:
            arguments = [*cell.arguments(folder), *not_reserved]
            configs[cell] = parse_command_line(arguments, checks=CHECKS)
        except ConfigError as error:
            problems += error.problems
    problems = list(dict.fromkeys(problems)) or list(setting_conflicts(configs, folder))
    if problems:
        raise ConfigError(*problems)
    return Suite(folder, configs, extra, references)


def _unexpected_problem(argument: str) -> str:
    name = argument.partition("=")[0].removeprefix("--")
    if name in SETTINGS and name not in OWN_FLAGS:
        return f"{argument} is a flag of the trainings: give it, and its value, after a --."
    return f"Unexpected argument {argument!r}. See --help."


def _split_reserved(extra: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without the reserved flags and their values, and one problem for each of these flags."""
    others, problems, before = [], [], ""
    for argument in extra:
        flag, _, _ = argument.partition("=")
        if flag.startswith("--") and flag.removeprefix("--") in OWN_FLAGS:
            problems.append(f"{flag} belongs to the suite, which passes it to each training: not after the --.")
        elif argument.startswith("--") or before.removeprefix("--") not in OWN_FLAGS:
            others.append(argument)
        before = argument
    return others, problems


def _parse_references(texts: Sequence[str], cells: Sequence[Cell]) -> tuple[dict[str, str], list[str]]:
    """Parse the pairs of --beside; return them and their problems."""
    own = list(dict.fromkeys(cell.set_name for cell in cells if cell.is_own))
    references, problems = {}, []
    for text in texts:
        name, _, reference = text.partition("=")
        name = slug(name.removesuffix(".npz"))
        if name not in own:
            problems.append(f"--beside {text}: {name} is none of the own files here ({', '.join(own) or 'none'}).")
        if reference not in OFFICIAL:
            problems.append(f"--beside {text}: give FILE=SET, SET one of {', '.join(OFFICIAL)}.")
        references[name] = reference
    return references, problems


def run_suite(suite: Suite, stop: StopRequest) -> int:
    """Run the cells that are not finished, write the tables before and after each, and return the exit code."""
    with storage_errors(suite.folder, "make the suite's folder"):
        suite.folder.mkdir(parents=True, exist_ok=True)
    try:
        with ensure_single_instance(suite.folder / ".lock") as lock, file_log(suite.folder / "suite.log"):
            lock.note(suite.folder)
            write_tables(suite)  # before the first training, so that a storage error is found at once
            failures = _run_cells(suite, stop)
            _log_summary(suite, failures)
    except LockHeldError as error:
        raise LockHeldError(f"Another suite uses the folder {suite.folder}. {error}") from error
    except StorageError as error:
        raise StorageError(f"{error} {stop.advice}") from error
    return 1 if failures else 0


def write_tables(suite: Suite) -> None:
    """Write all tables again from what is on the disk."""
    # imported here: it takes seconds, which --help and a wrong flag should not
    from tools.suite.reports import write_suite_reports

    write_suite_reports(suite.folder, _tables(suite), suite.common_settings)


def _tables(suite: Suite) -> Tables:
    from tools.suite.tables import make_tables

    results: dict[Cell, CellResult | None] = {}
    for cell in suite.cells:
        try:
            results[cell] = _read_finished(suite, cell)
        except DataError:  # not finished; a damaged result is reported when it is the cell's turn
            results[cell] = None
    return make_tables(results, suite.references)


def _read_finished(suite: Suite, cell: Cell) -> CellResult:
    """Read the result of a finished cell.

    Raises:
        DataError: It is not finished, or its result cannot be read.
    """
    state = read_state(suite.folder / cell.name)
    if state.paths is None or state.stage != FINISHED:
        raise DataError(
            f"{cell.name} ended with exit code 0, but there is no summary.json in {suite.folder / cell.name}."
        )
    return read_result(state.paths)


def _run_cells(suite: Suite, stop: StopRequest) -> dict[Cell, str]:
    """Run every cell; return those that failed, each with the reason in one sentence."""
    states = [read_state(suite.folder / cell.name) for cell in suite.cells]
    for warning in (text for state in states for text in state.warnings):
        log.warning(warning)
    stages = [state.stage for state in states]
    counts = ", ".join(f"{stages.count(stage)} {stage}" for stage in (FINISHED, INTERRUPTED, NEW))
    log.info(f"suite {suite.folder}: {len(stages)} cells, {counts}")
    width, failures = max(len(cell.name) for cell in suite.cells), dict[Cell, str]()
    for number, cell in enumerate(suite.cells, start=1):
        title = f"[{number:>{len(str(len(stages)))}}/{len(stages)}] {cell.name:<{width}}"
        try:
            reason = _run_cell(suite, cell, title, stop)
        except DataError as error:
            reason = str(error)
        if reason:
            failures[cell] = reason
            log.warning(f"{title}  failed, {reason}")
    return failures


def _run_cell(suite: Suite, cell: Cell, title: str, stop: StopRequest) -> str:
    """Run one cell to its end, unless it is finished; return the reason if it failed, otherwise "".

    While another training holds the lock, it waits. The state is read again each time: the other training may be this
    cell, left behind by a suite that was killed.

    Raises:
        DataError: The cell's result cannot be read.
        StorageError: The training could not write a file; the next one would write to the same disk.
    """
    pause_s, holder, started = MIN_PAUSE_S, "", time.monotonic()
    while (state := read_state(suite.folder / cell.name)).stage != FINISHED:
        if not holder:
            log.info(f"{title}  {'running' if state.stage == NEW else 'resuming'}")
        arguments = training_arguments(cell, suite.cells[cell], state, suite.folder, suite.extra_arguments)
        ending = _run_training(arguments, stop)
        if ending.code == 0:
            elapsed = timedelta(seconds=round(time.monotonic() - started))
            log.info(f"{title}  done in {elapsed}: {_figures(_read_finished(suite, cell))}")
            write_tables(suite)
            return ""
        if ending.code == STORAGE:
            raise StorageError(f"The suite stops at {cell.name}, which ended with {ending.reason}")
        if ending.code != LOCK_HELD:
            return ending.reason
        if ending.last_line != holder:
            holder = ending.last_line
            log.info(f"{title}  waiting: {holder}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    log.info(f"{title}  finished before: {_figures(_read_finished(suite, cell))}")
    return ""


def _run_training(arguments: Sequence[str], stop: StopRequest) -> Ending:
    """Run ``main.py`` and show its lines, except the only line of one that does not get the lock."""
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            log.info(f"    {lines[0]}")
        if len(lines) > 1:
            log.info(f"    {line}")

    ending = run_process([sys.executable, str(TRAINING_PROGRAM), *arguments], stop, show)
    if len(lines) == 1 and ending.code != LOCK_HELD:
        log.info(f"    {lines[0]}")
    return ending


def _figures(result: CellResult) -> str:
    """Accuracy and AUC as text, without TTA and, if there is TTA, with it."""
    texts = []
    for variant, figures in result.figures.items():
        values = (figures["accuracy"], figures["auc"])
        accuracy, auc = ("undefined" if value is None else f"{value:.4f}" for value in values)
        texts.append(f"{'without' if variant == 'plain' else 'with'} TTA ACC {accuracy} AUC {auc}")
    return ", ".join(texts)


def _log_summary(suite: Suite, failures: dict[Cell, str]) -> None:
    """Log the table and the failed cells."""
    from tools.suite.tables import screen_table

    for line in screen_table(_tables(suite)):
        log.info(line)
    log.info(f"tables in {suite.folder}: results.md, results.xlsx, results.csv, results.png, cells.csv")
    for cell, reason in failures.items():
        log.warning(f"{cell.name} failed, {reason}")
    if failures:
        log.warning(f"{len(failures)} of {len(suite.cells)} cells failed. Try them again with: {start_command()}")


if __name__ == "__main__":
    sys.exit(main())
