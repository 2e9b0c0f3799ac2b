"""All reports of a run: complete, in agreement, and named as they are."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import openpyxl
import pytest

from scripts.core.config import Config
from scripts.data_handler.registry import BINARY, MULTI_LABEL, ORDINAL
from scripts.evaluation import reports, style
from scripts.evaluation.reports import write_reports
from tests.evaluation.conftest import NAMES, toy_dataset, toy_evaluation, toy_label_evaluation, toy_report

NOTE = "synthetic: no medical result"


def refuse_constants(name):
    raise AssertionError(f"{name} is not JSON")


def report(folder, **changes):
    """Reports of a toy run, and where they are."""
    run_report = toy_report(folder, **changes)
    written, paths = write_reports(run_report), run_report.paths
    return paths, written, json.loads(paths.summary.read_text(encoding="utf-8"), parse_constant=refuse_constants)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return report(tmp_path_factory.mktemp("run"), dataset=toy_dataset(note=NOTE))


def test_every_report_is_written_and_returned(finished_run):
    paths, written, _ = finished_run
    assert all(path.is_file() for path in written)
    card = {paths.best_model_card}
    assert set(written) | card == {path for path in paths.root.rglob("*") if path.is_file()}
    assert {path.name for path in paths.figures.iterdir()} == {
        "confusion_matrix.png",
        "dataset_samples.png",
        "reliability.png",
        "risk_and_coverage.png",
        "sample_predictions.png",
        "training_curves.png",
    }
    # of 30 images 26 are right without TTA, 27 with it
    (plain,), (tta,) = (list(paths.reports.glob(f"toy_test_[[]AUC]*@{run}.csv")) for run in ("plain", "tta"))
    assert "[ACC]0.867@" in plain.name
    assert "[ACC]0.900@" in tta.name


def test_every_file_that_the_summary_names_exists_and_none_is_missing(finished_run):
    paths, written, summary = finished_run
    named = {paths.root / name for name in summary["files"]}
    assert named == {*written, paths.best_model_card} - {paths.summary}


def test_files_of_earlier_steps_are_named_where_they_are(tmp_path):
    run_report = toy_report(tmp_path)
    run_report.paths.best_model.write_bytes(b"weights")
    write_reports(run_report)
    files = json.loads(run_report.paths.summary.read_text(encoding="utf-8"))["files"]
    assert "models/best_model.pth" in files
    assert "history.jsonl" not in files


def test_the_summary_has_what_a_program_wants(finished_run):
    _, _, summary = finished_run
    plain, tta = summary["test"]["plain"], summary["test"]["tta"]
    evaluation = toy_evaluation()
    assert summary["test"]["headline"] == "tta"
    assert summary["test"]["num_images"] == 30
    assert summary["test"]["views"] == ["plain", "flipped"]
    assert plain["accuracy"]["value"] == pytest.approx(26 / 30)
    assert tta["accuracy"]["value"] == pytest.approx(27 / 30)
    assert (plain["num_correct"], tta["num_correct"]) == (26, 27)
    assert set(plain["auc"]) == {"value", "low", "high"}
    assert plain["confusion"] == evaluation.plain.confusion.tolist()
    assert tta["macro_f1"]["low"] == evaluation.headline.macro_f1.low
    assert tta["confusion"] == evaluation.headline.confusion.tolist()
    assert tta["confusion_by_row"] == evaluation.headline.confusion_by_row.tolist()
    assert [of_class["name"] for of_class in plain["per_class"]] == list(NAMES)
    assert summary["training"] == {
        "epochs": 3,
        "epochs_at_most": 3,
        "best_epoch": 2,
        "monitor": "accuracy",
        "best_val_accuracy": 0.9,
        "best_val_auc": 0.75,
        "best_val_loss": 0.625,
        "stopped_early": False,
        "seconds": 3725.4,
    }
    assert summary["dataset"]["num_samples"] == {"train": 60, "val": 12, "test": 30}
    assert summary["config"] == Config(epochs=3, dataset="toy.npz", no_tta=True, lr=0.05).as_dict()
    assert summary["finished"] == "2026-01-31T22:15:00"
    assert summary["note"] == NOTE


def test_workbook_and_summary_have_the_same_figures(finished_run):
    paths, _, summary = finished_run
    sheet = openpyxl.load_workbook(paths.workbook)["Summary"]
    for row, name in enumerate(("accuracy", "auc", "macro_f1", "balanced_accuracy"), start=5):
        figures = [
            summary["test"][variant][name][part] for variant in ("plain", "tta") for part in ("value", "low", "high")
        ]
        assert [cell.value for cell in sheet[row]][1:7] == figures


def test_the_workbook_holds_the_figures(finished_run):
    paths, _, _ = finished_run
    with zipfile.ZipFile(paths.workbook) as parts:
        embedded = {parts.read(name) for name in parts.namelist() if name.startswith("xl/media/")}
    assert len(embedded) == len(list(paths.figures.iterdir()))
    sheet = openpyxl.load_workbook(paths.workbook)["Figures"]
    assert (sheet["A2"].value, sheet["A4"].value) == (NOTE, "Training curves")


def test_the_csv_files_hold_the_scores(finished_run):
    paths, _, _ = finished_run
    evaluation = toy_evaluation()
    for run, scores in (("plain", evaluation.plain_scores), ("tta", evaluation.variants[-1].scores)):
        (path,) = paths.reports.glob(f"*@{run}.csv")
        assert np.array_equal(np.loadtxt(path, delimiter=",")[:, 1:], scores)


def test_without_tta_there_is_one_csv_and_the_summary_says_null(tmp_path):
    paths, _, summary = report(tmp_path, evaluation=toy_evaluation(tta=False))
    assert [path.name.split("@")[1] for path in paths.reports.glob("*@*.csv")] == ["plain.csv"]
    assert summary["test"]["tta"] is summary["calibration"]["tta"] is summary["risk_coverage"]["tta"] is None
    assert json.loads(paths.best_model_card.read_text(encoding="utf-8"))["calibration"] == {"plain": 1.5, "tta": None}
    assert summary["test"]["headline"] == "plain"
    assert summary["note"] is None


def test_an_ordinal_task_has_two_figures_more(tmp_path):
    _, _, summary = report(tmp_path, dataset=toy_dataset(task=ORDINAL), evaluation=toy_evaluation(task=ORDINAL))
    plain, figures = summary["test"]["plain"], toy_evaluation(task=ORDINAL).plain
    assert figures.quadratic_weighted_kappa is not None
    assert plain["quadratic_weighted_kappa"] == asdict(figures.quadratic_weighted_kappa)
    # of 30 images the first four are called 1, 2, 0 and 1 instead of 0, 1, 2 and 0
    assert plain["mean_absolute_error"]["value"] == pytest.approx((1 + 1 + 2 + 1) / 30)


def test_several_labels_have_reports_of_their_own(tmp_path):
    evaluation = toy_label_evaluation(wrong=3)
    paths, written, summary = report(tmp_path, dataset=toy_dataset(task=MULTI_LABEL), evaluation=evaluation)
    assert {path.name for path in paths.figures.iterdir()} == {
        "dataset_samples.png",
        "label_figures.png",
        "reliability.png",
        "risk_and_coverage.png",
        "roc_curves.png",
        "sample_predictions.png",
        "training_curves.png",
    }
    assert {paths.root / name for name in summary["files"]} == {*written, paths.best_model_card} - {paths.summary}
    plain = summary["test"]["plain"]
    assert "confusion" not in plain
    assert "confusion_by_row" not in plain
    # of the first label: absent and not said, falsely said; missed, found
    assert plain["confusion_by_label"][0] == [[17, 1], [1, 11]]
    assert plain["num_correct"] == 27
    assert summary["test"]["num_images"] == 30
    assert "quadratic_weighted_kappa" not in plain
    sheet = openpyxl.load_workbook(paths.workbook)["Figures"]
    titles = [cell.value for cell in sheet["A"] if cell.value][1:]
    assert titles[:3] == ["Training curves", "ROC curves", "Label figures"]
    assert titles[3:] == ["Reliability", "Risk and coverage", "Sample predictions", "Dataset samples"]
    (csv,) = paths.reports.glob("*@tta.csv")
    assert np.array_equal(np.loadtxt(csv, delimiter=",")[:, 1:], evaluation.variants[-1].scores)


def test_what_is_undefined_is_null(tmp_path):
    names = ("a", "b")
    one_class = toy_evaluation(num_images=1, names=names, task=BINARY, wrong=0)
    _, _, summary = report(tmp_path, dataset=toy_dataset(names=names, task=BINARY), evaluation=one_class)
    plain = summary["test"]["plain"]
    assert plain["auc"] == {"value": None, "low": None, "high": None}
    assert plain["per_class"][1]["recall"] is None
    assert plain["confusion_by_row"] == [[1.0, 0.0], [None, None]]
    assert plain["notes"] == ["Every image of this split is of class 'a': AUC is undefined."]


def test_hostile_names_reach_every_report_unharmed(tmp_path, caplog):
    names = ("=cmd|' /C calc'!A0", "bell\x07 $x^2$ \udcff", "細胞" * 40)
    dataset = replace(toy_dataset(names=names), source="bytes \udcff.npz", title="$\\frac$ \udcff")
    environment = {"device": "cpu", "figure": float("nan"), "count": np.int64(3)}
    paths, written, summary = report(tmp_path, dataset=dataset, environment=environment)
    assert all(path.stat().st_size > 100 for path in written)
    assert summary["dataset"]["class_names"] == [names[0], "bell\x07 $x^2$ \\udcff", names[2]]
    assert summary["environment"] == {"device": "cpu", "figure": None, "count": 3}
    assert openpyxl.load_workbook(paths.workbook)["Per class"]["A5"].data_type == "s"


def test_names_that_no_font_has_are_named_in_one_warning_and_whole_in_the_workbook(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(style, "font_with", lambda character: style.FONT if character.isascii() else None)
    monkeypatch.setattr(style, "missing_characters", lambda text: {one for one in text if one in "日本"})
    with caplog.at_level("WARNING", logger="medmnist"):
        paths, _, _ = report(tmp_path, dataset=toy_dataset(names=("日本", "b", "c")))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("No installed font has all characters of 日本: figures show numbers")
    assert openpyxl.load_workbook(paths.workbook)["Per class"]["A5"].value == "日本"


def test_a_writer_is_added_by_one_line(tmp_path, monkeypatch):
    def write_text_report(run_report):
        path = run_report.paths.reports / "report.txt"
        path.write_text(f"{run_report.evaluation.headline.num_correct} right", encoding="utf-8")
        return [path]

    monkeypatch.setattr(reports, "WRITERS", (write_text_report,))
    _, written, summary = report(tmp_path)
    assert written[0].read_text(encoding="utf-8") == "27 right"
    assert summary["files"][-1] == "reports/report.txt"


def test_the_card_has_the_test_figures_of_both_variants(finished_run):
    card = json.loads(finished_run[0].best_model_card.read_text(encoding="utf-8"))
    assert list(card["test"]) == ["without TTA", "with TTA"]
    assert card["test"]["without TTA"]["accuracy"] == pytest.approx(26 / 30)
    assert card["architecture"] == "resnet18"
    assert card["calibration"] == {"plain": 1.5, "tta": 0.8}


def test_the_summary_says_how_far_to_trust_the_predictions(finished_run):
    summary, evaluation = finished_run[2], toy_evaluation()
    for variant in evaluation.variants:
        found, facts = variant.trust.calibration, summary["calibration"][variant.key]
        assert facts["temperature"] == found.temperature
        for name, part in (("before", found.before), ("after", found.after)):
            assert facts[name] == {"ece": part.ece, "nll": part.nll, "brier": part.brier}
            bins = facts["reliability"][name]
            assert bins["count"] == part.reliability.counts.tolist()
            assert [value is None for value in bins["accuracy"]] == [count == 0 for count in bins["count"]]
            assert [*bins["above"], 1] == part.reliability.edges.tolist() == [0, *bins["up_to"]]
            assert sum(bins["count"]) == 30
        curve = summary["risk_coverage"][variant.key]
        assert curve["area"] == variant.trust.risk_coverage.area
        assert (curve["coverage"][0], curve["coverage"][-1], len(curve["coverage"])) == (0.05, 1, 20)
        assert curve["risk"][-1] == pytest.approx(1 - variant.metrics.accuracy.value)
        assert len(curve["risk"]) == 20
    assert summary["majority_class_accuracy"] == evaluation.majority_class_accuracy == pytest.approx(1 / 3)
    assert summary["duplicates"] == {
        "within": {"train": 2, "val": 0, "test": 0},
        "across": {"train_val": 0, "train_test": 1, "val_test": 0},
        "contradictory": 1,
    }


def test_the_accuracy_is_logged_beside_that_of_the_commonest_class(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reports, "WRITERS", ())
    with caplog.at_level("INFO", logger="medmnist"):
        report(tmp_path)
    lines = [line for line in caplog.messages if line.startswith("test, ")]
    assert len(lines) == 2
    assert all("] (commonest class 0.3333)  AUC " in line for line in lines)


def test_a_thousand_classes_leave_reports_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "WRITERS", ())
    names = [f"class {index}" for index in range(1000)]
    evaluation = toy_evaluation(num_images=1000, names=names, wrong=1, tta=False)
    paths, _, summary = report(tmp_path, dataset=toy_dataset(names=names), evaluation=evaluation)
    cells = summary["test"]["plain"]["confusion_cells"]
    assert (len(cells), cells[:2]) == (1000, ["0,1,1", "1,1,1"])  # true class, predicted class, images
    assert "confusion" not in summary["test"]["plain"]
    assert paths.summary.stat().st_size < 500_000
