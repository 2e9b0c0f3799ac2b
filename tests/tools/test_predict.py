"""``tools/predict.py`` from its command line: its predictions, its files, its messages, and its failures."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.core.paths import RunPaths
from scripts.evaluation.calibration import apply_temperature
from scripts.evaluation.metrics import compute_metrics
from tests.conftest import PROJECT_ROOT, FinishedRun, InProcess, Npz, coloured_squares, tiny_backbone, write_npz
from tests.tools.conftest import Draw, default_signal, noise
from tools import make_dataset, predict
from tools.prediction import predicting

CLASSES = ["dark", "medium", "bright"]

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Predict]:
    """Calls the program in the test's folder with the tiny network; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str | Path) -> tuple[int, str, str]:
        code = predict.main(["--device", "cpu", *map(str, arguments)])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    with tiny_backbone():
        yield run_it


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, Path]:
    """A finished run on a data set that was made from 60 image files with a crop, and the folder of all of that."""
    folder = tmp_path_factory.mktemp("photographs")
    shades, _ = coloured_squares(60, side=20, classes=3)
    for number, image in enumerate(shades):
        path = folder / "cells" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((20 + number % 3, 20)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = ("--size", "12", "--crop", "17", "--index", "rows.csv")
        assert make_dataset.main(["cells", "cells.npz", *settings]) == 0
    launch = InProcess(folder)
    with tiny_backbone():
        done = launch("--dataset", folder / "cells.npz", "--weights", "none", "--epochs", "1", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    return RunPaths(launch.run_folder()), folder


def changed(finished: FinishedRun, folder: Path, name: str = "changed", **card: Any) -> Path:
    """A copy of a finished run whose model card has other values; None removes one."""
    paths = RunPaths(finished.copy_to(folder).root.rename(folder / name))
    old = json.loads(paths.best_model_card.read_text(encoding="utf-8"))
    new = {key: value for key, value in (old | card).items() if value is not None}
    paths.best_model_card.write_text(json.dumps(new), encoding="utf-8")
    return paths.root


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def scores_of(text: str, names: Sequence[str] = CLASSES) -> np.ndarray:
    return np.array([[float(row[name]) for name in names] for row in rows_of(text)])


def reported(paths: RunPaths, variant: str) -> np.ndarray:
    (path,) = paths.reports.glob(f"*@{variant}.csv")
    return np.loadtxt(path, delimiter=",", ndmin=2)[:, 1:]


@pytest.mark.parametrize("variant", ["plain", "tta"])
def test_the_predictions_of_the_test_split_are_those_of_the_report_to_the_bit(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, variant: str
):
    flags = ["--tta"] if variant == "tta" else []
    code, out, err = call(finished_run.paths.root, finished_run.dataset, *flags, "--metrics", "metrics.json")

    assert code == 0
    assert (scores_of(out) == reported(finished_run.paths, variant)).all()
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads(finished_run.paths.summary.read_text(encoding="utf-8"))["test"][variant]
    assert found["metrics"] == {name: expected[name] for name in found["metrics"]}
    assert set(found["metrics"]) == {"accuracy", "auc", "macro_f1", "balanced_accuracy"}
    accuracy = "{value:.4f} [{low:.4f}, {high:.4f}]".format(**expected["accuracy"])
    assert re.search(rf"^accuracy +{re.escape(accuracy)}$", err, re.MULTILINE)


def test_every_split_can_be_predicted(finished_run: FinishedRun, call: Predict):
    counts = {
        split: len(rows_of(call(finished_run.paths.root, finished_run.dataset, "--split", split)[1]))
        for split in ("train", "val", "test")
    }
    assert counts == {"train": 48, "val": 16, "test": 24}


def test_image_files_are_predicted_as_the_npz_made_from_them_to_the_bit(
    photographs: tuple[RunPaths, Path], call: Predict
):
    run, folder = photographs
    code, of_npz, npz_log = call(run.root, folder / "cells.npz", "--split", "train")
    _, of_files, files_log = call(run.root, folder / "rows.csv", "--split", "train")

    assert code == 0
    assert (scores_of(of_npz) == scores_of(of_files)).all()
    assert len(rows_of(of_files)) == 42
    assert len(np.unique(scores_of(of_files), axis=0)) == 42
    labels = [[row["label"] for row in rows_of(text)] for text in (of_npz, of_files)]
    assert labels[0] == labels[1]
    metrics = [re.findall(r"^(?:accuracy|AUC) .*$", text, re.MULTILINE) for text in (npz_log, files_log)]
    assert metrics[0] == metrics[1] != []


def test_a_folder_per_class_gives_labels_and_every_metric(photographs: tuple[RunPaths, Path], call: Predict):
    run, folder = photographs
    code, out, err = call(run.root, folder / "cells")

    assert code == 0
    rows = rows_of(out)
    assert list(rows[0]) == ["path", "label", "predicted", *sorted(CLASSES)]
    assert [Path(row["path"]).parent.name for row in rows] == [row["label"] for row in rows]
    assert all(Path(row["path"]).is_file() for row in rows)
    assert [row["predicted"] for row in rows] == [
        max(sorted(CLASSES), key=lambda name: float(row[name])) for row in rows
    ]
    names = re.findall(r"^(.+?)  +\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]$", err, re.MULTILINE)
    assert names == ["accuracy", "AUC", "macro-F1", "balanced accuracy"]


def test_images_without_labels_are_predicted_without_metrics(photographs: tuple[RunPaths, Path], call: Predict):
    run, folder = photographs
    dark, bright = folder / "cells" / "dark", folder / "cells" / "bright"
    one = next(bright.iterdir())
    code, out, err = call(run.root, dark, one)

    assert code == 0
    assert list(rows_of(out)[0]) == ["path", "predicted", *sorted(CLASSES)]
    assert [row["path"] for row in rows_of(out)[-2:]] == [str(sorted(dark.iterdir())[-1]), str(one)]
    assert "accuracy" not in err
    assert "predicted 21 images" in err


def test_the_order_of_a_csv_is_kept_and_its_labels_are_optional(
    photographs: tuple[RunPaths, Path], call: Predict, tmp_path: Path
):
    run, folder = photographs
    files = [str(path) for path in sorted((folder / "cells" / "dark").iterdir())[:3]]
    (tmp_path / "new.csv").write_text("\n".join(["path", files[2], files[0], files[1]]))
    code, out, _ = call(run.root, "new.csv")

    assert code == 0
    assert [row["path"] for row in rows_of(out)] == [files[2], files[0], files[1]]
    assert "label" not in rows_of(out)[0]


def test_without_a_record_the_largest_square_is_scaled_and_the_log_says_so(
    finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path
):
    wide = noise(1, 30).crop((0, 0, 30, 20))
    draw("wide.png", wide)
    draw("square.png", wide.crop((5, 0, 25, 20)).resize((12, 12), Image.Resampling.BICUBIC))
    code, out, err = call(finished_run.paths.root, "wide.png", "square.png")

    assert code == 0
    wide_scores, square_scores = scores_of(out)
    assert (wide_scores == square_scores).all()
    assert "does not record how its images were prepared: the largest central square of each image is scaled" in err


@pytest.mark.parametrize(
    "record",
    [
        "28",
        [],
        {"size": 28},
        {"size": True, "crop": None, "grey": False},
        {"size": 12, "crop": -1, "grey": False},
        {"size": 12, "crop": None, "grey": False, "resize": "magic"},
    ],
)
def test_an_unusable_record_is_refused(finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path, record):
    draw("a.png", 1)
    code, out, err = call(changed(finished_run, tmp_path, preparation=record), "a.png")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "records a preparation of images that cannot be used: " in err


def test_a_record_of_another_size_than_the_models_is_refused(
    photographs: tuple[RunPaths, Path], finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path
):
    recorded = json.loads(photographs[0].best_model_card.read_text(encoding="utf-8"))["preparation"]
    assert (recorded["size"], recorded["crop"], recorded["grey"]) == (12, 17, False)
    draw("a.png", 1)
    code, _, err = call(changed(finished_run, tmp_path, preparation=recorded | {"size": 13}), "a.png")
    assert code == 3
    assert "the model takes 12 × 12 pixels and 3 channels" in err


def test_runs_are_averaged_and_each_prepares_the_images_for_itself(
    finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path
):
    larger = {"height": 16, "width": 16, "channels": 3, "stored_channels": 3}
    second = changed(finished_run, tmp_path, input=larger)
    for number in range(5):
        draw(f"new/{number}.png", noise(number, 20))
    alone = [scores_of(call(run, "new")[1]) for run in (finished_run.paths.root, second)]
    code, out, _ = call(finished_run.paths.root, second, "new")

    assert code == 0
    assert (scores_of(out) == (alone[0] + alone[1]) / 2).all()
    assert (alone[0] != alone[1]).any()


def test_runs_with_other_classes_are_not_averaged(finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path):
    draw("a.png", 1)
    other = changed(finished_run, tmp_path, class_names=["dark", "bright", "medium"])
    code, out, err = call(finished_run.paths.root, other, "a.png")
    assert (code, out) == (2, "")
    name = finished_run.paths.root.name
    assert err == f"error: changed cannot be averaged with {name}: their classes or tasks differ.\n"


@pytest.mark.parametrize(("flags", "temperature"), [([], 2.5), (["--tta"], 0.5)])
def test_calibrated_probabilities_are_those_of_the_runs_temperature(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, flags: list[str], temperature: float
):
    run = changed(finished_run, tmp_path, calibration={"plain": 2.5, "tta": 0.5})
    plain = scores_of(call(run, finished_run.dataset, *flags)[1])
    code, out, _ = call(run, finished_run.dataset, *flags, "--calibrated")

    assert code == 0
    assert (scores_of(out) == apply_temperature(plain, temperature, "multi-class")).all()
    assert (scores_of(out) != plain).all()


@pytest.mark.parametrize("recorded", [None, "hot", {"plain": -1.0}, {"plain": None}])
def test_a_run_without_a_temperature_is_not_calibrated(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, recorded
):
    run = changed(finished_run, tmp_path, calibration=recorded)
    code, out, err = call(run, finished_run.dataset, "--calibrated")
    assert (code, out) == (2, "")
    assert err == (
        "error: --calibrated: changed has no temperature, as runs of earlier versions. Leave --calibrated out.\n"
    )


def test_unsure_predictions_are_left_out_and_the_others_evaluated(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, make_npz: Npz
):
    labels = np.random.default_rng(5).integers(0, 3, 24)  # so that some predictions are wrong
    path = make_npz(classes=3, test_labels=labels.reshape(-1, 1).astype(np.uint8))
    scores = reported(finished_run.paths, "plain")
    confidence = scores.max(axis=1)
    threshold = float(np.sort(confidence)[10])
    kept = confidence >= threshold
    settings = ("--abstain", repr(threshold), "--metrics", "metrics.json")
    code, out, err = call(finished_run.paths.root, path, *settings)

    assert code == 0
    rows = rows_of(out)
    assert [CLASSES.index(row["label"]) for row in rows] == labels.tolist()
    assert [row["abstained"] for row in rows] == ["no" if is_kept else "yes" for is_kept in kept]
    assert {row["predicted"] == "" for row in rows if row["abstained"] == "yes"} == {True}
    assert {row["predicted"] in CLASSES for row in rows if row["abstained"] == "no"} == {True}
    compute = partial(compute_metrics, task="multi-class", class_names=CLASSES, seed=42)
    found = json.loads((tmp_path / "metrics.json").read_text())
    for estimate, of_file in (
        (compute(labels, scores).accuracy, found["metrics"]["accuracy"]),
        (compute(labels[kept], scores[kept]).accuracy, found["abstain"]["accuracy"]),
    ):
        assert 0 < estimate.value < 1
        assert of_file == {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    assert found["abstain"]["below"] == threshold
    assert found["abstain"]["coverage"] == kept.mean() == 14 / 24
    assert "14 of 24 predictions are kept" in err


def test_where_nothing_is_kept_there_is_no_accuracy(finished_run: FinishedRun, call: Predict):
    code, out, err = call(finished_run.paths.root, finished_run.dataset, "--abstain", "1")
    assert code == 0
    assert {row["predicted"] for row in rows_of(out)} == {""}
    assert re.search(r"accuracy of the kept +undefined", err)


def test_several_labels_are_those_above_one_half(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, make_npz: Npz
):
    run = changed(finished_run, tmp_path, task="multi-label, binary-class")
    labels = {
        f"{split}_labels": np.eye(3, dtype=np.uint8)[np.arange(n) % 3]
        for split, n in (("train", 48), ("val", 16), ("test", 24))
    }
    path = make_npz(**labels)
    code, out, err = call(run, path, "--abstain", "0.6")
    _, lines, _ = call(run, path, "--output", "p.jsonl")

    assert (code, lines) == (0, "")
    scores = scores_of(out)
    for row, values in zip(rows_of(out), scores, strict=True):
        is_sure = np.maximum(values, 1 - values).min() >= 0.6
        expected = "; ".join(name for name, value in zip(CLASSES, values, strict=True) if value > 0.5)
        assert (row["predicted"], row["abstained"]) == ((expected, "no") if is_sure else ("", "yes"))
    objects = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [o["label"] for o in objects] == [[CLASSES[index % 3]] for index in range(24)]
    for found, values in zip(objects, scores, strict=True):
        assert found["predicted"] == [name for name, value in zip(CLASSES, values, strict=True) if value > 0.5]
    assert "accuracy" in err


def test_class_names_survive_in_every_format(finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path):
    names = ['=1+1, "quoted"', "predicted", "é; ü"]
    run = changed(finished_run, tmp_path, class_names=names)
    draw('=a, "b".png', 1)
    code, _, err = call(run, '=a, "b".png', "--output", "p.csv")
    assert code == 0
    assert call(run, '=a, "b".png', "--output", "p.jsonl")[0] == 0

    (row,) = rows_of((tmp_path / "p.csv").read_text(encoding="utf-8"))
    (line,) = map(json.loads, (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines())
    assert list(row) == ["path", "predicted", names[0], "class predicted", names[2]]
    assert list(line["probabilities"]) == names
    assert row["path"] == line["path"] == '=a, "b".png'
    assert row["predicted"] == line["predicted"] == max(names, key=line["probabilities"].get)
    assert [float(row[column]) for column in list(row)[2:]] == list(line["probabilities"].values())
    assert "wrote p.csv" in err


def test_a_path_of_any_bytes_is_written_as_it_is(finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path):
    source = draw("a.png", 1)
    source.rename(tmp_path / os.fsdecode(b"\xff.png"))
    for output in ("p.csv", "p.jsonl"):
        assert call(finished_run.paths.root, tmp_path / os.fsdecode(b"\xff.png"), "--output", output)[0] == 0
    assert b"/\xff.png," in (tmp_path / "p.csv").read_bytes()
    assert json.loads((tmp_path / "p.jsonl").read_text())["path"].endswith("/\udcff.png")


def spoil(folder: Path) -> None:
    """Write a bomb, a text and an empty file as images."""
    Image.new("1", (9_500, 9_500)).save(folder / "bomb.png")
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").touch()


def test_unreadable_files_are_listed_and_nothing_is_written(
    finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path
):
    for number in range(3):
        draw(f"new/{number}.png", number)
    spoil(tmp_path / "new")
    for target in ([], ["--output", "p.csv"]):
        code, out, err = call(finished_run.paths.root, "new", *target)
        assert (code, out) == (3, "")
        assert "3 of 6 images cannot be used: new/bomb.png (it has more than 89,478,485 pixels), " in err
        assert "new/empty.png (it is empty), new/text.png (it is not an image of a known format)" in err
        assert err.endswith("leave them out with --skip_unreadable.\n")
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_unreadable_files_are_skipped_on_request(finished_run: FinishedRun, call: Predict, draw: Draw, tmp_path: Path):
    for number in range(3):
        draw(f"new/{number}.png", number)
    alone = scores_of(call(finished_run.paths.root, "new")[1])
    spoil(tmp_path / "new")
    code, out, err = call(finished_run.paths.root, "new", "--skip_unreadable")

    assert code == 0
    assert [row["path"] for row in rows_of(out)] == ["new/0.png", "new/1.png", "new/2.png"]
    assert (scores_of(out) == alone).all()
    assert "warning: 3 of 6 images cannot be used" in err
    assert "predicted 3 images" in err
    code, out, err = call(finished_run.paths.root, "new/text.png", "--skip_unreadable")
    assert (code, out) == (3, "")
    assert "no image is left" in err


def test_sixteen_bit_images_are_converted_and_logged(finished_run: FinishedRun, call: Predict, tmp_path: Path):
    Image.fromarray(np.full((12, 12), 60_000, np.uint16)).save(tmp_path / "deep.png")
    code, out, err = call(finished_run.paths.root, "deep.png")
    assert code == 0
    assert len(rows_of(out)) == 1
    assert "of 16 bits, divided by 257: 1 of 1 images" in err


@pytest.fixture(scope="module")
def refused(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and with everything that cannot be predicted with it."""
    folder = tmp_path_factory.mktemp("refused")
    changed(finished_run, folder, "run")
    (changed(finished_run, folder, "unfinished") / "summary.json").unlink()
    changed(finished_run, folder, "wide", input={"height": 12, "width": 14, "stored_channels": 3})
    one_view = RunPaths(changed(finished_run, folder, "one_view")).config
    content = json.loads(one_view.read_text(encoding="utf-8"))
    content["settings"]["no_tta"] = True
    one_view.write_text(json.dumps(content), encoding="utf-8")
    for name in ("new/a.png", "classes/dark/a.png", "classes/odd/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(1).save(folder / name)
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    (folder / "folder.csv").mkdir()
    (folder / "nothing.csv").write_text("path,label\n")
    (folder / "columns.csv").write_text("file,label\nnew/a.png,dark\n")
    (folder / "labels.csv").write_text("path,label\nnew/a.png,odd\n")
    (folder / "broken.npz").write_text("text")
    write_npz(folder / "large.npz", side=13)
    write_npz(folder / "grey.npz", channels=1)
    write_npz(folder / "others.npz", classes=3, class_names=np.array(["a", "b", "c"]))
    sizes = {"train": 48, "val": 16, "test": 24}
    rows: dict[str, Any] = {f"{split}_labels": np.zeros((n, 2), np.uint8) for split, n in sizes.items()}
    write_npz(folder / "rows.npz", **rows)
    write_npz(folder / "many.npz", classes=4)
    return folder


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nowhere", "new"], 2, "nowhere is not the folder of a run: it does not exist."),
        (["new", "new"], 2, "new is not the folder of a run: it has no config.json."),
        (["unfinished", "new"], 2, "unfinished is not finished: it has no summary.json."),
        (["run"], 2, "Give at least one INPUT after the runs"),
        (["run", "run"], 2, "Give at least one INPUT after the runs"),
        (["run", "new", "run"], 2, "run is the folder of a run: give all runs before the inputs."),
        (["run", "gone.png"], 2, "INPUT gone.png does not exist."),
        (["run", "empty"], 3, "There is no image in empty."),
        (["run", "nothing.csv"], 3, "There is no image in nothing.csv."),
        (["run", "columns.csv"], 3, "its first line is 'file,label', not path[,label][,split][,group]."),
        (["run", "labels.csv"], 3, "labels.csv has labels that are not classes of run: odd; run predicts dark, medium"),
        (["run", "classes"], 3, "classes has subfolders that are not classes of run: odd; run predicts dark, medium"),
        (["run", "new", "labels.csv"], 2, "labels.csv cannot be combined with other inputs: give it alone."),
        (
            ["run", "new", "--split", "val"],
            2,
            "--split val is for an .npz, or a CSV with the column split",
        ),
        (
            ["run", "labels.csv", "--split", "val"],
            2,
            "--split val needs the column split, which",
        ),
        (["run", "large.npz"], 3, "it has images of 13 × 13 pixels and 3 channels, but run takes 12 × 12 pixels and 3"),
        (["run", "grey.npz"], 3, "it has images of 12 × 12 pixels and 1 channels, but run takes 12 × 12 pixels and 3"),
        (["run", "others.npz"], 3, "others.npz has the classes a, b, c; run predicts dark, medium, bright."),
        (["run", "rows.npz"], 3, "it has 2 label columns, but the task of run needs 1."),
        (["run", "many.npz"], 3, "test_labels has 6 of 24 labels out of range (such as 3)"),
        (["run", "broken.npz"], 3, "it is not an .npz file"),
        (["run", "new", "--metrics", "m.json"], 2, "--metrics needs labels"),
        (["run", "new", "--output", "p.txt"], 2, "--output must end in .csv or .jsonl, got p.txt."),
        (["run", "new", "--output", "no/p.csv"], 2, "--output no/p.csv: there is no folder no; make it first."),
        (["run", "new", "--output", "folder.csv"], 2, "--output folder.csv is a folder; give the name of a file."),
        (["run", "labels.csv", "--output", "./labels.csv"], 2, "--output labels.csv would replace an input"),
        (["run", "new", "--abstain", "1.5"], 2, "must be a number above 0 and at most 1, got '1.5'."),
        (["run", "new", "--abstain", "nan"], 2, "must be a number above 0 and at most 1, got 'nan'."),
        (["run", "new", "--device", "abacus"], 2, "--device must be"),
        (["run", "new", "--tat"], 2, "Unrecognized arguments: --tat."),
        (["one_view", "new", "--tta"], 2, "--tta: one_view was trained for one view only. Leave --tta out."),
        (["wide", "new"], 2, "wide takes images of 14 × 12 pixels, which only an .npz can hold."),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_sentence(
    refused: Path, call: Predict, monkeypatch: pytest.MonkeyPatch, argv, code, message
):
    monkeypatch.chdir(refused)
    before = sorted(refused.rglob("*"))

    found, out, err = call(*argv)

    assert (found, out) == (code, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(refused.rglob("*")) == before


def fill_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_with_6_and_keeps_the_earlier_file(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "p.csv").write_text("precious")
    monkeypatch.setattr(os, "fsync", fill_disk)
    code, out, err = call(finished_run.paths.root, finished_run.dataset, "--output", "p.csv")
    assert (code, out) == (6, "")
    assert err.splitlines()[-1].startswith("error: Cannot write the file at p.csv")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"p.csv": "precious"}


@pytest.mark.parametrize("output", ["p.csv", None])
@pytest.mark.parametrize("num_synced", [0, 1])
def test_predictions_and_metrics_appear_together_or_not_at_all(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_synced: int, output
):
    (tmp_path / "p.csv").write_text("precious")
    (tmp_path / "m.json").write_text("precious, too")
    sync, calls = os.fsync, iter(range(100))
    monkeypatch.setattr(os, "fsync", lambda file: sync(file) if next(calls) < num_synced else fill_disk())
    arguments = (finished_run.paths.root, finished_run.dataset, "--metrics", "m.json")
    code, out, err = call(*arguments, *(["--output", output] if output else []))

    assert code == 6
    assert out == "" or (output is None and num_synced == 1)  # the screen cannot be taken back
    assert f"error: Cannot write the file at {'p.csv' if output and num_synced == 1 else 'm.json'}" in err
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"p.csv": "precious", "m.json": "precious, too"}


def test_metrics_that_cannot_be_written_end_with_6_before_anything_is_predicted(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def deny(*, prefix: str, **settings: Any) -> tuple[int, str]:
        if prefix == ".m.json.":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return make(prefix=prefix, **settings)

    make = tempfile.mkstemp
    monkeypatch.setattr("tempfile.mkstemp", deny)
    monkeypatch.setattr(predicting.Ensemble, "scores", lambda *_: pytest.fail("it has predicted"))
    code, out, err = call(finished_run.paths.root, finished_run.dataset, "--output", "p.csv", "--metrics", "m.json")
    assert (code, out) == (6, "")
    assert "error: Cannot write the file at m.json. Permission is denied" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_ends_with_6_before_anything_is_predicted(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", deny)
    monkeypatch.setattr(predicting.Ensemble, "scores", lambda *_: pytest.fail("it has predicted"))
    code, _, err = call(finished_run.paths.root, finished_run.dataset, "--output", "p.csv")
    assert code == 6
    assert "Permission is denied" in err


def test_a_full_disk_behind_the_screen_ends_with_6(
    finished_run: FinishedRun, call: Predict, monkeypatch: pytest.MonkeyPatch
):
    stdout = Path("/dev/full").open("w")  # noqa: SIM115 (closed below)
    monkeypatch.setattr(sys, "stdout", stdout)
    code, _, err = call(finished_run.paths.root, finished_run.dataset)
    assert code == 6
    assert "Cannot print the predictions at standard output. The disk is full" in err
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    stdout.close()


def test_a_reader_that_has_enough_is_no_error(
    finished_run: FinishedRun, call: Predict, monkeypatch: pytest.MonkeyPatch
):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert call(finished_run.paths.root, finished_run.dataset)[0] == 0
        monkeypatch.undo()


def test_a_signal_ends_it_and_leaves_nothing(
    finished_run: FinishedRun, call: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predicting.Ensemble, "scores", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with default_signal(signal.SIGTERM):
        code, out, err = call(finished_run.paths.root, finished_run.dataset, "--output", "p.csv")
    assert (code, out) == (143, "")
    assert err == "error: Stopped by SIGTERM. Start the command again.\n"
    assert list(tmp_path.iterdir()) == []


def test_help_and_a_refused_command_line_import_nothing_slow(tmp_path: Path):
    program = (
        "import sys; from tools import predict\n"
        "assert predict.main(['nowhere', 'a.png']) == 2\n"
        "try: predict.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_the_page_knows_every_flag_and_no_other():
    page = (PROJECT_ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    flags = {option for action in predict.build_parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z_]+", page)) == flags - {"-h", "--help"}
