"""The pictures of a run; those of several labels per image are in ``label_plots``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scripts.core.records import TrainingResult
from scripts.data_handler.dataset import members
from scripts.evaluation.metrics import EvaluationResult, Metrics
from scripts.evaluation.page import (
    DASHES,
    FAINT,
    INK,
    MARGIN,
    MUTED,
    RIGHT_COLOUR,
    STYLE,
    WRONG_COLOUR,
    Caption,
    Page,
    Pixels,
    as_rgb,
    head_width,
    numbered_alike,
    short_names,
    shortened,
    text_width,
)

SAMPLES_PER_CLASS, SAMPLE_HEIGHT, MAX_SAMPLED_CLASSES = 12, 84, 30
PREDICTIONS_PER_ROW, MAX_PREDICTIONS, PREDICTION_HEIGHT, PREDICTION_NAME_WIDTH = 8, 16, 140, 212
MAX_WRITTEN_CLASSES, MAX_NAMED_CLASSES, MATRIX_SIDE = 20, 60, 1240


@style.context(STYLE)
def draw_dataset_samples(
    images: Pixels, labels: NDArray[np.int64], class_names: Sequence[str], caption: Caption
) -> Figure:
    """Training images, one row per class or label, evenly spread over the split.

    Args:
        images: The training split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        labels: Class indices, shape (N,), or 0 and 1 for each label, shape (N, C).
        class_names: C names; of very many classes only the first are shown, and the picture says so.
        caption: Where the images come from.
    """
    names = short_names(class_names, width=24, lines=3)[:MAX_SAMPLED_CLASSES]
    height, width = SAMPLE_HEIGHT, SAMPLE_HEIGHT * images.shape[2] / images.shape[1]
    of_class = [np.flatnonzero(members(labels, index)) for index in range(len(names))]
    counts = [f"{len(indices):,} images" for indices in of_class]
    gap, first_column = 8, MARGIN + 24 + max(text_width(names, size=9), text_width(counts, size=7.5))
    kind, again = ("classes", "") if labels.ndim == 1 else ("labels", ", in the row of each of their labels")
    hidden = f", the first {len(names)} of {len(class_names)} {kind}" if len(names) < len(class_names) else ""
    detail = f"{len(labels):,} images of {images.shape[2]} × {images.shape[1]} pixels{again}{hidden}"
    chosen = [_evenly(indices, SAMPLES_PER_CLASS) for indices in of_class]
    widest, fitting = (
        first_column + columns * (width + gap) + MARGIN for columns in (SAMPLES_PER_CLASS, max(map(len, chosen)))
    )
    page = Page(
        max(fitting, min(widest, head_width(detail, caption))),
        caption.height + len(names) * (height + gap) + MARGIN,
    )
    page.head("Training images", detail, caption)
    for row, name in enumerate(names):
        y = caption.height + row * (height + gap)
        num_lines = name.count("\n") + 1
        middle = y + height / 2 + 10 * (num_lines - 2)
        page.text(MARGIN, middle + 8, name, va="bottom", linespacing=1.05)
        page.text(MARGIN, middle + 12, counts[row], size=7.5, color=MUTED)
        for column, index in enumerate(chosen[row]):
            page.image(as_rgb(images[index]), first_column + column * (width + gap), y, width, height)
    return page.figure


@style.context(STYLE)
def draw_training_curves(training: TrainingResult, caption: Caption) -> Figure:
    """Loss, validation accuracy with the best epoch, and learning rate over the epochs."""
    history = training.history
    epochs = [record.epoch for record in history]
    side, gap, left, top = 440, 120, MARGIN + 64, caption.height + 70
    page = Page(left + 3 * side + 2 * gap + MARGIN, top + 380 + 100)
    ending = "stopped early" if training.stopped_early else "not stopped early"
    page.head("Training", f"{len(history)} epoch{'s' * (len(history) > 1)}, {ending}", caption)
    loss, accuracy, rate = (page.axes(left + index * (side + gap), top, side, 380) for index in range(3))
    look: dict[str, Any] = {"marker": "o" if len(history) <= 20 else "", "markersize": 3.5, "linewidth": 1.6}
    look |= {"clip_on": False, "zorder": 3}  # a loss or a rate of zero lies on the edge

    loss.plot(epochs, [record.train_loss for record in history], color=MUTED, linestyle="--", label="training", **look)
    loss.plot(epochs, [record.val_loss for record in history], color=RIGHT_COLOUR, label="validation", **look)
    loss.legend(frameon=False, labelcolor=INK)
    accuracy.plot(epochs, [record.val_accuracy for record in history], color=RIGHT_COLOUR, **look)
    accuracy.plot(
        [training.best_epoch], [training.best_val_accuracy], **{**look, "color": INK, "marker": "D", "markersize": 6.5}
    )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _keep_to_shares(accuracy)
    rate.plot(epochs, [record.learning_rate for record in history], color=MUTED, **look)
    for axes in (loss, rate):
        axes.update_datalim([(epochs[0], 0)])  # room above the points is a part of what is shown, which starts at 0
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no power of ten hidden above the axis

    best = f"◆ best: {training.best_val_accuracy:.2%} in epoch {training.best_epoch}"
    _style_axes(loss, "Loss", "mean over the images of an epoch", epochs[-1], training.best_epoch)
    _style_axes(accuracy, "Validation accuracy", best, epochs[-1], training.best_epoch)
    _style_axes(rate, "Learning rate", "at the first step of the epoch", epochs[-1], training.best_epoch)
    return page.figure


def _keep_to_shares(axes: Axes) -> None:
    """Let the vertical axis go no further than it must for points of 0 and 1 to lie inside, and name no other value."""
    lowest, highest = axes.get_ylim()
    room = 0.05 * (highest - lowest)
    lowest, highest = axes.set_ylim(max(lowest, -room), min(highest, 1 + room))
    axes.set_yticks([tick for tick in axes.get_yticks().round(9) if max(0, lowest) <= tick <= min(1, highest)])


def _style_axes(axes: Axes, title: str, detail: str, last_epoch: int, best_epoch: int) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=22)
    axes.text(0, 1.03, detail, transform=axes.transAxes, fontsize=8.5, color=MUTED)
    axes.axvline(best_epoch, color=MUTED, linewidth=1, linestyle=":", zorder=0)
    axes.set_xlabel("epoch")
    beyond = 0.5 if last_epoch == 1 else 0.03 * (last_epoch - 1)
    axes.set_xlim(1 - beyond, last_epoch + beyond)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


@style.context(STYLE)
def draw_confusion_matrix(metrics: Metrics, caption: Caption, *, scores: str) -> Figure:
    """The confusion matrix in counts and, beside it, as shares of each true class.

    Args:
        metrics: The figures of C classes; of very many, cells lose their numbers and then rows their names.
        caption: Where they come from.
        scores: What the predictions rest on, such as ``"with TTA"``.
    """
    num_classes = len(metrics.per_class)
    cell = MATRIX_SIDE / num_classes
    if num_classes <= MAX_WRITTEN_CLASSES:  # room for a number, and no more than it needs
        cell = max(62.0, min(180.0, 720 / num_classes))
    names = [figures.name for figures in metrics.per_class] if num_classes <= MAX_NAMED_CLASSES else []
    rows, columns = numbered_alike(shortened(names, width=24, lines=2), shortened(names, width=24, lines=1))
    side, gap, left, top = cell * num_classes, 56, MARGIN + 52 + text_width(rows, size=8.5), caption.height + 58
    below = 36 + 0.72 * text_width(columns, size=8.5)
    page = Page(max(left + 2 * side + gap + MARGIN, 1100), top + side + below + 110)
    accuracy = metrics.accuracy
    page.head(
        "Confusion matrix",
        f"{metrics.num_correct:,} of {metrics.confusion.sum():,} test images right {scores}: {accuracy.value:.2%} "
        f"(95% interval {accuracy.low:.2%} to {accuracy.high:.2%})",
        caption,
    )
    size = min(8.5, cell / 3)
    for row, name in enumerate(rows):
        page.text(left - 14, top + (row + 0.5) * cell, name, ha="right", va="center", size=size, linespacing=1.05)
    page.text(MARGIN, top + side / 2, "true class", rotation=90, va="center", color=MUTED)
    counts, shares = metrics.confusion, metrics.confusion_by_row
    for x, title, shades, texts in (
        (left, "Images", counts / counts.max(), _counts(counts)),
        (left + side + gap, "Share of the true class, %", shares, _percentages(shares)),
    ):
        page.text(x, top - 40, title, size=10.5, weight="bold")
        _draw_matrix(page, x, top, cell, shades, texts)
        for column, name in enumerate(columns):
            look: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "ha": "right", "va": "center"}
            page.text(x + (column + 0.5) * cell, top + side + 14, name, size=size, **look)
        page.text(x + side / 2, top + side + below, "predicted class", ha="center", color=MUTED)
    page.text(MARGIN, page.height - 52, "blue: right · orange: wrong · darker: more", size=8.5, color=MUTED)
    return page.figure


def _draw_matrix(
    page: Page, x: float, y: float, cell: float, shares: NDArray[np.float64], texts: list[list[str]]
) -> None:
    """Shade the cells by ``shares`` in [0, 1], and write ``texts`` in them where there is room."""
    side = cell * len(shares)
    page.image(_shades(shares), x, y, side, side)
    page.frame(x, y, side, side, edgecolor=FAINT, linewidth=0.8)
    if len(shares) > MAX_WRITTEN_CLASSES:
        return
    for (row, column), share in np.ndenumerate(shares):
        is_dark = share > (0.6 if row == column else 0.4)
        colour = "white" if is_dark else INK if share > 0 else FAINT
        look = {"ha": "center", "va": "center", "color": colour, "size": min(9.5, cell / 8)}
        page.text(x + (column + 0.5) * cell, y + (row + 0.5) * cell, texts[row][column], **look)


def _shades(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours of a confusion matrix, shape (C, C, 3): white to blue on the diagonal, white to orange beside it."""
    filled = np.nan_to_num(shares)
    is_right = np.eye(len(shares), dtype=bool)
    # a few per cent of errors are what one looks for: the root makes them visible
    strength = np.where(is_right, filled, np.sqrt(filled))[..., np.newaxis]
    full = np.where(is_right[..., np.newaxis], to_rgb(RIGHT_COLOUR), to_rgb(WRONG_COLOUR))
    return np.asarray(1 - strength * (1 - full))


def _counts(confusion: NDArray[np.int64]) -> list[list[str]]:
    return [[f"{count:,}" for count in row] for row in confusion.tolist()]


def _percentages(shares: NDArray[np.float64]) -> list[list[str]]:
    return [["–" if np.isnan(share) else f"{100 * share:.1f}" for share in row] for row in shares.tolist()]


@dataclass(frozen=True, slots=True)
class Group:
    """Predictions that are shown together."""

    title: str
    mark: str
    colour: str
    dashes: Any
    chosen: NDArray[np.int64]  # image indices in the order of showing

    @property
    def num_lines(self) -> int:
        """Rows of pictures that the group takes."""
        return -(-len(self.chosen) // PREDICTIONS_PER_ROW)


def right_and_wrong(
    is_right: NDArray[np.bool_], turns: NDArray[np.int64], confidence: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which images to show, by index: right ones by turns, and the most surely wrong ones.

    Args:
        is_right: Whether each image is predicted right, shape (N,).
        turns: A number for each kind of image, shape (N,): each kind has its first before any has its second.
        confidence: How sure the prediction of each image was, shape (N,).
    """
    right, wrong = np.flatnonzero(is_right), np.flatnonzero(~is_right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return _in_turn(right, turns)[:MAX_PREDICTIONS], worst[:MAX_PREDICTIONS]


def draw_groups(
    images: Pixels,
    groups: Sequence[Group],
    detail: str,
    caption: Caption,
    *,
    annotate: Callable[[Page, float, float, Group, int], None],
    annotation_height: float,
) -> Figure:
    """Framed test images in groups, with words below each.

    Args:
        images: The test split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        groups: What to show; a group without images is left out.
        detail: Stands below the title.
        caption: Where the images come from.
        annotate: Writes what belongs to an image: called with the page, the place, the image's group and its index.
        annotation_height: Pixels that this takes.
    """
    height, width = PREDICTION_HEIGHT, PREDICTION_HEIGHT * images.shape[2] / images.shape[1]
    heading, line, pitch = 56, height + 12 + annotation_height, max(PREDICTION_NAME_WIDTH, width + 24)
    shown = [group for group in groups if group.num_lines]
    page = Page(
        2 * MARGIN + PREDICTIONS_PER_ROW * pitch,
        caption.height + sum(heading + group.num_lines * line for group in shown),
    )
    page.head("Sample predictions", detail, caption)
    y: float = caption.height
    for group in shown:
        page.text(MARGIN, y, f"{group.mark}  {group.title}", weight="bold", size=10, color=group.colour)
        for place, index in enumerate(group.chosen.tolist()):
            row, column = divmod(place, PREDICTIONS_PER_ROW)
            x, top = MARGIN + 4 + column * pitch, y + 46 + row * line
            page.image(as_rgb(images[index]), x, top, width, height)
            look = {"edgecolor": group.colour, "linestyle": group.dashes, "linewidth": 2.2}
            page.frame(x - 4, top - 4, width + 8, height + 8, **look)
            annotate(page, x - 4, top + height + 12, group, index)
        y += heading + group.num_lines * line
    return page.figure


@style.context(STYLE)
def draw_sample_predictions(
    images: Pixels, evaluation: EvaluationResult, class_names: Sequence[str], caption: Caption
) -> Figure:
    """Test images with what they are and what they were taken for; the most confident errors among them.

    Args:
        images: The test split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        evaluation: The result on these images, which have one class each.
        class_names: C names.
        caption: Where they come from.
    """
    confidence = evaluation.headline_scores[np.arange(len(images)), evaluation.predictions]
    is_right = evaluation.predictions == evaluation.labels
    right, wrong = right_and_wrong(is_right, evaluation.labels, confidence)
    num_right, names = evaluation.headline.num_correct, short_names(class_names, width=16, lines=1)

    def annotate(page: Page, x: float, y: float, group: Group, index: int) -> None:
        told = f"true  {names[evaluation.labels[index]]}\npred. {names[evaluation.predictions[index]]}"
        page.text(x, y, told, size=7.5, linespacing=1.15)
        verdict = f"{group.mark} {confidence[index]:.1%}"
        page.text(x, y + 42, verdict, size=7.5, color=group.colour, weight="bold")

    of_right, of_wrong = f"{len(right)} of {num_right:,}", f"{len(wrong)} of {len(images) - num_right:,}"
    groups = (
        Group(f"Right: {of_right}, from each class in turn", "✓", RIGHT_COLOUR, "-", right),
        Group(f"Wrong: {of_wrong}, the most confident first", "✗", WRONG_COLOUR, DASHES, wrong),
    )
    detail = f"test images; {num_right:,} of {len(images):,} are right"
    return draw_groups(images, groups, detail, caption, annotate=annotate, annotation_height=92)


def _evenly(candidates: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of the candidates, from the first to the last at even distances."""
    if len(candidates) <= count:
        return candidates
    return candidates[np.linspace(0, len(candidates) - 1, count).astype(np.int64)]


def _in_turn(candidates: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The candidates so ordered that each class has its first before any has its second."""
    classes = labels[candidates]
    turn = np.zeros(len(candidates), dtype=np.int64)
    for index in np.unique(classes):
        is_class = classes == index
        turn[is_class] = np.arange(is_class.sum())
    return candidates[np.lexsort((classes, turn))]
