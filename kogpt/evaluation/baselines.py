"""What needs no language model: constant answers, the majority, and TF-IDF with logistic regression.

A score is worth what it is above these. The regression is trained on the very shots that the model was shown,
and on the whole pool that they were drawn from.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kogpt.checkpoint import atomic_write
from kogpt.errors import MissingExtra
from kogpt.evaluation.evaluate import Result, Rows
from kogpt.evaluation.metrics import METRICS, Floats, Ints, Outcome
from kogpt.evaluation.task import Example, Prompt, Task

VERSION = 1  # raised whenever the regression would give other numbers

Values = dict[str, float]  # name of a metric -> its value


@dataclass(frozen=True, slots=True)
class Baselines:
    """Of one task; `notes` says what was left out and why."""

    constants: Mapping[str, Values]
    pool: Values | None = None  # TF-IDF and regression on the whole pool
    shots: Mapping[int, Sequence[Values]] = field(default_factory=dict)  # the same on each seed's shots
    notes: tuple[str, ...] = ()


def of_task(task: Task, results: Sequence[Result], out: Path, tfidf: bool = True) -> Baselines:
    """What stands beside a task's results; the regression on the whole pool is kept under `out`."""
    rows = results[0].rows
    plain = constants(task, rows.scored, rows.pool)
    if not tfidf or importlib.util.find_spec("sklearn") is None:
        why = "--no-tfidf" if not tfidf else "scikit-learn is not installed: pip install 'kogpt[eval]'"
        return Baselines(plain, notes=(f"TF-IDF + regression left out: {why}",))
    drawn = {
        result.shots_used: [seed.run.shots for seed in result.seeds]
        for result in results
        if result.shots_used
    }
    on_shots = {
        count: [values for shots in runs if (values := regression(task, rows.scored, shots)) is not None]
        for count, runs in drawn.items()
    }
    return Baselines(plain, _on_pool(task, rows, out), on_shots)


def _on_pool(task: Task, rows: Rows, out: Path) -> Values | None:
    """The regression on the whole pool, which takes a minute for 150,000 rows: kept by what it depends on."""
    names = "\n".join(example.id for example in (*rows.scored, *rows.pool))
    table = rows.pool_table or rows.test_table
    parts = [VERSION, task.name, task.version, rows.test_table.digest, table.digest, names]
    path = out / "baselines" / f"{sha256(repr(parts).encode()).hexdigest()[:32]}.json"
    if path.is_file():
        kept: Values | None = json.loads(path.read_text(encoding="utf-8"))
        return kept
    values = regression(task, rows.scored, rows.pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(values).encode())
    return values


def constants(task: Task, scored: Sequence[Example], pool: Sequence[Example]) -> dict[str, Values]:
    """Every constant answer, and the one that is most frequent in the pool; graded metrics are undefined."""
    values = {
        f"always {label}": _measure(task, scored, np.full(len(scored), answer))
        for answer, label in enumerate(task.labels)
    }
    if pool:
        counts = Counter(example.answer for example in pool)
        answer = min(counts, key=lambda label: (-counts[label], label))
        values[f"majority of the pool ({task.labels[answer]})"] = _measure(
            task, scored, np.full(len(scored), answer)
        )
    return values


def regression(task: Task, scored: Sequence[Example], train: Sequence[Example]) -> Values | None:
    """TF-IDF of character 1- to 3-grams and logistic regression; None if the training rows have one answer.

    One text: its vector. Two texts: |a - b| and a * b. Choices: each is a text beside the item's own texts,
    right or wrong; the likeliest wins.
    """
    if len({example.answer for example in train}) < 2:
        return None
    sklearn = _import()
    parts = _Features(sklearn, task, train)
    model = sklearn.linear_model.LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    if parts.choices:
        rows = [(example, choice) for example in train for choice in range(len(task.labels))]
        model.fit(parts.of(rows), [int(example.answer == choice) for example, choice in rows])
        asked = [(example, choice) for example in scored for choice in range(len(task.labels))]
        table = model.predict_proba(parts.of(asked))[:, 1].reshape(len(scored), len(task.labels))
        return _measure(task, scored, table.argmax(axis=1))
    model.fit(parts.of([(example, 0) for example in train]), [example.answer for example in train])
    table = model.predict_proba(parts.of([(example, 0) for example in scored]))
    predictions = model.classes_[table.argmax(axis=1)]
    scores = table[:, list(model.classes_).index(1)] if 1 in model.classes_ else np.zeros(len(scored))
    return _measure(task, scored, predictions, scores)


class _Features:
    """Sparse features of (example, choice) pairs, with a vocabulary from the training rows."""

    def __init__(self, sklearn: Any, task: Task, train: Sequence[Example]) -> None:
        self.task = task
        self.choices = _choice_prompt(task)
        self.vectorizer = sklearn.feature_extraction.text.TfidfVectorizer(
            analyzer="char_wb", ngram_range=(1, 3), sublinear_tf=True, max_features=200_000, dtype=np.float32
        )
        self.vectorizer.fit([text for example in train for text in self._texts(example)])

    def of(self, rows: Sequence[tuple[Example, int]]) -> Any:
        """A sparse matrix, one line for each row."""
        from scipy import sparse

        if self.choices is not None:
            first: Sequence[str] = [" ".join(self._own(example)) for example, _ in rows]
            second: Sequence[str] = [self.choices.options(example)[choice] for example, choice in rows]
        elif len(self.task.content) == 1:
            return self.vectorizer.transform([self._own(example)[0] for example, _ in rows])
        else:
            first, second = zip(*(self._own(example) for example, _ in rows), strict=True)
        a, b = self.vectorizer.transform(first), self.vectorizer.transform(second)
        return sparse.hstack([abs(a - b), a.multiply(b)]).tocsr()

    def _own(self, example: Example) -> tuple[str, ...]:
        return tuple(example.fields[name] for name in self.task.content)

    def _texts(self, example: Example) -> tuple[str, ...]:
        return self._own(example) + (self.choices.options(example) if self.choices is not None else ())


def _choice_prompt(task: Task) -> Prompt | None:
    """The prompt that names the choices, where every item has its own."""
    prompt = task.prompts[0]
    return None if prompt.fixed else prompt


def _measure(
    task: Task, scored: Sequence[Example], predictions: Ints, scores: Floats | None = None
) -> Values:
    """Every metric of a task; constants have no grades, so that correlations are not defined (left out)."""
    outcome = Outcome(
        np.array([example.answer for example in scored]),
        np.asarray(predictions, dtype=np.int64),
        np.array([np.nan if example.grade is None else example.grade for example in scored]),
        np.zeros(len(scored)) if scores is None else np.asarray(scores, dtype=np.float64),
    )
    values = {metric: METRICS[metric](outcome) for metric in task.metrics}
    return {metric: value for metric, value in values.items() if np.isfinite(value)}


def _import() -> Any:
    try:
        import sklearn
        import sklearn.feature_extraction.text
        import sklearn.linear_model
    except ImportError:
        raise MissingExtra("the TF-IDF baseline", "eval") from None
    return sklearn
