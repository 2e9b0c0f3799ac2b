"""All reports of a run: complete, in agreement, and named as they are."""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import asdict, replace
from datetime import datetime

import numpy as np
import openpyxl
import pytest
from PIL import Image

from scripts.core.config import Config
from scripts.core.files import write_json
from scripts.core.paths import RunPaths
from scripts.data_handler.registry import BINARY, MULTI_LABEL, ORDINAL
from scripts.evaluation.reports import RunReport, write_reports
from tests.evaluation.conftest import (
    NAMES,
    toy_dataset,
    toy_evaluation,
    toy_label_evaluation,
    toy_label_split,
    toy_split,
    toy_training,
)

FINISHED = datetime(2026, 1, 31, 22, 15, 0)
NOTE = "synthetic: no medical result"


def refuse_constants(name):
    raise AssertionError(f"{name} is not JSON")


def report(folder, *, dataset=None, evaluation=None, environment=None):
    """Reports of a toy run, and where they are."""
    dataset, evaluation = dataset or toy_dataset(), evaluation or toy_evaluation()
    paths = RunPaths.create(folder, dataset.key, "resnet18", now=FINISHED)
    num_classes = len(dataset.class_names)
    write_json(paths.best_model_card, {})
    run_report = RunReport(
        paths=paths,
        config=Config(epochs=3),
        dataset=dataset,
        training=toy_training(3, best_epoch=2),
        evaluation=evaluation,
        environment=environment or {"device": "cpu"},
        train=(toy_label_split if dataset.task == MULTI_LABEL else toy_split)(60, num_classes),
        test=toy_split(len(evaluation.labels), num_classes),
        finished=FINISHED,
    )
    return paths, write_reports(run_report), json.loads(paths.summary.read_text(), parse_constant=refuse_constants)


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
    now = datetime(2026, 1, 31, 22, 15, 1)
    paths = RunPaths.create(tmp_path, "toy", "resnet18", now=now)
    paths.best_model.write_bytes(b"weights")
    split, evaluation = toy_split(30, 3), toy_evaluation()
    write_json(paths.best_model_card, {})
    write_reports(
        RunReport(
            paths=paths,
            config=Config(),
            dataset=toy_dataset(),
            training=toy_training(),
            evaluation=evaluation,
            environment={},
            train=split,
            test=split,
            finished=now,
        )
    )
    files = json.loads(paths.summary.read_text())["files"]
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
        "best_val_accuracy": 0.9,
        "best_val_loss": 0.625,
        "stopped_early": False,
        "seconds": 3725.4,
    }
    assert summary["dataset"]["num_samples"] == {"train": 60, "val": 12, "test": 30}
    assert summary["config"] == Config(epochs=3).as_dict()
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


def test_the_workbook_holds_the_four_pictures(finished_run):
    paths, _, _ = finished_run
    with zipfile.ZipFile(paths.workbook) as parts:
        embedded = {parts.read(name) for name in parts.namelist() if name.startswith("xl/media/")}
    assert len(embedded) == len(list(paths.figures.iterdir()))
    sheet = openpyxl.load_workbook(paths.workbook)["Figures"]
    assert (sheet["A2"].value, sheet["A4"].value) == (NOTE, "Training curves")


def test_the_csv_files_hold_the_scores(finished_run):
    paths, _, _ = finished_run
    evaluation = toy_evaluation()
    for run, scores in (("plain", evaluation.plain_scores), ("tta", evaluation.headline_scores)):
        (path,) = paths.reports.glob(f"*@{run}.csv")
        assert np.array_equal(np.loadtxt(path, delimiter=",")[:, 1:], scores)


def test_without_tta_there_is_one_csv_and_the_summary_says_null(tmp_path):
    paths, _, summary = report(tmp_path, evaluation=toy_evaluation(tta=False))
    assert [path.name.split("@")[1] for path in paths.reports.glob("*.csv")] == ["plain.csv"]
    assert summary["test"]["tta"] is None
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
        "roc_curves.png",
        "sample_predictions.png",
        "training_curves.png",
    }
    assert {paths.root / name for name in summary["files"]} == set(written) - {paths.summary}
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
    assert titles == ["Training curves", "ROC curves", "Label figures", "Sample predictions", "Dataset samples"]
    (csv,) = paths.reports.glob("*@tta.csv")
    assert np.array_equal(np.loadtxt(csv, delimiter=",")[:, 1:], evaluation.headline_scores)


def test_what_is_undefined_is_null(tmp_path):
    names = ("a", "b")
    one_class = toy_evaluation(num_images=1, names=names, task=BINARY, wrong=0)
    _, _, summary = report(tmp_path, dataset=toy_dataset(names=names, task=BINARY), evaluation=one_class)
    plain = summary["test"]["plain"]
    assert plain["auc"] == {"value": None, "low": None, "high": None}
    assert plain["per_class"][1]["recall"] is None
    assert plain["confusion_by_row"] == [[1.0, 0.0], [None, None]]
    assert plain["notes"] == ["Every image of this split is of class 'a': AUC is undefined."]


def test_hostile_names_reach_every_report_unharmed(tmp_path):
    names = ("=cmd|' /C calc'!A0", "bell\x07 $x^2$ \udcff", "細胞" * 40)
    dataset = replace(toy_dataset(names=names), source="bytes \udcff.npz", title="$\\frac$ \udcff")
    environment = {"device": "cpu", "figure": float("nan"), "count": np.int64(3)}
    paths, written, summary = report(
        tmp_path, dataset=dataset, evaluation=toy_evaluation(names=names), environment=environment
    )
    assert all(path.stat().st_size > 100 for path in written)
    assert summary["dataset"]["class_names"] == [names[0], "bell\x07 $x^2$ \\udcff", names[2]]
    assert summary["environment"] == {"device": "cpu", "figure": None, "count": 3}
    assert openpyxl.load_workbook(paths.workbook)["Per class"]["A5"].data_type == "s"


def test_reports_on_a_usual_test_split_take_a_few_seconds(tmp_path):
    evaluation = toy_evaluation(num_images=3400, wrong=100)
    start = time.process_time()
    paths, _, _ = report(tmp_path, evaluation=evaluation)
    assert time.process_time() - start < 8  # 2 to 3 on a machine that does nothing else
    with Image.open(paths.figures / "sample_predictions.png") as picture:
        assert picture.width > 1000
