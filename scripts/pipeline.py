"""The steps of a run in their order; each takes the values that the steps before it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scripts.core.config import Config
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.core.system import StopRequest, memory_advice, prepare_machine
from scripts.data_handler.dataset import Dataset, Split
from scripts.data_handler.duplicates import Duplicates, count_duplicates
from scripts.data_handler.npz import SPLITS
from scripts.data_handler.opening import open_dataset
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.models.factory import build_model, head_name, normalisation
from scripts.models.weights import load_best_weights
from scripts.provenance import describe_model, record_provenance
from scripts.resolve import applied_views, resolve_settings
from scripts.tracking import Tracking
from scripts.trainer.checkpoint import delete_previous_checkpoint, load_checkpoint, require_space, restore
from scripts.trainer.fit import begin_training, fit
from scripts.trainer.state import TrainingState

if TYPE_CHECKING:
    from scripts.evaluation.calibration import Temperatures
    from scripts.evaluation.metrics import EvaluationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every step after the preparation needs."""

    config: Config  # the settings as applied
    dataset: Dataset
    device: torch.device
    paths: RunPaths
    provenance: Mapping[str, Any]  # what config.json records: settings, data, environment at the start
    stop: StopRequest


def train_and_report(config: Config, paths: RunPaths, stop: StopRequest) -> None:
    """Prepare, train, evaluate and report one run; a signal raises ``Interrupted`` once the state is saved."""
    config, device = prepare_machine(config)
    dataset = open_dataset(config.dataset, config.data_dir, config.resolution)
    config = resolve_settings(config, dataset, device)
    provenance = record_provenance(config, dataset, paths)
    if config.feed == "streamed":
        dataset = dataset.unpack(config.data_dir)
    run = Run(config=config, dataset=dataset, device=device, paths=paths, provenance=provenance, stop=stop)
    with memory_advice(config), Tracking(config, paths) as tracking:
        # the test split too: images that are in several splits are to be known before hours of training
        splits = {name: dataset.load(name) for name in SPLITS}
        duplicates = count_duplicates(splits)
        state = begin_or_resume(run)
        training = train_model(run, state, splits["train"], splits["val"], tracking)
        temperatures = calibrate_best(run, state.model, splits["val"])
        evaluation = evaluate_best(run, state.model, temperatures, splits)
        stop.raise_if_received()  # in case a library caught the exception
        report(run, training, evaluation, duplicates, splits)
        tracking.finish()


def begin_or_resume(run: Run) -> TrainingState:
    """The state of the training: before its first step, or as the newest valid checkpoint left it.

    Raises:
        DataError: The starting weights are not available, or the checkpoint does not fit the model.
        StorageError: The disk has too little space for the files of the run.
    """
    config = run.config
    saved = load_checkpoint(run.paths) if config.resume else None
    weights = "none" if saved else config.weights  # a checkpoint replaces the weights that the run began with
    model = build_model(
        backbone=config.backbone,
        class_names=run.dataset.class_names,
        weights=weights,
        data_dir=config.data_dir,
        seed=config.seed,
        stem=config.stem,
        sides=(run.dataset.height, run.dataset.width),
        dropout=config.dropout,
    )
    require_space(run.paths.root, sum(tensor.nbytes for tensor in model.state_dict().values()), config)
    # the memory layout in which convolutions are fastest
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = begin_training(model, config, run.device, head=head_name(config.backbone))
    if config.resume:
        restore(state, saved, run.provenance, run.paths)
    return state


def train_model(run: Run, state: TrainingState, train: Split, val: Split, tracking: Tracking) -> TrainingResult:
    """Fit; the best weights are in the run folder afterwards."""
    from scripts.evaluation.metrics import mean_auc  # here rather than above: see calibrate_best

    with run.stop.deferred():
        return fit(
            state,
            _on_device(run, train),
            _on_device(run, val),
            run.config,
            paths=run.paths,
            provenance=run.provenance,
            model_card=describe_model(run.config, run.dataset),
            stop=run.stop,
            auc=partial(mean_auc, task=run.dataset.task),
            observe=tracking.update,
        )


def calibrate_best(run: Run, model: nn.Module, val: Split) -> Temperatures:
    """Fit temperatures to the best weights, read back from their file, on the validation split."""
    # here rather than above: its imports take a second, for which training need not wait
    from scripts.evaluation.inference import fit_temperatures

    config = run.config
    load_best_weights(model, run.paths.best_model)
    split, views = _on_device(run, val), applied_views(config)
    fitted = fit_temperatures(model, split, val.labels, run.dataset.task, views, precision=config.precision)
    log.info("temperature, fitted on the validation split: %s", fitted)
    return fitted


def evaluate_best(
    run: Run, model: nn.Module, temperatures: Temperatures, splits: Mapping[str, Split]
) -> EvaluationResult:
    """Evaluate the model, which has its best weights, on the test split."""
    from scripts.evaluation.inference import evaluate

    config, test = run.config, splits["test"]
    return evaluate(
        model,
        _on_device(run, test),
        test.labels,
        run.dataset,
        applied_views(config),
        precision=config.precision,
        seed=config.seed,
        temperatures=temperatures,
        train_labels=splits["train"].labels,
    )


def report(
    run: Run,
    training: TrainingResult,
    evaluation: EvaluationResult,
    duplicates: Duplicates,
    splits: Mapping[str, Split],
) -> None:
    """Write every report; the previous checkpoint is then no longer needed."""
    from scripts.evaluation.reports import RunReport, write_reports

    write_reports(
        RunReport(
            paths=run.paths,
            config=run.config,
            dataset=run.dataset,
            training=training,
            evaluation=evaluation,
            environment=run.provenance["environment"],
            train=splits["train"],
            test=splits["test"],
            duplicates=duplicates,
            finished=datetime.now(),
        )
    )
    delete_previous_checkpoint(run.paths)


def _on_device(run: Run, split: Split) -> DeviceSplit:
    config, num_classes = run.config, len(run.dataset.class_names)
    (mean, std), feed = normalisation(config.backbone), config.feed
    workers = config.num_workers
    return make_device_split(split, num_classes, feed=feed, device=run.device, num_workers=workers, mean=mean, std=std)
