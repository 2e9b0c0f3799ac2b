"""The steps of a run, each from the values that the steps before it gave; ``main.py`` lists them in their order."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scripts.core.config import BACKBONE, DEFAULT_MODEL_NAME, STOCK_MODEL_NAME, Config
from scripts.core.environment import describe_environment
from scripts.core.errors import ConfigError, DataError, PipelineError
from scripts.core.files import write_json
from scripts.core.log import log
from scripts.core.paths import RunPaths
from scripts.core.records import TrainingResult
from scripts.core.resume import differences, resume_command
from scripts.core.system import StopRequest, prepare_machine
from scripts.data_handler.augmentation import MEAN, STD
from scripts.data_handler.dataset import Dataset, Split, open_dataset
from scripts.data_handler.feed import Examples, make_examples
from scripts.data_handler.memory import free_shared_memory, plan_memory, workers_that_fit
from scripts.data_handler.registry import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL
from scripts.data_handler.views import View, tta_views
from scripts.models import factory
from scripts.models.stem import STEMS, choose_stem
from scripts.models.weights import load_weights, read_state_dict
from scripts.trainer.checkpoint import forget_predecessor, load_checkpoint, require_space
from scripts.trainer.fit import begin_training, fit
from scripts.trainer.state import TrainingState

DECISIONS = {  # by task, p being what the activation gives
    MULTI_CLASS: "argmax of softmax",
    ORDINAL: "argmax of softmax",
    BINARY: "p[1] > 0.5",
    MULTI_LABEL: "p > 0.5, label by label",
}

if TYPE_CHECKING:
    from scripts.evaluation.metrics import Estimate, EvaluationResult, Metrics

__all__ = [
    "begin_or_resume",
    "evaluate_best",
    "open_dataset",
    "prepare_machine",
    "record_provenance",
    "report",
    "settle",
    "train",
    "unpack_if_streamed",
]


def settle(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """The settings as applied to this data set; the log says what was chosen, and why.

    Raises:
        ConfigError: A batch would hold a single value per channel, which batch normalisation cannot train on.
        DataError: All images were asked to be in memory, which cannot hold them.
    """
    config = _settle_views(_settle_stem(_settle_feed(config, dataset, device), dataset), dataset)
    smallest_batch = dataset.num_samples["train"] % config.batch_size or config.batch_size
    if smallest_batch == 1 and max(dataset.height, dataset.width) <= STEMS[config.stem].reduction:
        raise ConfigError(
            f"--batch_size {config.batch_size} leaves one of the {dataset.num_samples['train']} training images in a "
            f"batch of its own, which batch normalisation cannot train on with pictures of {dataset.width} × "
            f"{dataset.height} pixels and the {config.stem} stem. Take another --batch_size."
        )
    return config


def _settle_stem(config: Config, dataset: Dataset) -> Config:
    """The stem that serves the pictures, and a model name that does not say otherwise."""
    stem, reason = choose_stem(config.stem, dataset.height, dataset.width)
    if config.resume:
        reason = "as the run began"
    log.info("stem %s (%s): %s", stem, STEMS[stem].layers, reason)
    model_name = config.model_name
    if stem == "stock" and model_name == DEFAULT_MODEL_NAME:
        model_name = STOCK_MODEL_NAME
        log.info("the model is called %s, since nothing of it is adapted", model_name)
    return replace(config, stem=stem, model_name=model_name)


def _settle_views(config: Config, dataset: Dataset) -> Config:
    """The views that make sense for the pictures, in training and so in TTA."""
    if not dataset.orientation_free:
        log.info(
            "no picture is mirrored, whatever --hflip says: left and right are not interchangeable in %s (given by its "
            "path, %s is taken as a file of your own, for which --hflip alone decides)",
            dataset.title,
            dataset.source,
        )
        config = replace(config, hflip=0.0)
    if not config.no_tta and len(_views(config)) == 1:
        log.info("no test-time augmentation: training shows every picture in one view only")
        config = replace(config, no_tta=True)
    return config


def _settle_feed(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """The feed and the number of worker processes as applied, by what memory is needed and what is free."""
    images = dataset.image_sizes
    plan = plan_memory(config.feed, images, device)
    log.info("memory: %s", plan.figures)
    if plan.feed == "resident":
        num_workers, consequence = 0, "--num_workers has no effect"
    elif config.reproducible:
        num_workers, consequence = 0, "no worker processes in reproducibility mode"
    else:
        num_workers, why_fewer = workers_that_fit(
            config.num_workers, images, batch_size=config.batch_size, shared=free_shared_memory()
        )
        if why_fewer:
            log.warning(why_fewer)
        consequence = f"{num_workers} worker processes"
    log.info("feed %s: %s; %s", plan.feed, plan.reason, consequence)
    return replace(config, feed=plan.feed, num_workers=num_workers)


def unpack_if_streamed(dataset: Dataset, config: Config) -> Dataset:
    """The set as its images will be read: streamed, from uncompressed files, which are made if they are not there.

    Raises:
        DataError: The data are damaged, or have changed.
        StorageError: The uncompressed images cannot be written.
    """
    if config.feed == "resident" or dataset.unpack is None:
        return dataset
    return dataset.unpack(config.data_dir)


def record_provenance(config: Config, dataset: Dataset, paths: RunPaths, stop: StopRequest) -> dict[str, Any]:
    """Write all that the result depends on into ``config.json``; from here on the run can be resumed.

    A resumed run keeps its ``config.json``, compares it with what is here now, and says what differs.

    Raises:
        DataError: The data are not those that the run was started with.
    """
    provenance = describe_run(config, dataset)
    with stop.deferred():  # the advice is good once the file is there, and not before
        if not config.resume:
            write_json(paths.config, provenance)
        stop.advice = f"Go on with: {resume_command(config, paths.root)}"
    if not config.resume:
        return provenance
    stored: dict[str, Any] = json.loads(paths.config.read_text())
    if dataset.md5 != stored["dataset"]["md5"]:
        raise DataError(
            f"--resume {paths.root} was trained on data with the MD5 {stored['dataset']['md5']}, but {dataset.source} "
            f"has {dataset.md5}. Put the right file there, or name it with --dataset."
        )
    for difference in differences(stored["environment"], provenance["environment"]):
        log.warning(f"{difference}: the result may differ in its last bits from that of an uninterrupted run")
    return stored


def begin_or_resume(config: Config, dataset: Dataset, device: torch.device, paths: RunPaths) -> TrainingState:
    """The state of the training: before its first step, or where the newest sound checkpoint left it.

    Raises:
        DataError: The starting weights cannot be had, or the checkpoint does not fit the model.
        StorageError: The disk has too little space for what the run will write.
    """
    saved = load_checkpoint(paths) if config.resume else None
    weights = "none" if saved else config.weights  # a checkpoint replaces whatever the run was started from
    model = factory.build_model(
        num_classes=len(dataset.class_names),
        weights=weights,
        data_dir=config.data_dir,
        seed=config.seed,
        stem=config.stem,
    )
    require_space(paths.root, sum(tensor.nbytes for tensor in model.state_dict().values()))
    # the memory layout that convolutions are fastest in
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = begin_training(model, config, device)
    if saved:
        if saved["provenance"] != json.loads(paths.config.read_text()):
            raise DataError(
                f"--resume {paths.root}: its config.json is not the one that its checkpoint was trained with. Put back "
                "what was changed there, or start a new run."
            )
        try:
            state.restore(saved)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(
                f"--resume {paths.root}: its checkpoint does not fit this version of the program ({error})."
            ) from error
        log.info(f"resumed at epoch {state.epoch}, after {state.steps_done} of its steps")
    elif config.resume and paths.history.exists():
        raise DataError(
            f"--resume {paths.root}: none of its checkpoints is sound, so its training cannot go on. Start a new run, "
            f"from its best weights if you like (--weights {paths.best_model})."
        )
    elif config.resume:
        log.info("there is no sound checkpoint yet: starting at the beginning")
    return state


def train(
    state: TrainingState,
    train: Split,
    val: Split,
    dataset: Dataset,
    config: Config,
    provenance: dict[str, Any],
    paths: RunPaths,
    stop: StopRequest,
) -> TrainingResult:
    """Fit; the best weights are in the run folder afterwards."""
    with stop.deferred(), memory_advice(config):
        return fit(
            state,
            _examples(train, dataset, config),
            _examples(val, dataset, config),
            config,
            paths=paths,
            provenance=provenance,
            model_card=describe_model(config, dataset),
            stop=stop,
        )


def evaluate_best(model: nn.Module, test: Split, dataset: Dataset, config: Config, paths: RunPaths) -> EvaluationResult:
    """Judge the best weights, read back from their file, on the test split."""
    # here rather than above: what judges takes a second to import, for which training need not wait
    from scripts.evaluation.inference import evaluate

    load_weights(model, read_state_dict(paths.best_model, origin=f"The best weights {paths.best_model}"), origin="best")
    views = () if config.no_tta else _views(config)
    examples = _examples(test, dataset, config)
    with memory_advice(config):
        return evaluate(model, examples, test.labels, dataset, views, precision=config.precision, seed=config.seed)


def report(
    train: Split,
    test: Split,
    dataset: Dataset,
    training: TrainingResult,
    evaluation: EvaluationResult,
    config: Config,
    paths: RunPaths,
) -> None:
    """Write every report, add the test figures to the model's card, and say what came out."""
    from scripts.evaluation.reports import write_reports

    card = json.loads(paths.best_model_card.read_text())
    write_json(paths.best_model_card, card | {"test": _test_figures(evaluation)})
    write_reports(
        paths,
        config=config,
        dataset=dataset,
        training=training,
        evaluation=evaluation,
        environment=describe_environment(config.device),
        train=train,
        test_images=test.images,
        finished=datetime.now(),
    )
    forget_predecessor(paths)
    for name, metrics in _variants(evaluation).items():
        figures = (
            _figure_in_words(title, estimate)
            for title, estimate in (
                ("accuracy", metrics.accuracy),
                ("AUC", metrics.auc),
                ("macro-F1", metrics.macro_f1),
                ("quadratic-weighted kappa", metrics.quadratic_weighted_kappa),
                ("mean absolute error", metrics.mean_absolute_error),
            )
            if estimate is not None
        )
        log.info("test, %s: %s", name, "  ".join(figures))
    log.info("reports in %s%s", paths.root, f"  ({dataset.note})" if dataset.note else "")


def _figure_in_words(title: str, estimate: Estimate) -> str:
    if not estimate.is_defined:
        return f"{title} undefined"
    return f"{title} {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


@contextmanager
def memory_advice(config: Config) -> Iterator[None]:
    """Say what to do when the device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            f"The memory of {config.device} is used up with --batch_size {config.batch_size} and --feed {config.feed}. "
            "Take a smaller --batch_size, --feed streamed, or a device that no other program uses."
        ) from error


def describe_run(config: Config, dataset: Dataset) -> dict[str, Any]:
    """All that the result depends on, as values that JSON knows."""
    return {
        "command": [os.fspath(word) for word in sys.argv],
        "settings": config.as_dict(),
        "backbone": BACKBONE,
        "memory_format": "channels_last",
        "dataset": dataset.as_dict(),
        "environment": describe_environment(config.device),
    }


def describe_model(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What a user of the weights needs to know, as values that JSON knows."""
    return {
        "model_name": config.model_name,
        "backbone": BACKBONE,
        "stem": config.stem,
        "stem_layers": STEMS[config.stem].layers,
        "class_names": list(dataset.class_names),
        "task": dataset.task,
        "input": {
            "height": dataset.height,
            "width": dataset.width,
            "channels": 3,
            "stored_channels": dataset.channels,
            "range": "uint8 / 255, then normalised; RGB; grey pictures become three equal channels",
        },
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "activation": "sigmoid, label by label" if dataset.task == MULTI_LABEL else "softmax over the classes",
        "decision": DECISIONS[dataset.task],
        "tta_views": [] if config.no_tta else [view.name for view in _views(config)],
        "precision": config.precision,
        "dataset": {"key": dataset.key, "title": dataset.title, "md5": dataset.md5, "note": dataset.note},
    }


def _views(config: Config) -> tuple[View, ...]:
    return tta_views(hflip=config.hflip, rotation_angle=config.rotation_angle)


def _variants(evaluation: EvaluationResult) -> dict[str, Metrics]:
    """The figures without TTA, and with it where there is TTA."""
    with_tta = {} if evaluation.tta is None else {"with TTA": evaluation.tta}
    return {"without TTA": evaluation.plain} | with_tta


def _test_figures(evaluation: EvaluationResult) -> dict[str, dict[str, float | None]]:
    def value(estimate: Estimate) -> float | None:
        return estimate.value if estimate.is_defined else None  # NaN is no JSON

    return {
        name: {figure: value(estimate) for figure, estimate in metrics.estimates.items()}
        for name, metrics in _variants(evaluation).items()
    }


def _examples(split: Split, dataset: Dataset, config: Config) -> Examples:
    return make_examples(
        split,
        len(dataset.class_names),
        feed=config.feed,
        device=torch.device(config.device),
        num_workers=config.num_workers,
    )
