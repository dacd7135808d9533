"""Metrics as KLUE, KoBEST and NSMC define them, and a bootstrap interval; arrays in, one number out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.evaluation.task import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was right and what a model said, item by item, all (N,)."""

    answers: Ints  # the right label
    predictions: Ints
    grades: Floats  # the right grade; NaN where a task has none
    scores: Floats  # the model's grade, or its probability of label 1

    def take(self, rows: NDArray[Any]) -> Outcome:
        """The same for some of the items, repeats allowed."""
        return Outcome(self.answers[rows], self.predictions[rows], self.grades[rows], self.scores[rows])


def accuracy(outcome: Outcome) -> float:
    """Share of items that are right."""
    return float(np.mean(outcome.answers == outcome.predictions))


def macro_f1(outcome: Outcome) -> float:
    """Mean F1 over the labels that occur among answers or predictions; a label never hit counts 0."""
    return float(np.mean([_f1(outcome, label) for label in _labels(outcome)]))


def binary_f1(outcome: Outcome) -> float:
    """F1 of label 1; 0 if it occurs on neither side."""
    return _f1(outcome, 1)


def pearson(outcome: Outcome) -> float:
    """Linear correlation of grades and scores; NaN if either is constant."""
    return _correlation(outcome.grades, outcome.scores)


def spearman(outcome: Outcome) -> float:
    """Correlation of ranks, ties sharing their mean rank; NaN if either side is constant."""
    return _correlation(_ranks(outcome.grades), _ranks(outcome.scores))


METRICS: dict[Metric, Callable[[Outcome], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "binary_f1": binary_f1,
    "pearson": pearson,
    "spearman": spearman,
}


def interval(
    metric: Metric, outcomes: Sequence[Outcome], resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval of a metric's mean over runs; all runs share a resample's items."""
    n_items = len(outcomes[0].answers)
    rng = np.random.default_rng(0)
    values = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(n_items, size=n_items)
        values[i] = np.mean([METRICS[metric](outcome.take(rows)) for outcome in outcomes])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _labels(outcome: Outcome) -> Ints:
    both = np.concatenate([outcome.answers, outcome.predictions])
    return np.flatnonzero(np.bincount(both[both >= 0]))  # -1: an answer that could not be read


def _f1(outcome: Outcome, label: int) -> float:
    right, said = outcome.answers == label, outcome.predictions == label
    total = int(right.sum() + said.sum())
    return 2 * int((right & said).sum()) / total if total else 0.0


def _correlation(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = (last - (counts - 1) / 2)[place]
    return mean
