"""The tables: means and deviations from simple values, the official values, and what makes a comparison unequal."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from itertools import combinations, compress, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image

from scripts.core.config import Config
from scripts.core.errors import DataError
from scripts.core.paths import RunPaths
from scripts.core.recipes import RECIPES
from scripts.data_handler.registry import DATASET_REGISTRY
from tests.tools.fake_training import summary
from tools.suite.cells import Cell, make_cells
from tools.suite.official import OFFICIAL
from tools.suite.reports import draw_results, results_markdown, write_suite_reports
from tools.suite.results import CellResult, read_result
from tools.suite.tables import (
    CELL_COLUMNS,
    DIFFERENCES,
    OFFICIAL_COLUMNS,
    ROW_COLUMNS,
    Results,
    Tables,
    make_tables,
    readable,
    screen_table,
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
    max_epochs=15,
    seconds=61.5,
    weights="none",
    recipe_settings="",
    not_applied=(),
    data_note=None,
    md5="0" * 32,
    made_with=(("commit", "abc"), ("torch", "2.6"), ("device", "cpu"), ("precision", "fp32")),
)


def result(accuracy: float | None = 0.96, **changes: object) -> CellResult:
    figures = {"plain": {"accuracy": accuracy, "auc": 0.997, "macro_f1": 0.95}, "tta": RESULT.figures["tta"]}
    return dataclasses.replace(RESULT, **({"figures": figures} | changes))  # type: ignore[arg-type]


def row_of(results: Results, references: dict[str, str] | None = None) -> Any:
    """The only row of a table, with its columns as attributes."""
    (row,) = make_tables(results, references or {}).rows.itertuples()
    return row


def notes_of(results: Results, references: dict[str, str] | None = None) -> tuple[str, ...]:
    return make_tables(results, references or {}).notes


def of_seeds(*accuracies: float | None, dataset: str = "bloodmnist", side: int = 28) -> dict[Cell, CellResult | None]:
    return {
        Cell(dataset, side, seed): result(accuracy, width=side, height=side)
        for seed, accuracy in enumerate(accuracies, start=1)
    }


def test_mean_and_standard_deviation_are_those_of_a_sample():
    tables = make_tables(of_seeds(0.94, 0.95, 0.96), {})  # squared distances 1e-4, 0, 1e-4; over n - 1 = 2
    row = tables.rows.loc["bloodmnist_28"]

    assert row["accuracy_plain_mean"] == pytest.approx(0.95, abs=1e-15)
    assert row["accuracy_plain_sd"] == pytest.approx(0.01, abs=1e-15)
    assert readable(tables)["ACC"].tolist() == ["0.9500 ± 0.0100"]


def test_one_seed_has_no_deviation_and_an_undefined_value_leaves_no_mean():
    assert readable(make_tables(of_seeds(0.25), {}))["ACC"].tolist() == ["0.2500"]
    assert readable(make_tables(of_seeds(0.5, None), {}))["ACC"].tolist() == ["–"]
    assert readable(make_tables({Cell("bloodmnist", 28, 1): None}, {}))["ACC"].tolist() == ["–"]


def test_a_row_where_one_seed_has_no_tta_has_no_mean_with_tta():
    results = of_seeds(0.5, 0.7) | {Cell("bloodmnist", 28, 3): result(figures={"plain": RESULT.figures["plain"]})}
    row = row_of(results)

    assert row.accuracy_plain_mean == pytest.approx(0.72)
    assert np.isnan(row.accuracy_tta_mean)


def test_the_difference_is_to_the_official_value_at_the_same_number_of_pixels():
    # the official table has 0.958 at 28 and 0.963 at 224
    at = {side: row_of(of_seeds(0.95, 0.97, side=side)).accuracy_difference for side in (28, 64, 128, 224)}

    assert at[28] == pytest.approx(0.002)
    assert at[224] == pytest.approx(-0.003)
    assert np.isnan(at[64])
    assert np.isnan(at[128])


def test_a_row_lists_its_seeds_and_what_is_missing():
    tables = make_tables(of_seeds(0.95, None) | {Cell("bloodmnist", 28, 3): None}, {})
    row = tables.rows.loc["bloodmnist_28"]

    assert row["seeds"] == "1 2"
    assert row["seeds_planned"] == 3
    assert np.isnan(row["accuracy_plain_mean"])  # one of its seeds has none
    assert readable(tables)["ACC, TTA"].tolist() == ["0.9700 ± 0.0000"]
    assert "Only 2 of 3 seeds are finished." in tables.notes
    assert tables.cells["state"].tolist() == ["finished", "finished", "unfinished"]


def test_rows_are_in_the_order_of_their_cells_and_keep_their_own_figures():
    results = {
        Cell(name, 28, seed): result(value + seed / 10)
        for seed in (2, 1)
        for name, value in (("pathmnist", 0.5), ("bloodmnist", 0.7))
    }
    rows = make_tables(results, {}).rows

    assert rows["dataset"].tolist() == ["pathmnist", "bloodmnist"]
    assert rows["seeds"].tolist() == ["2 1", "2 1"]
    assert rows["accuracy_plain_mean"].tolist() == pytest.approx([0.65, 0.85])


def test_a_row_without_a_finished_cell_is_there_and_empty():
    row = row_of({Cell("bloodmnist", 64, 1): None})

    assert (row.title, row.pixels, row.seeds) == ("BloodMNIST", "64", "")
    assert np.isnan(row.accuracy_plain_mean)
    assert row.official_accuracy_28 == OFFICIAL["bloodmnist"].accuracy_28


def notes(cell: Cell, found: CellResult, references: dict[str, str] | None = None) -> str:
    return " ".join(notes_of({cell: found}, references))


@pytest.mark.parametrize(
    ("cell", "changes", "note"),
    [
        (Cell("bloodmnist", 28, 1), {}, "A single seed"),
        (Cell("bloodmnist", 28, 1), {"weights": "imagenet"}, "Started from ImageNet weights; the official"),
        (Cell("bloodmnist", 28, 1), {"weights": "w.pth"}, "Started from the weights of a file (--weights);"),
        (Cell("bloodmnist", 28, 1), {"max_epochs": 1}, "At most 1 epoch; the official"),
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
def test_what_makes_a_row_unequal_is_named(cell, changes, note):
    assert note in notes(cell, result(**changes))


def test_what_is_equal_is_not_called_unequal():
    assert notes_of(of_seeds(0.95, 0.96)) == ("At most 15 epochs; the official networks were trained for 100.",)


@pytest.mark.parametrize("epochs", [99, 100, 101])
def test_as_many_epochs_as_the_official_networks_had_are_no_inequality(epochs):
    found = notes_of({cell: result(max_epochs=epochs) for cell in of_seeds(0.95, 0.96)})
    unequal = f"At most {epochs} epochs; the official networks were trained for 100."
    assert found == (() if epochs == 100 else (unequal,))


def read_with(folder: Path, **settings: float | str) -> CellResult:
    """The result of a run to which these settings were applied."""
    content = summary(dataclasses.replace(Config(dataset="toy.npz"), **settings))  # type: ignore[arg-type]
    (folder / "summary.json").write_text(json.dumps(content))
    return read_result(RunPaths(folder))


def test_augmentation_that_was_not_applied_is_noted_in_the_row_and_claimed_nowhere(tmp_path):
    organs, blood = Cell("organamnist", 28, 1), Cell("bloodmnist", 28, 1)
    tables = make_tables({organs: read_with(tmp_path, hflip=0.0), blood: read_with(tmp_path)}, {})

    is_noted = tables.rows["notes"].str.contains("No image was flipped in training.", regex=False)
    assert is_noted.tolist() == [True, False]
    text = results_markdown(tables, "")
    assert "flips, rotation, jitter and MixUp, except for what a row's notes leave out;" in text
    for settings, sentence in (
        ({"rotation_angle": 0}, "No image was rotated in training."),
        ({"jitter_val": 0.0}, "Brightness and contrast were not changed in training."),
        ({"mixup_alpha": 0.0}, "No images were mixed (MixUp) in training."),
    ):
        assert read_with(tmp_path, **settings).not_applied == (sentence,)


def test_with_all_symmetries_images_are_flipped_and_rotated_and_without_any_they_are_not(tmp_path):
    flips, rotations = "No image was flipped in training.", "No image was rotated in training."

    assert read_with(tmp_path, symmetries="all", hflip=0.0, rotation_angle=0).not_applied == ()
    assert read_with(tmp_path, symmetries="none").not_applied == (flips,)
    assert read_with(tmp_path, rotation_prob=0.0).not_applied == (rotations,)


def test_a_row_of_another_recipe_lists_what_the_recipe_sets_as_it_was_applied(tmp_path):
    settings: dict[str, Any] = dict(RECIPES["strong"].settings(60))
    cell = Cell("bloodmnist", 28, 1, recipe="strong")
    found = read_with(tmp_path, recipe="strong", **{**settings, "lr": 0.05})

    assert f"Recipe strong: {found.recipe_settings}." in notes_of({cell: found})
    assert "--lr 0.05" in found.recipe_settings
    assert found.recipe_settings.count("--") == len(settings)
    assert read_with(tmp_path).recipe_settings == ""


def test_a_summary_that_is_older_than_a_setting_is_read(tmp_path):
    content = summary(Config(dataset="toy.npz"))
    del content["config"]["recipe"], content["config"]["symmetries"]  # type: ignore[attr-defined, index]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert read_result(RunPaths(tmp_path)) == read_with(tmp_path)


def test_official_values_stand_only_beside_the_backbone_that_they_are_of():
    rows = {backbone: Cell("organamnist", 28, 1, backbone) for backbone in ("resnet18", "resnet50")}
    tables = make_tables({cell: result() for cell in rows.values()}, {})

    official, other = (tables.rows.loc[cell.row] for cell in rows.values())
    assert official["official_accuracy_28"] == OFFICIAL["organamnist"].accuracy_28
    assert other[[*OFFICIAL_COLUMNS, *DIFFERENCES]].isna().all()
    assert "The official values here are those of ResNet-18: none for another backbone." in other["notes"]
    assert "blank samples" not in other["notes"]  # what is not compared needs no reason for being unequal
    own, references = Cell("pbc28.npz", None, 1, "resnet50"), {"pbc28": "bloodmnist"}
    assert row_of({own: result()}, references).official_accuracy_28 is None
    drawn = {Cell("synthblood", None, 1, "resnet50"): result(data_note="Drawn: no medical result.")}
    assert "Drawn: no medical result." in notes_of(drawn)


def of_backbones_and_recipes(*backbones: str, recipes: tuple[str, ...] = ("seed", "strong")) -> Tables:
    """One set with two seeds: accuracies 0.5 and 0.6, then 0.1 more in each next row."""
    cells = make_cells(["bloodmnist"], [28], [1, 2], backbones, recipes)
    numbers = {row: number for number, row in enumerate(dict.fromkeys(cell.row for cell in cells))}
    return make_tables({cell: result(0.4 + (numbers[cell.row] + cell.seed) / 10) for cell in cells}, {})


def test_mean_and_deviation_are_over_the_seeds_of_one_backbone_and_recipe():
    rows = of_backbones_and_recipes("resnet18", "resnet50").rows

    assert rows[["backbone", "recipe"]].to_numpy().tolist() == [
        ["resnet18", "seed"],
        ["resnet18", "strong"],
        ["resnet50", "seed"],
        ["resnet50", "strong"],
    ]
    assert rows["seeds_finished"].tolist() == [2, 2, 2, 2]
    assert rows["accuracy_plain_mean"].tolist() == pytest.approx([0.55, 0.65, 0.75, 0.85])
    assert rows["accuracy_plain_sd"].tolist() == pytest.approx(4 * [0.1 / 2**0.5])


@pytest.mark.parametrize(
    ("backbones", "recipes", "columns"),
    [
        (("resnet18",), ("seed",), []),
        (("resnet50",), ("strong",), []),
        (("resnet18", "resnet50"), ("strong",), ["Backbone"]),
        (("resnet18",), ("seed", "strong"), ["Recipe"]),
        (("resnet18", "resnet50"), ("seed", "strong"), ["Backbone", "Recipe"]),
    ],
)
def test_a_backbone_or_recipe_is_displayed_only_where_there_are_several(backbones, recipes, columns, tmp_path):
    tables = of_backbones_and_recipes(*backbones, recipes=recipes)
    write_suite_reports(tmp_path, tables, "")

    shown = [*readable(tables).columns]
    assert shown[: shown.index("Seeds")] == ["Data set", "Pixels", *columns]
    header = [cell.value for cell in load_workbook(tmp_path / "results.xlsx")["Results"][3]]
    assert header[: header.index("Seeds")] == ["Data set", "Pixels", *columns]
    labels = [text.get_text() for text in draw_results(tables, "").axes[0].get_yticklabels()]
    expected = {"Backbone": backbones, "Recipe": recipes}
    assert labels == [
        "\n".join(["BloodMNIST", *filter(None, [", ".join(values)]), "28 px, 2 of 2 seeds"])
        for values in product(*(expected[column] for column in columns))
    ]


def test_own_data_can_be_compared_with_the_official_values_of_a_set():
    cell, references = Cell("there/PBC28.npz", None, 1), {"pbc28": "bloodmnist"}
    row = row_of({cell: result(0.968)}, references)

    assert row.official_accuracy_28 == OFFICIAL["bloodmnist"].accuracy_28
    assert row.accuracy_difference == pytest.approx(0.01)
    assert (
        "Own data compared with the official values of BloodMNIST: not the same images, or not the same split."
        in row.notes
    )
    assert row_of({cell: result()}).official_accuracy_28 is None
    # the blank samples concern the official set only
    assert "blank samples" not in notes(cell, result(), {"pbc28": "organamnist"})


def test_an_own_file_with_the_name_of_a_set_is_not_compared_with_it():
    assert row_of({Cell("mine/bloodmnist.npz", None, 1): result()}).official_accuracy_28 is None


def test_seeds_that_were_trained_differently_are_noted():
    other = tuple((name, "2.11" if name == "torch" else value) for name, value in RESULT.made_with)
    found = notes_of({Cell("bloodmnist", 28, 1): result(), Cell("bloodmnist", 28, 2): result(made_with=other)})
    assert "Its seeds were trained differently: torch 2.6, 2.11." in found


def test_the_same_note_has_the_same_number_in_every_row():
    tables = make_tables(of_seeds(0.95) | of_seeds(0.8, dataset="organamnist"), {})

    assert len(tables.notes) == 3  # a single seed, epochs; and then the blank samples
    assert readable(tables)["notes"].tolist() == ["1, 2", "1, 2, 3"]


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
    assert (found.title, found.max_epochs, found.weights) == ("toy", 3, "imagenet")

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


@pytest.fixture(scope="module")
def matrix() -> Tables:
    """Two sets at two resolutions with three seeds, of which the last cell is not finished."""
    results: dict[Cell, CellResult | None] = {}
    for number, cell in enumerate(make_cells(["bloodmnist", "retinamnist"], [28, 224], [1, 2, 3])):
        side = cell.resolution or 28
        title = DATASET_REGISTRY[cell.dataset].title
        results[cell] = result(0.9 + number / 1000, title=title, width=side, height=side)
    results[list(results)[-1]] = None
    return make_tables(results, {})


@pytest.fixture(scope="module")
def written(matrix: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of the matrix."""
    folder = tmp_path_factory.mktemp("suite")
    write_suite_reports(folder, matrix, "--epochs 15")
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_csv_files_are_tidy_and_hold_the_figures_in_full(written):
    cells, rows = read_csv(written / "cells.csv"), read_csv(written / "results.csv")

    assert (list(cells[0]), list(rows[0])) == (CELL_COLUMNS, ROW_COLUMNS)
    assert len(cells) == 12
    assert len(rows) == 4
    assert cells[1]["dataset"] == "bloodmnist"
    assert cells[1]["resolution"] == "224"
    assert cells[1]["accuracy_plain"] == "0.901"
    assert (cells[1]["test_images"], cells[1]["best_epoch"], cells[1]["data_md5"]) == ("3421", "12", "0" * 32)
    assert (cells[-1]["state"], cells[-1]["accuracy_plain"]) == ("unfinished", "")
    assert [row["seeds"] for row in rows] == ["1 2 3", "1 2 3", "1 2 3", "1 2"]
    assert [row["pixels"] for row in rows] == ["28", "224", "28", "224"]
    assert float(rows[0]["accuracy_plain_mean"]) == pytest.approx(0.904)  # of 0.900, 0.904 and 0.908
    assert float(rows[0]["accuracy_plain_sd"]) == pytest.approx(0.004)
    assert float(rows[0]["official_accuracy_28"]) == 0.958
    assert float(rows[0]["accuracy_difference"]) == pytest.approx(0.904 - 0.958)
    assert not any("seconds" in name for name in (*cells[0], *rows[0]))  # the same figures give the same bytes


def test_the_markdown_table_has_a_cell_for_every_column_and_names_what_is_missing(written):
    text = (written / "results.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]

    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    assert "| BloodMNIST | 28 | 3 | 0.9040 ± 0.0040 | 0.9970 ± 0.0000 |" in table[2]
    assert "| 0.958 / 0.963 | 0.998 / 0.998 | −0.0540 | −0.0010 | 1 |" in table[2]
    assert "Not finished: retinamnist_224_seed3." in text
    assert "`--epochs 15`" in text
    assert "1. At most 15 epochs" in text
    assert "test-time augmentation" in text


def test_a_pipe_in_a_name_does_not_break_the_table():
    tables = make_tables({Cell("a|b.npz", None, 1): result(title="a|b")}, {})
    (_, _, line) = [line for line in results_markdown(tables, "").splitlines() if "|" in line]
    assert line.startswith("| a\\|b |")


def test_the_screen_gets_aligned_columns_and_the_notes(matrix):
    lines = screen_table(matrix)

    assert len({line.index("0.958 / 0.963") for line in lines if "BloodMNIST" in line}) == 1
    assert lines[0].startswith("Data set ")
    assert not any("macro-F1" in line for line in lines)
    assert lines[-1].startswith(f"{len(matrix.notes)}: ")


def test_every_file_is_written_and_opens(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "cells.csv",
        "results.csv",
        "results.md",
        "results.png",
        "results.xlsx",
    ]
    book = load_workbook(written / "results.xlsx")
    assert book.sheetnames == ["Results", "Cells", "Notes"]
    header = [cell.value for cell in book["Results"][3]]
    first = dict(zip(header, (cell.value for cell in book["Results"][4]), strict=True))
    assert first["Data set"] == "BloodMNIST"
    assert first["Accuracy, without TTA"] == pytest.approx(0.904)
    assert first["difference ACC"] == pytest.approx(0.904 - 0.958)
    assert (first["Pixels"], first["Seeds"], first["Notes"]) == (28, 3, "1")
    cells = [[cell.value for cell in line] for line in book["Cells"].iter_rows(min_row=4)]
    assert len(cells) == 12
    assert cells[0][-2] == 61.5
    assert cells[-1][:2] == ["retinamnist_224_seed3", "unfinished"]
    with Image.open(written / "results.png") as figure:
        assert figure.height > 4 * 84


def test_a_name_that_starts_like_a_formula_stays_text_in_the_workbook(tmp_path):
    tables = make_tables({Cell("x.npz", None, 1): result(title="=1+1")}, {})
    write_suite_reports(tmp_path, tables, "=2+2")
    book = load_workbook(tmp_path / "results.xlsx")

    assert book["Results"]["A4"].value == "=1+1"
    assert "f" not in {cell.data_type for sheet in book for line in sheet.iter_rows() for cell in line}


def legend_of(tables: Tables) -> tuple[list[str], str]:
    """The entries of a figure's legend, and the text of its heading."""
    figure = draw_results(tables, "")
    entries = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return entries, " ".join(text.get_text() for text in figure.texts)


def test_the_figure_names_official_values_only_where_there_are_some(matrix):
    own = make_tables({Cell("cells.npz", None, seed): result(0.9 + seed / 100) for seed in (1, 2)}, {})
    entries, heading = legend_of(own)
    assert entries == ["mean without TTA", "mean with TTA", "one seed"]
    assert "ResNet-18" not in heading

    entries, heading = legend_of(matrix)
    assert entries[3:] == ["official ResNet-18, 28", "official ResNet-18, 224 (enlarged from 28)"]
    assert "ResNet-18 of the MedMNIST v2 table" in heading


def test_the_legend_has_only_what_is_drawn():
    single = make_tables({Cell("cells.npz", None, 1): result(figures={"plain": RESULT.figures["plain"]})}, {})
    entries, heading = legend_of(single)
    assert entries == ["mean without TTA"]
    assert "standard deviation" not in heading
    assert not any(axes.collections for axes in draw_results(single, "").axes)  # no bars
    assert all(axes.collections for axes in draw_results(make_tables(of_seeds(0.9, 0.95), {}), "").axes)


def test_equal_official_values_hide_neither_mark():
    figure = draw_results(make_tables(of_seeds(0.9, 0.95), {}), "")  # AUC: 0.998 at 28 and at 224
    figure.draw_without_rendering()
    (panel,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "AUC"]
    marks = [line for line in panel.lines if line.get_marker() == "D"]
    first, second = (panel.transData.transform(np.asarray(line.get_xydata())[0]) for line in marks)

    assert first[0] == pytest.approx(second[0])
    points = abs(first[1] - second[1]) * 72 / figure.dpi
    assert points > marks[0].get_markersize()


@pytest.mark.parametrize(
    ("number", "backbones"), [(1, ["resnet18"]), (12, ["resnet18"]), (3, ["timm/" + 90 * "x", "b"])]
)
def test_no_text_of_the_figure_covers_another(number, backbones):
    names, recipes = [f"s{row}.npz" for row in range(number)], ["seed", "strong"][: len(backbones)]
    cells = {cell: cell.seed for cell in make_cells(names, [], [1, 2], backbones, recipes)}
    results = {cell: result(0.98 + seed / 200, title=f"{cell.set_name} {'long' * 9}") for cell, seed in cells.items()}
    figure = draw_results(make_tables(results, {"s0": "bloodmnist"}), "--epochs 3")
    figure.draw_without_rendering()

    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        is_in_view = [axes.viewLim.intervalx[0] <= place <= axes.viewLim.intervalx[1] for place in axes.get_xticks()]
        texts += [*compress(axes.get_xticklabels(), is_in_view), *axes.get_yticklabels(), axes.xaxis.label]
    boxes = {text: text.get_window_extent() for text in texts if text.get_visible()}
    assert len(boxes) > 15
    for (one, box), (other, other_box) in combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), (one.get_text(), other.get_text())


def test_the_same_figures_give_the_same_bytes(written, tmp_path):
    results: dict[Cell, CellResult | None] = {}
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        results = {cell: result(seconds=seconds) for cell in of_seeds(0.9, 0.95)}
        write_suite_reports(tmp_path / name, make_tables(results, {}), "")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert {name for name in first if first[name] == second[name]} == {
        "cells.csv",
        "results.csv",
        "results.md",
        "results.png",
    }


@pytest.mark.parametrize("content", [{Cell("bloodmnist", 28, 1): None}, {Cell("x.npz", None, 1): result(None)}])
def test_a_table_with_nothing_in_it_can_be_drawn_and_written(content, tmp_path):
    write_suite_reports(tmp_path, make_tables(content, {}), "")
