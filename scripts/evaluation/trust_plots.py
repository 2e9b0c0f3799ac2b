"""The figures of trust: the reliability of the probabilities, and the risk of the most certain decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation import style
from scripts.evaluation.calibration import ProbabilityMetrics
from scripts.evaluation.metrics import EvaluationResult

MAX_POINTS = 1000  # of a curve
SHARE_TICKS = (0.0, 0.1, 0.5, 1.0)


@style.with_style
def draw_reliability(evaluation: EvaluationResult, task: str, caption: style.Caption) -> Figure:
    """The accuracy and the share of decisions in each bin of confidence, before and after the temperature."""
    variants = evaluation.variants
    num_bins = len(variants[0].trust.calibration.before.reliability.counts)
    detail = f"{_decisions(evaluation, task)}, {num_bins} bins of confidence; temperature from the validation split"
    figure = style.new_figure("Reliability", detail, caption, width=5.8 * len(variants), height=4.1)
    panels = figure.subplots(2, 2 * len(variants), sharex=True, height_ratios=(3, 1), squeeze=False)
    for index, variant in enumerate(variants):
        found = variant.trust.calibration
        parts = (
            (found.before, variant.title, "as predicted"),
            (found.after, f"{variant.title}, calibrated", f"temperature {found.temperature:.2f}"),
        )
        for column, (metrics, title, state) in enumerate(parts, start=2 * index):
            style.set_panel_title(panels[0, column], title, f"{state} · ECE {metrics.ece:.3f} · NLL {metrics.nll:.3f}")
            _draw_bins(panels[0, column], panels[1, column], metrics, is_leftmost=column == 0)
    style.add_footer(figure, "blue: accuracy of a bin at its mean confidence · dashed: perfect calibration")
    return figure


def _draw_bins(axes: Axes, shares: Axes, metrics: ProbabilityMetrics, *, is_leftmost: bool) -> None:
    """Draw the accuracy of each bin above, and its share of the decisions below."""
    bins = metrics.reliability
    axes.plot([0, 1], [0, 1], color=style.MUTED, linestyle=style.DASHES, linewidth=1)
    look: dict[str, Any] = {"color": style.RIGHT_COLOUR, "linewidth": 1.6, "markersize": 4.5, "marker": "o"}
    filled = bins.counts > 0
    axes.plot(bins.confidence[filled], bins.accuracy[filled], clip_on=False, zorder=3, **look)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    width = np.diff(bins.edges)
    shares.bar(bins.edges[:-1], bins.counts / bins.counts.sum(), 0.9 * width, align="edge", color=style.RIGHT_COLOUR)
    # the root makes shares of one per cent visible
    shares.set_yscale("function", functions=(lambda share: np.sqrt(np.maximum(share, 0)), np.square))
    shares.set(ylim=(0, 1), yticks=SHARE_TICKS, xlabel="confidence")
    for panel in (axes, shares):
        panel.grid(axis="y")
        panel.tick_params(labelsize=8, labelleft=is_leftmost, color=style.FAINT)
    for axis in (axes.yaxis, shares.yaxis, shares.xaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    if is_leftmost:
        axes.set_ylabel("accuracy")
        shares.set_ylabel("share")


@style.with_style
def draw_risk_coverage(evaluation: EvaluationResult, task: str, caption: style.Caption) -> Figure:
    """The share of errors among the most certain decisions, over how many are kept."""
    detail = f"errors among the most certain of {_decisions(evaluation, task)}"
    figure = style.new_figure("Risk and coverage", detail, caption, width=6.6, height=3.6)
    axes = figure.subplots()
    looks = ((style.MUTED, style.DASHES), (style.RIGHT_COLOUR, "-"))[-len(evaluation.variants) :]
    highest = 0.0
    for variant, (colour, dashes) in zip(evaluation.variants, looks, strict=True):
        curve = variant.trust.risk_coverage
        num_points = min(MAX_POINTS, len(curve.risks))
        coverages = np.arange(1, num_points + 1) / num_points
        risks = curve.at(coverages)
        highest = max(highest, *risks.tolist())
        label = f"{variant.phrase}, area {curve.area:.4f}"
        axes.plot(coverages, risks, color=colour, linestyle=dashes, linewidth=1.6, label=label)
        axes.plot(1, risks[-1], color=colour, marker="o", markersize=5, clip_on=False, zorder=4)
        axes.annotate(f"{risks[-1]:.1%}", (1, risks[-1]), (7, 0), textcoords="offset points", color=colour, va="center")
    axes.set(xlim=(0, 1), ylim=(0, 1.1 * highest or 1))
    axes.set(xlabel="coverage: share that is kept", ylabel="risk: share of errors")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid()
    axes.legend(frameon=False, labelcolor=style.INK, loc="upper left")
    return figure


def _decisions(evaluation: EvaluationResult, task: str) -> str:
    kind = "label decision" if task == MULTI_LABEL else "test image"
    return f"{evaluation.labels.size:,} {kind}{'s' * (evaluation.labels.size > 1)}"
