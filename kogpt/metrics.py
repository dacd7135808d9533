"""Metrics as KLUE, KoBEST and NSMC define them, and a bootstrap interval; arrays in, one number out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["accuracy", "macro_f1", "binary_f1", "pearson", "spearman"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Right and predicted answers of N items, all (N,)."""

    answers: Ints  # right labels
    predictions: Ints
    grades: Floats  # right grades; NaN where a task has none
    scores: Floats  # predicted grades, or probabilities of label 1

    def take(self, rows: NDArray[Any]) -> Outcome:
        """The outcome of some of the items; an item may be taken several times."""
        return Outcome(self.answers[rows], self.predictions[rows], self.grades[rows], self.scores[rows])


def accuracy(outcome: Outcome) -> float:
    """Share of right predictions."""
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
) -> tuple[float, float] | None:
    """Bootstrap percentile interval of a metric's mean over runs: each resample draws runs and items.

    The runs of a resample share its items (A. B. Owen, The pigeonhole bootstrap, 2007). None
    where every resample gives the same value: the data say nothing about the spread then, so an interval of
    width 0 would only look certain.
    """
    n_items = len(outcomes[0].answers)
    rng = np.random.default_rng(0)
    values = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(n_items, size=n_items)
        runs = rng.integers(len(outcomes), size=len(outcomes))
        values[i] = np.mean([METRICS[metric](outcomes[run].take(rows)) for run in runs])
    if np.isnan(values).all() or np.nanmin(values) == np.nanmax(values):
        return None
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _labels(outcome: Outcome) -> Ints:
    both = np.concatenate([outcome.answers, outcome.predictions])
    return np.flatnonzero(np.bincount(both[both >= 0]))  # -1 is an answer without a label


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
