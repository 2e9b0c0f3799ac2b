"""The table: means and deviations that can be checked by hand, the official values, and what is not alike."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image

from scripts.core.config import Config
from scripts.core.errors import DataError
from scripts.core.paths import RunPaths
from scripts.data_handler.registry import DATASET_REGISTRY
from tests.tools.fake_training import summary
from tools.suite.cells import Cell, make_cells
from tools.suite.official import OFFICIAL
from tools.suite.reports import cells_csv, draw_results, results_csv, results_markdown, write_suite_reports
from tools.suite.results import (
    CellResult,
    Row,
    aligned,
    make_rows,
    numbered,
    read_result,
    screen_table,
    spread_of,
    table_texts,
    unfinished,
)

RESULT = CellResult(
    title="BloodMNIST",
    width=28,
    height=28,
    test_images=3421,
    figures={
        "plain": {"accuracy": 0.96, "auc": 0.997, "macro_f1": 0.95},
        "tta": {"accuracy": 0.97, "auc": 0.998, "macro_f1": 0.96},
    },
    undefined=(),
    best_epoch=12,
    epochs=15,
    epochs_at_most=15,
    seconds=61.5,
    weights="none",
    left_out=(),
    data_note=None,
    md5="0" * 32,
    made_with=(("commit", "abc"), ("torch", "2.6"), ("device", "cpu"), ("precision", "fp32")),
)


def result(accuracy: float | None = 0.96, **changes: object) -> CellResult:
    figures = {"plain": {"accuracy": accuracy, "auc": 0.997, "macro_f1": 0.95}, "tta": RESULT.figures["tta"]}
    return dataclasses.replace(RESULT, **({"figures": figures} | changes))  # type: ignore[arg-type]


def only_row(results: dict[Cell, CellResult | None], beside: dict[str, str] | None = None) -> Row:
    (row,) = make_rows(results, beside or {})
    return row


def of_seeds(*accuracies: float | None, dataset: str = "bloodmnist", side: int = 28) -> dict[Cell, CellResult | None]:
    return {
        Cell(dataset, side, seed): result(accuracy, width=side, height=side)
        for seed, accuracy in enumerate(accuracies, start=1)
    }


def test_mean_and_standard_deviation_are_those_of_a_sample():
    spread = spread_of([0.94, 0.95, 0.96])  # squared distances 1e-4, 0, 1e-4; over n - 1 = 2

    assert spread is not None
    assert spread.mean == pytest.approx(0.95, abs=1e-15)
    assert spread.deviation == pytest.approx(0.01, abs=1e-15)
    assert str(spread) == "0.9500 ± 0.0100"


def test_one_seed_has_no_deviation_and_what_is_undefined_no_mean():
    assert str(spread_of([0.25])) == "0.2500"
    assert spread_of([]) is None
    assert spread_of([0.5, None]) is None


def test_the_difference_is_to_the_official_value_at_the_same_number_of_pixels():
    # the official table has 0.958 at 28 and 0.963 at 224
    at = {side: only_row(of_seeds(0.95, 0.97, side=side)).differences["accuracy"] for side in (28, 64, 128, 224)}

    assert at[28] == pytest.approx(0.002)
    assert at[224] == pytest.approx(-0.003)
    assert at[64] is None
    assert at[128] is None


def test_a_row_knows_its_seeds_and_what_is_missing():
    results = of_seeds(0.95, None) | {Cell("bloodmnist", 28, 3): None}
    row = only_row(results)

    assert row.seeds == (1, 2)
    assert row.num_planned == 3
    assert row.spreads["plain", "accuracy"] is None  # one of its seeds has none
    assert str(row.spreads["tta", "accuracy"]) == "0.9700 ± 0.0000"
    assert "Only 2 of 3 seeds are finished." in row.notes
    assert unfinished(results) == ["bloodmnist_28_seed3"]


def test_a_row_without_a_finished_cell_is_there_and_empty():
    row = only_row({Cell("bloodmnist", 64, 1): None})

    assert (row.title, row.size, row.seeds) == ("BloodMNIST", "64", ())
    assert set(row.spreads.values()) == {None}
    assert row.official == OFFICIAL["bloodmnist"]


def notes(cell: Cell, found: CellResult, beside: dict[str, str] | None = None) -> str:
    return " ".join(only_row({cell: found}, beside).notes)


@pytest.mark.parametrize(
    ("cell", "changes", "said"),
    [
        (Cell("bloodmnist", 28, 1), {}, "A single seed"),
        (Cell("bloodmnist", 28, 1), {"weights": "imagenet"}, "Begun with ImageNet weights"),
        (Cell("bloodmnist", 28, 1), {"weights": "w.pth"}, "Begun with the weights of a file"),
        (Cell("bloodmnist", 28, 1), {"epochs_at_most": 1}, "At most 1 epoch; the official"),
        (Cell("bloodmnist", 64, 1), {"width": 64, "height": 64}, "no values at 64 pixels"),
        (Cell("bloodmnist", 224, 1), {"width": 224, "height": 224}, "Real images of 224 pixels here"),
        (Cell("organcmnist", 28, 1), {}, "lost its blank samples in version 2.2.4"),
        (Cell("cells.npz", None, 1), {}, "Own data: the official table has no values"),
        (Cell("synthblood", None, 1), {"data_note": "Drawn: no medical result."}, "Drawn: no medical result."),
        (
            Cell("bloodmnist", 28, 1),
            {"undefined": ("No image of class 7.",)},
            "On the test split: No image of class 7.",
        ),
    ],
)
def test_what_makes_a_row_unequal_is_said(cell, changes, said):
    assert said in notes(cell, result(**changes))


def test_what_is_equal_is_not_said_to_be_unequal():
    row = only_row(of_seeds(0.95, 0.96))
    assert row.notes == ("At most 15 epochs; the official networks were trained for 100.",)


@pytest.mark.parametrize("epochs", [99, 100, 101])
def test_as_many_epochs_as_the_official_networks_had_are_no_inequality(epochs):
    row = only_row({cell: result(epochs_at_most=epochs) for cell in of_seeds(0.95, 0.96)})
    unequal = f"At most {epochs} epochs; the official networks were trained for 100."
    assert row.notes == (() if epochs == 100 else (unequal,))


def read_with(folder: Path, **settings: float) -> CellResult:
    """The result of a run to which these settings were applied."""
    content = summary(dataclasses.replace(Config(dataset="toy.npz"), **settings))  # type: ignore[arg-type]
    (folder / "summary.json").write_text(json.dumps(content))
    return read_result(RunPaths(folder))


def test_the_augmentation_that_was_not_applied_is_said_in_the_row_and_claimed_nowhere(tmp_path):
    organs, blood = Cell("organamnist", 28, 1), Cell("bloodmnist", 28, 1)
    results = {organs: read_with(tmp_path, hflip=0.0), blood: read_with(tmp_path)}
    rows = make_rows(results, {})

    assert ["No picture was mirrored in training." in row.notes for row in rows] == [True, False]
    text = results_markdown(results, rows, "")
    assert "flips, rotation, jitter and MixUp, but for what a row's notes leave out;" in text
    for settings, sentence in (
        ({"rotation_angle": 0}, "No picture was turned in training."),
        ({"jitter_val": 0.0}, "Brightness and contrast were left as they are in training."),
        ({"mixup_alpha": 0.0}, "No pictures were mixed (MixUp) in training."),
    ):
        assert read_with(tmp_path, **settings).left_out == (sentence,)


def test_own_data_can_stand_beside_the_official_values_of_a_set():
    cell = Cell("there/PBC28.npz", None, 1)
    row = only_row({cell: result(0.968)}, {"pbc28": "bloodmnist"})

    assert row.official == OFFICIAL["bloodmnist"]
    assert row.differences["accuracy"] == pytest.approx(0.01)
    assert "Own data beside the official values of BloodMNIST: not the same images, or not the same split." in row.notes
    assert only_row({cell: result()}).official is None
    # the blank samples are the official set's affair
    assert "blank samples" not in notes(cell, result(), {"pbc28": "organamnist"})


def test_an_own_file_with_the_name_of_a_set_is_not_taken_for_it():
    row = only_row({Cell("mine/bloodmnist.npz", None, 1): result()})
    assert row.official is None


def test_seeds_that_were_not_trained_alike_are_said_to_be():
    other = tuple((name, "2.11" if name == "torch" else value) for name, value in RESULT.made_with)
    row = only_row({Cell("bloodmnist", 28, 1): result(), Cell("bloodmnist", 28, 2): result(made_with=other)})
    assert "Its seeds were not trained alike: torch 2.6, 2.11." in row.notes


def test_the_same_note_has_the_same_number_in_every_row():
    results = of_seeds(0.95) | of_seeds(0.8, dataset="organamnist")
    rows = make_rows(results, {})

    numbers = numbered(rows)
    assert list(numbers.values()) == [1, 2, 3]  # a single seed, epochs; and then the blank samples
    assert [line[-1] for line in table_texts(rows)] == ["notes", "1, 2", "1, 2, 3"]


def test_the_official_table_has_every_set_of_the_registry():
    assert OFFICIAL.keys() == DATASET_REGISTRY.keys()
    values = OFFICIAL["retinamnist"]  # the set with the smallest figures
    assert (values.accuracy_28, values.auc_28, values.accuracy_224, values.auc_224) == (0.524, 0.717, 0.493, 0.710)
    for known in OFFICIAL.values():
        assert all(0.45 < value < 1 for value in dataclasses.astuple(known))


def test_a_summary_is_read_and_a_damaged_one_named(tmp_path):
    paths = RunPaths(tmp_path)
    content = summary(Config(dataset="toy.npz", seed=4, epochs=3))
    paths.summary.write_text(json.dumps(content))
    found = read_result(paths)
    assert found.figures["plain"] == {"accuracy": 0.94, "auc": 0.99, "macro_f1": 0.8}
    assert found.figures["tta"]["accuracy"] == pytest.approx(0.96)
    assert (found.title, found.epochs_at_most, found.weights) == ("toy", 3, "imagenet")

    paths.summary.write_text(json.dumps(summary(Config(dataset="toy.npz", no_tta=True))))
    assert set(read_result(paths).figures) == {"plain"}
    paths.summary.write_text("{}")
    with pytest.raises(DataError, match=r"summary\.json is damaged \(KeyError"):
        read_result(paths)


def test_a_task_without_macro_f1_has_the_other_figures(tmp_path):
    content = summary(Config(dataset="toy.npz"))
    test = content["test"]
    assert isinstance(test, dict)
    del test["plain"]["macro_f1"]
    test["tta"]["auc"] = {"value": None}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    found = read_result(RunPaths(tmp_path))
    assert found.figures["plain"]["macro_f1"] is None
    assert found.figures["tta"]["auc"] is None


@pytest.fixture
def matrix() -> dict[Cell, CellResult | None]:
    """Two sets at two resolutions with three seeds, of which the last cell is not finished."""
    results: dict[Cell, CellResult | None] = {}
    for number, cell in enumerate(make_cells(["bloodmnist", "retinamnist"], [28, 224], [1, 2, 3])):
        side = cell.resolution or 28
        title = DATASET_REGISTRY[cell.dataset].title
        results[cell] = result(0.9 + number / 1000, title=title, width=side, height=side)
    results[list(results)[-1]] = None
    return results


def test_the_csv_files_are_tidy_and_hold_the_figures_in_full(matrix):
    cells = list(csv.DictReader(io.StringIO(cells_csv(matrix))))
    rows = list(csv.DictReader(io.StringIO(results_csv(make_rows(matrix, {})))))

    assert len(cells) == 12
    assert len(rows) == 4
    assert cells[1]["dataset"] == "bloodmnist"
    assert cells[1]["resolution"] == "224"
    assert float(cells[1]["accuracy_plain"]) == 0.901
    assert (cells[-1]["state"], cells[-1]["accuracy_plain"]) == ("unfinished", "")
    assert [row["seeds"] for row in rows] == ["1 2 3", "1 2 3", "1 2 3", "1 2"]
    assert float(rows[0]["accuracy_plain_mean"]) == pytest.approx(0.904)  # of 0.900, 0.904 and 0.908
    assert float(rows[0]["accuracy_plain_sd"]) == pytest.approx(0.004)
    assert float(rows[0]["official_accuracy_28"]) == 0.958
    assert float(rows[0]["accuracy_difference"]) == pytest.approx(0.904 - 0.958)
    assert not any("seconds" in name for name in (*cells[0], *rows[0]))  # the same figures give the same bytes


def test_the_markdown_table_has_a_cell_for_every_column_and_says_what_is_missing(matrix):
    text = results_markdown(matrix, make_rows(matrix, {}), "--epochs 15")
    table = [line for line in text.splitlines() if line.startswith("|")]

    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    assert "| BloodMNIST | 28 | 3 | 0.9040 ± 0.0040 | 0.9970 ± 0.0000 |" in table[2]
    assert "| 0.958 / 0.963 | 0.998 / 0.998 | −0.0540 | −0.0010 | 1 |" in table[2]
    assert "Not finished: retinamnist_224_seed3." in text
    assert "`--epochs 15`" in text
    assert "1. At most 15 epochs" in text
    assert "test-time augmentation" in text


def test_a_pipe_in_a_name_breaks_no_table():
    results: dict[Cell, CellResult | None] = {Cell("a|b.npz", None, 1): result(title="a|b")}
    (_, _, line) = [line for line in results_markdown(results, make_rows(results, {}), "").splitlines() if "|" in line]
    assert line.startswith("| a\\|b |")


def test_the_screen_gets_aligned_columns_and_the_notes(matrix):
    lines = screen_table(make_rows(matrix, {}))

    assert len({line.index("0.958 / 0.963") for line in lines if "BloodMNIST" in line}) == 1
    assert not any("macro-F1" in line for line in lines)
    assert lines[-1].startswith(f"{len(numbered(make_rows(matrix, {})))}: ")
    assert aligned([["a", "b"], ["long", "1"], ["c", "long"]]) == ["a        b", "long     1", "c     long"]


def test_every_file_is_written_and_opens(matrix, tmp_path):
    rows = make_rows(matrix, {})
    write_suite_reports(tmp_path, matrix, rows, "--epochs 15")

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cells.csv",
        "results.csv",
        "results.md",
        "results.png",
        "results.xlsx",
    ]
    book = load_workbook(tmp_path / "results.xlsx")
    assert book.sheetnames == ["Results", "Cells", "Notes"]
    header = [cell.value for cell in book["Results"][3]]
    first = dict(zip(header, (cell.value for cell in book["Results"][4]), strict=True))
    assert first["Data set"] == "BloodMNIST"
    assert first["Accuracy, without TTA"] == pytest.approx(0.904)
    assert first["difference ACC"] == pytest.approx(0.904 - 0.958)
    assert first["Pixels"] == 28
    cells = [[cell.value for cell in line] for line in book["Cells"].iter_rows(min_row=4)]
    assert len(cells) == 12
    assert cells[0][-2] == 61.5
    assert cells[-1][:2] == ["retinamnist_224_seed3", "unfinished"]
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.height > 4 * 84


def test_equal_official_values_hide_neither_mark(matrix):
    figure = draw_results(make_rows(matrix, {})[:1], "")  # AUC: 0.998 at 28 and at 224
    (areas,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "AUC"]
    marks = [line for line in areas.lines if line.get_marker() == "D"]
    first, second = (areas.transData.transform(np.asarray(line.get_xydata())[0]) for line in marks)

    assert first[0] == pytest.approx(second[0])
    points = abs(first[1] - second[1]) * 72 / figure.dpi
    assert points > marks[0].get_markersize()


def test_the_same_figures_give_the_same_bytes(matrix, tmp_path):
    contents = []
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        timed = {cell: found and dataclasses.replace(found, seconds=seconds) for cell, found in matrix.items()}
        write_suite_reports(tmp_path / name, timed, make_rows(timed, {}), "")
        contents.append({path.name: path.read_bytes() for path in Path(tmp_path / name).iterdir()})
    first, second = contents
    assert {name for name in first if first[name] == second[name]} == {
        "cells.csv",
        "results.csv",
        "results.md",
        "results.png",
    }


@pytest.mark.parametrize("content", [{Cell("bloodmnist", 28, 1): None}, {Cell("x.npz", None, 1): result(None)}])
def test_a_table_with_nothing_in_it_can_be_drawn_and_written(content, tmp_path):
    write_suite_reports(tmp_path, content, make_rows(content, {}), "")
