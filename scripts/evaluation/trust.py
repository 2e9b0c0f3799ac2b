"""How far the predictions of a split can be trusted: calibration, the risk of the most certain ones, and chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data_handler.registry import MULTI_LABEL
from scripts.evaluation.calibration import Calibration, calibrate, decide
from scripts.evaluation.confusion import Floats, Labels, Scores


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """The share of wrong decisions among the most certain ones."""

    risks: Floats  # of the k most certain decisions, for k from 1 to their number D, shape (D,)

    @property
    def area(self) -> float:
        """The area under the curve, the mean of the risks, in [0, 1]; smaller is better."""
        return float(self.risks.mean())

    def at(self, coverages: Floats) -> Floats:
        """Look up the risks at shares of the decisions in (0, 1], each rounded up to a whole number of decisions."""
        # not above 1 by rounding: 0.55 · 100 is 55.00000000000001
        counts = np.ceil(np.round(coverages * len(self.risks), 9)).astype(np.int64)
        return np.asarray(self.risks[np.clip(counts, 1, len(self.risks)) - 1])


@dataclass(frozen=True, slots=True)
class Trust:
    """Calibration and risk of one set of scores of the test split."""

    calibration: Calibration
    risk_coverage: RiskCoverage  # of the scores before the temperature


def measure_trust(labels: Labels, scores: Scores, temperature: float, task: str) -> Trust:
    """Compute both from the arguments of :func:`calibrate`."""
    return Trust(calibrate(labels, scores, temperature, task), measure_risks(*decide(labels, scores, task)))


def measure_risks(confidence: Floats, is_right: NDArray[np.bool_]) -> RiskCoverage:
    """Sort decisions by their confidence, the most certain first, and compute the share of errors among the first k.

    Decisions of equal confidence have no order: each counts as the mean of their errors. The arguments, of shape (D,),
    are the result of :func:`decide`.

    Reference: Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    levels, level = np.unique(-confidence, return_inverse=True)
    share = np.bincount(level, ~is_right, len(levels)) / np.bincount(level)
    errors = share[np.sort(level)].cumsum()
    return RiskCoverage(errors / np.arange(1, len(errors) + 1))


def majority_class_accuracy(train_labels: Labels, test_labels: Labels, task: str) -> float:
    """Compute the accuracy of predicting the commonest class of the training split for every test image.

    The first of equally common classes is taken. In a multi-label task each label is predicted present if more than
    half of the training images have it; the result is the mean over the labels.
    """
    if task == MULTI_LABEL:
        return float((test_labels == (train_labels.mean(axis=0) > 0.5)).mean())
    return float((test_labels == np.bincount(train_labels).argmax()).mean())
