"""Predict images batch by batch, write the predictions, and evaluate them where labels are given."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.core.errors import ConfigError, storage_errors
from scripts.core.files import json_bytes, replace_atomically
from scripts.core.log import log
from scripts.core.system.device import select_device
from scripts.core.system.machine import CUBLAS_WORKSPACE, keep_freed_memory, use_kernels
from scripts.data_handler.memory import eval_batch_size
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.calibration import apply_temperature
from scripts.evaluation.metrics import Estimate, Metrics, compute_metrics, predict_classes
from scripts.trained_run import TrainedRun
from tools.dataset_builder.messages import count_of
from tools.inputs import Batch, Inputs, open_inputs
from tools.prediction.rows import Columns, Row, open_writer

if TYPE_CHECKING:
    from tools.predict import Request

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]

TITLES = {"auc": "AUC", "macro_f1": "macro-F1"}  # of the others the name


class Ensemble:
    """One or more runs, whose probabilities are averaged."""

    def __init__(self, runs: Sequence[TrainedRun], device: torch.device, *, tta: bool, calibrated: bool) -> None:
        self.task, self.class_names = runs[0].task, runs[0].class_names
        # of one run the batches of its own evaluation, as their size may change the last bits
        self.batch_size = min(eval_batch_size(*run.image_size) for run in runs)
        self._device, self._tta = device, tta
        self._predictors = [run.predictor(device, tta=tta) for run in runs]
        self._temperatures = [run.temperature(tta=tta) if calibrated else None for run in runs]

    def scores(self, batch: Batch) -> Scores:
        """The probabilities of a batch, float64 (B, K)."""
        found = []
        for images, predictor, temperature in zip(batch.images, self._predictors, self._temperatures, strict=True):
            plain, tta = predictor(torch.from_numpy(images).to(self._device))
            probabilities = plain if tta is None else tta
            scores = probabilities.cpu().double().numpy()
            found.append(scores if temperature is None else apply_temperature(scores, temperature, self.task))
        return np.asarray(sum(found) / len(found))

    def confidence(self, scores: Scores) -> Scores:
        """The probability of each prediction, (B,): of several labels the least probable one, present or absent."""
        predicted = predict_classes(scores, task=self.task)
        if self.task == MULTI_LABEL:
            return np.where(predicted == 1, scores, 1 - scores).min(axis=1)
        return np.asarray(np.take_along_axis(scores, predicted[:, np.newaxis], axis=1)[:, 0])


def predict(request: Request) -> None:
    """Predict the inputs of a command line, write the predictions, and evaluate them.

    Raises:
        ConfigError: The inputs make no sense together, or metrics were requested without labels.
        DataError: The inputs cannot be used, or weights are damaged.
        StorageError: The predictions cannot be written.
    """
    start = time.perf_counter()
    inputs = open_inputs(request.inputs, request.runs, split=request.split, skip_unreadable=request.skip_unreadable)
    if request.metrics and not inputs.is_labelled:
        raise ConfigError("--metrics needs labels: a folder per class, a CSV with the column label, or an .npz.")
    device = _prepare_machine(request)
    ensemble = Ensemble(request.runs, device, tta=request.tta, calibrated=request.calibrated)
    num_predicted = _predict_and_write(request, inputs, ensemble)
    where = "".join(f"; wrote {path}" for path in (request.output, request.metrics) if path)
    log.info(f"predicted {count_of(num_predicted, 'image')} in {time.perf_counter() - start:.1f} s{where}")


def _prepare_machine(request: Request) -> torch.device:
    """Choose device and kernels as the runs did."""
    deterministic = any(run.config.reproducible for run in request.runs)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)  # read when CUDA computes first
    keep_freed_memory()
    use_kernels(deterministic=deterministic)
    return select_device(request.device)


def _predict_and_write(request: Request, inputs: Inputs, ensemble: Ensemble) -> int:
    """Write every prediction and, where there are labels, evaluate them; return the number of predictions."""
    columns = Columns(
        naming=inputs.naming,
        class_names=ensemble.class_names,
        has_label=inputs.is_labelled,
        can_abstain=request.abstain is not None,
        is_multi_label=ensemble.task == MULTI_LABEL,
    )
    num_predicted, labels, kept_scores = 0, list[Labels](), list[Scores]()
    bar = tqdm(total=inputs.num_images, desc="predicting", unit="img", leave=False, disable=None)
    # the metrics are on the disk before the predictions are stored, and get their name after them: both appear, or none
    metrics_file = replace_atomically(request.metrics) if request.metrics else nullcontext()
    with bar, metrics_file as stream, open_writer(request.output, columns) as writer:
        for batch in inputs.batches(ensemble.batch_size):
            scores = ensemble.scores(batch)
            for row in _rows(batch, scores, ensemble, request.abstain):
                writer.write(row)
            if batch.labels is not None:
                labels.append(batch.labels)
                kept_scores.append(scores)
            bar.update(len(scores))
            num_predicted += len(scores)
        if inputs.is_labelled:
            facts = _evaluate(request, ensemble, np.concatenate(labels), np.concatenate(kept_scores))
            if request.metrics and stream:
                content = json_bytes(facts)
                with storage_errors(request.metrics, "write the file", needed_bytes=len(content)):
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
    return num_predicted


def _rows(batch: Batch, scores: Scores, ensemble: Ensemble, abstain: float | None) -> Iterator[Row]:
    """The rows of a batch."""
    task, names = ensemble.task, ensemble.class_names
    predicted = _names_of(predict_classes(scores, task=task), names)
    labels = repeat(None) if batch.labels is None else _names_of(batch.labels, names)
    abstained = ensemble.confidence(scores) < (abstain or 0)
    for name, label, chosen, is_abstained, probabilities in zip(
        batch.names, labels, predicted, abstained.tolist(), scores.tolist(), strict=False
    ):
        yield Row(name=name, label=label, predicted=chosen, abstained=is_abstained, probabilities=probabilities)


def _names_of(classes: Labels, names: Sequence[str]) -> list[list[str]]:
    """The names for class indices (B,), or for 0 and 1 of each label (B, K)."""
    if classes.ndim == 1:
        return [[names[index]] for index in classes]
    return [[name for name, is_present in zip(names, row, strict=True) if is_present] for row in classes]


def _evaluate(request: Request, ensemble: Ensemble, labels: Labels, scores: Scores) -> dict[str, Any]:
    """Compute the metrics, log them, and return what is written to the file of the metrics."""
    compute = partial(
        compute_metrics, task=ensemble.task, class_names=ensemble.class_names, seed=request.runs[0].config.seed
    )
    metrics = compute(labels, scores)
    for name, estimate in metrics.estimates.items():
        log.info(f"{TITLES.get(name, name.replace('_', ' ')):<26}{_in_words(estimate)}")
    for note in metrics.notes:
        log.info(note)
    facts = _facts(metrics) | {"runs": [run.name for run in request.runs], "num_images": len(labels)}
    if request.abstain is not None:
        kept = ensemble.confidence(scores) >= request.abstain
        coverage, accuracy = float(kept.mean()), None
        if kept.any():
            accuracy = compute(labels[kept], scores[kept]).accuracy
        log.info(f"{'coverage':<26}{coverage:.4f}: {kept.sum():,} of {len(kept):,} predictions are kept")
        log.info(f"{'accuracy of the kept':<26}{'undefined' if accuracy is None else _in_words(accuracy)}")
        facts["abstain"] = {"below": request.abstain, "coverage": coverage, "accuracy": accuracy and _numbers(accuracy)}
    return facts


def _facts(metrics: Metrics) -> dict[str, Any]:
    return {
        "metrics": {name: _numbers(estimate) for name, estimate in metrics.estimates.items()},
        "per_class": [asdict(of_class) for of_class in metrics.per_class],
        "confusion": metrics.confusion.tolist(),
        "notes": list(metrics.notes),
    }


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON values, null where it is undefined."""
    return {name: None if math.isnan(value) else value for name, value in asdict(estimate).items()}


def _in_words(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]" if estimate.is_defined else "undefined"
