"""The figures of training and of a classification result."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scripts.core.records import TrainingResult
from scripts.evaluation import style
from scripts.evaluation.metrics import Metrics, Variant
from scripts.evaluation.run_report import MAX_MATRIX_CLASSES, history_frame, largest_confusions

MAX_WRITTEN_CLASSES, MAX_NAMED_CLASSES, MAX_BARS = 20, 60, 30
MATRIX_SIDE = 8.3  # inches, of a matrix without numbers in its cells
BLUES, ORANGES = (
    LinearSegmentedColormap.from_list("", ["white", colour]) for colour in (style.RIGHT_COLOUR, style.WRONG_COLOUR)
)

# the column of the history, the title of its panel and how a value is written, for each value of --monitor
MONITORED = {
    "accuracy": ("val_accuracy", "Validation accuracy", "{:.2%}"),
    "auc": ("val_auc", "Validation AUC", "{:.4f}"),
    "loss": ("val_loss", "Validation loss", "{:.4f}"),
}


@style.with_style
def draw_training_curves(training: TrainingResult, caption: style.Caption) -> Figure:
    """Loss, the monitored validation figure with the best epoch, and learning rate over the epochs."""
    history = history_frame(training)
    detail = f"{len(history)} epoch{'s' * (len(history) > 1)}, {'not ' * (not training.stopped_early)}stopped early"
    figure = style.new_figure("Training", detail, caption, width=11.2, height=3.4)
    losses, monitored, rate = figure.subplots(1, 3)
    look: dict[str, Any] = {"x": "epoch", "markersize": 4, "linewidth": 1.6, "markeredgewidth": 0}
    look |= {"marker": "o" if len(history) <= 20 else None, "estimator": None}
    look |= {"clip_on": False, "zorder": 3}  # a loss or a rate of zero lies on the edge

    # an open square is seen around the point of the validation loss where both losses are equal
    square = {"marker": look["marker"] and "s", "markersize": 7.5, "markerfacecolor": "none"}
    square |= {"markeredgewidth": 1.3, "markeredgecolor": style.MUTED, "color": style.MUTED, "linestyle": "--"}
    sns.lineplot(history, y="train_loss", label="training", ax=losses, **look | square)
    sns.lineplot(history, y="val_loss", label="validation", ax=losses, color=style.RIGHT_COLOUR, **look)
    losses.legend(frameon=False, labelcolor=style.INK)
    sns.lineplot(history, y="learning_rate", ax=rate, color=style.MUTED, **look)
    for axes in (losses, rate):
        axes.update_datalim([(1, 0)])  # leaves room above the points, in proportion to an axis that starts at 0
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no power of ten hidden above the axis
    style.set_panel_title(losses, "Loss", "mean over the images of an epoch")
    best = _draw_monitored(monitored, history, training, look)
    style.set_panel_title(monitored, MONITORED[training.monitor][1], best)
    style.set_panel_title(rate, "Learning rate", "at the first step of the epoch")
    beyond = 0.5 if len(history) == 1 else 0.03 * (len(history) - 1)
    for axes in (losses, monitored, rate):
        axes.axvline(training.best.epoch, color=style.MUTED, linewidth=1, linestyle=":", zorder=0)
        axes.set(xlabel="epoch", ylabel="", xlim=(1 - beyond, len(history) + beyond))
        ticks = MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]).tick_values(1, len(history))
        axes.set_xticks([tick for tick in ticks if 1 <= tick <= len(history)])
        axes.grid(axis="y")
    return figure


def _draw_monitored(axes: Axes, history: Any, training: TrainingResult, look: dict[str, Any]) -> str:
    """Draw the figure that selected the best epoch; return a line about the best value."""
    column, _, number = MONITORED[training.monitor]
    history = history.astype({column: float})
    best = history.set_index("epoch")[column][training.best.epoch]
    if history[column].isna().all():
        axes.set(ylim=(0, 1), yticks=(0, 1))
        return "undefined in every epoch"
    sns.lineplot(history, y=column, ax=axes, color=style.RIGHT_COLOUR, **look)
    axes.plot([training.best.epoch], [best], color=style.INK, marker="D", markersize=6.5, clip_on=False, zorder=4)
    if training.monitor != "loss":  # just enough room for points of 0 and 1, without ticks beyond them
        lowest, highest = axes.get_ylim()
        room = 0.05 * (highest - lowest)
        lowest, highest = axes.set_ylim(max(lowest, -room), min(highest, 1 + room))
        axes.set_yticks([tick for tick in axes.get_yticks().round(9) if max(0, lowest) <= tick <= min(1, highest)])
    if training.monitor == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    value = "undefined" if np.isnan(best) else number.format(best)
    return f"◆ best: {value} in epoch {training.best.epoch}"


@style.with_style
def draw_confusion_matrix(variant: Variant, caption: style.Caption) -> Figure:
    """The confusion matrix in counts and as shares of each true class; of very many classes the largest confusions."""
    metrics = variant.metrics
    accuracy, num_classes = metrics.accuracy, len(metrics.per_class)
    detail = (
        f"{metrics.num_correct:,} of {metrics.confusion.sum():,} test images right {variant.phrase}: "
        f"{accuracy.value:.2%} (95% interval {accuracy.low:.2%} to {accuracy.high:.2%})"
    )
    if num_classes > MAX_MATRIX_CLASSES:
        return _draw_largest_confusions(metrics, detail, caption)
    names = [figures.name for figures in metrics.per_class] if num_classes <= MAX_NAMED_CLASSES else []
    rows, columns = style.short_names_in_ways(names, width=24, ways=[2 if num_classes <= MAX_WRITTEN_CLASSES else 1, 1])
    side = MATRIX_SIDE if num_classes > MAX_WRITTEN_CLASSES else max(0.42 * num_classes, min(1.2 * num_classes, 4.8))
    cell = side / num_classes
    longest = max((len(line) for name in [*rows, *columns] for line in name.split("\n")), default=4)
    width, height = 2 * side + 0.6 + 0.08 * longest, side + 0.8 + 0.06 * longest
    figure = style.new_figure("Confusion matrix", detail, caption, width=width, height=height, layout="compressed")
    left, right = figure.subplots(1, 2)
    _draw_matrix(left, metrics.confusion / metrics.confusion.max(), metrics.confusion, "{:,}", cell)
    _draw_matrix(right, metrics.confusion_by_row, 100 * metrics.confusion_by_row, "{:.1f}", cell)
    style.set_panel_title(left, "Images")
    style.set_panel_title(right, "Share of the true class, %")
    left.set_ylabel("true class")
    centres, look = np.arange(num_classes) + 0.5, {"size": min(8.5, 50 * cell), "color": style.INK}
    for axes in (left, right):
        axes.set_xlabel("predicted class")
        if names:
            axes.set_xticks(centres, columns, rotation=45, ha="right", rotation_mode="anchor", **look)
            axes.set_yticks(centres, rows if axes is left else [""] * len(rows), **look)
        else:
            axes.set(xticks=centres[::10], xticklabels=range(0, num_classes, 10))
            axes.set(yticks=centres[::10], yticklabels=range(0, num_classes, 10))
    style.add_footer(figure, "blue: right · orange: wrong · darker: more")
    return figure


def _draw_matrix(axes: Axes, shares: NDArray[Any], values: NDArray[Any], number: str, cell: float) -> None:
    """Shade the cells by ``shares`` in [0, 1], and write ``values`` in them where their side of ``cell`` has room."""
    is_right = np.eye(len(shares), dtype=bool)
    # seaborn's own tick labels cost an image of the figure each to measure
    look: dict[str, Any] = {"cbar": False, "square": True, "xticklabels": False, "yticklabels": False, "fmt": ""}
    if len(shares) <= MAX_WRITTEN_CLASSES:
        texts = [["–" if np.isnan(value) else number.format(value) for value in row] for row in values]
        look |= {"annot": np.array(texts), "annot_kws": {"size": min(9.5, 19 * cell)}}
    # the root makes errors of a few per cent visible
    for mask, colours, power in ((~is_right, BLUES, 1.0), (is_right, ORANGES, 0.5)):
        sns.heatmap(np.nan_to_num(shares), mask=mask, cmap=colours, norm=PowerNorm(power, 0, 1), ax=axes, **look)
    for text in axes.texts:
        text.set_in_layout(False)
        if text.get_text() in ("0", "0.0", "–"):
            text.set_color(style.FAINT)
    axes.tick_params(length=0, labelrotation=0)
    axes.spines[:].set_visible(True)


def _draw_largest_confusions(metrics: Metrics, detail: str, caption: style.Caption) -> Figure:
    confusions = largest_confusions(metrics, MAX_BARS)
    names = style.short_names([figures.name for figures in metrics.per_class], width=24, lines=1)
    detail += f"; the {len(confusions)} largest confusions of {len(names):,} classes"
    figure = style.new_figure(
        "Largest confusions", detail, caption, width=9, height=0.7 + 0.24 * max(4, len(confusions))
    )
    axes = figure.subplots()
    style.set_panel_title(axes, "True class → predicted class", "images, and their share of the true class")
    if confusions.empty:
        axes.text(0.5, 0.5, "no image is predicted wrong", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    sns.barplot(x=confusions["images"], y=confusions.index, orient="h", color=style.WRONG_COLOUR, saturation=1, ax=axes)
    pairs = [f"{names[true]} → {names[wrong]}" for true, wrong in confusions[["true", "predicted"]].to_numpy()]
    axes.set_yticks(range(len(pairs)), pairs, size=8.5, color=style.INK)
    labels = [f"{row.images:,} · {row.share:.1%}" for row in confusions.itertuples()]
    axes.bar_label(axes.containers[0], labels, padding=4, size=8, color=style.MUTED)  # type: ignore[arg-type]
    axes.set(xlabel="images", ylabel="")
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure
