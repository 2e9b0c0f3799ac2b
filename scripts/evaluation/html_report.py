"""``report.html``: the whole run as one page, which needs neither a network nor a server.

The template writes text and tables; its script draws the curves, the confusion matrix and the images from a block of
JSON. Numbers of each image are little-endian arrays in Base64.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from numpy.typing import ArrayLike, NDArray

from scripts.core.config import SETTINGS, Config
from scripts.core.files import write_bytes
from scripts.core.recipes import with_recipe
from scripts.core.records import EpochRecord
from scripts.core.resume import UNSTORED, names_backbone
from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.calibration import decide, format_temperature
from scripts.evaluation.metrics import Estimate, Variant
from scripts.evaluation.run_report import (
    COVERAGES,
    MAX_MATRIX_CLASSES,
    RunReport,
    largest_confusions,
    reliability_frame,
)
from scripts.evaluation.sheets import COUNT, FIGURE, RATE, SECONDS, SHARE
from scripts.evaluation.style import one_line
from scripts.evaluation.thumbnails import COLUMNS, PER_SHEET, Sprites, pack_sprites
from scripts.evaluation.workbook import HEADLINES, HISTORY, PROBABILITY

TEMPLATES = Path(__file__).with_name("templates")
# what the page may contain, so that it stays below 15 MB whatever the set: Base64 adds a third
SPRITE_BYTES, IMAGE_DATA_BYTES, NAME_CHARACTERS = 7_200_000, 2_200_000, 600_000
MAX_IMAGES, MAX_ERROR_SHARE = 20_000, 0.75  # of the images in the page at most this share is wrong, if there are more
MAX_SCORES, MAX_CLASS_ROWS, MAX_EPOCH_ROWS, MAX_CONFUSIONS = 15, 1000, 1000, 200
MAX_NAME, MIN_NAME = 120, 8  # characters of a class name
FORMATS = {SHARE: "{:.2%}", FIGURE: "{:.4f}", COUNT: "{:,}", RATE: "{:.2e}", SECONDS: "{:,.1f}", None: "{}"}
UNDEFINED = "–"
CURVE_COVERAGES = np.arange(1, 201) / 200


def write_html_report(report: RunReport) -> list[Path]:
    """Write ``report.html`` atomically; the same values give the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    write_bytes(report.paths.report, render(report).encode(errors="backslashreplace"))
    return [report.paths.report]


def render(report: RunReport) -> str:
    """Render the page."""
    chosen = choose_images(report)
    sprites = pack_sprites(report.test.images, chosen, max_bytes=SPRITE_BYTES)
    names = short_names(report.dataset.class_names)
    script = _read("report.js")
    return _template().render(
        report=report,
        is_multi_label=report.dataset.task == MULTI_LABEL,
        title=one_line(report.caption.origin),
        facts=list(_facts(report)),
        headlines=list(_headlines(report)),
        history=list(_history_rows(report)),
        history_titles=[title for title, _ in HISTORY.values()],
        class_rows=list(_class_rows(report, names)),
        num_classes=len(names),
        max_class_rows=MAX_CLASS_ROWS,
        has_matrix=report.dataset.task != MULTI_LABEL and len(names) <= MAX_MATRIX_CLASSES,
        confusions=_confusion_rows(report, names),
        trust_rows=list(_trust_rows(report)),
        reliability=list(_reliability(report)),
        risk=_risk_curves(report),
        settings=list(_settings(report.config)),
        commands=_commands(report),
        files=[path.relative_to(report.paths.root).as_posix() for path in _files(report)],
        image_note=_image_note(report, chosen, sprites),
        sprites=sprites,
        style=_read("report.css"),
        script=script,
        # only this script may run, whatever a class is called
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_data(report, names, chosen, sprites),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["value"] = format_value
    return environment.get_template("report.html")


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").strip()


def format_value(value: Any, number_format: str | None = None) -> str:
    """Format a value as the workbook does; a dash where it is undefined."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    return one_line(FORMATS[number_format].format(value))


def short_names(names: tuple[str, ...]) -> list[str]:
    """The names on one line each, cut where they are very long; of very many classes the names are shorter."""
    limit = max(MIN_NAME, min(MAX_NAME, NAME_CHARACTERS // len(names)))
    lines = [one_line(name) or f"class {number}" for number, name in enumerate(names)]
    return [line if len(line) <= limit else f"{line[: limit - 1]}…" for line in lines]


# -- tables ----------------------------------------------------------------------------------------------------------


def _facts(report: RunReport) -> Iterator[tuple[str, str]]:
    dataset, training, config = report.dataset, report.training, report.config
    colours = "grey" if dataset.channels == 1 else "RGB"
    yield "Data set", f"{one_line(dataset.title)} ({dataset.task})"
    yield (
        "Training, validation, test images",
        " / ".join(f"{dataset.num_samples[split]:,}" for split in ("train", "val", "test")),
    )
    yield "Duplicate images", str(report.duplicates).partition(": ")[2]
    yield "Image size", f"{dataset.width} × {dataset.height}, {colours}"
    yield "Backbone", f"{config.backbone}, weights {one_line(config.weights)}"
    yield "Recipe", f"{config.recipe}, seed {config.seed}"
    stopped = ", stopped early" if training.stopped_early else ""
    yield "Epochs", f"{len(training.history):,} of at most {config.epochs:,}{stopped}"
    yield "Best epoch", f"{training.best.epoch:,}, by validation {training.monitor}"
    yield "Training time", str(timedelta(seconds=round(training.seconds)))
    yield "Finished", f"{report.finished:%Y-%m-%d %H:%M:%S}"


def _headlines(report: RunReport) -> Iterator[dict[str, Any]]:
    """The headline metrics, each with its rows (one for each variant, the one to quote first) on a common scale."""
    variants = report.evaluation.variants[::-1]
    for name in report.evaluation.headline.estimates:
        title, number_format = HEADLINES[name]
        estimates = [variant.metrics.estimates[name] for variant in variants]
        defined = [estimate for estimate in estimates if estimate.is_defined]
        low, high = min((one.low for one in defined), default=0), max((one.high for one in defined), default=1)
        scale = (low - 0.1 * (high - low), 1.2 * (high - low) or 1)
        rows = [_headline(*pair, number_format, scale) for pair in zip(variants, estimates, strict=True)]
        yield {"title": title, "rows": rows}


def _headline(variant: Variant, estimate: Estimate, number_format: str, scale: tuple[float, float]) -> dict[str, Any]:
    texts = {name: format_value(getattr(estimate, name), number_format) for name in ("value", "low", "high")}
    start, width = scale
    shares = {f"{name}_at": 100 * (getattr(estimate, name) - start) / width for name in ("value", "low", "high")}
    return {"variant": variant.title, "is_defined": estimate.is_defined, **texts, **shares}


def _history(report: RunReport) -> Iterator[EpochRecord]:
    """The epochs of the page: all, or of very many evenly spaced ones, the best one among them."""
    records = report.training.history
    spaced = np.linspace(0, len(records) - 1, min(len(records), MAX_EPOCH_ROWS)).astype(int).tolist()
    best = records.index(report.training.best)
    yield from (records[index] for index in sorted({*spaced, best}))


def _history_rows(report: RunReport) -> Iterator[dict[str, Any]]:
    best = report.training.best
    for record in _history(report):
        cells = [format_value(getattr(record, name), number_format) for name, (_, number_format) in HISTORY.items()]
        yield {"cells": cells, "is_best": record is best}


def _class_rows(report: RunReport, names: list[str]) -> Iterator[dict[str, Any]]:
    """One row per class or label; of very many those with the smallest F1."""
    variants, headline = report.evaluation.variants[::-1], report.evaluation.headline
    f1 = np.array([math.inf if one.f1 is None else one.f1 for one in headline.per_class])
    for index in np.sort(np.argsort(f1, kind="stable")[:MAX_CLASS_ROWS]).tolist():
        of_class = [variant.metrics.per_class[index] for variant in variants]
        yield {
            "index": index,
            "name": names[index],
            "support": headline.per_class[index].support,
            "figures": [figure for one in of_class for figure in (one.precision, one.recall, one.f1, one.auc)],
            # of a label: rightly absent, falsely predicted, missed, found
            "counts": headline.confusion[index].ravel().tolist() if headline.confusion.ndim == 3 else [],
        }


def _trust_rows(report: RunReport) -> Iterator[tuple[str, list[str]]]:
    """What the probabilities are worth, for each variant before and after its temperature."""
    found = [variant.trust for variant in report.evaluation.variants[::-1]]
    states = [metrics for one in found for metrics in (one.calibration.before, one.calibration.after)]
    for name, title in PROBABILITY.items():
        yield title, [format_value(getattr(metrics, name), FIGURE) for metrics in states]
    yield "Temperature", [cell for one in found for cell in ("1", format_temperature(one.calibration.temperature))]
    areas = [cell for one in found for cell in (format_value(one.risk_coverage.area, FIGURE), UNDEFINED)]
    yield "Area under risk and coverage", areas


def _reliability(report: RunReport) -> Iterator[dict[str, Any]]:
    """A diagram for each variant before and after its temperature: the bins of confidence that are not empty."""
    for variant in report.evaluation.variants[::-1]:
        found = variant.trust.calibration
        for state, metrics in (("as predicted", found.before), ("calibrated", found.after)):
            frame = reliability_frame(metrics)
            frame["share"] = frame["count"] / frame["count"].sum()
            bins = frame[frame["count"] > 0].to_dict("records")
            yield {"title": f"{variant.title}, {state}", "ece": format_value(metrics.ece, FIGURE), "bins": bins}


def _risk_curves(report: RunReport) -> dict[str, Any]:
    """The share of errors among the most certain decisions, in per mille of the diagram's width and height."""
    curves = {variant.title: variant.trust.risk_coverage.at(CURVE_COVERAGES) for variant in report.evaluation.variants}
    highest = max(float(risks.max()) for risks in curves.values()) or 1.0
    lines = [
        {
            "title": title,
            "points": " ".join(
                f"{1000 * coverage:.0f},{1000 - 1000 * risk / highest:.0f}"
                for coverage, risk in zip(CURVE_COVERAGES, risks.tolist(), strict=True)
            ),
        }
        for title, risks in reversed(curves.items())
    ]
    rows = [
        [
            f"{coverage:.0%}",
            *(
                format_value(float(variant.trust.risk_coverage.at(np.array([coverage]))[0]), SHARE)
                for variant in report.evaluation.variants[::-1]
            ),
        ]
        for coverage in COVERAGES
    ]
    return {"lines": lines, "highest": f"{highest:.1%}", "rows": rows}


def _confusion_rows(report: RunReport, names: list[str]) -> list[dict[str, Any]]:
    if report.dataset.task == MULTI_LABEL:
        return []
    largest = largest_confusions(report.evaluation.headline, MAX_CONFUSIONS)
    return [
        {
            "true": true,
            "predicted": predicted,
            "names": (names[true], names[predicted]),
            "images": images,
            "share": share,
        }
        for true, predicted, images, share in zip(*(largest[column].tolist() for column in largest), strict=True)
    ]


def _settings(config: Config) -> Iterator[dict[str, Any]]:
    """The settings as applied, and what they would be without any flag except ``--recipe``."""
    usual = usual_settings(config)
    for name, known in SETTINGS.items():
        value = getattr(config, name)
        yield {
            "flag": known.flag,
            "value": format_value(value),
            "usual": format_value(usual[name]),
            "differs": value != usual[name],
            "group": known.metadata["group"],
            "help": known.metadata["help"],
        }


def usual_settings(config: Config) -> dict[str, Any]:
    """The settings of the run's recipe, and the defaults of those that it does not have."""
    defaults = {name: known.default for name, known in SETTINGS.items()}
    return defaults | with_recipe({"recipe": config.recipe, "epochs": config.epochs}, epochs=config.epochs)


def repeat_arguments(report: RunReport) -> list[str]:
    """The command line that trains with the same settings again, without those that belong to one start."""
    config, usual, arguments = report.config, usual_settings(report.config) | {"epochs": SETTINGS["epochs"].default}, []
    usual["recipe"] = SETTINGS["recipe"].default
    for name, known in SETTINGS.items():
        value = getattr(config, name)
        if name == "dataset" and config.is_dataset_path:
            value = report.dataset.source
        follows = name == "model_name" and names_backbone(value, config.backbone)
        if name in UNSTORED or value == usual[name] or follows:
            continue
        flag = known.flag if value or known.kind is not bool else f"--no_{name}"
        is_like_a_flag = str(value).startswith("-")
        arguments += [flag] if known.kind is bool else [f"{flag}={value}"] if is_like_a_flag else [flag, str(value)]
    return arguments


def _commands(report: RunReport) -> list[tuple[str, str]]:
    """What to do with the run, and the command for it, to be run in the project's folder."""
    root = str(report.paths.root)
    commands = {
        "Train again with the same settings": ["main.py", *repeat_arguments(report)],
        "Resume this run, should it ever be interrupted": ["main.py", "--resume", root],
        "Predict new images": ["tools/predict.py", root, "IMAGES", "--output", "predictions.csv"],
        "Explain predictions": ["tools/explain.py", root, "IMAGES"],
        "Export the model": ["tools/export.py", root, "--format", "onnx"],
    }
    return [(title, shlex.join(["python", *words])) for title, words in commands.items()]


def _files(report: RunReport) -> Iterator[Path]:
    """The other files of the run that are there."""
    paths = report.paths
    fixed = (paths.config, paths.history, paths.log, paths.best_model, paths.best_model_card)
    yield from filter(Path.is_file, fixed)
    for folder in (paths.figures, paths.reports):
        yield from sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


# -- the images in the page ------------------------------------------------------------------------------------------


def image_outcomes(report: RunReport) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Find the confidence of the prediction of each test image, and whether it is right, shape (N,) each.

    With several labels, an image is right if every label is. The confidence of a label is the probability of what is
    predicted of it, present or absent: of a wrong image it is the largest of its wrong labels, of a right one the
    smallest of all labels.
    """
    decided = decide(report.evaluation.labels, report.evaluation.variants[-1].scores, report.dataset.task)
    shape = (len(report.evaluation.labels), -1)
    of_decision, is_decision_right = decided[0].reshape(shape), decided[1].reshape(shape)
    is_right = np.asarray(is_decision_right.all(axis=1))
    largest_wrong = np.where(is_decision_right, 0, of_decision).max(axis=1)
    return np.where(is_right, of_decision.min(axis=1), largest_wrong), is_right


def max_images(report: RunReport) -> int:
    """How many images may be in the page."""
    num_classes = len(report.dataset.class_names)
    labels = math.ceil(num_classes / 8) if report.dataset.task == MULTI_LABEL else 4  # bytes, as ``_data`` packs them
    per_image = 9 + 2 * labels + 6 * min(MAX_SCORES, num_classes)
    return min(MAX_IMAGES, max(1, IMAGE_DATA_BYTES // per_image))


def choose_images(report: RunReport) -> NDArray[np.int64]:
    """The images of the page: all, or all wrong and evenly spaced right ones; of many the most confident wrong."""
    limit, (confidence, right) = max_images(report), image_outcomes(report)
    if len(right) <= limit:
        return np.arange(len(right))
    wrong, rest = np.flatnonzero(~right), np.flatnonzero(right)
    max_wrong = max(round(MAX_ERROR_SHARE * limit), limit - len(rest))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:max_wrong]
    spaced = rest[np.linspace(0, len(rest) - 1, limit - len(wrong)).astype(np.int64)] if len(rest) else rest
    return np.sort(np.concatenate([wrong, np.unique(spaced)]))


def _image_note(report: RunReport, chosen: NDArray[np.int64], sprites: Sprites) -> str:
    _, right = image_outcomes(report)
    size, original = f"{sprites.width} × {sprites.height}", f"{report.dataset.width} × {report.dataset.height}"
    pixels = f"All pixels of the {size} images are kept."
    if not sprites.lossless:
        pixels = f"The images of {original} pixels are shown as compressed thumbnails of {size} pixels."
    if len(chosen) == len(right):
        return f"All {len(right):,} test images. {pixels}"
    num_right, all_right = int(right[chosen].sum()), int(right.sum())
    num_wrong, all_wrong = len(chosen) - num_right, len(right) - all_right
    wrong = (
        f"all {all_wrong:,} wrong ones"
        if num_wrong == all_wrong
        else (f"the {num_wrong:,} most confident of {all_wrong:,} wrong ones")
    )
    sample = f"{wrong} and {num_right:,} of the {all_right:,} right ones, evenly spaced"
    return f"A sample of the {len(right):,} test images, to keep this page small: {sample}. {pixels}"


def _data(report: RunReport, names: list[str], chosen: NDArray[np.int64], sprites: Sprites) -> dict[str, Any]:
    """The values that the script reads."""
    variant, labels = report.evaluation.variants[-1], report.evaluation.labels
    confidence, right = image_outcomes(report)
    is_multi_label, metrics = labels.ndim == 2, variant.metrics
    scores = variant.scores[chosen]
    kept = min(MAX_SCORES, len(names))
    largest = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
    history = list(_history(report))
    matrix = metrics.confusion.tolist() if not is_multi_label and len(names) <= MAX_MATRIX_CLASSES else None

    def packed(values: NDArray[np.int64]) -> str:
        """Class indices, or one bit per label."""
        if is_multi_label:
            return _packed(np.packbits(values[chosen] == 1, axis=1, bitorder="little"), "u1")
        return _packed(values[chosen], "<u4")

    return {
        "names": names,
        "multiLabel": is_multi_label,
        "confusion": matrix,
        "history": {
            name: [_finite(getattr(record, name)) for record in history]
            for name in ("epoch", "train_loss", "val_loss", "val_accuracy", "val_auc", "learning_rate")
        },
        "bestEpoch": report.training.best.epoch,
        "images": {
            "index": _packed(chosen, "<u4"),
            "right": _packed(right[chosen], "u1"),
            "truth": packed(labels),
            "predicted": packed(metrics.predictions),
            "confidence": _packed(confidence[chosen], "<f4"),
            "kept": kept,
            "classes": _packed(largest, "<u4"),
            "scores": _packed(np.rint(np.clip(np.take_along_axis(scores, largest, axis=1), 0, 1) * 65535), "<u2"),
        },
        "sprites": {
            "width": sprites.width,
            "height": sprites.height,
            "count": sprites.count,
            "columns": COLUMNS,
            "perSheet": PER_SHEET,
        },
    }


def _packed(values: ArrayLike, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
