"""The pictures of a multi-label run that those of one class per image have no counterpart for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from scripts.evaluation.metrics import ClassMetrics, EvaluationResult, Metrics
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
    short_names,
    text_width,
)
from scripts.evaluation.plots import Group, draw_groups, right_and_wrong

CURVES_PER_ROW, MAX_CURVES, CURVE_SIDE = 5, 30, 250
MAX_CHARTED_LABELS, CHART_ROW, CHART_WIDTH = 60, 40, 230
MAX_ANNOTATED_LABELS, ANNOTATION_LINE = 5, 23
HIT, MISSED, FALSE_ALARM = "✓", "○", "✗"


@style.context(STYLE)
def draw_label_curves(evaluation: EvaluationResult, caption: Caption) -> Figure:
    """The ROC curve of each label in a small panel of its own.

    Args:
        evaluation: Labels and scores, shape (N, L); of very many labels only the first are shown.
        caption: Where they come from.
    """
    metrics, scores = evaluation.headline, evaluation.headline_scores
    shown = metrics.per_class[:MAX_CURVES]
    names = short_names([figures.name for figures in metrics.per_class], width=22, lines=1)
    columns = min(CURVES_PER_ROW, len(shown))
    rows = -(-len(shown) // columns)
    pitch, left, top = CURVE_SIDE + 86, MARGIN + 66, caption.height + 64
    page = Page(max(left + columns * pitch - 86 + MARGIN, 1100), top + rows * (pitch + 8) + 28)
    page.head("ROC curves", f"{_mean_auc(evaluation)}{_hidden(shown, metrics)}", caption)
    for index, figures in enumerate(shown):
        row, column = divmod(index, columns)
        x, y = left + column * pitch, top + row * (pitch + 8)
        page.text(x, y - 48, names[index], size=9.5, weight="bold")
        auc = "AUC undefined" if figures.auc is None else f"AUC {figures.auc:.3f}"
        page.text(x, y - 24, f"{auc} · {figures.support:,} images", size=7.5, color=MUTED)
        axes = page.axes(x, y, CURVE_SIDE, CURVE_SIDE)
        _style_panel(axes, is_leftmost=column == 0, is_lowest=index + columns >= len(shown))
        if figures.auc is None:
            whose = "every" if figures.support else "no"
            axes.text(0.5, 0.5, f"{whose} image\nhas this label", ha="center", va="center", color=MUTED, fontsize=8.5)
        else:
            # steps, not slants, between the scores that occur: all of the curve that there is
            false_alarms, found, _ = roc_curve(evaluation.labels[:, index], scores[:, index])
            axes.plot([0, 1], [0, 1], color=FAINT, linestyle=DASHES, linewidth=1)
            axes.plot(false_alarms, found, color=RIGHT_COLOUR, linewidth=1.6, clip_on=False)
    page.text(MARGIN, page.height - 44, "blue: the label's curve · dashed: chance, AUC 0.500", size=8.5, color=MUTED)
    return page.figure


def _style_panel(axes: Axes, *, is_leftmost: bool, is_lowest: bool) -> None:
    """Square axes from 0 to 1, with numbers only at the rim of the grid."""
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=7.5, labelleft=is_leftmost, labelbottom=is_lowest, color=FAINT)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    if is_lowest:
        axes.set_xlabel("false positive rate", fontsize=7.5)
    if is_leftmost:
        axes.set_ylabel("true positive rate", fontsize=7.5)


@style.context(STYLE)
def draw_label_figures(evaluation: EvaluationResult, caption: Caption) -> Figure:
    """AUC, precision, recall and F1 of each label as points on a scale from 0 to 1.

    Args:
        evaluation: The figures of L labels; of very many labels only the first are shown.
        caption: Where they come from.
    """
    metrics = evaluation.headline
    shown = metrics.per_class[:MAX_CHARTED_LABELS]
    names = short_names([figures.name for figures in metrics.per_class], width=30, lines=1)[: len(shown)]
    counts = [f"{figures.support:,}" for figures in shown]
    left = MARGIN + text_width(names, size=9) + 20 + text_width([*counts, "images"], size=8) + 34
    top, pitch = caption.height + 92, CHART_WIDTH + 110
    page = Page(left + 4 * pitch + MARGIN - 20, top + len(shown) * CHART_ROW + 100)
    page.head("Labels", f"{_mean_auc(evaluation)}{_hidden(shown, metrics)}", caption)
    page.text(left - 34, top - 36, "images", size=8, ha="right", color=MUTED)
    for row in range(len(shown)):
        middle = top + (row + 0.5) * CHART_ROW
        page.text(MARGIN, middle, names[row], va="center")
        page.text(left - 34, middle, counts[row], size=8, ha="right", va="center", color=MUTED)
    columns = (
        ("AUC", [figures.auc for figures in shown], metrics.auc.value),
        ("Precision", [figures.precision for figures in shown], None),
        ("Recall", [figures.recall for figures in shown], None),
        ("F1", [figures.f1 for figures in shown], metrics.macro_f1.value),
    )
    for column, (title, values, mean) in enumerate(columns):
        _draw_scale(page, left + column * pitch, top, title, values, mean)
    told = "dashed: mean over the labels · –: undefined"
    page.text(MARGIN, page.height - 44, told, size=8.5, color=MUTED)
    return page.figure


def _draw_scale(page: Page, x: float, y: float, title: str, values: Sequence[float | None], mean: float | None) -> None:
    """One figure of every label on a scale of ``CHART_WIDTH`` pixels from 0 to 1."""
    bottom = y + len(values) * CHART_ROW
    page.text(x, y - 64, title, size=10.5, weight="bold")
    for share in (0, 0.5, 1):
        place = x + share * CHART_WIDTH
        page.line([place, place], [y, bottom], color=FAINT, linewidth=0.8, zorder=1)
        page.text(place, bottom + 8, f"{share:g}", size=7.5, ha="center", color=MUTED)
    if mean is not None and not np.isnan(mean):
        place = x + mean * CHART_WIDTH
        page.line([place, place], [y, bottom], color=INK, linewidth=1.1, linestyle=DASHES, zorder=2)
        page.text(x, y - 36, f"mean {mean:.3f}", size=8, color=MUTED)
    for row, value in enumerate(values):
        middle = y + (row + 0.5) * CHART_ROW
        if value is not None:
            place = x + value * CHART_WIDTH
            page.line([x, place], [middle, middle], color=RIGHT_COLOUR, linewidth=1.6, zorder=3)
            page.line([place], [middle], color=RIGHT_COLOUR, marker="o", markersize=5, zorder=4)
        told = "–" if value is None else f"{value:.3f}"
        page.text(x + CHART_WIDTH + 18, middle, told, size=8, va="center", color=MUTED if value is None else INK)


@style.context(STYLE)
def draw_label_predictions(
    images: Pixels, evaluation: EvaluationResult, class_names: Sequence[str], caption: Caption
) -> Figure:
    """Test images with the labels that they have and those that they were given, and how probable these were said.

    Args:
        images: The test split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        evaluation: The result on these images.
        class_names: The names of L labels.
        caption: Where they come from.
    """
    labels, predictions, scores = evaluation.labels, evaluation.predictions, evaluation.headline_scores
    is_right = (predictions == labels).all(axis=1)
    # an image with none of the labels comes in a turn of its own, after those whose first label is the last
    turns = np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])
    confidence = np.where(predictions == labels, 0.0, np.abs(scores - 0.5)).max(axis=1)
    right, wrong = right_and_wrong(is_right, turns, confidence)
    names = short_names(class_names, width=16, lines=1)
    told = {index: _annotations(names, labels[index], predictions[index], scores[index]) for index in (*right, *wrong)}

    def annotate(page: Page, x: float, y: float, _group: Group, index: int) -> None:
        for line, (text, colour) in enumerate(told[index]):
            page.text(x, y + line * ANNOTATION_LINE, text, size=7.5, color=colour)

    num_right = evaluation.headline.num_correct
    of_right, of_wrong = f"{len(right)} of {num_right:,}", f"{len(wrong)} of {len(images) - num_right:,}"
    groups = (
        Group(f"Right in every label: {of_right}, from each label in turn", "✓", RIGHT_COLOUR, "-", right),
        Group(f"Wrong in some: {of_wrong}, the most confident first", "✗", WRONG_COLOUR, DASHES, wrong),
    )
    detail = (
        f"test images; {num_right:,} of {len(images):,} are right in every label · {HIT} true and predicted · "
        f"{MISSED} true, not predicted · {FALSE_ALARM} predicted, not true"
    )
    most = max((len(lines) for lines in told.values()), default=1)
    return draw_groups(
        images, groups, detail, caption, annotate=annotate, annotation_height=most * ANNOTATION_LINE + 24
    )


def _annotations(
    names: Sequence[str], labels: NDArray[np.int64], predictions: NDArray[np.int64], scores: NDArray[np.float64]
) -> list[tuple[str, str]]:
    """Lines about one image, each with its colour: the wrong labels first, the most confident of them at the top."""
    is_wrong, concerned = labels != predictions, np.flatnonzero(labels | predictions)
    order = concerned[np.lexsort((-np.abs(scores[concerned] - 0.5), ~is_wrong[concerned]))]
    lines = []
    for index in order.tolist():
        mark = HIT if not is_wrong[index] else MISSED if labels[index] else FALSE_ALARM
        colour = WRONG_COLOUR if is_wrong[index] else RIGHT_COLOUR
        lines.append((f"{mark} {names[index]} {scores[index]:.0%}", colour))
    if len(lines) > MAX_ANNOTATED_LABELS:
        lines[MAX_ANNOTATED_LABELS - 1 :] = [(f"and {len(lines) - MAX_ANNOTATED_LABELS + 1} more", MUTED)]
    return lines or [("no label, none predicted", MUTED)]


def _mean_auc(evaluation: EvaluationResult) -> str:
    auc, way = evaluation.headline.auc, "without TTA" if evaluation.tta is None else "with TTA"
    count = len(evaluation.labels)
    images = f"{count:,} test image{'s' * (count > 1)} {way}"
    if not auc.is_defined:
        return f"{images}; the mean AUC is undefined"
    return f"{images}; mean AUC {auc.value:.3f} (95% interval {auc.low:.3f} to {auc.high:.3f})"


def _hidden(shown: Sequence[ClassMetrics], metrics: Metrics) -> str:
    total = len(metrics.per_class)
    return f"; the first {len(shown)} of {total} labels" if len(shown) < total else ""
