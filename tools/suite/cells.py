"""The cells of a suite, and the state of each, which is read from the disk: there is no other record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from scripts.core.command_line import build_parser
from scripts.core.config import SETTINGS, STANDARD_RESOLUTION, Config
from scripts.core.errors import DataError
from scripts.core.files import file_digest
from scripts.core.paths import RunPaths, slug
from scripts.core.recipes import RECIPES
from scripts.core.resume import FREE, NAMING, free_settings, is_same_choice
from scripts.data_handler.registry import SYNTHBLOOD

VARIED = ("backbone", "recipe")  # the settings that, besides data, resolution and seed, may differ between the cells
BACKBONE, RECIPE = (SETTINGS[name].default for name in VARIED)
NEW, INTERRUPTED, FINISHED = "not started", "interrupted", "finished"
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # raised by a damaged JSON file
MAX_NAMES = 4  # of cells in one message


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of the matrix."""

    dataset: str  # as typed: a registry's key, "synthblood", or a path
    resolution: int | None  # pixels of a side; None for data that have a size of their own
    seed: int
    backbone: str = BACKBONE
    recipe: str = RECIPE

    @property
    def is_own(self) -> bool:
        """Whether the data are a file of the user's."""
        return Config(dataset=self.dataset).is_dataset_path

    @property
    def set_name(self) -> str:
        """The data set in a folder's name."""
        return slug(Config(dataset=self.dataset).dataset_part)

    @property
    def row(self) -> str:
        """The name without the seed: the cells of one row of the table have it in common."""
        size = [] if self.resolution is None else [str(self.resolution)]
        return "_".join([self.set_name, *size, *map(slug, self.variation.values())])

    @property
    def variation(self) -> dict[str, str]:
        """The backbone and the recipe, where they are not the default."""
        return {name: value for name in VARIED if (value := getattr(self, name)) != SETTINGS[name].default}

    @property
    def name(self) -> str:
        """The name of its folder.

        >>> Cell("bloodmnist", 64, 3).name
        'bloodmnist_64_seed3'
        >>> Cell("bloodmnist", 64, 3, recipe="strong").name
        'bloodmnist_64_strong_seed3'
        """
        return f"{self.row}_seed{self.seed}"

    def arguments(self, suite_dir: Path) -> list[str]:
        """The arguments of ``main.py`` that make it this cell."""
        arguments = ["--dataset", self.dataset, "--seed", str(self.seed), "--output_dir", str(suite_dir / self.name)]
        if self.resolution not in (None, STANDARD_RESOLUTION):
            arguments += ["--resolution", str(self.resolution)]
        return arguments + [word for name, value in self.variation.items() for word in (SETTINGS[name].flag, value)]


def make_cells(
    datasets: Iterable[str],
    resolutions: Sequence[int],
    seeds: Sequence[int],
    backbones: Iterable[str] = (BACKBONE,),
    recipes: Iterable[str] = (RECIPE,),
) -> list[Cell]:
    """Make the matrix in the order in which it is run: every row once before any gets its second seed.

    Own files and ``synthblood`` have a size of their own and are trained only at that size.
    """
    rows = [
        (name, size)
        for name in datasets
        for size in ([None] if name == SYNTHBLOOD or Config(dataset=name).is_dataset_path else resolutions)
    ]
    return [Cell(*data, seed, *how) for seed, data, how in product(seeds, rows, [*product(backbones, recipes)])]


@dataclass(frozen=True, slots=True)
class CellState:
    """The state of a cell on the disk."""

    stage: str = NEW  # or INTERRUPTED or FINISHED
    paths: RunPaths | None = None  # of the run that is finished or can be resumed
    config: Mapping[str, Any] | None = None  # the content of its config.json
    warnings: tuple[str, ...] = ()  # one sentence for each damaged run, which is treated as not there


def read_state(folder: Path) -> CellState:
    """Read the state of the cell in ``folder``, which may not exist.

    ``main.py`` writes ``config.json`` when a run can be resumed from then on, and ``summary.json`` as its last file. A
    run folder without either holds only the log of a start that failed.
    """
    state, warnings = CellState(), []
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = _read_config(path)
        except DAMAGED as error:
            warnings.append(f"{path} is damaged ({type(error).__name__}: {error}), so its run is ignored.")
            continue
        paths = RunPaths(path.parent)
        if paths.summary.exists() or state.stage != FINISHED:
            state = CellState(FINISHED if paths.summary.exists() else INTERRUPTED, paths, config)
    return CellState(state.stage, state.paths, state.config, tuple(warnings))


def _read_config(path: Path) -> Mapping[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    _ = content["settings"]["dataset"], content["dataset"]["md5"], " ".join(content["command"])
    return dict(content)


def training_arguments(
    cell: Cell, config: Config, state: CellState, suite_dir: Path, extra_arguments: Sequence[str]
) -> list[str]:
    """The arguments of ``main.py`` that start the cell or resume it."""
    if state.paths is None:
        return [*cell.arguments(suite_dir), *extra_arguments]
    arguments = ["--resume", str(state.paths.root)]
    if cell.is_own:  # the file may have moved
        arguments += ["--dataset", cell.dataset]
    for name, known in SETTINGS.items():
        value = getattr(config, name)
        if name in FREE and value != known.default:
            arguments += [known.flag] if known.kind is bool else [known.flag, str(value)]
    return arguments


def setting_conflicts(cells: Mapping[Cell, Config], suite_dir: Path) -> Iterator[str]:
    """Yield one sentence for each difference between runs in the suite's folder and the requested settings."""
    names_by_difference: dict[str, list[str]] = {}
    md5_of = cache(_md5_of)  # many cells share a file
    for cell, config in cells.items():
        stored = read_state(suite_dir / cell.name).config
        for difference in _differences(stored, config, md5_of) if stored else ():
            names_by_difference.setdefault(difference, []).append(cell.name)
    for difference, names in names_by_difference.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        yield (
            f"{', '.join(names[:MAX_NAMES])}{more} in {suite_dir} {'was' if len(names) == 1 else 'were'} trained "
            f"{difference}. Request the same, choose another --suite_dir, or remove what should be trained again."
        )


def _differences(stored: Mapping[str, Any], config: Config, md5_of: Callable[[str], str]) -> Iterator[str]:
    """Yield each setting or file that has changed, as the rest of a sentence that begins "was trained"."""
    settings, requested = stored["settings"], config.as_dict()
    both_are_files = config.is_dataset_path and Config(dataset=settings["dataset"]).is_dataset_path
    exempt = free_settings(stored["dataset"]) | NAMING | ({"dataset"} if both_are_files else set())
    given = vars(build_parser().parse_known_args(stored["command"])[0])
    # what main.py may replace where the data rule it out, if it was not given
    replaceable = {"no_tta": False, "symmetries": RECIPES[config.recipe].settings(config.epochs).get("symmetries")}
    for name in filter(lambda name: name not in exempt, SETTINGS):
        # a setting that is younger than the run had no other value then
        then, now = settings.get(name, SETTINGS[name].default), requested[name]
        is_resolved = str(given[name]) == str(now) if name in given else now in ("auto", replaceable.get(name, "auto"))
        if not is_resolved and not is_same_choice(name, now, then):
            yield f"with {as_flag(name, then)}, but {as_flag(name, now)} is requested"
    # main.py verifies the MD5 of the registry's sets
    if both_are_files and (md5 := md5_of(config.dataset)) != stored["dataset"]["md5"]:
        yield f"on data with the MD5 {stored['dataset']['md5']}, but {config.dataset} now has {md5}"


def as_flag(name: str, value: Any) -> str:
    """Write a setting and its value as on the command line, or "no --flag" for a switch that is off."""
    flag = SETTINGS[name].flag
    if SETTINGS[name].kind is bool:
        return flag if value else f"no {flag}"
    return f"{flag} {value}"


def _md5_of(path: str) -> str:
    try:
        return file_digest(Path(path).expanduser(), "md5")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def file_problems(cells: Iterable[Cell]) -> Iterator[str]:
    """Yield one sentence for each own file that does not exist, and for each two sets with the same folders."""
    cells = list(cells)
    for dataset in dict.fromkeys(cell.dataset for cell in cells if cell.is_own):
        try:
            is_file = Path(dataset).expanduser().is_file()
        except (OSError, RuntimeError, ValueError):
            is_file = False
        if not is_file:
            yield f"--datasets {dataset}: there is no such file. Give registry names or paths of .npz files."
    owners: dict[str, Cell] = {}
    for cell in cells:
        owner = owners.setdefault(cell.row, cell)
        if owner != cell and owner.seed == cell.seed:
            yield (
                f"--datasets {_described(owner)} and {_described(cell)} would share the folder {cell.name}. Rename the "
                "file, or give each a suite of its own."
            )


def _described(cell: Cell) -> str:
    size = "" if cell.resolution is None else f" at {cell.resolution} pixels"
    return " with ".join([f"{cell.dataset}{size}", *cell.variation.values()])


def parse_numbers(flag: str, texts: Sequence[str], choices: Sequence[int] = ()) -> tuple[list[int], list[str]]:
    """Parse the whole numbers after a flag; return the different ones, and one sentence for each problem."""
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
    """Yield one sentence if a flag has no value, or for each value that it has more than once."""
    if not values:
        yield f"{flag} needs at least one value."
    for value in dict.fromkeys(value for value in values if values.count(value) > 1):
        yield f"{flag} has {value} more than once."
