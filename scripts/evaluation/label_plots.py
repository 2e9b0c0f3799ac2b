"""The figures of the labels of a multi-label task."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scripts.evaluation import style
from scripts.evaluation.metrics import EvaluationResult
from scripts.evaluation.run_report import class_frame

CURVES_PER_ROW, MAX_CURVES, MAX_CHARTED_LABELS = 5, 30, 60
CHARTED = {"auc": "AUC", "precision": "Precision", "recall": "Recall", "f1": "F1"}


@style.with_style
def draw_label_curves(evaluation: EvaluationResult, caption: style.Caption) -> Figure:
    """The ROC curve of each label in a small panel; of very many labels only the first are shown."""
    metrics = evaluation.headline
    shown = metrics.per_class[:MAX_CURVES]
    names = style.short_names([figures.name for figures in metrics.per_class], width=17, lines=1)
    num_columns = min(CURVES_PER_ROW, len(shown))
    num_rows = -(-len(shown) // num_columns)
    width, height = 0.5 + 2.2 * num_columns, 0.4 + 2.4 * num_rows
    figure = style.new_figure("ROC curves", _detail(evaluation, len(shown)), caption, width=width, height=height)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for index, (axes, figures, curve) in enumerate(zip(panels, shown, metrics.roc_curves, strict=False)):
        auc = "AUC undefined" if figures.auc is None else f"AUC {figures.auc:.3f}"
        style.set_panel_title(axes, names[index], f"{auc} · {style.num_images(figures.support)}")
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        axes.grid()
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        # numbers only at the edge of the grid
        is_leftmost, is_lowest = index % num_columns == 0, index + num_columns >= len(shown)
        axes.tick_params(labelsize=7.5, labelleft=is_leftmost, labelbottom=is_lowest, color=style.FAINT)
        axes.set_xlabel("false positive rate" if is_lowest else "", fontsize=7.5)
        axes.set_ylabel("true positive rate" if is_leftmost else "", fontsize=7.5)
        if curve is None:
            text = f"{'every' if figures.support else 'no'} image\nhas this label"
            axes.text(0.5, 0.5, text, ha="center", va="center", color=style.MUTED, size=8.5)
        else:
            axes.plot([0, 1], [0, 1], color=style.FAINT, linestyle=style.DASHES, linewidth=1)
            rates = curve.false_positive_rate, curve.true_positive_rate
            axes.plot(*rates, color=style.RIGHT_COLOUR, linewidth=1.6, clip_on=False, zorder=3)
    for axes in panels[len(shown) :]:
        axes.remove()
    style.add_footer(figure, "blue: the label's curve · dashed: chance, AUC 0.500")
    return figure


@style.with_style
def draw_label_figures(evaluation: EvaluationResult, caption: style.Caption) -> Figure:
    """AUC, precision, recall and F1 of each label on a scale from 0 to 1; of very many labels only the first."""
    metrics = evaluation.headline
    frame = class_frame(metrics)
    names = style.short_names(frame["name"].tolist(), width=30, lines=1)[:MAX_CHARTED_LABELS]
    frame = frame[:MAX_CHARTED_LABELS]
    height = 0.9 + 0.26 * len(frame)
    figure = style.new_figure("Labels", _detail(evaluation, len(frame)), caption, width=12, height=height)
    panels = figure.subplots(1, 4, sharey=True)
    means = {"auc": metrics.auc.value, "f1": metrics.macro_f1.value}
    for axes, (column, title) in zip(panels, CHARTED.items(), strict=True):
        mean = means.get(column, np.nan)
        style.set_panel_title(axes, title, " " if np.isnan(mean) else f"mean {mean:.3f}")
        _draw_scale(axes, frame[column].to_numpy(), mean)
    labels = [f"{name}  ({style.num_images(support)})" for name, support in zip(names, frame["support"], strict=True)]
    panels[0].set_yticks(range(len(frame)), labels, color=style.INK)
    panels[0].set_ylim(len(frame) - 0.5, -0.5)
    style.add_footer(figure, "dashed: mean over the labels · –: undefined")
    return figure


def _draw_scale(axes: Axes, values: NDArray[np.float64], mean: float) -> None:
    """One figure of every label as a point at the end of a line, with its number at the right edge."""
    rows = np.arange(len(values))
    axes.hlines(rows, 0, np.nan_to_num(values), color=style.RIGHT_COLOUR, linewidth=1.6, zorder=3)
    look: dict[str, Any] = {"color": style.RIGHT_COLOUR, "clip_on": False, "zorder": 4}
    sns.stripplot(x=values, y=rows, jitter=False, native_scale=True, orient="h", size=5, ax=axes, **look)
    if not np.isnan(mean):
        axes.axvline(mean, color=style.INK, linewidth=1.1, linestyle=style.DASHES, zorder=2)
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="", ylabel="")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(rows, ["–" if np.isnan(value) else f"{value:.3f}" for value in values], size=8)
    numbers.tick_params(length=0, pad=8)
    numbers.spines["right"].set_visible(False)


def _detail(evaluation: EvaluationResult, num_shown: int) -> str:
    """One line: the images, the mean AUC, and how many of the labels are shown."""
    auc, count, total = evaluation.headline.auc, len(evaluation.labels), len(evaluation.headline.per_class)
    detail = f"{count:,} test image{'s' * (count > 1)} {evaluation.variants[-1].phrase}; "
    if auc.is_defined:
        detail += f"mean AUC {auc.value:.3f} (95% interval {auc.low:.3f} to {auc.high:.3f})"
    else:
        detail += "the mean AUC is undefined"
    return detail + (f"; the first {num_shown} of {total} labels" if num_shown < total else "")
