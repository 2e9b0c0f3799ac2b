"""The CSV files, scored by MedMNIST's own code."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from medmnist.evaluator import Evaluator

from scripts.core.errors import StorageError
from scripts.data_handler.registry import BINARY, DATASET_REGISTRY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.evaluation.metrics import compute_metrics
from scripts.evaluation.reports import standard_file_name, write_rows
from tests.evaluation.conftest import toy_dataset, toy_evaluation


def official_evaluator(folder):
    """MedMNIST's Evaluator, looking for the data set in ``folder``."""

    class Here(Evaluator):
        def __init__(self, flag, split, size=None):
            super().__init__(flag, split, size, root=folder)

    return Here


@pytest.mark.parametrize(
    ("key", "task"),
    [("bloodmnist", MULTI_CLASS), ("breastmnist", BINARY), ("retinamnist", ORDINAL), ("chestmnist", MULTI_LABEL)],
)
@pytest.mark.parametrize("side", [28, 64])
def test_the_official_evaluator_reads_the_file_and_finds_the_same_figures(tmp_path, key, task, side):
    names = DATASET_REGISTRY[key].class_names
    generator = np.random.default_rng(5)
    labels = np.arange(200) % len(names)
    scores = generator.dirichlet(np.ones(len(names)), size=200)
    if task == MULTI_LABEL:
        labels, scores = np.eye(len(names), dtype=np.int64)[labels], generator.random((200, len(names)))
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / f"{key}{'' if side == 28 else '_64'}.npz", test_labels=labels.reshape(200, -1))
    reports = tmp_path / "reports"
    reports.mkdir()

    metrics = compute_metrics(labels, scores, task=task, class_names=names, seed=1, resamples=5)
    dataset = toy_dataset(names=names, task=task, key=key, side=side)
    path = reports / standard_file_name(dataset, metrics, split="test", run="plain")
    write_rows(path, scores)
    official = official_evaluator(data).parse_and_evaluate(str(path))

    assert pytest.approx(metrics.auc.value, rel=0, abs=1e-12) == official.AUC
    assert pytest.approx(metrics.accuracy.value, rel=0, abs=1e-12) == official.ACC
    # it has saved its own copy under the name it gives: ours
    assert [entry.name for entry in reports.iterdir()] == [path.name]


def test_the_name_tells_set_split_figures_and_run():
    metrics = toy_evaluation(num_images=8, wrong=1).plain
    dataset = toy_dataset(key="pbc_28")
    auc = f"{metrics.auc.value:.3f}"
    assert standard_file_name(dataset, metrics, split="test", run="7") == f"pbc-28_test_[AUC]{auc}_[ACC]0.875@7.csv"
    larger = replace(dataset, height=64, width=64)
    assert standard_file_name(larger, metrics, split="val", run="7") == f"pbc-28_64_val_[AUC]{auc}_[ACC]0.875@7.csv"
    oblong = replace(dataset, height=28, width=64)
    assert standard_file_name(oblong, metrics, split="val", run="7").startswith("pbc-28_28x64_val_")


def test_an_undefined_auc_is_named_so():
    metrics = compute_metrics(np.zeros(2, int), np.eye(2), task=BINARY, class_names="ab", seed=1, resamples=5)
    assert math.isnan(metrics.auc.value)
    assert standard_file_name(toy_dataset(), metrics, split="test", run="1") == "toy_test_[AUC]nan_[ACC]0.500@1.csv"


def test_scores_are_written_with_all_their_digits(tmp_path):
    scores = np.array([[1 / 3, 2 / 3], [1e-17, 1.0], [0.1 + 0.2, 0.7]])
    write_rows(tmp_path / "p.csv", scores)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[1] == "1,1e-17,1.0"
    read = [[float(word) for word in line.split(",")[1:]] for line in lines]
    assert np.array_equal(np.array(read), scores)
    assert [line.split(",")[0] for line in lines] == ["0", "1", "2"]


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="Cannot write the file"):
        write_rows(tmp_path / "missing" / "p.csv", np.eye(2))
