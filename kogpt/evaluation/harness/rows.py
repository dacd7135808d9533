"""Rows for the harness' tasks, from the same checked files as the tasks of this project."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kogpt.evaluation import data, sources, tasks
from kogpt.evaluation.data import Row
from kogpt.evaluation.evaluate import Settings, read_rows
from kogpt.evaluation.metrics import METRICS, Outcome
from kogpt.evaluation.scoring import softmax
from kogpt.evaluation.task import Example, Metric

Doc = dict[str, Any]


def nsmc(**_: Any) -> Any:
    """{"train", "test"} of NSMC."""
    return _dataset("nsmc")


def klue_ynat(**_: Any) -> Any:
    """{"train", "test"} of YNAT; the test rows are KLUE's dev rows."""
    return _dataset("ynat")


def klue_sts(**_: Any) -> Any:
    """{"train", "test"} of KLUE-STS; shots are KorSTS's."""
    return _dataset("klue-sts")


def korsts(**_: Any) -> Any:
    """{"train", "test"} of KorSTS."""
    return _dataset("korsts")


def ranked(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, tuple[float, float]]:
    """Of one item: its grade, and the expected grade by the likelihoods of 0 to 5."""
    chances = softmax(np.array([value for value, _ in results]))
    pair = (doc["grade"], float(chances @ np.arange(len(results))))
    return {"spearman": pair, "pearson": pair}


def similar(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Of one item: (right, said) for F1, and (grade, probability of yes) for Pearson."""
    chances = softmax(np.array([value for value, _ in results]))
    said = int(chances.argmax())
    return {
        "f1": (doc["label"], said),
        "pearson": (doc["grade"], float(chances[1])),
        "acc": float(said == doc["label"]),
    }


def macro_f1(pairs: list[tuple[int, int]]) -> float:
    """Over (right, said) of all items."""
    return _labelled("macro_f1", pairs)


def binary_f1(pairs: list[tuple[int, int]]) -> float:
    """Over (right, said) of all items."""
    return _labelled("binary_f1", pairs)


def spearman(pairs: list[tuple[float, float]]) -> float:
    """Over (grade, score) of all items."""
    return _graded("spearman", pairs)


def pearson(pairs: list[tuple[float, float]]) -> float:
    """Over (grade, score) of all items."""
    return _graded("pearson", pairs)


def _labelled(metric: Metric, pairs: list[tuple[int, int]]) -> float:
    right, said = np.array(pairs).T
    empty = np.full(len(right), math.nan)
    return METRICS[metric](Outcome(right, said, empty, empty))


def _graded(metric: Metric, pairs: list[tuple[float, float]]) -> float:
    grades, scores = np.array(pairs, dtype=np.float64).T
    empty = np.zeros(len(grades), dtype=np.int64)
    return METRICS[metric](Outcome(empty, empty, grades, scores))


def _dataset(name: str) -> Any:
    rows = read_rows(tasks.get(name), Settings())
    return _splits(train=map(_doc, rows.pool), test=map(_doc, rows.scored))


def _doc(example: Example) -> Doc:
    return {**example.fields, "label": example.answer, "grade": example.grade}


def _splits(**splits: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({name: Dataset.from_list(list(docs)) for name, docs in splits.items()})


def _boolq(row: Row) -> Doc:
    return {
        "paragraph": row["Text"],
        "question": row["Question"],
        "label": int(row["Answer"].lower() == "true"),
    }


def _copa(row: Row) -> Doc:
    return {
        "premise": row["sentence"],
        "question": row["question"],
        "alternative_1": row["1"],
        "alternative_2": row["2"],
        "label": int(row["Answer"]) - 1,
    }


def _hellaswag(row: Row) -> Doc:
    endings = {f"ending_{i}": row[f"choice{i}"] for i in range(1, 5)}
    return {"context": row["context"], **endings, "label": int(row["label"])}


def _sentineg(row: Row) -> Doc:
    return {"sentence": row["Text"], "label": int(row["Label"])}


def _wic(row: Row) -> Doc:
    return {
        "word": row["Target"],
        "context_1": row["SENTENCE1"],
        "context_2": row["SENTENCE2"],
        "label": int(row["ANSWER"].lower() == "true"),
    }


def _kobest(task: str, read: Callable[[Row], Doc]) -> Callable[..., Any]:
    """What the hub's version of KoBEST holds under its own column names, from the official files."""

    def load(**_: Any) -> Any:
        test, train = (map(read, data.load(sources.kobest(task, split)).rows) for split in ("test", "train"))
        docs = list(train)
        return _splits(train=docs, validation=docs[:1], test=test)

    return load


# The harness' name of a task -> its rows. `validation` is named in its task files and read by nobody.
KOBEST = {
    "kobest_boolq": _kobest("BoolQ", _boolq),
    "kobest_copa": _kobest("COPA", _copa),
    "kobest_hellaswag": _kobest("HellaSwag", _hellaswag),
    "kobest_sentineg": _kobest("SentiNeg", _sentineg),
    "kobest_wic": _kobest("WiC", _wic),
}
