"""Intervals and tests for the difference between predictions of the same images by A and by B.

Nothing is read or written here. N is the number of images, C of classes or labels, R of resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata  # type: ignore[attr-defined]  # SciPy has no types
from scipy.stats import t as student_t  # type: ignore[attr-defined]

from scripts.data_handler.registry import BINARY, ORDINAL
from scripts.evaluation.bootstrap import percentile_interval, resample_metrics
from scripts.evaluation.confusion import Counter, Floats, Integers, Scores
from scripts.evaluation.metrics import HEADLINES, ORDINAL_HEADLINES, mean_auc, predict_classes

SMALLER_IS_BETTER = frozenset({"mean_absolute_error"})
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of A and of B, and the 95 % interval of ``b - a``; NaN where the figure is undefined."""

    a: float
    b: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """How much larger the figure of B is."""
        return self.b - self.a

    @property
    def is_defined(self) -> bool:
        """Whether there is a difference and an interval."""
        return not math.isnan(self.value + self.low + self.high)

    def better(self, figure: str) -> str | None:
        """Which of "A" and "B" is better; None where the interval contains 0 or is undefined."""
        if not self.is_defined or self.low <= 0 <= self.high:
            return None
        return "B" if (self.value > 0) != (figure in SMALLER_IS_BETTER) else "A"


@dataclass(frozen=True, slots=True)
class McNemar:
    """The result of McNemar's exact test."""

    only_a: int  # cases that only A predicts right
    only_b: int
    p: float


@dataclass(frozen=True, slots=True)
class DeLong:
    """The result of DeLong's test; ``p`` is NaN where the test is undefined."""

    a: float  # AUC; NaN where there are only positives or only negatives
    b: float
    standard_error: float  # of the difference
    p: float


def bootstrap_differences(
    labels: Integers,
    runs_a: Sequence[Scores],
    runs_b: Sequence[Scores],
    *,
    task: str,
    resamples: int,
    seed: int,
) -> dict[str, Difference]:
    """Compute every headline figure of two groups of runs, and the interval of its difference.

    A group's figure is the mean over its runs. A resample draws the N images with replacement, the same ones for all
    runs, and in a group of several runs also draws the runs. The interval is that of the percentiles of R resamples.

    Args:
        labels: True classes, as :func:`compute_metrics` takes them.
        runs_a: Scores (N, C) of each run of A.
        runs_b: The same of B.
        task: As in :func:`compute_metrics`.
        resamples: R, at least 1.
        seed: The same seed gives the same intervals.
    """
    generator = np.random.default_rng([seed, 1])  # other numbers than those that draw the images
    names = ORDINAL_HEADLINES if task == ORDINAL else HEADLINES
    num_classes = runs_a[0].shape[1]
    auc_classes = [1] if task == BINARY else range(num_classes)
    each_once = np.ones((len(labels), 1))
    groups = []
    for runs in (runs_a, runs_b):
        values, resampled = [], []
        for scores in runs:
            predictions, auc = predict_classes(scores, task=task), mean_auc(labels, scores, task=task)
            counted = Counter(labels, predictions, num_classes).metrics(each_once)
            values.append(counted | {"auc": np.array([math.nan if auc is None else auc])})
            resampled.append(
                resample_metrics(labels, predictions, scores, auc_classes=auc_classes, resamples=resamples, seed=seed)
            )
        drawn = generator.integers(len(runs), size=(len(runs), resamples))
        groups.append(
            {
                name: (
                    np.array([float(one[name][0]) for one in values]),
                    mean_of_drawn([one[name] for one in resampled], drawn),
                )
                for name in names
            }
        )
    of_a, of_b = groups
    return {
        name: Difference(
            float(of_a[name][0].mean()),
            float(of_b[name][0].mean()),
            *widened_interval(of_b[name][1] - of_a[name][1], of_a[name][0], of_b[name][0]),
        )
        for name in names
    }


def widened_interval(resampled: Floats, *groups: Floats) -> tuple[float, float]:
    """Widen the percentile interval of a difference by how uncertain the variance between few runs is.

    The factor is t / 1.96 with the degrees of freedom of Welch and Satterthwaite for the whole variance, of which only
    the part between the runs is estimated from few values: it is 1 for single runs and near 1 where images dominate.

    Args:
        resampled: The difference B - A in each resample, shape (R,).
        groups: The figure of each run of A, and of B, on the whole test split.

    Reference: Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    low, high = percentile_interval(resampled)
    between = [(one.var(ddof=1) / len(one), len(one) - 1) for one in groups if len(one) > 1]
    uncertainty = sum(variance**2 / degrees for variance, degrees in between)
    if not uncertainty > 0:  # also NaN
        return low, high
    degrees = max(np.nanvar(resampled) ** 2 / uncertainty, min(count for _, count in between))
    factor = float(student_t.ppf(0.975, degrees) / norm.ppf(0.975))
    value = groups[1].mean() - groups[0].mean()
    return float(value + factor * (low - value)), float(value + factor * (high - value))


def mean_of_drawn(of_runs: Sequence[Floats], drawn: Integers) -> Floats:
    """Compute the mean figure of the drawn runs for each resample, shape (R,); ``drawn`` are their indices (S, R).

    The mean of S drawn runs varies by too little, since its deviations are from the mean of those S runs: by the factor
    (S - 1) / S in the variance. The deviations are enlarged by the root of the inverse.

    Reference: Rao and Wu, Resampling inference with complex survey data, JASA 83, 1988.
    """
    values = np.stack(of_runs)
    if len(values) == 1:
        return values[0]
    mean = values.mean(axis=0)
    scale = math.sqrt(len(values) / (len(values) - 1))
    return mean + scale * (np.take_along_axis(values, drawn, axis=0).mean(axis=0) - mean)


def right_decisions(labels: Integers, scores: Scores, *, task: str) -> Booleans:
    """Whether each prediction is right, shape (N,), or with several labels per image (N, C)."""
    return predict_classes(scores, task=task) == labels


def mcnemar(right_a: Booleans, right_b: Booleans) -> McNemar:
    """Test whether A and B are right equally often, from their decisions on the same N images, shape (N,).

    Only images on which one of them is right count: under the hypothesis, each has the chance 1/2 to be A's or B's.

    Reference: McNemar, Psychometrika 12, 1947; exact two-sided p of the binomial distribution.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p))


def delong(is_positive: Booleans, scores_a: Scores, scores_b: Scores) -> DeLong:
    """Test whether two scores of the same N images have the same AUC, in O(N log N).

    The share of images of the other class that an image is ranked right of is its placement; AUC is the mean
    placement, and the variance of the difference of two AUCs is that of the differences of placements.

    Args:
        is_positive: The truth, shape (N,); the test needs at least two images of each kind.
        scores_a: Higher for positive images, shape (N,).
        scores_b: The same.

    References: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988; Sun and Xu, IEEE Signal Processing Letters 21,
    2014, for the computation from ranks.
    """
    placements = [_placements(scores[is_positive], scores[~is_positive]) for scores in (scores_a, scores_b)]
    (of_positives_a, of_negatives_a), (of_positives_b, of_negatives_b) = placements
    if min(of_positives_a.size, of_negatives_a.size) == 0:
        return DeLong(*[math.nan] * 4)
    a, b = float(of_positives_a.mean()), float(of_positives_b.mean())
    if min(of_positives_a.size, of_negatives_a.size) == 1:
        return DeLong(a, b, math.nan, math.nan)
    differences = of_positives_b - of_positives_a, of_negatives_b - of_negatives_a
    variance = sum(float(one.var(ddof=1)) / one.size for one in differences)
    error = math.sqrt(variance)
    if error == 0:  # both rank every image equally well, or there is nothing to estimate the variance from
        return DeLong(a, b, error, 1.0 if a == b else math.nan)
    return DeLong(a, b, error, math.erfc(abs(b - a) / error / math.sqrt(2)))


def _placements(positives: Scores, negatives: Scores) -> tuple[Floats, Floats]:
    """Compute for each positive the share of negatives with a lower score, for each negative that of higher positives.

    Equal scores count half.
    """
    num_positives, num_negatives = len(positives), len(negatives)
    if min(num_positives, num_negatives) == 0:
        return np.zeros(num_positives), np.zeros(num_negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    lower_negatives = ranks[:num_positives] - rankdata(positives)
    lower_positives = ranks[num_positives:] - rankdata(negatives)
    return lower_negatives / num_negatives, 1 - lower_positives / num_positives


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests by Holm's method; an undefined one (NaN) is no test and stays.

    Reference: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    corrected, defined = values.copy(), np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return corrected.tolist()
