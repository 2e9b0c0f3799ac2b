"""The workbook, opened again and read cell by cell."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from scripts.core.config import Config
from scripts.core.errors import StorageError
from scripts.core.paths import RunPaths
from scripts.data_handler.registry import MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation import workbook
from scripts.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, UNDETERMINED
from scripts.evaluation.sheets import clean_text, workbook_writer, write_frame
from scripts.evaluation.style import Caption
from scripts.evaluation.trust import measure_trust
from scripts.evaluation.workbook import write_workbook
from tests.evaluation.conftest import (
    FINISHED,
    LONG_NAME,
    NAMES,
    TOY_DUPLICATES,
    toy_dataset,
    toy_evaluation,
    toy_label_evaluation,
    toy_report,
)

SHEETS = ["Summary", "History", "Per class", "Confusion matrix", "Trust", "Reliability", "Risk and coverage"]
SHEETS += ["Configuration", "Environment", "Figures"]


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch, tmp_path):
    """One small figure, so that tests of sheets draw none."""
    Image.new("RGB", (2000, 500), "blue").save(tmp_path / "curves.png")
    monkeypatch.setattr(
        workbook, "figure_files", lambda _: {"Curves": tmp_path / "curves.png", "Again": tmp_path / "curves.png"}
    )


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbook, "figure_files", lambda _: {})
        return written(tmp_path_factory.mktemp("book"))


def written(folder, **changes):
    """A toy workbook as it is read back."""
    report = toy_report(folder, **changes)
    write_workbook(report)
    return openpyxl.load_workbook(report.paths.workbook)


def sheet_of(folder, frame, **look):
    with workbook_writer(folder / "book.xlsx", "title") as writer:
        write_frame(writer, frame, "Sheet", Caption("a", "b", None), **look)
    return openpyxl.load_workbook(folder / "book.xlsx")["Sheet"]


def facts_of(sheet):
    return {row[0].value: row[1] for row in sheet.iter_rows(min_row=10, max_col=2)}


def values_of(cells):
    return [cell.value for cell in cells]


def test_the_sheets_are_there_in_order(book):
    assert book.sheetnames == SHEETS


def test_the_summary_has_each_figure_with_its_interval_without_and_with_tta(book):
    sheet, evaluation = book["Summary"], toy_evaluation()
    assert (sheet["B3"].value, sheet["E3"].value) == ("Without TTA, 95% interval", "With TTA, 95% interval")
    for row, (title, name, number_format) in enumerate(
        [
            ("Accuracy", "accuracy", "0.00%"),
            ("AUC", "auc", "0.0000"),
            ("Macro-F1", "macro_f1", "0.0000"),
            ("Balanced accuracy", "balanced_accuracy", "0.00%"),
        ],
        start=5,
    ):
        plain, tta = getattr(evaluation.plain, name), getattr(evaluation.tta, name)
        assert values_of(sheet[row])[:7] == [title, plain.value, plain.low, plain.high, tta.value, tta.low, tta.high]
        assert {cell.number_format for cell in sheet[row][1:7]} == {number_format}


def test_the_summary_has_typed_facts(book):
    facts = facts_of(book["Summary"])
    assert {title: cell.value for title, cell in facts.items()}.items() >= {
        "Test images": 30,
        "Right without TTA": 26,
        "Right with TTA": 27,
        "Accuracy of the commonest class": 1 / 3,
        "Duplicates": str(TOY_DUPLICATES),
        "Views of TTA": "plain, flipped",
        "Best epoch": 2,
        "Selected by": "validation accuracy",
        "Best validation accuracy": 0.9,
        "Validation AUC of that epoch": 0.75,
        "Stopped early": False,
        "Finished": FINISHED,
        "Training time": timedelta(hours=1, minutes=2, seconds=5),
        "Seed": 42,
        "Image size, width × height": "28 × 28, RGB",
    }.items()
    assert facts["Best validation accuracy"].number_format == "0.00%"
    assert type(facts["Stopped early"].value) is bool


def test_without_tta_there_is_no_column_for_it(tmp_path):
    book = written(tmp_path, evaluation=toy_evaluation(tta=False))
    assert book["Summary"]["E3"].value is None
    assert values_of(book["Per class"][4]) == ["Class", "Test images", "Precision", "Recall", "F1", "AUC"]
    assert facts_of(book["Summary"])["Views of TTA"].value == "none: test-time augmentation was off"


def test_the_history_has_a_typed_row_per_epoch_and_marks_the_best(book):
    rows = list(book["History"].iter_rows(min_row=4))
    assert [values_of(row) for row in rows] == [
        [1, 1.5, 1.25, 0.5, "–", 0.008, "–", 2.5, True],
        [2, 0.75, 0.625, 0.9, 0.75, 0.004, 1234.5, 2.5, True],
        [3, 0.5, pytest.approx(1.25 / 3), 0.5, 0.75, pytest.approx(0.008 / 3), 1234.5, 2.5, False],
    ]
    assert [row[0].font.bold for row in rows] == [False, True, False]
    assert rows[1][0].fill.fgColor.rgb != rows[0][0].fill.fgColor.rgb
    assert (rows[0][3].number_format, rows[0][5].number_format) == ("0.00%", "0.00E+00")
    assert [type(cell.value) for cell in rows[0]][-1] is bool


def test_each_class_has_its_figures(book):
    plain, tta = toy_evaluation().plain.per_class[1], toy_evaluation().headline.per_class[1]
    figures = [getattr(one, name) for one in (plain, tta) for name in ("precision", "recall", "f1", "auc")]
    assert values_of(book["Per class"][6]) == [LONG_NAME, 10, *figures]


def test_the_confusion_matrix_is_there_in_counts_and_shares(book):
    sheet, headline = book["Confusion matrix"], toy_evaluation().headline
    rows = [values_of(row) for row in sheet.iter_rows(min_row=5, max_row=7)]
    assert [row[1:4] for row in rows] == headline.confusion.tolist()
    assert [row[5:8] for row in rows] == headline.confusion_by_row.tolist()
    assert [row[0] for row in rows] == list(NAMES)
    assert values_of(sheet[4])[:4] == ["True class", *NAMES]
    assert (sheet["B5"].number_format, sheet["F5"].number_format) == ("#,##0", "0.00%")
    assert sorted(str(scale.sqref) for scale in sheet.conditional_formatting) == ["B5:D7", "F5:H7"]


def test_the_trust_sheets_have_calibration_bins_and_risks(book):
    plain, tta = (variant.trust for variant in toy_evaluation().variants)
    parts = [part for trust in (plain, tta) for part in (trust.calibration.before, trust.calibration.after)]
    sheet = book["Trust"]
    assert (sheet["B3"].value, sheet["D3"].value) == ("Without TTA, temperature", "With TTA, temperature")
    assert values_of(sheet[4]) == ["Test split", "before", "after", "before", "after"]
    areas = [plain.risk_coverage.area, "–", tta.risk_coverage.area, "–"]
    for row, title, figures in (
        (5, "Temperature", [1, 1.5, 1, 0.8]),
        (6, "Expected calibration error", [part.ece for part in parts]),
        (7, "Negative log-likelihood", [part.nll for part in parts]),
        (8, "Brier score", [part.brier for part in parts]),
        (9, "Area under risk and coverage", areas),
    ):
        assert sheet.cell(row, 1).value == title
        shown = ["–" if figure == "–" else pytest.approx(figure, abs=1e-15) for figure in figures]
        assert values_of(sheet[row])[1:] == shown
        assert sheet.cell(row, 2).number_format == "0.0000"

    bins = parts[0].reliability
    row = int(np.flatnonzero(bins.counts)[0])
    cells = values_of(book["Reliability"][5 + row])
    edges = [row / 15, (row + 1) / 15]
    assert cells[:5] == pytest.approx([*edges, bins.counts[row], bins.confidence[row], bins.accuracy[row]], abs=1e-15)
    assert (cells[5], cells[6]) == (0, "–")  # calibrated, no confidence is as high
    assert book["Reliability"].max_row == 4 + 15

    risks = [values_of(row) for row in book["Risk and coverage"].iter_rows(min_row=4)]
    assert [row[0] for row in risks] == [percent / 100 for percent in range(5, 101, 5)]
    assert risks[-1][1:] == pytest.approx([4 / 30, 3 / 30])


@pytest.mark.parametrize(
    ("temperature", "note"),
    [
        (UNDETERMINED, "undetermined, as no decision is wrong"),
        (MIN_TEMPERATURE, "at the bound of the search"),
        (MAX_TEMPERATURE, "at the bound of the search"),
    ],
)
def test_a_temperature_that_is_undetermined_or_at_a_bound_is_noted(tmp_path, temperature, note):
    evaluation = toy_evaluation(tta=False)
    trust = measure_trust(evaluation.labels, evaluation.plain_scores, temperature, MULTI_CLASS)
    book = written(tmp_path, evaluation=replace(evaluation, plain_trust=trust))
    assert facts_of(book["Summary"])["Note"].value == f"The temperature without TTA is {note}."


def test_beyond_a_hundred_classes_the_largest_confusions_are_listed(tmp_path):
    names = [f"class {index}" for index in range(101)]
    evaluation = toy_evaluation(num_images=202, names=names, wrong=103)  # 102 with TTA: twice 0 → 1
    book = written(tmp_path, dataset=toy_dataset(names=names), evaluation=evaluation)
    sheet = book["Confusion matrix"]
    assert sheet["A3"].value == "The 101 largest confusions of 101 classes; a matrix would be too large"
    assert values_of(sheet[4]) == ["True class", "Predicted class", "Images", "Share of the true class"]
    assert values_of(sheet[5]) == ["class 0", "class 1", 2, 1.0]
    assert values_of(sheet[6]) == ["class 1", "class 2", 1, 0.5]
    assert book["Per class"].max_row == 105


def test_an_ordinal_task_has_its_kappa_and_its_error(tmp_path):
    evaluation = toy_evaluation(task=ORDINAL)
    sheet = written(tmp_path, evaluation=evaluation, dataset=toy_dataset(task=ORDINAL))["Summary"]
    for row, (title, name) in enumerate(
        [
            ("Quadratic-weighted kappa", "quadratic_weighted_kappa"),
            ("Mean absolute error, classes", "mean_absolute_error"),
        ],
        start=9,
    ):
        plain, tta = getattr(evaluation.plain, name), getattr(evaluation.tta, name)
        figures = [plain.value, plain.low, plain.high, tta.value, tta.low, tta.high]
        assert sheet.cell(row, 1).value == title
        assert values_of(sheet[row])[1:7] == pytest.approx(figures, abs=1e-15)  # a cell has 16 digits
        assert sheet.cell(row, 2).number_format == "0.0000"
    assert (sheet["A11"].value, sheet["A12"].value) == (None, "Test images")


def test_several_labels_have_their_counts_instead_of_a_confusion_matrix(tmp_path):
    evaluation = toy_label_evaluation(wrong=3)
    book = written(tmp_path, evaluation=evaluation, dataset=toy_dataset(task=MULTI_LABEL))
    changed = {"Per class": "Per label", "Confusion matrix": "Right and wrong per label"}
    assert book.sheetnames == [changed.get(title, title) for title in SHEETS]
    assert values_of(book["Per label"][4])[:3] == ["Label", "Test images", "Precision"]
    sheet = book["Right and wrong per label"]
    titles = ["True positives", "False positives", "False negatives", "True negatives"]
    assert values_of(sheet[4]) == ["Label", "Test images", *titles, *titles]
    assert (sheet["C3"].value, sheet["G3"].value) == ("Without TTA", "With TTA")
    # of 30 images 12 have the first label; image 0 lost it to the third, image 2 gained it, but not with TTA
    assert values_of(sheet[5]) == [NAMES[0], 12, 11, 1, 1, 17, 11, 0, 1, 18]
    facts = facts_of(book["Summary"])
    assert facts["Right in every label without TTA"].value == 27
    assert facts["Right in every label with TTA"].value == 28
    assert facts["Labels"].value == 3


def test_an_undefined_figure_is_a_dash(tmp_path):
    book = written(tmp_path, evaluation=toy_evaluation(num_images=2, wrong=0))
    assert values_of(book["Per class"][7])[:6] == ["platelet", 0, "–", "–", "–", "–"]
    assert book["Confusion matrix"]["F7"].value == "–"
    assert facts_of(book["Summary"])["Note"].value.startswith("No image of this split is of class 'platelet'")


def test_the_configuration_has_every_setting_as_applied(book):
    rows = {row[0].value: row for row in book["Configuration"].iter_rows(min_row=4)}
    assert list(rows) == [f"--{name}" for name in Config().as_dict()]
    assert values_of(rows["--lr"])[1:3] == [0.05, 0.008]
    assert rows["--no_tta"][1].value is True
    assert rows["--epochs"][1].value == 3
    assert rows["--data_dir"][1].value == "dataset"
    # settings that differ from their defaults are marked
    changed = {name for name, row in rows.items() if row[1].fill.fill_type == "solid"}
    assert changed == {"--epochs", "--dataset", "--no_tta", "--lr"}


def test_the_environment_is_flat(book):
    rows = [values_of(row) for row in book["Environment"].iter_rows(min_row=4)]
    assert rows == [["device", "cpu"], ["cuda", "–"], ["packages / numpy", "2.4"], ["memory_bytes", 25_000_000_000]]


@pytest.mark.parametrize(("title", "header_row"), [*zip(SHEETS, (4, 3, 4, 4, 4, 4, 3, 3, 3), strict=False)])
def test_headers_are_bold_and_frozen_and_columns_wide_enough(book, title, header_row):
    sheet = book[title]
    assert sheet.freeze_panes == f"B{header_row + 1}"
    assert all(cell.font.bold for cell in sheet[header_row] if cell.value)
    assert all(dimension.width >= 10 for dimension in sheet.column_dimensions.values() if dimension.width != 4)


def test_every_sheet_says_where_it_comes_from_and_shows_the_note(tmp_path, book):
    noted = written(tmp_path, dataset=toy_dataset(note="synthetic: no medical result"))
    for title in SHEETS:
        assert book[title]["A1"].value == "Toy cells · ResNet-18 Adapted"
        assert book[title]["A2"].value is None
        assert noted[title]["A2"].value == "synthetic: no medical result"


def test_figures_are_embedded_at_a_readable_size_in_their_proportions(tmp_path):
    sheet = written(tmp_path)["Figures"]
    assert [cell.value for cell in sheet["A"] if cell.value][1:] == ["Curves", "Again"]
    first, second = sheet._images
    extent = first.anchor.ext
    assert (extent.width // 9525, extent.height // 9525) == (1000, 250)  # English Metric Units per pixel
    first_row, second_row = first.anchor._from.row, second.anchor._from.row
    assert (second_row - first_row) * 20 >= 250
    with Image.open(io.BytesIO(first._data())) as image:
        assert image.size == (2000, 500)


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "=1+1"])
def test_text_never_becomes_a_formula(tmp_path, text):
    sheet = sheet_of(tmp_path, pd.DataFrame({text: [text]}))
    for cell in (sheet["A3"], sheet["A4"]):
        assert (cell.value, cell.data_type, cell.quotePrefix) == (text, "s", True)


def test_text_that_xml_cannot_hold_does_no_harm(tmp_path):
    texts = ["bell\x07", "half a pair \ud83d", "last\ufffe"]
    sheet = sheet_of(tmp_path, pd.DataFrame({"a\x00b": texts}, dtype=object))
    assert values_of(sheet["A"])[2:] == ["a\ufffdb", "bell\ufffd", "half a pair \ufffd", "last\ufffd"]


def test_ordinary_text_stays_as_it_is():
    assert clean_text("naïve 細胞 🙂\tx\ny") == "naïve 細胞 🙂\tx\ny"


def test_numbers_stay_numbers_and_long_texts_get_room(tmp_path):
    frame = pd.DataFrame({"text": ["x" * 90, "y"], "number": [1, 2.5], "flag": [True, None]}, dtype=object)
    sheet = sheet_of(tmp_path, frame, formats=[None, "0.000", None], widths=[34, 12, 12])
    assert [values_of(row)[1:] for row in sheet.iter_rows(min_row=4)] == [[1, True], [2.5, "–"]]
    assert sheet["B5"].number_format == "0.000"
    assert sheet.row_dimensions[4].height == 45


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    report = toy_report(tmp_path)
    with pytest.raises(StorageError):
        write_workbook(replace(report, paths=RunPaths(tmp_path / "missing")))
