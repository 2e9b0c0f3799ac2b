"""From the results of cells to the tables of a suite, as data frames; nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scripts.core.config import STANDARD_RESOLUTION
from scripts.data_handler.registry import DATASET_REGISTRY
from tools.suite.cells import BACKBONE, FINISHED, VARIED, Cell
from tools.suite.official import CHANGED_SINCE, OFFICIAL, RECIPE
from tools.suite.results import METRICS, VARIANTS, CellResult

ENLARGED_RESOLUTION = 224
OFFICIAL_EPOCHS = 100
COMPARED = ("accuracy", "auc")  # the metrics of the official table
FIGURES = [f"{metric}_{variant}" for variant in VARIANTS for metric in METRICS]
STATISTICS = [f"{figure}_{statistic}" for figure in FIGURES for statistic in ("mean", "sd")]
SIDES = (STANDARD_RESOLUTION, ENLARGED_RESOLUTION)  # of the official table, in pixels
OFFICIAL_COLUMNS = [f"official_{metric}_{side}" for side in SIDES for metric in COMPARED]
DIFFERENCES = [f"{metric}_difference" for metric in COMPARED]
# the columns of cells.csv and of results.csv
CELL_COLUMNS = ["dataset", "resolution", *VARIED, "seed", "state", "image_width", "image_height", "test_images"]
CELL_COLUMNS += [*FIGURES, "best_epoch", "epochs", "data_md5"]
ROW_COLUMNS = ["dataset", "pixels", *VARIED, "seeds_finished", "seeds_planned", "seeds", *STATISTICS]
ROW_COLUMNS += [*OFFICIAL_COLUMNS, *DIFFERENCES, "notes"]
UNDEFINED = "–"
METRIC_TITLES = {"accuracy": "ACC", "auc": "AUC", "macro_f1": "macro-F1"}
GENERAL_NOTES = (
    "Mean ± standard deviation over the seeds (n − 1 in its denominator); one seed has no ±. It says how far trainings "
    "differ, not how far another test split would: for that each run gives a bootstrap interval.",
    RECIPE,
    "Here, with the recipe seed and unless settings are named above: SGD with momentum on a cosine; flips, rotation, "
    "jitter and MixUp, except for what a row's notes leave out; the epoch with the best validation figure (--monitor), "
    "and an early stop after --patience epochs without a better one.",
    "The difference is the mean without test-time augmentation minus the official value at the same number of pixels; "
    "the official table has no test-time augmentation, so the columns with it have no counterpart.",
)

Results = Mapping[Cell, CellResult | None]


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a suite; what is unknown is missing (NaN or None)."""

    cells: pd.DataFrame  # one line per cell: CELL_COLUMNS, and name, row and seconds
    rows: pd.DataFrame  # one line per combination without the seed: ROW_COLUMNS, and title and note_numbers
    notes: tuple[str, ...]  # the different notes of the rows, in their order; the first has the number 1

    @property
    def varied(self) -> dict[str, str]:
        """Which of VARIED differ between the rows, and their titles."""
        return {name: name.capitalize() for name in VARIED if self.rows[name].nunique() > 1}


def make_tables(results: Results, references: Mapping[str, str]) -> Tables:
    """Make the tables from every cell's result, which is None where the cell is not finished.

    ``references`` has, for own data by their name in the folders' names, the set with whose official values they are
    compared.
    """
    cells = pd.DataFrame([_cell_facts(*item) for item in results.items()], dtype=object)
    cells = cells.reindex(columns=["name", "row", *CELL_COLUMNS, "seconds"])
    members = {row: [cell for cell in results if cell.row == row] for row in cells["row"].unique()}
    facts = [_row_facts(group, results, references) for group in members.values()]
    rows = pd.DataFrame(facts, index=[*members], dtype=object).join(_statistics(cells))
    for metric in COMPARED:
        rows[f"{metric}_difference"] = rows[f"{metric}_plain_mean"] - rows[f"counterpart_{metric}"].astype(float)
    numbers = {note: number for number, note in enumerate(dict.fromkeys(rows["notes"].explode().dropna()), start=1)}
    rows["note_numbers"] = [", ".join(map(str, sorted(numbers[note] for note in notes))) for notes in rows["notes"]]
    rows["notes"] = rows["notes"].str.join(" ")
    return Tables(cells, rows, tuple(numbers))


def _cell_facts(cell: Cell, result: CellResult | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": cell.name, "row": cell.row, "dataset": cell.set_name, "seed": cell.seed}
    facts |= {name: getattr(cell, name) for name in VARIED}
    facts |= {"resolution": cell.resolution, "state": "unfinished" if result is None else FINISHED}
    if result is None:
        return facts
    for variant, figures in result.figures.items():
        facts |= {f"{metric}_{variant}": value for metric, value in figures.items()}
    facts |= {"image_width": result.width, "image_height": result.height, "data_md5": result.md5}
    return facts | {name: getattr(result, name) for name in ("test_images", "best_epoch", "epochs", "seconds")}


def _statistics(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over the finished seeds of each row.

    Both are missing where one of the seeds has no value; a single seed has no deviation.
    """
    finished = cells[cells["state"] == FINISHED].astype(dict.fromkeys(FIGURES, float))
    groups = finished.groupby("row", sort=False)[FIGURES]
    is_complete = groups.count().eq(groups.size(), axis="index")
    means, deviations = groups.mean().where(is_complete), groups.std(ddof=1).where(is_complete)
    return means.add_suffix("_mean").join(deviations.add_suffix("_sd"))


def _row_facts(cells: Sequence[Cell], results: Results, references: Mapping[str, str]) -> dict[str, Any]:
    """The columns of a row that are not computed from the figures."""
    first = cells[0]
    finished = {cell.seed: result for cell in cells if (result := results[cell]) is not None}
    found = list(finished.values())
    reference = references.get(first.set_name, "") if first.is_own else first.dataset
    official = OFFICIAL.get(reference) if first.backbone == BACKBONE else None
    facts = {name: getattr(first, name) for name in VARIED}
    facts |= {
        "dataset": first.set_name,
        "title": DATASET_REGISTRY[first.dataset].title if first.dataset in DATASET_REGISTRY else first.set_name,
        "pixels": "" if first.resolution is None else str(first.resolution),
        "seeds_finished": len(finished),
        "seeds_planned": len(cells),
        "seeds": " ".join(map(str, finished)),
        "notes": tuple(_notes(first, len(cells), found, reference)),
    }
    if found:
        facts |= {"title": found[0].title, "pixels": _size(found[0])}
    side = first.resolution or (found[0].width if found else None)
    for column in OFFICIAL_COLUMNS:
        _, metric, official_side = column.split("_")
        facts[column] = getattr(official, column.removeprefix("official_"), None)
        if str(side) == official_side:
            facts[f"counterpart_{metric}"] = facts[column]
    return {f"counterpart_{metric}": None for metric in COMPARED} | facts


def _size(result: CellResult) -> str:
    return str(result.width) if result.width == result.height else f"{result.width} × {result.height}"


def _notes(cell: Cell, num_planned: int, found: Sequence[CellResult], reference: str) -> Iterator[str]:
    """Yield what makes a row's comparison with the official values, or within itself, unequal."""
    if 0 < len(found) < num_planned:
        yield f"Only {len(found)} of {num_planned} seeds are finished."
    if num_planned == 1:
        yield "A single seed: how far trainings differ is not known."
    if not found:
        return
    if found[0].data_note is not None:
        yield found[0].data_note
    elif reference in OFFICIAL and cell.backbone != BACKBONE:
        yield "The official values here are those of ResNet-18: none for another backbone."
    else:
        yield from _data_notes(cell, found[0], reference)
        if reference in OFFICIAL:
            yield from _training_notes(found[0])
    for settings in dict.fromkeys(result.recipe_settings for result in found if result.recipe_settings):
        yield f"Recipe {cell.recipe}: {settings}."
    yield from dict.fromkeys(sentence for result in found for sentence in result.not_applied)
    for sentence in dict.fromkeys(sentence for result in found for sentence in result.undefined):
        yield f"On the test split: {sentence}"
    for pairs in zip(*(result.made_with for result in found), strict=True):
        values = dict.fromkeys(value for _, value in pairs)
        if len(values) > 1:
            yield f"Its seeds were trained differently: {pairs[0][0]} {', '.join(values)}."


def _data_notes(cell: Cell, result: CellResult, reference: str) -> Iterator[str]:
    if cell.is_own and reference in OFFICIAL:
        title = DATASET_REGISTRY[reference].title
        yield f"Own data compared with the official values of {title}: not the same images, or not the same split."
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
    if result.weights != "none":
        start = "ImageNet weights" if result.weights == "imagenet" else "the weights of a file (--weights)"
        yield f"Started from {start}; the official networks were trained from scratch."
    if result.max_epochs != OFFICIAL_EPOCHS:
        epochs = f"{result.max_epochs} epoch{'s' * (result.max_epochs > 1)}"
        yield f"At most {epochs}; the official networks were trained for {OFFICIAL_EPOCHS}."


def readable(tables: Tables) -> pd.DataFrame:
    """The rows as text for people; the last column holds the numbers of a row's notes."""
    rows = tables.rows
    columns = {
        "Data set": rows["title"],
        "Pixels": rows["pixels"].replace("", UNDEFINED),
        **{title: rows[name] for name, title in tables.varied.items()},
        "Seeds": rows["seeds_finished"].astype(str),
    }
    for variant, suffix in zip(VARIANTS, ("", ", TTA"), strict=True):
        for metric, title in METRIC_TITLES.items():
            statistics = rows[[f"{metric}_{variant}_mean", f"{metric}_{variant}_sd"]]
            columns[title + suffix] = statistics.apply(_joined, axis="columns", text="{:.4f}", separator=" ± ")
    for metric in COMPARED:
        official = rows[[name for name in OFFICIAL_COLUMNS if metric in name]]
        title = f"official {METRIC_TITLES[metric]} 28 / 224"
        columns[title] = official.apply(_joined, axis="columns", text="{:.3f}", separator=" / ")
    for metric in COMPARED:
        difference = rows[[f"{metric}_difference"]].apply(_joined, axis="columns", text="{:+.4f}")
        columns[f"difference {METRIC_TITLES[metric]}"] = difference.str.replace("-", "−")
    return pd.DataFrame(columns | {"notes": rows["note_numbers"]})


def _joined(values: pd.Series[float], text: str, separator: str = "") -> str:
    return separator.join(text.format(value) for value in values.dropna()) or UNDEFINED


def screen_table(tables: Tables) -> list[str]:
    """The table as lines for the screen, without the macro-F1, and its notes below."""
    table = readable(tables).drop(columns=["macro-F1", "macro-F1, TTA"]).set_index("Data set")
    lines = table.rename_axis(index=None, columns="Data set").to_string().splitlines()
    return [*lines, *(f"{number}: {note}" for number, note in enumerate(tables.notes, start=1))]
