"""Rows for the harness' tasks, from the same checked files as the tasks of this project."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from kogpt.datasets import CONNECTORS, Example
from kogpt.evaluation import tasks
from kogpt.evaluation.evaluate import Settings, read_data
from kogpt.evaluation.scoring import softmax
from kogpt.metrics import METRICS, Metric, Outcome

Doc = dict[str, Any]

# The harness' name of a task -> ours.
OURS = {
    "nsmc": "nsmc",
    "klue_ynat": "ynat",
    "klue_sts": "klue-sts",
    "korsts": "korsts",
    **{f"kobest_{name}": f"kobest-{name}" for name in ("boolq", "copa", "hellaswag", "sentineg", "wic")},
}
# KoBEST's columns on the hub, which the harness' tasks read -> ours.
COLUMNS = {
    "kobest_boolq": {"paragraph": "paragraph", "question": "question"},
    "kobest_copa": {
        "premise": "premise",
        "question": "connector",
        "alternative_1": "choice1",
        "alternative_2": "choice2",
    },
    "kobest_hellaswag": {"context": "context", **{f"ending_{i}": f"choice{i}" for i in range(1, 5)}},
    "kobest_sentineg": {"sentence": "sentence"},
    "kobest_wic": {"word": "word", "context_1": "context1", "context_2": "context2"},
}


def nsmc(**_: Any) -> Any:
    """{"train", "test"} of NSMC."""
    return dataset("nsmc")


def klue_ynat(**_: Any) -> Any:
    """{"train", "test"} of YNAT; the test rows are KLUE's dev rows."""
    return dataset("klue_ynat")


def klue_sts(**_: Any) -> Any:
    """{"train", "test"} of KLUE-STS; shots are KorSTS's."""
    return dataset("klue_sts")


def korsts(**_: Any) -> Any:
    """{"train", "test"} of KorSTS."""
    return dataset("korsts")


def dataset(name: str, **_: Any) -> Any:
    """The rows of one of the harness' tasks, from the checked files."""
    data = read_data(tasks.get(OURS[name]), Settings())
    return of_examples(name, data.pool, data.scored)


def of_examples(name: str, train: Iterable[Example], test: Iterable[Example], **_: Any) -> Any:
    """{"train", "test"} of given examples, in the columns that the harness' task reads."""
    from datasets import Dataset, DatasetDict

    splits = {
        split: [_doc(name, example) for example in rows] for split, rows in (("train", train), ("test", test))
    }
    splits["validation"] = splits["test"][:1]  # named in KoBEST's task files, read by nobody
    return DatasetDict({split: Dataset.from_list(docs) for split, docs in splits.items()})


def _doc(name: str, example: Example) -> Doc:
    columns = COLUMNS.get(name)
    if columns is None:
        return {**example.fields, "label": example.answer, "grade": example.grade}
    fields = {theirs: example.fields[ours] for theirs, ours in columns.items()}
    if name == "kobest_copa":  # the harness makes the connector from the kind of question
        fields["question"] = {word: kind for kind, word in CONNECTORS.items()}[fields["question"]]
    return {**fields, "label": example.answer}


def ranked(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, tuple[float, float]]:
    """Metrics of one item: (grade, expected grade by the likelihoods of 0 to 5)."""
    chances = softmax(np.array([value for value, _ in results]))
    pair = (doc["grade"], float(chances @ np.arange(len(results))))
    return {"spearman": pair, "pearson": pair}


def similar(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Metrics of one item: (right, predicted) for F1, (grade, probability of yes) for Pearson."""
    chances = softmax(np.array([value for value, _ in results]))
    said = int(chances.argmax())
    return {
        "f1": (doc["label"], said),
        "pearson": (doc["grade"], float(chances[1])),
        "acc": float(said == doc["label"]),
    }


def macro_f1(pairs: list[tuple[int, int]]) -> float:
    """The metric over (right, predicted) of all items."""
    return _labelled("macro_f1", pairs)


def binary_f1(pairs: list[tuple[int, int]]) -> float:
    """The metric over (right, predicted) of all items."""
    return _labelled("binary_f1", pairs)


def spearman(pairs: list[tuple[float, float]]) -> float:
    """The metric over (grade, score) of all items."""
    return _graded("spearman", pairs)


def pearson(pairs: list[tuple[float, float]]) -> float:
    """The metric over (grade, score) of all items."""
    return _graded("pearson", pairs)


def _labelled(metric: Metric, pairs: list[tuple[int, int]]) -> float:
    right, said = np.array(pairs).T
    empty = np.full(len(right), math.nan)
    return METRICS[metric](Outcome(right, said, empty, empty))


def _graded(metric: Metric, pairs: list[tuple[float, float]]) -> float:
    grades, scores = np.array(pairs, dtype=np.float64).T
    empty = np.zeros(len(grades), dtype=np.int64)
    return METRICS[metric](Outcome(empty, empty, grades, scores))
