"""From the summaries of finished cells to the rows of the table: pure functions, and nothing is written here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.core.config import STANDARD_RESOLUTION
from scripts.core.errors import DataError
from scripts.core.paths import RunPaths
from scripts.data_handler.registry import DATASET_REGISTRY
from tools.suite.cells import Cell
from tools.suite.official import CHANGED_SINCE, OFFICIAL, RECIPE, OfficialValues

ENLARGED_RESOLUTION = 224
OFFICIAL_EPOCHS = 100
METRICS = ("accuracy", "auc", "macro_f1")
VARIANTS = ("plain", "tta")
LEFT_OUT = {  # what it means that a setting of the augmentation was applied as 0
    "hflip": "No picture was mirrored in training.",
    "rotation_angle": "No picture was turned in training.",
    "jitter_val": "Brightness and contrast were left as they are in training.",
    "mixup_alpha": "No pictures were mixed (MixUp) in training.",
}
GENERAL_NOTES = (
    "Mean ± standard deviation over the seeds (n − 1 in its denominator); one seed has no ±. It says how far trainings "
    "differ, not how far another test split would: for that each run gives a bootstrap interval.",
    RECIPE,
    "Here: SGD with momentum on a cosine; flips, rotation, jitter and MixUp, but for what a row's notes leave out; the "
    "epoch of the best validation accuracy, and an early stop after --patience epochs without a better one.",
    "The difference is the mean without test-time augmentation minus the official value at the same number of pixels; "
    "the official table has no test-time augmentation, so the columns with it have no counterpart.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What the table takes from one finished cell."""

    title: str  # of the data set
    width: int  # pixels
    height: int  # pixels
    test_images: int
    figures: Mapping[str, Mapping[str, float | None]]  # "plain" and, with TTA, "tta"; then by metric; None: undefined
    undefined: tuple[str, ...]  # sentences about what is undefined
    best_epoch: int
    epochs: int
    epochs_at_most: int
    seconds: float  # of training
    weights: str  # the setting
    left_out: tuple[str, ...]  # sentences about the augmentation that was not applied
    data_note: str | None  # such as that the data are synthetic
    md5: str
    made_with: tuple[tuple[str, str], ...]  # what may change the bits of a result: commit, versions, hardware


def read_result(paths: RunPaths) -> CellResult:
    """The result in a finished run's folder.

    Raises:
        DataError: Its ``summary.json`` cannot be read.
    """
    try:
        summary = json.loads(paths.summary.read_text(encoding="utf-8"))
        return _result(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{paths.summary} is damaged ({type(error).__name__}: {error}). Remove its folder, and the cell is trained "
            "anew."
        ) from error


def _result(summary: Mapping[str, Any]) -> CellResult:
    dataset, training, test, environment = (summary[name] for name in ("dataset", "training", "test", "environment"))
    return CellResult(
        title=dataset["title"],
        width=dataset["width"],
        height=dataset["height"],
        test_images=test["num_images"],
        figures={variant: _figures(test[variant]) for variant in VARIANTS if test[variant] is not None},
        undefined=tuple(test["plain"].get("notes", ())),
        best_epoch=training["best_epoch"],
        epochs=training["epochs"],
        epochs_at_most=training["epochs_at_most"],
        seconds=training["seconds"],
        weights=summary["config"]["weights"],
        left_out=tuple(sentence for name, sentence in LEFT_OUT.items() if summary["config"].get(name) == 0),
        data_note=summary["note"],
        md5=dataset["md5"],
        made_with=(
            ("commit", str(environment["commit"])),
            ("torch", str(environment["packages"]["torch"])),
            ("device", str(environment["device_name"])),
            ("precision", str(summary["config"]["precision"])),
        ),
    )


def _figures(facts: Mapping[str, Any]) -> dict[str, float | None]:
    # not every kind of task has a macro-F1
    return {metric: facts[metric]["value"] if facts.get(metric) else None for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    deviation: float | None  # the sample's standard deviation; None for a single value
    values: tuple[float, ...]  # in the order of the seeds

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f" ± {self.deviation:.4f}")


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Mean and standard deviation; None where there is no value, or one of them is undefined.

    >>> str(spread_of([0.5, 0.6, 0.7]))
    '0.6000 ± 0.1000'
    """
    defined = tuple(value for value in values if value is not None)
    if not values or len(defined) < len(values):
        return None
    return Spread(statistics.fmean(defined), statistics.stdev(defined) if len(defined) > 1 else None, defined)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One data set at one resolution."""

    dataset: str  # as in the folders' names
    title: str
    size: str  # of the images in pixels, such as "28" or "360 × 363"; "" while that is not known
    seeds: tuple[int, ...]  # those that are finished
    num_planned: int
    spreads: Mapping[tuple[str, str], Spread | None]  # by variant and metric
    official: OfficialValues | None
    differences: Mapping[str, float | None]  # mean without TTA minus official, by metric; None: nothing to compare with
    notes: tuple[str, ...]  # what makes the comparison unequal, a sentence each


def make_rows(results: Mapping[Cell, CellResult | None], beside: Mapping[str, str]) -> list[Row]:
    """The table.

    Args:
        results: Every cell of the suite; None where it is not finished.
        beside: For own data, by their name in the folders' names, the set whose official values stand beside them.
    """
    groups: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in results:
        groups.setdefault(cell.group, []).append(cell)
    return [_row(cells, results, beside) for cells in groups.values()]


def _row(cells: Sequence[Cell], results: Mapping[Cell, CellResult | None], beside: Mapping[str, str]) -> Row:
    first = cells[0]
    finished = [(cell.seed, result) for cell in cells if (result := results[cell]) is not None]
    found = [result for _, result in finished]
    spreads = {
        (variant, metric): spread_of([result.figures.get(variant, {}).get(metric) for result in found])
        for variant in VARIANTS
        for metric in METRICS
    }
    reference = beside.get(first.set_name, "") if first.is_own else first.dataset
    official = OFFICIAL.get(reference)
    fallback = "" if first.resolution is None else str(first.resolution)
    return Row(
        dataset=first.set_name,
        title=_title(first, found),
        size=_size(found[0]) if found else fallback,
        seeds=tuple(seed for seed, _ in finished),
        num_planned=len(cells),
        spreads=spreads,
        official=official,
        differences=_differences(spreads, official, first, found),
        notes=tuple(_notes(first, len(cells), found, reference)),
    )


def _title(cell: Cell, found: Sequence[CellResult]) -> str:
    if found:
        return found[0].title
    return DATASET_REGISTRY[cell.dataset].title if cell.dataset in DATASET_REGISTRY else cell.set_name


def _size(result: CellResult) -> str:
    return str(result.width) if result.width == result.height else f"{result.width} × {result.height}"


def _differences(
    spreads: Mapping[tuple[str, str], Spread | None],
    official: OfficialValues | None,
    cell: Cell,
    found: Sequence[CellResult],
) -> dict[str, float | None]:
    side = cell.resolution or (found[0].width if found else None)
    values: dict[str, float] = {}
    if official is not None and side == STANDARD_RESOLUTION:
        values = {"accuracy": official.accuracy_28, "auc": official.auc_28}
    elif official is not None and side == ENLARGED_RESOLUTION:
        values = {"accuracy": official.accuracy_224, "auc": official.auc_224}
    spread = {metric: spreads["plain", metric] for metric in ("accuracy", "auc")}
    return {
        metric: None if known is None or metric not in values else known.mean - values[metric]
        for metric, known in spread.items()
    }


def _notes(cell: Cell, num_planned: int, found: Sequence[CellResult], reference: str) -> Iterator[str]:
    """What makes a row's comparison with the official values, or within itself, unequal."""
    if 0 < len(found) < num_planned:
        yield f"Only {len(found)} of {num_planned} seeds are finished."
    if num_planned == 1:
        yield "A single seed: how far trainings differ is not known."
    if not found:
        return
    result = found[0]
    yield from _data_notes(cell, result, reference)
    if reference in OFFICIAL:
        yield from _training_notes(result)
    yield from dict.fromkeys(sentence for result in found for sentence in result.left_out)
    for sentence in dict.fromkeys(sentence for result in found for sentence in result.undefined):
        yield f"On the test split: {sentence}"
    for pairs in zip(*(result.made_with for result in found), strict=True):
        values = dict.fromkeys(value for _, value in pairs)
        if len(values) > 1:
            yield f"Its seeds were not trained alike: {pairs[0][0]} {', '.join(values)}."


def _data_notes(cell: Cell, result: CellResult, reference: str) -> Iterator[str]:
    if result.data_note is not None:
        yield result.data_note
    elif cell.is_own and reference in OFFICIAL:
        title = DATASET_REGISTRY[reference].title
        yield f"Own data beside the official values of {title}: not the same images, or not the same split."
    elif cell.is_own:
        yield "Own data: the official table has no values for them."
    if cell.dataset in CHANGED_SINCE:
        yield (
            "The set lost its blank samples in version 2.2.4, after the official values were made: some images of each "
            "split are not the same."
        )
    side = max(result.width, result.height)
    if reference not in OFFICIAL:
        return
    if side == ENLARGED_RESOLUTION:
        yield "Real images of 224 pixels here; the official values at 224 are of 28 pixels enlarged to 224."
    elif side != STANDARD_RESOLUTION:
        yield f"The official table has no values at {_size(result)} pixels."


def _training_notes(result: CellResult) -> Iterator[str]:
    if result.weights == "imagenet":
        yield "Begun with ImageNet weights; the official networks were trained from scratch."
    elif result.weights != "none":
        yield "Begun with the weights of a file (--weights); the official networks were trained from scratch."
    if result.epochs_at_most != OFFICIAL_EPOCHS:
        epochs = f"{result.epochs_at_most} epoch{'s' * (result.epochs_at_most > 1)}"
        yield f"At most {epochs}; the official networks were trained for {OFFICIAL_EPOCHS}."


def numbered(rows: Iterable[Row]) -> dict[str, int]:
    """A number for each different note of the rows, in the order in which they come."""
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    return {note: number for number, note in enumerate(notes, start=1)}


def unfinished(results: Mapping[Cell, CellResult | None]) -> list[str]:
    """The names of the cells that have no result."""
    return [cell.name for cell, result in results.items() if result is None]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table as it is read by people."""

    title: str
    text: Callable[[Row], str]
    is_on_screen: bool = True  # where there is less room


def _spread_column(title: str, variant: str, metric: str) -> Column:
    return Column(title, lambda row: _or_dash(row.spreads[variant, metric]), is_on_screen=metric != "macro_f1")


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


TABLE = (
    Column("Data set", lambda row: row.title),
    Column("Pixels", lambda row: row.size or "–"),
    Column("Seeds", lambda row: str(len(row.seeds))),
    _spread_column("ACC", "plain", "accuracy"),
    _spread_column("AUC", "plain", "auc"),
    _spread_column("macro-F1", "plain", "macro_f1"),
    _spread_column("ACC, TTA", "tta", "accuracy"),
    _spread_column("AUC, TTA", "tta", "auc"),
    _spread_column("macro-F1, TTA", "tta", "macro_f1"),
    Column("official ACC 28 / 224", lambda row: _pair(row.official, "accuracy")),
    Column("official AUC 28 / 224", lambda row: _pair(row.official, "auc")),
    Column("difference ACC", lambda row: _signed(row.differences["accuracy"])),
    Column("difference AUC", lambda row: _signed(row.differences["auc"])),
)


def _pair(official: OfficialValues | None, metric: str) -> str:
    if official is None:
        return "–"
    return f"{getattr(official, f'{metric}_28'):.3f} / {getattr(official, f'{metric}_224'):.3f}"


def table_texts(rows: Sequence[Row], columns: Sequence[Column] = TABLE) -> list[list[str]]:
    """The table as text, its header first; the last column holds the numbers of a row's notes."""
    numbers = numbered(rows)
    texts = [[*(column.title for column in columns), "notes"]]
    for row in rows:
        texts.append([*(column.text(row) for column in columns), note_list(row, numbers)])
    return texts


def note_list(row: Row, numbers: Mapping[str, int]) -> str:
    """The numbers of a row's notes, such as "1, 4"."""
    return ", ".join(str(number) for number in sorted(numbers[note] for note in row.notes))


def screen_table(rows: Sequence[Row]) -> list[str]:
    """The table as lines for the screen, without what a screen has no room for, and its notes below."""
    lines = aligned(table_texts(rows, [column for column in TABLE if column.is_on_screen]))
    return [*lines, *(f"{number}: {note}" for note, number in numbered(rows).items())]


def aligned(texts: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in which every column is as wide as its widest entry; the first is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row in texts:
        first, *others = row
        cells = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
