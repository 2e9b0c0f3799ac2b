"""The cells of a suite, and what the disk says of each: there is no other record of what is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.core.config import SETTINGS, STANDARD_RESOLUTION, Config
from scripts.core.errors import DataError
from scripts.core.files import file_digest
from scripts.core.paths import RunPaths, slug
from scripts.core.resume import FREE, NAMING, free_settings, is_same_choice
from scripts.data_handler.registry import SYNTHBLOOD

NEW, INTERRUPTED, FINISHED = "not started", "interrupted", "finished"
# what main.py may turn off by itself where it would do nothing
SWITCHED_OFF_BY_THE_RUN = frozenset({"no_tta"})


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of the matrix."""

    dataset: str  # as typed: a registry's key, "synthblood", or a path
    resolution: int | None  # pixels of a side; None for data that have a size of their own
    seed: int

    @property
    def is_own(self) -> bool:
        """Whether the data are a file of the user's."""
        return Config(dataset=self.dataset).is_dataset_path

    @property
    def set_name(self) -> str:
        """The data set in a folder's name."""
        return slug(Config(dataset=self.dataset).dataset_part)

    @property
    def group(self) -> tuple[str, int | None]:
        """What the cells of a row of the table have in common."""
        return self.dataset, self.resolution

    @property
    def name(self) -> str:
        """The name of its folder.

        >>> Cell("bloodmnist", 64, 3).name
        'bloodmnist_64_seed3'
        """
        size = "" if self.resolution is None else f"_{self.resolution}"
        return f"{self.set_name}{size}_seed{self.seed}"

    def words(self, suite_dir: Path) -> list[str]:
        """The words of ``main.py``'s command line that make it this cell."""
        words = ["--dataset", self.dataset, "--seed", str(self.seed), "--output_dir", str(suite_dir / self.name)]
        if self.resolution not in (None, STANDARD_RESOLUTION):
            words += ["--resolution", str(self.resolution)]
        return words


def make_cells(datasets: Iterable[str], resolutions: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """The matrix in the order in which it is run: every set once before any gets its second seed.

    Own files and ``synthblood`` have one size, whatever resolutions are asked for.
    """
    rows = [(name, size) for name in datasets for size in (resolutions if _has_resolutions(name) else (None,))]
    return [Cell(name, size, seed) for seed in seeds for name, size in rows]


def _has_resolutions(dataset: str) -> bool:
    return dataset != SYNTHBLOOD and not Config(dataset=dataset).is_dataset_path


@dataclass(frozen=True, slots=True)
class CellState:
    """What the disk says of a cell."""

    stage: str  # NEW, INTERRUPTED or FINISHED
    paths: RunPaths | None = None  # of the run that is finished or can be gone on with


def read_state(folder: Path) -> CellState:
    """The state of the cell in ``folder``, which need not be there.

    ``main.py`` writes ``config.json`` when a run can be resumed from then on, and ``summary.json`` as its last file. A
    run folder without either holds nothing but the log of a start that failed.
    """
    runs = [RunPaths(path.parent) for path in sorted(folder.glob("*/config.json"))]
    for paths in reversed(runs):
        if paths.summary.exists():
            return CellState(FINISHED, paths)
    return CellState(INTERRUPTED, runs[-1]) if runs else CellState(NEW)


def command_words(cell: Cell, config: Config, state: CellState, suite_dir: Path, further: Sequence[str]) -> list[str]:
    """The words for ``main.py`` that start the cell, or go on with it."""
    if state.paths is None:
        return [*cell.words(suite_dir), *further]
    words = ["--resume", str(state.paths.root)]
    if cell.is_own:  # the file may have moved
        words += ["--dataset", cell.dataset]
    for name in SETTINGS:
        known, value = SETTINGS[name], getattr(config, name)
        if name in FREE and value != known.default:
            words += [known.flag] if known.kind is bool else [known.flag, str(value)]
    return words


def setting_conflicts(cells: Mapping[Cell, Config], suite_dir: Path) -> Iterator[str]:
    """One sentence for each way in which runs in the suite's folder were made otherwise than is asked for now.

    Args:
        cells: The cells with the settings that are asked for.
        suite_dir: The suite's folder, which need not be there.
    """
    names_by_difference: dict[str, list[str]] = {}
    digests: dict[str, str] = {}
    for cell, config in cells.items():
        state = read_state(suite_dir / cell.name)
        if state.paths is None:
            continue
        try:
            stored = json.loads(state.paths.config.read_text(encoding="utf-8"))
            found = list(_differences(stored, config, lambda path: _md5_of(path, digests)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield (
                f"{state.paths.config} is damaged ({type(error).__name__}: {error}). Remove its folder, and the cell "
                "is trained anew."
            )
            continue
        for difference in found:
            names_by_difference.setdefault(difference, []).append(cell.name)
    for difference, names in names_by_difference.items():
        yield (
            f"{_listed(names)} in {suite_dir} {'was' if len(names) == 1 else 'were'} trained {difference}. Ask for the "
            "same, take another --suite_dir, or remove what is to be trained anew."
        )


def _differences(stored: Mapping[str, Any], config: Config, md5_of: Callable[[str], str]) -> Iterator[str]:
    """Each setting, or file, that is not what it was, as the rest of a sentence that begins "was trained"."""
    settings, command = stored["settings"], stored["command"]
    asked = config.as_dict()
    both_are_files = config.is_dataset_path and Config(dataset=settings["dataset"]).is_dataset_path
    exempt = free_settings(stored["dataset"]) | NAMING | ({"dataset"} if both_are_files else set())
    for name in filter(lambda name: name not in exempt, SETTINGS):
        # a setting that is younger than the run had no other value then
        then, now = settings.get(name, SETTINGS[name].default), asked[name]
        if not is_same_choice(name, now, then) and not _was_chosen_by_the_run(name, now, command):
            yield f"with {_as_flag(name, then)}, and now {_as_flag(name, now)} is asked for"
    # the files of the registry's sets have one MD5, which main.py insists on
    if both_are_files and (md5 := md5_of(config.dataset)) != stored["dataset"]["md5"]:
        yield f"on data with the MD5 {stored['dataset']['md5']}, and {config.dataset} now has {md5}"


def _was_chosen_by_the_run(name: str, now: Any, command: Sequence[str]) -> bool:
    """Whether a stored value may differ from what is asked for because ``main.py`` itself was to choose, and did."""
    if name in SWITCHED_OFF_BY_THE_RUN:
        return not now and SETTINGS[name].flag not in command
    return now == "auto" and _given(SETTINGS[name].flag, command) in (None, "auto")


def _given(flag: str, command: Sequence[str]) -> str | None:
    """The value that a command line gives a flag; None where it gives none."""
    value = None
    for word, following in zip(command, (*command[1:], ""), strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _as_flag(name: str, value: Any) -> str:
    flag = SETTINGS[name].flag
    if SETTINGS[name].kind is bool:
        return flag if value else f"no {flag}"
    return f"{flag} {value}"


def _md5_of(path: str, known: dict[str, str]) -> str:
    """The MD5 of a file that many cells share, computed once."""
    if path not in known:
        try:
            known[path] = file_digest(Path(path).expanduser(), "md5")
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    return known[path]


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def file_problems(cells: Iterable[Cell]) -> Iterator[str]:
    """One sentence for each own file that is not there, and for each two sets whose cells would share their folders."""
    cells = list(cells)
    for dataset in dict.fromkeys(cell.dataset for cell in cells if cell.is_own):
        if not _is_file(dataset):
            yield f"--datasets {dataset}: there is no such file. Give registry names or paths of .npz files."
    owners: dict[str, Cell] = {}
    refused: set[tuple[object, object]] = set()
    for cell in cells:
        owner = owners.setdefault(cell.name, cell)
        pair = (owner.group, cell.group)
        if owner != cell and pair not in refused:  # said once, not for each seed
            refused.add(pair)
            yield (
                f"--datasets {_with_size(owner)} and {_with_size(cell)} would share the folder {cell.name}. Rename the "
                "file, or give each a suite of its own."
            )


def _with_size(cell: Cell) -> str:
    return cell.dataset if cell.resolution is None else f"{cell.dataset} at {cell.resolution} pixels"


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def parse_numbers(flag: str, texts: Sequence[str], choices: Sequence[int] = ()) -> tuple[list[int], list[str]]:
    """The different whole numbers that were given after a flag, and one sentence for each problem of theirs."""
    numbers: list[int] = []
    problems = []
    for text in texts:
        try:
            number = int(text)
        except ValueError:
            problems.append(f"{flag} must be whole numbers, got {text!r}.")
            continue
        if choices and number not in choices:
            problems.append(f"{flag} must be among {', '.join(map(str, choices))}, got {number}.")
        numbers.append(number)
    problems += list_problems(flag, numbers or texts)
    return list(dict.fromkeys(numbers)), problems


def list_problems(flag: str, values: Sequence[object]) -> Iterator[str]:
    """One sentence if there is no value after a flag, or for each that is there more than once."""
    if not values:
        yield f"{flag} needs at least one value."
    for value in dict.fromkeys(value for value in values if values.count(value) > 1):
        yield f"{flag} has {value} more than once."
