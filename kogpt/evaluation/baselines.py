"""Baselines without a language model: constant answers, the majority, TF-IDF with logistic regression.

Compare every score with them. The regression is trained on the shots that the model saw, and on the whole
pool that they were drawn from.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kogpt.datasets import Example
from kogpt.errors import MissingExtra
from kogpt.evaluation.evaluate import Result, TaskData
from kogpt.evaluation.task import Prompt, Task
from kogpt.files import atomic_write
from kogpt.metrics import METRICS, Floats, Ints, Outcome

VERSION = 2  # raised whenever the regression would give other numbers
MAX_NGRAMS = 200_000  # the most frequent ones

Values = dict[str, float]  # name of a metric -> its value


@dataclass(frozen=True, slots=True)
class Baselines:
    """The baselines of one task; `notes` says which were left out and why."""

    constants: Mapping[str, Values]
    pool: Values | None = None  # TF-IDF and regression on the whole pool
    shots: Mapping[int, Sequence[Values]] = field(default_factory=dict)  # the same on each seed's shots
    notes: tuple[str, ...] = ()


def of_task(task: Task, results: Sequence[Result], out: Path, tfidf: bool = True) -> Baselines:
    """The baselines of a task's results; the trained regressions are kept under `out`."""
    data = results[0].data
    plain = constants(task, data.scored, data.pool)
    if not tfidf or importlib.util.find_spec("sklearn") is None:
        why = "--no-tfidf" if not tfidf else "scikit-learn is not installed: pip install 'kogpt[eval]'"
        return Baselines(plain, notes=(f"TF-IDF + regression left out: {why}",))
    drawn = {
        result.shots_used: [seed.encoded.shots for seed in result.seeds]
        for result in results
        if result.shots_used
    }
    path = out / "baselines" / f"{_key(task, data, drawn)[:32]}.json"
    kept = _kept(path)
    if kept is None:
        kept = _trained(task, data, drawn)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(kept).encode())
    return Baselines(plain, kept["pool"], {int(count): runs for count, runs in kept["shots"].items()})


def _kept(path: Path) -> dict[str, Any] | None:
    """The values that an earlier run wrote; None if there is no file or a damaged one."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record


def _trained(task: Task, data: TaskData, drawn: Mapping[int, Sequence[Sequence[Example]]]) -> dict[str, Any]:
    """Train on the whole pool and on each seed's shots. A pool of 150,000 rows takes half a minute."""
    features = Features(task, (*data.scored, *data.pool))
    return {
        "pool": regression(features, data.scored, data.pool),
        "shots": {
            str(count): [
                values for shots in runs if (values := regression(features, data.scored, shots)) is not None
            ]
            for count, runs in drawn.items()
        },
    }


def _key(task: Task, data: TaskData, drawn: Mapping[int, Sequence[Sequence[Example]]]) -> str:
    """Hash of everything that the regressions depend on; all of it may change in a task of one's own."""
    table = data.pool_table or data.test_table
    examples = [data.scored, data.pool, *(shots for runs in drawn.values() for shots in runs)]
    answers = [[(example.id, example.answer, example.grade) for example in part] for part in examples]
    asked = [task.name, task.version, task.metrics, task.labels, task.content, task.prompts[0].choices]
    parts = [VERSION, asked, data.test_table.digest, table.digest, list(drawn), answers]
    return sha256(json.dumps(parts).encode()).hexdigest()


def constants(task: Task, scored: Sequence[Example], pool: Sequence[Example]) -> dict[str, Values]:
    """Metrics of every constant answer, and of the most frequent answer of the pool.

    Metrics of grades are not defined for constants and are left out.
    """
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


def regression(features: Features, scored: Sequence[Example], train: Sequence[Example]) -> Values | None:
    """TF-IDF of character 1- to 3-grams and logistic regression; None if all training rows have one answer.

    The features of one text are its vector; those of two texts are |a - b| and a * b. Where items have
    choices of their own, each choice beside the item's text is right or wrong, and the likeliest wins.
    """
    if len({example.answer for example in train}) < 2:
        return None
    task, weigh = features.task, features.weighed_by(train)
    model = _import().linear_model.LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    if features.choices:
        rows = [(example, choice) for example in train for choice in range(len(task.labels))]
        model.fit(weigh(rows), [int(example.answer == choice) for example, choice in rows])
        asked = [(example, choice) for example in scored for choice in range(len(task.labels))]
        table = model.predict_proba(weigh(asked))[:, 1].reshape(len(scored), len(task.labels))
        return _measure(task, scored, table.argmax(axis=1))
    model.fit(weigh([(example, 0) for example in train]), [example.answer for example in train])
    table = model.predict_proba(weigh([(example, 0) for example in scored]))
    predictions = model.classes_[table.argmax(axis=1)]
    scores = table[:, list(model.classes_).index(1)] if 1 in model.classes_ else np.zeros(len(scored))
    return _measure(task, scored, predictions, scores)


class Features:
    """Sparse features of (example, choice) pairs. N-grams are counted once for all training sets."""

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        self.task = task
        self.choices = _choice_prompt(task)
        texts = dict.fromkeys(text for example in examples for text in self._texts(example))
        self._place = {text: row for row, text in enumerate(texts)}
        self._counter = _import().feature_extraction.text.CountVectorizer(
            analyzer="char_wb", ngram_range=(1, 3), dtype=np.float32
        )
        self._counts = self._counter.fit_transform(texts)  # (texts, n-grams)

    def names(self) -> list[str]:
        """The n-grams, in the order of the columns."""
        return list(self._counter.get_feature_names_out())

    def weighed_by(self, train: Sequence[Example]) -> Callable[[Sequence[tuple[Example, int]]], Any]:
        """A function from pairs to a sparse matrix, with the n-grams and weights of the training rows."""
        from scipy import sparse

        own = self._counts[self._rows([text for example in train for text in self._texts(example)])]
        totals = np.asarray(own.sum(axis=0))[0]
        likeliest = np.argsort(-totals, kind="stable")[:MAX_NGRAMS]
        columns = np.sort(likeliest[totals[likeliest] > 0])
        weigher = _import().feature_extraction.text.TfidfTransformer(sublinear_tf=True).fit(own[:, columns])

        def vectors(texts: Sequence[str]) -> Any:
            return weigher.transform(self._counts[self._rows(texts)][:, columns])

        def weigh(pairs: Sequence[tuple[Example, int]]) -> Any:
            sides = list(zip(*(self._sides(*pair) for pair in pairs), strict=True))
            if len(sides) == 1:
                return vectors(sides[0])
            a, b = map(vectors, sides)
            return sparse.hstack([abs(a - b), a.multiply(b)]).tocsr()

        return weigh

    def _rows(self, texts: Sequence[str]) -> list[int]:
        return [self._place[text] for text in texts]

    def _sides(self, example: Example, choice: int) -> tuple[str, ...]:
        """The text of a pair, or its two texts that are compared."""
        own = tuple(example.fields[name] for name in self.task.content)
        return own if self.choices is None else (" ".join(own), self.choices.options(example)[choice])

    def _texts(self, example: Example) -> tuple[str, ...]:
        """All texts of an example."""
        if self.choices is None:
            return self._sides(example, 0)
        return (self._sides(example, 0)[0], *self.choices.options(example))


def _choice_prompt(task: Task) -> Prompt | None:
    """The prompt that names the choices, where every item has its own; None for labels and grades."""
    prompt = task.prompts[0]
    return None if prompt.fixed or prompt.grades else prompt


def _measure(
    task: Task, scored: Sequence[Example], predictions: Ints, scores: Floats | None = None
) -> Values:
    """The metrics of a task that are defined. `scores` are the predicted grades; None for constants."""
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
