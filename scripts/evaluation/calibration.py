"""The calibration of predicted probabilities: its metrics, and the temperature that improves it.

In the shapes below N is the number of images, C of classes or labels, D of decisions. A decision is the class predicted
for an image, D = N, or in a multi-label task the predicted presence or absence of one label, D = N · C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logsumexp

from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.confusion import Floats, Labels, Scores, ratio
from scripts.evaluation.metrics import predict_classes

NUM_BINS = 15
UNDETERMINED = 1.0  # the temperature where a split determines none
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
BOUND_MARGIN = 1.001  # the search ends this close to a bound
# networks compute in single precision, in which a score closer to 0 or 1 than these becomes exactly 0 or 1
LOWEST, HIGHEST = float(np.finfo(np.float32).tiny), 1 - 2.0**-25


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """The decisions in each bin of their confidence, shape (B,) each, and the edges of the bins, shape (B + 1,)."""

    edges: Floats  # each bin is closed on the right
    counts: NDArray[np.int64]
    confidence: Floats  # mean over the decisions; NaN in an empty bin
    accuracy: Floats  # share of right decisions; NaN in an empty bin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbabilityMetrics:
    """How good a split's probabilities are; smaller is better."""

    ece: float  # expected calibration error, in [0, 1]
    nll: float  # mean negative log-likelihood of the true classes or labels, in nats
    brier: float  # in [0, 2] for classes, in [0, 1] for labels
    reliability: Reliability


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Temperatures of the scores without and with test-time augmentation (TTA)."""

    plain: float
    tta: float | None  # None without TTA

    def __str__(self) -> str:
        found = {"without TTA": self.plain, "with TTA": self.tta}
        return ", ".join(
            f"{temperature:.3f} {title}" + _in_parentheses(temperature_note(temperature))
            for title, temperature in found.items()
            if temperature is not None
        )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The probabilities of a test split before and after a temperature, which comes from the validation split."""

    temperature: float
    before: ProbabilityMetrics
    after: ProbabilityMetrics


def fit_temperature(labels: Labels, scores: Scores, task: str) -> float:
    """Find the temperature of :func:`apply_temperature` that minimises the mean negative log-likelihood of a split.

    The minimum is unique, as the likelihood is convex in 1 / T; the search is bounded by ``MIN_TEMPERATURE`` and
    ``MAX_TEMPERATURE``. If every decision is right, there is no minimum, since a smaller temperature is always better:
    the result is then ``UNDETERMINED``, which changes nothing.

    Args:
        labels: True class indices, shape (N,), or 0 and 1 for each of C labels, shape (N, C).
        scores: Probabilities of the classes or labels, shape (N, C).
        task: One of ``metrics.TASKS``.

    Reference: Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    margins = _margins(labels, scores, task)
    if margins.max() <= 0:
        return UNDETERMINED
    bounds = np.log((MIN_TEMPERATURE, MAX_TEMPERATURE))
    found = minimize_scalar(
        lambda exponent: _likelihood(margins, np.exp(exponent)),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def temperature_note(temperature: float) -> str:
    """Name what is unusual about a fitted temperature; empty if nothing is."""
    if temperature == UNDETERMINED:
        return "undetermined, as no decision is wrong"
    is_inside = BOUND_MARGIN * MIN_TEMPERATURE < temperature < MAX_TEMPERATURE / BOUND_MARGIN
    return "" if is_inside else "at the bound of the search"


def format_temperature(temperature: float) -> str:
    """Format a fitted temperature, with its note if there is one."""
    return f"{temperature:.3f}" + _in_parentheses(temperature_note(temperature))


def _in_parentheses(note: str) -> str:
    return f" ({note})" if note else ""


def apply_temperature(scores: Scores, temperature: float, task: str) -> Floats:
    """Divide the logits of probabilities, shape (N, C), by a temperature: above 1 they become less certain.

    These are softmax(log p / T) over the classes, or sigmoid(logit(p) / T) of each label. No decision changes.
    """
    if task == MULTI_LABEL:
        return np.asarray(expit(_logits(scores) / temperature))
    return np.asarray(np.exp(log_softmax(_log(scores) / temperature, axis=1)))


def calibrate(labels: Labels, scores: Scores, temperature: float, task: str) -> Calibration:
    """Measure a split's probabilities before and after a temperature; the arguments of :func:`fit_temperature`."""
    after = apply_temperature(scores, temperature, task)
    return Calibration(temperature, *(measure_probabilities(labels, values, task) for values in (scores, after)))


def measure_probabilities(labels: Labels, scores: Scores, task: str) -> ProbabilityMetrics:
    """Compute calibration error, negative log-likelihood and Brier score; the arguments of :func:`fit_temperature`.

    The Brier score is the sum over the classes of the squared distance to 1 for the true class and 0 for the others, as
    Brier defined it (for two classes twice that of one class), or the mean over the labels of that distance. All are
    means over the images.

    References: Guo et al., ICML 2017; Brier, Monthly Weather Review 78, 1950.
    """
    reliability = bin_decisions(*decide(labels, scores, task))
    gaps = np.abs(reliability.accuracy - reliability.confidence) * reliability.counts
    truth = labels if task == MULTI_LABEL else np.eye(scores.shape[1])[labels]
    squares = (scores - truth) ** 2
    brier = squares.mean() if task == MULTI_LABEL else squares.sum(axis=1).mean()
    return ProbabilityMetrics(
        ece=float(np.nansum(gaps) / reliability.counts.sum()),
        nll=_likelihood(_margins(labels, scores, task), 1.0),
        brier=float(brier),
        reliability=reliability,
    )


def decide(labels: Labels, scores: Scores, task: str) -> tuple[Floats, NDArray[np.bool_]]:
    """Find the confidence of each decision, its predicted probability, and whether it is right, shape (D,) each.

    Of a label that is predicted absent the confidence is 1 - p. The arguments are those of :func:`fit_temperature`.
    """
    predictions = predict_classes(scores, task=task)
    if task == MULTI_LABEL:
        confidence = np.where(predictions == 1, scores, 1 - scores)
    else:
        confidence = np.take_along_axis(scores, predictions[:, np.newaxis], axis=1)
    return confidence.ravel().astype(np.float64), (predictions == labels).ravel()


def bin_decisions(confidence: Floats, is_right: NDArray[np.bool_], num_bins: int = NUM_BINS) -> Reliability:
    """Sort decisions into bins of equal width by their confidence; the arguments are the result of :func:`decide`."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], confidence, side="left")
    counts, *sums = (np.bincount(bins, weights, num_bins) for weights in (None, confidence, is_right))
    return Reliability(edges, counts.astype(np.int64), *(ratio(of_bin, counts) for of_bin in sums))


def _margins(labels: Labels, scores: Scores, task: str) -> Floats:
    """Compute how far the logit of each alternative is above that of the truth, shape (D, number of alternatives)."""
    if task == MULTI_LABEL:
        against = (_logits(scores) * np.where(labels == 1, -1, 1)).ravel()
        return np.stack([np.zeros_like(against), against], axis=1)
    logits = _log(scores)
    return logits - np.take_along_axis(logits, np.asarray(labels)[:, np.newaxis], axis=1)


def _likelihood(margins: Floats, temperature: float) -> float:
    """Compute the mean negative log-likelihood, in nats."""
    return float(logsumexp(margins / temperature, axis=1).mean())


def _log(scores: Scores) -> Floats:
    return np.asarray(np.log(np.maximum(scores, LOWEST, dtype=np.float64)))


def _logits(scores: Scores) -> Floats:
    inside = np.clip(scores, LOWEST, HIGHEST, dtype=np.float64)
    return np.asarray(np.log(inside) - np.log1p(-inside))
