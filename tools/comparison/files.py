"""The files of a comparison: ``comparison.json``, and the images that A and B predict differently."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scripts.core.errors import PipelineError, storage_errors
from scripts.core.files import write_json
from scripts.data_handler.registry import DATASET_REGISTRY
from scripts.evaluation import style
from scripts.evaluation.confusion import Integers
from scripts.evaluation.image_grids import MAX_ANNOTATED_LABELS, MAX_PREDICTIONS, Group, Line, draw_groups
from scripts.trained_run import TrainedRun
from tools.comparison.result import RESAMPLES, SEED, Comparison, conclusion

JSON_NAME, FIGURE_NAME = "comparison.json", "differences.png"
# of the groups of images on which B, A, or neither is better
STYLES: tuple[tuple[str, str, Any], ...] = (
    ("B", style.RIGHT_COLOUR, "-"),
    ("A", style.WRONG_COLOUR, style.DASHES),
    ("=", style.MUTED, (0, (1, 1.6))),
)
TITLES = {  # of these groups, by the number of dimensions of the labels
    1: ("Only B is right", "Only A is right", "Both are wrong, in different ways"),
    2: ("B is right in more labels", "A is right in more labels", "Both are right in as many labels, but in others"),
}


def write_comparison(comparison: Comparison, folder: Path) -> Iterator[str]:
    """Write both files, and yield a sentence about each.

    Raises:
        StorageError: A file cannot be written.
    """
    with storage_errors(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON_NAME, as_json(comparison))
    yield f"wrote {folder / JSON_NAME}"
    if not len(comparison.differing):
        yield f"no {FIGURE_NAME}: no image is predicted differently"
        return
    problems = []
    for run in (*comparison.pair.a, *comparison.pair.b):
        images = _test_images(run, len(comparison.pair.labels))
        if not isinstance(images, str):
            style.save_figure(draw_differences(images, comparison), folder / FIGURE_NAME)
            yield f"wrote {folder / FIGURE_NAME}"
            return
        problems.append(images)
    yield f"no {FIGURE_NAME}: the images cannot be read. {problems[0]}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers as strict JSON; undefined ones are null."""
    pair = comparison.pair
    return {
        "conclusion": conclusion(comparison),
        "a": [_run_facts(run) for run in pair.a],
        "b": [_run_facts(run) for run in pair.b],
        "task": pair.task,
        "variant": pair.variant,
        "num_images": len(pair.labels),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": 0.95},
        "figures": {
            name: {key: _or_null(getattr(one, key)) for key in ("a", "b", "value", "low", "high")}
            | {"better": one.better(name)}
            for name, one in comparison.differences.items()
        },
        "mcnemar": [
            {"of": name, "only_a": test.only_a, "only_b": test.only_b, "p": test.p, "p_holm": corrected}
            for (name, test), corrected in zip(comparison.mcnemar.items(), comparison.mcnemar_holm, strict=True)
        ],
        "delong": [
            {"class": name}
            | {key: _or_null(getattr(test, key)) for key in ("a", "b", "standard_error", "p")}
            | {"p_holm": _or_null(corrected)}
            for (name, test), corrected in zip(comparison.delong.items(), comparison.delong_holm, strict=True)
        ],
        "images": [
            {"index": index, "true": pair.labels[index].tolist()}
            | {letter: made[index].tolist() for letter, made in zip("ab", comparison.predictions, strict=True)}
            for index in comparison.differing.tolist()
        ],
        "class_names": list(pair.class_names),
        "notes": list(pair.notes),
    }


def _run_facts(run: TrainedRun) -> dict[str, Any]:
    config = run.config
    facts = {"backbone": config.backbone, "recipe": config.recipe, "seed": config.seed}
    return {"run": str(run.paths.root)} | facts | {"data_md5": run.card["dataset"]["md5"]}


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _test_images(run: TrainedRun, count: int) -> NDArray[np.uint8] | str:
    """The images of the test split; a sentence where the file of the data set cannot be used. Nothing is downloaded."""
    config = run.config
    if config.dataset in DATASET_REGISTRY:
        path = config.data_dir / DATASET_REGISTRY[config.dataset].file_name(config.resolution)
        if not path.is_file():
            return f"There is no file {path.absolute()}."
    try:
        images = run.dataset.load("test").images
    except PipelineError as error:
        return str(error)
    return images if len(images) == count else f"{run.dataset.source} has {len(images):,} test images."


@style.with_style
def draw_differences(images: NDArray[np.uint8], comparison: Comparison) -> Figure:
    """Draw the images that A and B predict differently, those with the largest difference first."""
    pair, (a, b) = comparison.pair, comparison.scores
    names = style.short_names(pair.class_names, width=16, lines=1)
    right_a, right_b = (_num_right(made, pair.labels) for made in comparison.predictions)
    advantage, size, differing = right_b - right_a, np.abs(a - b).max(axis=1), comparison.differing
    groups = []
    for (mark, colour, dashes), titles, is_member in zip(
        STYLES, TITLES[pair.labels.ndim], (advantage > 0, advantage < 0, advantage == 0), strict=True
    ):
        members = differing[is_member[differing]]
        chosen = members[np.argsort(-size[members], kind="stable")][:MAX_PREDICTIONS]
        if len(chosen):
            title = f"{titles}: {len(chosen)} of {len(members):,}, the largest difference first"
            groups.append(Group(title, mark, colour, dashes, chosen))
    texts = {index: _lines(comparison, names, index) for group in groups for index in group.chosen.tolist()}
    detail = f"{len(differing):,} of {len(pair.labels):,} test images are predicted differently {pair.way}"
    if pair.labels.ndim == 2:
        detail += " · below each: whether the label is true, its probability by A and by B"
    first = pair.a[0]
    caption = style.Caption(first.card["dataset"]["title"], _against(pair.a, pair.b), first.card["dataset"].get("note"))
    return draw_groups("Predicted differently", images, groups, texts, detail, caption)


def _against(a: Sequence[TrainedRun], b: Sequence[TrainedRun]) -> str:
    return " · ".join(
        f"{letter}: {runs[0].name}" + f" and {len(runs) - 1} more" * (len(runs) > 1)
        for letter, runs in zip("AB", (a, b), strict=True)
    )


def _num_right(predictions: Integers, labels: Integers) -> Integers:
    """The number of right decisions about each image, shape (N,)."""
    return (predictions == labels).reshape(len(labels), -1).sum(axis=1)


def _lines(comparison: Comparison, names: Sequence[str], index: int) -> list[Line]:
    """Lines below one image: its row, what is true, and what A and B predict with their probabilities."""
    labels, (a, b) = comparison.pair.labels, comparison.scores
    of_a, of_b = (made[index] for made in comparison.predictions)
    row = (f"test #{index}", style.MUTED)
    if labels.ndim == 1:
        made = (("A", of_a, a), ("B", of_b, b))
        found = [
            (
                f"{letter}  {names[one]} {scores[index, one]:.0%}",
                style.RIGHT_COLOUR if one == labels[index] else style.WRONG_COLOUR,
            )
            for letter, one, scores in made
        ]
        return [row, (f"true  {names[labels[index]]}", style.INK), *found]
    concerned = np.flatnonzero(of_a != of_b)
    order = concerned[np.argsort(-np.abs(a[index] - b[index])[concerned], kind="stable")].tolist()
    shown = [
        (
            f"{names[one]}: {'yes' if labels[index, one] else 'no'} · A {a[index, one]:.0%} · B {b[index, one]:.0%}",
            style.RIGHT_COLOUR if of_b[one] == labels[index, one] else style.WRONG_COLOUR,
        )
        for one in order[:MAX_ANNOTATED_LABELS]
    ]
    more = [(f"and {len(order) - MAX_ANNOTATED_LABELS} more", style.MUTED)] if len(order) > MAX_ANNOTATED_LABELS else []
    return [row, *shown, *more]
