"""The result of a comparison as one value, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.data_handler.dataset import members
from scripts.data_handler.registry import BINARY, MULTI_LABEL
from scripts.evaluation.confusion import Floats, Integers
from scripts.evaluation.metrics import predict_classes
from tools.comparison.groups import Pair
from tools.comparison.statistics import (
    DeLong,
    Difference,
    McNemar,
    bootstrap_differences,
    delong,
    holm,
    mcnemar,
    right_decisions,
)

RESAMPLES, SEED = 2000, 0
TITLES = {"accuracy": "accuracy", "auc": "AUC", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy"}
TITLES |= {"quadratic_weighted_kappa": "quadratic-weighted kappa", "mean_absolute_error": "mean absolute error"}
IN_POINTS = {"accuracy", "balanced_accuracy"}  # stated in percentage points
SMALLEST_P = 1e-4
MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is known of the difference between two groups of runs."""

    pair: Pair
    differences: Mapping[str, Difference]  # by the name of the headline figure
    mcnemar: Mapping[str, McNemar]  # of all images; with several labels per image, of each label by its name
    mcnemar_holm: tuple[float, ...]  # the same p-values, corrected
    delong: Mapping[str, DeLong]  # of the positive class, or of each class or label against the rest, by its name
    delong_holm: tuple[float, ...]
    scores: tuple[Floats, Floats]  # mean over the runs of A, and of B; what the two tests compare
    predictions: tuple[Integers, Integers]  # from these means

    @property
    def deciding(self) -> str:
        """The figure of the sentence: accuracy, or AUC with several labels per image, where accuracy says little."""
        return "auc" if self.pair.task == MULTI_LABEL else "accuracy"

    @property
    def differing(self) -> Integers:
        """Indices of the test images with different predictions."""
        a, b = (one.reshape(len(one), -1) for one in self.predictions)
        return np.flatnonzero((a != b).any(axis=1))


def compare(pair: Pair) -> Comparison:
    """Compare two groups of runs; the same runs give the same numbers."""
    labels, task, names = pair.labels, pair.task, pair.class_names
    differences = bootstrap_differences(labels, pair.scores_a, pair.scores_b, task=task, resamples=RESAMPLES, seed=SEED)
    a, b = (np.mean(runs, axis=0) for runs in (pair.scores_a, pair.scores_b))
    right_a, right_b = (right_decisions(labels, scores, task=task) for scores in (a, b))
    if task == MULTI_LABEL:
        of_mcnemar = {name: mcnemar(right_a[:, index], right_b[:, index]) for index, name in enumerate(names)}
    else:
        of_mcnemar = {"all images": mcnemar(right_a, right_b)}
    classes = [1] if task == BINARY else range(len(names))
    of_delong = {names[index]: delong(members(labels, index), a[:, index], b[:, index]) for index in classes}
    return Comparison(
        pair=pair,
        differences=differences,
        mcnemar=of_mcnemar,
        mcnemar_holm=tuple(holm([test.p for test in of_mcnemar.values()])),
        delong=of_delong,
        delong_holm=tuple(holm([test.p for test in of_delong.values()])),
        scores=(a, b),
        predictions=(predict_classes(a, task=task), predict_classes(b, task=task)),
    )


def conclusion(comparison: Comparison) -> str:
    """The result in one sentence."""
    figure = comparison.deciding
    difference = comparison.differences[figure]
    if not difference.is_defined:
        return f"The difference of {TITLES[figure]} is undefined on this test split."
    better = difference.better(figure)
    sign = -1 if better == "A" else 1  # the sentence states how much better A is
    low, high = sorted((sign * difference.low, sign * difference.high))
    in_points = figure in IN_POINTS
    unit = f"points of {TITLES[figure]}" if in_points else f"of {TITLES[figure]}"
    value, *ends = _rounded([sign * difference.value, low, high], scale=100 if in_points else 1)
    interval = f"95 % interval {ends[0]} to {ends[1]}"
    if better is None:
        return f"The difference is within what chance gives: B − A is {value} {unit}, {interval}."
    return f"{better} is better by {value} {unit}, {interval}."


def _rounded(numbers: Sequence[float], *, scale: float) -> list[str]:
    """The numbers as text, with so many digits that none but 0 is shown as 0."""
    scaled = [number * scale for number in numbers]
    digits = 1 if scale > 1 else 4
    while digits < MAX_DIGITS and any(number and not round(number, digits) for number in scaled):
        digits += 1
    return [f"{number:.{digits}f}".replace("-", "−") for number in scaled]


def report_lines(comparison: Comparison) -> Iterator[str]:
    """Lines for the screen: who is compared, the figures, the tests, and the result in one sentence."""
    pair = comparison.pair
    for letter, runs in zip("AB", (pair.a, pair.b), strict=True):
        for run in runs:
            yield f"{letter}: {run.paths.root} ({run.config.backbone}, {run.config.recipe}, seed {run.config.seed})"
    yield f"{len(pair.labels):,} test images, {pair.way}"
    yield ""
    yield from _aligned(["figure", "A", "B", "B − A", "95 % interval", ""], _figure_rows(comparison))
    yield ""
    means = ", on the mean probabilities of each group's runs" if pair.is_of_groups else ""
    yield f"McNemar's exact test of accuracy{means}: what only A, or only B, predicts right"
    yield from _aligned(["", "only A", "only B", *_p_titles(comparison.mcnemar_holm)], _mcnemar_rows(comparison))
    yield ""
    yield f"DeLong's test of AUC{means}"
    yield from _aligned(["", "A", "B", "B − A", *_p_titles(comparison.delong_holm)], _delong_rows(comparison))
    yield ""
    yield f"{len(comparison.differing):,} of {len(pair.labels):,} test images are predicted differently."
    yield from (f"Note: {note}" for note in pair.notes)
    yield conclusion(comparison)


def _figure_rows(comparison: Comparison) -> Iterator[list[str]]:
    for name, one in comparison.differences.items():
        better = one.better(name)
        interval = f"{_signed(one.low)} to {_signed(one.high)}" if one.is_defined else "undefined"
        numbers = [_number(one.a), _number(one.b), _signed(one.value), interval]
        yield [TITLES[name], *numbers, f"{better} is better" if better else ""]


def _mcnemar_rows(comparison: Comparison) -> Iterator[list[str]]:
    for (name, test), corrected in zip(comparison.mcnemar.items(), comparison.mcnemar_holm, strict=True):
        yield [name, f"{test.only_a:,}", f"{test.only_b:,}", *_p_texts(test.p, corrected, comparison.mcnemar_holm)]


def _delong_rows(comparison: Comparison) -> Iterator[list[str]]:
    for (name, test), corrected in zip(comparison.delong.items(), comparison.delong_holm, strict=True):
        numbers = [_number(test.a), _number(test.b), _signed(test.b - test.a)]
        yield [name, *numbers, *_p_texts(test.p, corrected, comparison.delong_holm)]


def _p_titles(family: Sequence[float]) -> list[str]:
    return ["p", "p by Holm"] if len(family) > 1 else ["p"]


def _p_texts(p: float, corrected: float, family: Sequence[float]) -> list[str]:
    texts = [
        "undefined" if math.isnan(one) else f"< {SMALLEST_P:.4f}" if one < SMALLEST_P else f"{one:.4f}"
        for one in (p, corrected)
    ]
    return texts if len(family) > 1 else texts[:1]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _aligned(titles: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """The rows below their titles in columns: the first from the left, the others from the right."""
    table = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
