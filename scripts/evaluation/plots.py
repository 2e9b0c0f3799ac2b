"""The pictures of a run.

Every picture is laid out in pixels from its top left corner and drawn on a figure of its own: no display, no settings
of the user's and no global state take part, so that the same values give the same bytes on the same versions. Right
and wrong are blue and orange, tick and cross, solid and dashed: never red and green alone.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scripts.core.files import write_bytes
from scripts.core.records import TrainingResult
from scripts.evaluation.metrics import EvaluationResult, Metrics

DPI = 150
MARGIN = 48
POINT = DPI / 72  # pixels
INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#c3cad3"
RIGHT_COLOUR, WRONG_COLOUR, NOTE_COLOUR = "#0a5fa4", "#c8500a", "#fff1e0"
STYLE: list[Any] = ["default", {"font.size": 9, "xtick.color": MUTED, "ytick.color": MUTED, "axes.labelcolor": MUTED}]
DASHES = (0, (3, 1.6))
LETTER_WIDTH = 0.57  # of the font size, on average

SAMPLES_PER_CLASS, SAMPLE_HEIGHT, MOST_SAMPLED_CLASSES = 12, 84, 30
PREDICTIONS_PER_ROW, MOST_PREDICTIONS, PREDICTION_HEIGHT, PREDICTION_NAME_WIDTH = 8, 16, 140, 212
MOST_WRITTEN_CLASSES, MOST_NAMED_CLASSES, MATRIX_SIDE = 20, 60, 1240

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Caption:
    """What every picture says of where it comes from."""

    dataset: str
    model: str
    note: str | None  # such as that the data are synthetic

    @property
    def origin(self) -> str:
        """The data set and the model, in one line."""
        return f"{self.dataset} · {self.model}"

    @property
    def height(self) -> int:
        """Pixels below the top edge that a picture's heading takes."""
        return 210 if self.note else 158


class Page:
    """A white figure on which things are placed by pixels from the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = round(width), round(height)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        self.canvas = self.figure.add_axes((0, 0, 1, 1))
        self.canvas.set(xlim=(0, self.width), ylim=(self.height, 0), autoscale_on=False)
        self.canvas.set_axis_off()

    def text(self, x: float, y: float, text: str, **look: Any) -> None:
        """Write text, its top left corner at a point unless ``look`` aligns it otherwise."""
        escaped = text.replace("$", r"\$")  # which would start a formula
        self.canvas.text(x, y, escaped, **{"ha": "left", "va": "top", "color": INK, **look})

    def image(self, pixels: NDArray[Any], x: float, y: float, width: float, height: float) -> None:
        """Show pixels, enlarged or reduced."""
        left, top = round(x), round(y)
        # enlarged, a pixel shows as a square; reduced, none may be skipped
        way = "nearest" if height >= len(pixels) else "antialiased"
        self.canvas.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", interpolation=way)

    def frame(self, x: float, y: float, width: float, height: float, **look: Any) -> None:
        """Draw a rectangle that is not filled."""
        self.canvas.add_patch(Rectangle((x, y), width, height, fill=False, **look))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose frame is the rectangle."""
        bottom = self.height - y - height
        return self.figure.add_axes((x / self.width, bottom / self.height, width / self.width, height / self.height))

    def head(self, title: str, detail: str, caption: Caption) -> None:
        """Title, origin and, where there is one, the note of the data set."""
        room = int((self.width - 2 * MARGIN) / (9 * POINT * LETTER_WIDTH))
        self.text(MARGIN, 34, title, size=14, weight="bold")
        for y, line in ((76, caption.origin), (104, detail)):
            self.text(MARGIN, y, textwrap.shorten(_one_line(line), room, placeholder=" …"), color=MUTED)
        if caption.note:
            box = {"facecolor": NOTE_COLOUR, "edgecolor": WRONG_COLOUR, "boxstyle": "round,pad=0.35", "linewidth": 0.8}
            self.text(MARGIN + 8, 148, _one_line(caption.note), size=8.5, color=WRONG_COLOUR, bbox=box)


@style.context(STYLE)
def draw_dataset_samples(
    images: Pixels, labels: NDArray[np.int64], class_names: Sequence[str], caption: Caption
) -> Figure:
    """Training images, one row per class, evenly spread over the split.

    Args:
        images: The training split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        labels: Class indices, shape (N,).
        class_names: C names; of very many classes only the first are shown, and the picture says so.
        caption: Where the images come from.
    """
    names = _labels(class_names, width=24, lines=3)[:MOST_SAMPLED_CLASSES]
    height, width = SAMPLE_HEIGHT, SAMPLE_HEIGHT * images.shape[2] / images.shape[1]
    counts = [f"{np.count_nonzero(labels == index):,} images" for index in range(len(names))]
    gap, first_column = 8, MARGIN + 24 + max(_text_width(names, size=9), _text_width(counts, size=7.5))
    hidden = f", the first {len(names)} of {len(class_names)} classes" if len(names) < len(class_names) else ""
    detail = f"{len(labels):,} images of {images.shape[2]} × {images.shape[1]} pixels{hidden}"
    chosen = [_evenly(np.flatnonzero(labels == row), SAMPLES_PER_CLASS) for row in range(len(names))]
    widest, fitting = (
        first_column + columns * (width + gap) + MARGIN for columns in (SAMPLES_PER_CLASS, max(map(len, chosen)))
    )
    page = Page(
        max(fitting, min(widest, _head_width(detail, caption))),
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
            page.image(_as_rgb(images[index]), first_column + column * (width + gap), y, width, height)
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
    _dress_curve(loss, "Loss", "mean over the images of an epoch", epochs[-1], training.best_epoch)
    _dress_curve(accuracy, "Validation accuracy", best, epochs[-1], training.best_epoch)
    _dress_curve(rate, "Learning rate", "at the first step of the epoch", epochs[-1], training.best_epoch)
    return page.figure


def _keep_to_shares(axes: Axes) -> None:
    """Let the vertical axis go no further than it must for points of 0 and 1 to lie inside, and name no other value."""
    lowest, highest = axes.get_ylim()
    room = 0.05 * (highest - lowest)
    lowest, highest = axes.set_ylim(max(lowest, -room), min(highest, 1 + room))
    axes.set_yticks([tick for tick in axes.get_yticks().round(9) if max(0, lowest) <= tick <= min(1, highest)])


def _dress_curve(axes: Axes, title: str, detail: str, last_epoch: int, best_epoch: int) -> None:
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
    if num_classes <= MOST_WRITTEN_CLASSES:  # room for a number, and no more than it needs
        cell = max(62.0, min(180.0, 720 / num_classes))
    names = [figures.name for figures in metrics.per_class] if num_classes <= MOST_NAMED_CLASSES else []
    rows, columns = _numbered_alike(_shortened(names, width=24, lines=2), _shortened(names, width=24, lines=1))
    side, gap, left, top = cell * num_classes, 56, MARGIN + 52 + _text_width(rows, size=8.5), caption.height + 58
    below = 36 + 0.72 * _text_width(columns, size=8.5)
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
    if len(shares) > MOST_WRITTEN_CLASSES:
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
class _Group:
    """Predictions that are shown together."""

    title: str
    mark: str
    colour: str
    dashes: Any
    chosen: NDArray[np.int64]  # image indices in the order of showing

    @property
    def num_lines(self) -> int:
        return -(-len(self.chosen) // PREDICTIONS_PER_ROW)


@style.context(STYLE)
def draw_sample_predictions(
    images: Pixels, evaluation: EvaluationResult, class_names: Sequence[str], caption: Caption
) -> Figure:
    """Test images with what they are and what they were taken for; the most confident errors among them.

    Args:
        images: The test split, shape (N, H, W) grey or (N, H, W, 3) RGB.
        evaluation: The result on these images.
        class_names: C names.
        caption: Where they come from.
    """
    confidence = evaluation.headline_scores[np.arange(len(images)), evaluation.predictions]
    groups = [group for group in _groups(evaluation, confidence) if group.num_lines]
    height, width = PREDICTION_HEIGHT, PREDICTION_HEIGHT * images.shape[2] / images.shape[1]
    heading, line, pitch = 56, height + 104, max(PREDICTION_NAME_WIDTH, width + 24)
    page = Page(
        2 * MARGIN + PREDICTIONS_PER_ROW * pitch,
        caption.height + sum(heading + group.num_lines * line for group in groups),
    )
    num_right = evaluation.headline.num_correct
    page.head("Sample predictions", f"test images; {num_right:,} of {len(images):,} are right", caption)
    names = _labels(class_names, width=16, lines=1)
    y = caption.height
    for group in groups:
        page.text(MARGIN, y, f"{group.mark}  {group.title}", weight="bold", size=10, color=group.colour)
        for place, index in enumerate(group.chosen):
            row, column = divmod(place, PREDICTIONS_PER_ROW)
            x, top = MARGIN + 4 + column * pitch, y + 46 + row * line
            page.image(_as_rgb(images[index]), x, top, width, height)
            look = {"edgecolor": group.colour, "linestyle": group.dashes, "linewidth": 2.2}
            page.frame(x - 4, top - 4, width + 8, height + 8, **look)
            told = f"true  {names[evaluation.labels[index]]}\npred. {names[evaluation.predictions[index]]}"
            page.text(x - 4, top + height + 12, told, size=7.5, linespacing=1.15)
            verdict = f"{group.mark} {confidence[index]:.1%}"
            page.text(x - 4, top + height + 54, verdict, size=7.5, color=group.colour, weight="bold")
        y += heading + group.num_lines * line
    return page.figure


def _groups(evaluation: EvaluationResult, confidence: NDArray[np.float64]) -> list[_Group]:
    is_right = evaluation.predictions == evaluation.labels
    right, wrong = np.flatnonzero(is_right), np.flatnonzero(~is_right)
    shown = _in_turn(right, evaluation.labels)[:MOST_PREDICTIONS]
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_PREDICTIONS]
    return [
        _Group(f"Right: {len(shown)} of {len(right):,}, from each class in turn", "✓", RIGHT_COLOUR, "-", shown),
        _Group(f"Wrong: {len(worst)} of {len(wrong):,}, the most confident first", "✗", WRONG_COLOUR, DASHES, worst),
    ]


@style.context(STYLE)
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        # a name in a script that the font lacks shows as boxes; the workbook has it in full
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _as_rgb(image: Pixels) -> Pixels:
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)


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


def _labels(names: Sequence[str], *, width: int, lines: int) -> list[str]:
    """The names in at most ``lines`` lines of about ``width`` characters; numbered where that makes two the same."""
    return _numbered_alike(_shortened(names, width=width, lines=lines))[0]


def _numbered_alike(*ways: list[str]) -> list[list[str]]:
    """Labels of the same classes in several ways; all with the class's number if any way has two that are the same."""
    if all(len(set(labels)) == len(labels) for labels in ways):
        return list(ways)
    return [[f"{index}: {label}" for index, label in enumerate(labels)] for labels in ways]


def _shortened(names: Sequence[str], *, width: int, lines: int) -> list[str]:
    return [_shorten(_one_line(name), width, lines) for name in names]


def _shorten(name: str, width: int, lines: int) -> str:
    wrapped = textwrap.wrap(name, width, max_lines=lines, placeholder="…")
    before_bracket = name.split("(")[0].strip()
    if wrapped and wrapped[-1].endswith("…") and "(" in name and len(before_bracket) < width:
        return f"{before_bracket}…"
    if lines == 1 and len(name) > width:  # within a word: more of the name than a whole number of words
        return f"{name[: width - 1].rstrip()}…"
    return "\n".join(wrapped) or "?"


def _text_width(labels: Sequence[str], *, size: float) -> float:
    """About how many pixels the longest line of the labels takes at ``size`` points."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    return longest * size * POINT * LETTER_WIDTH


def _head_width(detail: str, caption: Caption) -> float:
    """About how many pixels a page needs across for its heading in full."""
    lines = [_one_line(line) for line in (caption.origin, detail, caption.note or "")]
    return 2 * MARGIN + _text_width([f"{line}  " for line in lines], size=9)


def _one_line(text: str) -> str:
    """``text`` without line breaks and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", text).strip()
