"""Baselines on rows whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kogpt.datasets import Example
from kogpt.evaluation import baselines, tasks
from kogpt.evaluation.task import Task


def reviews(n: int) -> list[Example]:
    words = ("지루하고 별로", "재미있고 좋다")
    return [Example(str(i), {"document": f"{words[i % 2]} {i}"}, i % 2) for i in range(n)]


def trained(task: Task, scored: list[Example], train: list[Example]) -> baselines.Values | None:
    return baselines.regression(baselines.Features(task, (*scored, *train)), scored, train)


def test_regression_learns_what_words_tell() -> None:
    task = tasks.get("nsmc")
    values = trained(task, reviews(40), reviews(12))
    assert values is not None and values["accuracy"] == 1.0
    swapped = [replace(example, answer=1 - example.answer) for example in reviews(40)]
    values = trained(task, swapped, reviews(12))
    assert values is not None and values["accuracy"] == 0.0
    assert trained(task, reviews(4), reviews(12)[::2]) is None, "one answer teaches nothing"


def test_regression_over_two_texts_and_over_choices() -> None:
    pairs = [
        Example(
            str(i),
            {"sentence1": f"글 {i}", "sentence2": f"글 {i}" if i % 2 else "다른 말씀"},
            i % 2,
            5.0 * (i % 2),
        )
        for i in range(30)
    ]
    values = trained(tasks.get("klue-sts"), pairs, pairs)
    assert values is not None and values["binary_f1"] == 1.0 and values["pearson"] > 0.8
    words = ("말랐다", "젖었다")
    copa = [
        Example(
            str(i),
            {
                "premise": f"비 {i}",
                "connector": "그래서",
                "choice1": words[i % 2],
                "choice2": words[1 - i % 2],
            },
            1 - i % 2,
        )
        for i in range(30)
    ]
    values = trained(tasks.get("kobest-copa"), copa, copa)
    assert values is not None and values["accuracy"] == 1.0


def test_two_texts_are_compared_by_what_they_share_and_what_not() -> None:
    task = tasks.get("klue-sts")
    pair = [Example("1", {"sentence1": "가나 다", "sentence2": "가나 라"}, 1, 5.0)]
    features = baselines.Features(task, pair)
    both = features.weighed_by(pair)([(pair[0], 0)]).toarray()[0]
    names = features.names()
    differ, share = both[: len(names)], both[len(names) :]
    assert differ[names.index("다")] > 0 and share[names.index("다")] == 0
    assert share[names.index("가나")] > 0 and differ[names.index("가나")] == pytest.approx(0, abs=0.1)


def test_counted_once_is_weighed_as_if_fitted_anew() -> None:
    """The n-grams of texts that are only scored must not leak into a regression on the shots."""
    task, train, scored = tasks.get("nsmc"), reviews(6), reviews(20)[10:]
    vectorizer = baselines._import().feature_extraction.text.TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True, dtype=np.float32
    )
    vectorizer.fit([example.fields["document"] for example in train])
    expected = vectorizer.transform([example.fields["document"] for example in scored]).toarray()
    weigh = baselines.Features(task, (*scored, *train)).weighed_by(train)
    assert np.array_equal(weigh([(example, 0) for example in scored]).toarray(), expected)


def test_constants_and_majority() -> None:
    task = tasks.get("nsmc")
    scored = [Example(str(i), {"document": "글"}, int(i < 3)) for i in range(4)]
    pool = [Example(str(i), {"document": "글"}, int(i == 0)) for i in range(4)]
    values = baselines.constants(task, scored, pool)
    assert values["always positive"]["accuracy"] == 0.75
    assert values["majority of the pool (negative)"]["accuracy"] == 0.25
    ranked = baselines.constants(tasks.get("korsts"), [replace(e, grade=1.0) for e in scored], [])
    assert ranked["always similar"] == {}, "a constant has no rank correlation"


def test_the_constant_of_klue_sts() -> None:
    scored = [Example(str(i), {"sentence1": "가", "sentence2": "나"}, int(i < 220), 0.0) for i in range(519)]
    values = baselines.constants(tasks.get("klue-sts"), scored, [])
    assert 100 * values["always similar"]["binary_f1"] == pytest.approx(59.54, abs=0.005)
