"""Opening a finished run: its model predicts what its report says, and a wrong folder is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.core.errors import ConfigError, DataError
from scripts.trained_run import open_run
from tests.conftest import FinishedRun, tiny_backbone

CPU = torch.device("cpu")


def rows(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", ndmin=2)[:, 1:]


def test_the_predictor_gives_the_numbers_of_the_report_to_the_bit(finished_run: FinishedRun):
    run = open_run(finished_run.paths.root)
    test = run.dataset.load("test")
    with tiny_backbone():
        plain, tta = run.predictor(CPU, tta=True)(torch.from_numpy(test.images))

    (plain_file,) = finished_run.paths.reports.glob("*@plain.csv")
    (tta_file,) = finished_run.paths.reports.glob("*@tta.csv")
    assert (plain.double().numpy() == rows(plain_file)).all()
    assert tta is not None
    assert (tta.double().numpy() == rows(tta_file)).all()
    assert (rows(finished_run.paths.test_labels)[:, 0] == test.labels).all()


def test_a_run_says_what_its_model_takes_and_gives(finished_run: FinishedRun):
    run = open_run(finished_run.paths.root)
    assert run.class_names == ("dark", "medium", "bright")
    assert (run.task, run.image_size, run.is_grey) == ("multi-class", (12, 12), False)
    assert run.name == finished_run.paths.root.name
    assert run.config.dataset == str(finished_run.dataset)


def test_without_tta_there_is_one_view(finished_run: FinishedRun):
    run = open_run(finished_run.paths.root)
    with tiny_backbone():
        predictor = run.predictor(CPU, tta=False)
    assert predictor.views == ()
    assert predictor(torch.zeros(2, 12, 12, 3, dtype=torch.uint8))[1] is None


def test_the_data_of_a_registry_set_are_found_from_any_folder(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paths, data = finished_run.copy_to(tmp_path), tmp_path / "started_here" / "dataset"
    content = json.loads(paths.config.read_text(encoding="utf-8"))
    content["settings"] |= {"dataset": "bloodmnist", "data_dir": "dataset"}
    content["dataset"]["source"] = str(data / "bloodmnist.npz")
    paths.config.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert open_run(paths.root).config.data_dir == Path("dataset")  # the file is no longer there
    data.mkdir(parents=True)
    (data / "bloodmnist.npz").touch()
    assert open_run(paths.root).config.data_dir == data
    assert open_run(paths.root).config.dataset == "bloodmnist"


@pytest.mark.parametrize("name", ["a" * 5000, "null\0character"])
def test_a_path_that_no_file_can_have_is_refused(name: str):
    with pytest.raises(ConfigError, match="is not the folder of a run: it does not exist"):
        open_run(Path(name))


def test_what_is_not_a_finished_run_is_refused(finished_run: FinishedRun, tmp_path: Path):
    with pytest.raises(ConfigError, match="is not the folder of a run: it does not exist"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"it has no config\.json"):
        open_run(tmp_path)
    paths = finished_run.copy_to(tmp_path)
    paths.summary.unlink()
    with pytest.raises(ConfigError, match=r"is not finished.*main\.py --resume"):
        open_run(paths.root)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"class_names": 3}', "\x00", '{"a": ' * 100_000])
def test_a_damaged_file_is_refused(finished_run: FinishedRun, tmp_path: Path, content: str):
    paths = finished_run.copy_to(tmp_path)
    paths.best_model_card.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be read|damaged"):
        open_run(paths.root)


def test_other_data_in_the_place_of_the_training_data_are_refused(finished_run: FinishedRun, tmp_path: Path):
    paths = finished_run.copy_to(tmp_path)
    card = json.loads(paths.best_model_card.read_text(encoding="utf-8"))
    card["dataset"]["md5"] = "0" * 32
    paths.best_model_card.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(DataError, match="was trained on data with the MD5 0000"):
        _ = open_run(paths.root).dataset
