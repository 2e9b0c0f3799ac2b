"""Grids of images: samples of the training split, and test images with their predictions.

Their axes are measured in pixels of the file, so that an enlarged pixel of an image is a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from scripts.data_handler.dataset import members
from scripts.evaluation import style
from scripts.evaluation.metrics import EvaluationResult

SAMPLES_PER_CLASS, SAMPLE_HEIGHT, MAX_SAMPLED_CLASSES, GAP = 12, 84, 30, 8
PREDICTIONS_PER_ROW, MAX_PREDICTIONS, PREDICTION_HEIGHT, PREDICTION_PITCH = 8, 16, 140, 224
HEADING_HEIGHT, LINE_HEIGHT, LETTER_WIDTH, MAX_ANNOTATED_LABELS = 46, 21, 9, 5
FOUND, MISSED, FALSE = "✓", "○", "✗"

Pixels = NDArray[np.uint8]
Line = tuple[str, str]  # a text and its colour


@style.with_style
def draw_dataset_samples(
    images: Pixels, labels: NDArray[np.int64], class_names: Sequence[str], caption: style.Caption
) -> Figure:
    """Training images, one row per class or label, evenly spread over the split; of very many only the first.

    ``images`` have the shape (N, H, W) or (N, H, W, 3); ``labels`` are class indices (N,), or 0 and 1 (N, C).
    """
    names = style.short_names(class_names, width=24, lines=3)[:MAX_SAMPLED_CLASSES]
    kind, again = ("classes", "") if labels.ndim == 1 else ("labels", ", in the row of each of their labels")
    hidden = f", the first {len(names)} of {len(class_names)} {kind}" if len(names) < len(class_names) else ""
    detail = f"{len(labels):,} images of {images.shape[2]} × {images.shape[1]} pixels{again}{hidden}"
    width = SAMPLE_HEIGHT * images.shape[2] / images.shape[1]
    left = 24 + 14 * max(len(line) for name in [*names, "images"] for line in name.split("\n"))
    height = len(names) * (SAMPLE_HEIGHT + GAP) - GAP
    of_class = [np.flatnonzero(members(labels, row)) for row in range(len(names))]
    chosen = [ids[np.linspace(0, len(ids) - 1, min(SAMPLES_PER_CLASS, len(ids)), dtype=np.int64)] for ids in of_class]
    axes = _pixel_axes("Training images", detail, caption, left + max(map(len, chosen)) * (width + GAP) - GAP, height)
    for row, name in enumerate(names):
        y = row * (SAMPLE_HEIGHT + GAP)
        middle = y + SAMPLE_HEIGHT / 2 + 10 * (name.count("\n") - 1)
        axes.text(0, middle + 8, name, va="bottom", linespacing=1.05)
        axes.text(0, middle + 12, style.num_images(len(of_class[row])), va="top", size=7.5, color=style.MUTED)
        for column, index in enumerate(chosen[row]):
            _show(axes, images[index], left + column * (width + GAP), y, width, SAMPLE_HEIGHT)
    return axes.figure  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Group:
    """Predictions that are shown together."""

    title: str
    mark: str
    colour: str
    dashes: Any
    chosen: NDArray[np.int64]  # image indices in the order of showing


@style.with_style
def draw_predictions(
    images: Pixels, evaluation: EvaluationResult, class_names: Sequence[str], caption: style.Caption
) -> Figure:
    """Test images with their true and predicted classes or labels; the most confident errors among them.

    Each image, of shape (H, W) or (H, W, 3), is named by its row in the test split as in the files of predictions.
    """
    headline, labels = evaluation.variants[-1], evaluation.labels
    predictions, scores = headline.metrics.predictions, headline.scores
    names = style.short_names(class_names, width=16, lines=1)
    num_right, way = headline.metrics.num_correct, headline.phrase
    detail = f"test images {way}; {num_right:,} of {len(images):,} are right"
    if labels.ndim == 1:
        is_right, kinds = predictions == labels, labels
        confidence = scores[np.arange(len(images)), predictions]
        titles = "Right: {} of {:,}, from each class in turn", "Wrong: {} of {:,}, the most confident first"
    else:
        is_right = (predictions == labels).all(axis=1)
        # images with none of the labels are a kind of their own
        kinds = np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])
        confidence = np.where(predictions == labels, 0.0, np.abs(scores - 0.5)).max(axis=1)
        titles = (
            "Right in every label: {} of {:,}, from each label in turn",
            "Wrong in some: {} of {:,}, the most confident first",
        )
        marks = f"{FOUND} true and predicted · {MISSED} true, not predicted · {FALSE} predicted, not true"
        detail += f" in every label · {marks}"
    right, wrong = _right_and_wrong(is_right, kinds, confidence)
    groups = (
        Group(titles[0].format(len(right), num_right), FOUND, style.RIGHT_COLOUR, "-", right),
        Group(titles[1].format(len(wrong), len(images) - num_right), FALSE, style.WRONG_COLOUR, style.DASHES, wrong),
    )

    def lines_about(group: Group, index: int) -> list[Line]:
        row = (f"test #{index}", style.MUTED)
        if labels.ndim == 2:
            return [row, *_label_lines(names, labels[index], predictions[index], scores[index])]
        true, predicted = (f"true  {names[labels[index]]}", f"pred. {names[predictions[index]]}")
        confident = (f"{group.mark} {confidence[index]:.1%}", group.colour)
        return [row, (true, style.INK), (predicted, style.INK), confident]

    texts = {index: lines_about(group, index) for group in groups for index in group.chosen.tolist()}
    shown = [group for group in groups if len(group.chosen)]
    return draw_groups("Sample predictions", images, shown, texts, detail, caption)


def draw_groups(
    title: str,
    images: Pixels,
    groups: Sequence[Group],
    texts: dict[int, list[Line]],
    detail: str,
    caption: style.Caption,
) -> Figure:
    """Draw framed test images in groups, none of them empty, with the lines of ``texts`` below each image."""
    height, width = PREDICTION_HEIGHT, PREDICTION_HEIGHT * images.shape[2] / images.shape[1]
    line = height + 36 + LINE_HEIGHT * max(map(len, texts.values()))
    longest = max(len(text) for lines in texts.values() for text, _ in lines)
    pitch = max(PREDICTION_PITCH, width + 24, LETTER_WIDTH * longest + 12)
    heights = [HEADING_HEIGHT + line * -(-len(group.chosen) // PREDICTIONS_PER_ROW) for group in groups]
    axes = _pixel_axes(title, detail, caption, PREDICTIONS_PER_ROW * pitch - 24, sum(heights) - 24)
    for group, top in zip(groups, np.cumsum([0, *heights]).tolist(), strict=False):
        axes.text(0, top, f"{group.mark}  {group.title}", va="top", weight="bold", size=10, color=group.colour)
        look = {"edgecolor": group.colour, "linestyle": group.dashes, "linewidth": 2.2}
        for place, index in enumerate(group.chosen.tolist()):
            row, column = divmod(place, PREDICTIONS_PER_ROW)
            x, y = 4 + column * pitch, top + HEADING_HEIGHT + row * line
            _show(axes, images[index], x, y, width, height)
            axes.add_patch(Rectangle((x - 4, y - 4), width + 8, height + 8, fill=False, clip_on=False, **look))
            for number, (text, colour) in enumerate(texts[index]):
                below = y + height + 10 + number * LINE_HEIGHT
                axes.text(x - 4, below, text, va="top", size=7.5, color=colour)
    return axes.figure  # type: ignore[return-value]


def _label_lines(
    names: Sequence[str], labels: NDArray[np.int64], predictions: NDArray[np.int64], scores: NDArray[np.float64]
) -> list[Line]:
    """Lines about the labels of one image: the wrong ones first, the most confident of them at the top."""
    is_wrong, concerned = labels != predictions, np.flatnonzero(labels | predictions)
    order = concerned[np.lexsort((-np.abs(scores[concerned] - 0.5), ~is_wrong[concerned]))]
    lines = []
    for index in order.tolist():
        mark = FOUND if not is_wrong[index] else MISSED if labels[index] else FALSE
        colour = style.WRONG_COLOUR if is_wrong[index] else style.RIGHT_COLOUR
        lines.append((f"{mark} {names[index]} {scores[index]:.0%}", colour))
    if len(lines) > MAX_ANNOTATED_LABELS:
        lines[MAX_ANNOTATED_LABELS - 1 :] = [(f"and {len(lines) - MAX_ANNOTATED_LABELS + 1} more", style.MUTED)]
    return lines or [("no label, none predicted", style.MUTED)]


def _pixel_axes(title: str, detail: str, caption: style.Caption, width: float, height: float) -> Axes:
    """Axes without lines, measured in pixels from their top left corner, that fill a new figure."""
    width, height = round(width), round(height)
    figure = style.new_figure(title, detail, caption, width=width / style.DPI, height=height / style.DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return axes


def _show(axes: Axes, image: Pixels, x: float, y: float, width: float, height: float) -> None:
    """Show an image (H, W) or (H, W, 3) with its top left corner at (x, y)."""
    left, top = round(x), round(y)
    pixels = image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)
    # enlarged, a pixel shows as a square; reduced, none may be skipped
    way = "nearest" if height >= len(pixels) else "antialiased"
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", interpolation=way)


def _right_and_wrong(
    is_right: NDArray[np.bool_], kinds: NDArray[np.int64], confidence: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the images to show: right ones of each kind in turn, and the wrong ones with the highest confidence."""
    right, wrong = np.flatnonzero(is_right), np.flatnonzero(~is_right)
    turns = pd.Series(right).groupby(kinds[right]).cumcount()  # how many of its kind come before each right image
    in_turn = right[np.lexsort((kinds[right], turns))]
    return in_turn[:MAX_PREDICTIONS], wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_PREDICTIONS]
