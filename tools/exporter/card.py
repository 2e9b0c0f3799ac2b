"""The model card: a README.md whose YAML head model hubs read, from what a run and its exported files say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from scripts.core.config import SETTINGS
from scripts.core.errors import DataError
from scripts.data_handler.registry import DATASET_REGISTRY, MULTI_LABEL, SYNTHBLOOD, THRESHOLD
from scripts.trained_run import TrainedRun

TEMPLATE = Path(__file__).with_name("card.md.jinja")
# the names that model hubs know, by the names in summary.json
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "auc": ("roc_auc", "AUC"),
    "macro_f1": ("f1", "Macro-F1"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "quadratic_weighted_kappa": ("cohen_kappa", "Quadratic-weighted kappa"),
    "mean_absolute_error": ("mae", "Mean absolute error"),
}
NON_COMMERCIAL = "dermamnist"  # the one set that is CC BY-NC 4.0: https://medmnist.com
# settings that the card states elsewhere, as applied
STATED = {"recipe", "epochs", "monitor", "seed", "backbone", "model_name", "stem"}
# what JSON leaves as it is and YAML does not: control characters, line ends, surrogates, what is not a character
NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def render_card(run: TrainedRun, files: Mapping[str, Any]) -> str:
    """Make the text of the card; ``files`` are the entries of ``export.json``.

    Raises:
        DataError: The run's ``summary.json`` is damaged, or of another version of the program.
    """
    environment = jinja2.Environment(  # noqa: S701 (Markdown is not HTML; as_markdown escapes names)
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"yaml": as_yaml, "md": as_markdown}
    try:
        figures = _figures(run.summary["test"]["plain"])
        text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            head=_head(run, files, figures),
            run=run,
            files=files,
            figures=figures,
            titles={name: title for name, (_, title) in METRICS.items()},
            is_multi_label=run.task == MULTI_LABEL,
            threshold=THRESHOLD,
            is_synthetic=run.config.dataset == SYNTHBLOOD,
            licence=licence_of(run),
            settings=_changed_settings(run),
            temperature=run.temperature(tta=False),
        )
    except (KeyError, TypeError, jinja2.UndefinedError) as error:
        raise DataError(f"{run.paths.summary} is damaged, or of another version of the program ({error}).") from error
    return text.encode("utf-8", "backslashreplace").decode()


def as_yaml(value: Any) -> str:
    r"""``value`` as JSON that is YAML too.

    >>> as_yaml(["a: 'b'", None])
    '["a: \'b\'", null]'
    """
    return NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def as_markdown(value: Any) -> str:
    r"""``value`` as plain text within a line of Markdown.

    >>> as_markdown("a\n|b|")
    'a \\|b\\|'
    """
    return re.sub(r"([\\`*_{}\[\]<>&|#~])", r"\\\1", " ".join(str(value).split()))


def licence_of(run: TrainedRun) -> str | None:
    """The licence of the data; None where it is not known."""
    if run.config.dataset not in DATASET_REGISTRY:
        return None
    return "CC BY-NC 4.0" if run.config.dataset == NON_COMMERCIAL else "CC BY 4.0"


def _figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The headline figures that are defined, with their intervals, by title."""
    found = {name: metrics[name] for name in METRICS if name in metrics}
    return {name: figure for name, figure in found.items() if figure["value"] is not None}


def _head(run: TrainedRun, files: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the YAML head: https://huggingface.co/docs/hub/model-cards."""
    data, is_onnx = run.card["dataset"], any(name.endswith(".onnx") for name in files)
    metrics = [
        {
            "type": METRICS[name][0],
            "name": METRICS[name][1],
            "value": round(figure["value"], 4),
            "args": {"low": round(figure["low"], 4), "high": round(figure["high"], 4), "interval": "95 % bootstrap"},
        }
        for name, figure in figures.items()
    ]
    task = {"type": "image-classification", "name": "Image Classification"}
    dataset = {"type": data["key"], "name": data["title"], "split": "test"}
    synthetic = ["synthetic-data"] if run.config.dataset == SYNTHBLOOD else []
    return {
        "license": "unknown",
        "library_name": "onnx" if is_onnx else "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "medical", run.config.backbone, *synthetic],
        "datasets": [data["key"]],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [
            {"name": run.config.model_name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
        ],
    }


def _changed_settings(run: TrainedRun) -> dict[str, Any]:
    """Other settings that differ from the defaults; of a file only the name, as folders are private."""
    groups = ("training", "augmentation", "data and model")
    names = [name for name, known in SETTINGS.items() if known.metadata["group"] in groups and known.kind is not Path]
    values = {name: getattr(run.config, name) for name in names if name not in STATED}
    values |= {name: Path(values[name]).name for name in ("dataset", "weights")}
    return {name: value for name, value in values.items() if value != SETTINGS[name].default}
