"""Metrics against scikit-learn and scipy, and what the bootstrap promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from kogpt import metrics
from kogpt.metrics import Outcome


def outcome(seed: int, n: int = 200, labels: int = 4) -> Outcome:
    rng = np.random.default_rng(seed)
    grades = np.round(rng.uniform(0, 5, n), 1)  # ties on purpose
    scores = np.round(grades + rng.normal(0, 2, n), 1)
    return Outcome(rng.integers(labels, size=n), rng.integers(labels, size=n), grades, scores)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_the_reference_libraries(seed: int) -> None:
    many, two = outcome(seed), outcome(seed, labels=2)
    skl = sklearn.metrics
    assert metrics.accuracy(many) == pytest.approx(skl.accuracy_score(many.answers, many.predictions))
    assert metrics.macro_f1(many) == pytest.approx(
        skl.f1_score(many.answers, many.predictions, average="macro")
    )
    assert metrics.binary_f1(two) == pytest.approx(skl.f1_score(two.answers, two.predictions))
    assert metrics.pearson(many) == pytest.approx(scipy.stats.pearsonr(many.grades, many.scores).statistic)
    assert metrics.spearman(many) == pytest.approx(scipy.stats.spearmanr(many.grades, many.scores).statistic)


def test_macro_f1_counts_a_label_that_is_only_predicted_as_scikit_learn_does() -> None:
    answers, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    made = Outcome(answers, predictions, np.zeros(4), np.zeros(4))
    assert metrics.macro_f1(made) == pytest.approx(
        sklearn.metrics.f1_score(answers, predictions, average="macro")
    )


def test_an_answer_that_could_not_be_read_is_wrong_and_no_label() -> None:
    made = Outcome(np.array([0, 1]), np.array([0, -1]), np.zeros(2), np.zeros(2))
    assert metrics.accuracy(made) == 0.5
    assert metrics.macro_f1(made) == 0.5  # labels 0 (F1 1) and 1 (F1 0), not a third


def test_constant_predictions() -> None:
    made = Outcome(np.array([0, 1, 1]), np.zeros(3, dtype=np.int64), np.arange(3.0), np.zeros(3))
    assert metrics.binary_f1(made) == 0.0
    assert math.isnan(metrics.pearson(made)) and math.isnan(metrics.spearman(made))


def test_always_similar_on_klue_sts_dev_scores_59_5() -> None:
    answers = np.array([1] * 220 + [0] * 299)  # the official file's counts
    always = Outcome(answers, np.ones(519, dtype=np.int64), np.zeros(519), np.zeros(519))
    assert 100 * metrics.binary_f1(always) == pytest.approx(59.54, abs=0.005)


def test_bootstrap_interval_holds_the_value_and_narrows_with_more_items() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (100, 2500):
        answers = rng.integers(2, size=n)
        predictions = np.where(rng.uniform(size=n) < 0.8, answers, 1 - answers)
        made = Outcome(answers, predictions, np.zeros(n), np.zeros(n))
        found = metrics.interval("accuracy", [made], resamples=400)
        assert found is not None
        low, high = found
        assert low < metrics.accuracy(made) < high
        widths.append(high - low)
        # Normal approximation of a share: 2 * 1.96 * sqrt(p q / n)
        assert high - low == pytest.approx(3.92 * math.sqrt(0.16 / n), rel=0.25)
    assert widths[1] < widths[0] / 3


def test_an_interval_never_reads_as_certainty() -> None:
    """Two seeds with opposite constant answers: the mean of any items is 50 %, which is not certain."""
    answers = np.arange(100) % 2
    runs = [Outcome(answers, np.full(100, said), np.zeros(100), np.zeros(100)) for said in (0, 1)]
    found = metrics.interval("accuracy", runs, resamples=400)
    assert found is not None and found[0] < 0.45 < 0.55 < found[1]
    right = Outcome(answers, answers, np.zeros(100), np.zeros(100))
    assert metrics.interval("accuracy", [right], resamples=20) is None, "no resample differs"
    undefined = Outcome(answers, answers, np.zeros(100), np.zeros(100))
    assert metrics.interval("pearson", [undefined], resamples=20) is None
