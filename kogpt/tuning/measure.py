"""How well a model does on one split: a function of its rows, without state that a second split could see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from kogpt import metrics
from kogpt.metrics import METRICS, Floats, Metric, Outcome
from kogpt.training.processes import Processes
from kogpt.tuning.methods import ContrastObjective, TuningObjective, apart
from kogpt.tuning.rows import Ids, Row, at_the_end, padded

TOKENS_PER_PASS = 8192
TEXTS_AT_ONCE = 1024  # whose likeness to all others is in memory
T = TypeVar("T")


def measure(
    objective: TuningObjective,
    rows: Sequence[Row],
    processes: Processes | None = None,
    interval: bool = False,
) -> dict[str, float]:
    """`loss` per answer or learnt token, nats, and what a user wants to know of the answers.

    Labels: `accuracy`, by their likelihoods or the head's outputs, and `macro_f1`. Grades: `spearman` and
    `pearson`; the loss is the squared error. Pairs: `recall_at_1`, the share of texts whose partner is the
    nearest of all. interval: with `_low` and `_high` of the first of them, 95 %, by bootstrap.
    Several processes share the rows, and each learns the result.
    """
    processes = processes or Processes()
    if isinstance(objective, ContrastObjective):
        return _measure_pairs(objective, rows, processes)
    found: dict[str, float]
    if objective.score is not None:
        outputs, items = _head_outputs(objective, rows, processes)
        found, outcome = _judge_head(outputs, items)
    else:
        found, outcome = {"loss": dev_loss(objective, rows, processes)}, None
        labels = [row.label for row in rows if row.label is not None]
        if labels:
            scores = label_scores(objective, [row for row in rows if row.label is not None], processes)
            outcome = _labelled(labels, [int(np.argmax(row)) for row in scores])
    if outcome is None:
        return found
    names: tuple[Metric, ...] = ("accuracy", "macro_f1")
    if not np.isnan(outcome.grades).all():
        names = ("spearman", "pearson")
    found |= {name: METRICS[name](outcome) for name in names}
    if interval and (bounds := metrics.interval(names[0], [outcome])):
        found |= {f"{names[0]}_low": bounds[0], f"{names[0]}_high": bounds[1]}
    return found


def _labelled(labels: Sequence[int], guesses: Sequence[int]) -> Outcome:
    answers, predictions = np.array(labels, dtype=np.int64), np.array(guesses, dtype=np.int64)
    return Outcome(answers, predictions, np.full(len(answers), np.nan), predictions.astype(np.float64))


def _head_outputs(
    objective: TuningObjective, rows: Sequence[Row], processes: Processes
) -> tuple[Floats, list[Row]]:
    """Outputs of the head (items, outputs), the mean over the orders of a pair; a row of each item."""
    assert objective.score is not None
    found = np.zeros((len(rows), objective.score.out_features))
    with torch.no_grad():
        for group, counts in shared_passes(range(len(rows)), [len(row.ids) for row in rows], processes):
            inputs, targets = padded([rows[number] for number in group])
            ids, wanted = (torch.from_numpy(array).to(processes.device) for array in (inputs, targets))
            found[group] += counts * objective.answers(ids, wanted).double().cpu().numpy()
    found = np.reshape(processes.sum(found.ravel()), found.shape)
    items, first, place = np.unique([row.item for row in rows], return_index=True, return_inverse=True)
    means = np.zeros((len(items), found.shape[1]))
    np.add.at(means, place, found)
    return means / np.bincount(place)[:, None], [rows[number] for number in first]


def _judge_head(outputs: Floats, items: Sequence[Row]) -> tuple[dict[str, float], Outcome]:
    if items[0].grade is not None:
        grades, scores = np.array([row.grade for row in items], dtype=np.float64), outputs[:, 0]
        none = np.zeros(len(items), dtype=np.int64)
        return {"loss": float(np.mean((scores - grades) ** 2))}, Outcome(none, none, grades, scores)
    labels = [row.label for row in items if row.label is not None]
    likelihoods = torch.from_numpy(outputs).log_softmax(-1)
    loss = -float(likelihoods[range(len(labels)), labels].mean())
    return {"loss": loss}, _labelled(labels, [int(guess) for guess in outputs.argmax(1)])


def _measure_pairs(
    objective: ContrastObjective, rows: Sequence[Row], processes: Processes
) -> dict[str, float]:
    """All pairs against each other, as one batch; texts of one length share a pass."""
    texts = [ids for row in rows for ids in (row.ids, row.partner) if ids is not None]
    found = np.zeros((len(texts), objective.model.config.d_model))
    with torch.no_grad():
        for group, counts in shared_passes(range(len(texts)), [len(ids) for ids in texts], processes):
            inputs, targets = at_the_end([texts[number] for number in group], np.array(group))
            ids, ends = (torch.from_numpy(array).to(processes.device) for array in (inputs, targets))
            found[group] += counts * objective.vectors(ids, ends).double().cpu().numpy()
    vectors = torch.from_numpy(np.reshape(processes.sum(found.ravel()), found.shape))
    numbers: dict[bytes, int] = {}
    equal = torch.tensor([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in texts])
    partners = torch.arange(len(texts)) ^ 1  # 2n and 2n + 1 are a pair
    loss, n_found = 0.0, 0
    for some in torch.arange(len(texts)).split(TEXTS_AT_ONCE):
        likeness = apart(vectors[some] @ vectors.T, some, equal, partners)
        loss += float(F.cross_entropy(likeness / objective.temperature, partners[some], reduction="sum"))
        n_found += int((likeness.argmax(1) == partners[some]).sum())
    return {"loss": loss / len(texts), "recall_at_1": n_found / len(texts)}


def dev_loss(objective: TuningObjective, rows: Sequence[Row], processes: Processes) -> float:
    """Mean loss of the learnt tokens, nats."""
    total = 0.0
    with torch.no_grad():
        for group, counts in shared_passes(rows, [len(row.ids) for row in rows], processes):
            inputs, targets = (torch.from_numpy(ids).to(processes.device) for ids in padded(group))
            total += counts * float(objective(inputs, targets))
    (total,) = processes.sum((total,))
    return total / max(1, sum(len(row.ids) - row.first for row in rows))


@dataclass(slots=True)
class _Reading:
    """Ids that are read once, and what is asked of their positions."""

    ids: Ids
    asked: list[tuple[int, int, int, int]] = field(default_factory=list)  # row, label, position, next id


def label_scores(objective: TuningObjective, rows: Sequence[Row], processes: Processes) -> list[list[float]]:
    """Log-likelihood of each label after each context, nats; labels that read the same ids share a pass."""
    scores = np.zeros((len(rows), max(len(row.choices) for row in rows)))
    readings = list(_readings(rows))
    with torch.no_grad():
        for group, counts in shared_passes(readings, [len(reading.ids) for reading in readings], processes):
            for place, value in _likelihoods(objective, group, processes.device):
                scores[place] += counts * value
    scores = np.reshape(processes.sum(scores.ravel()), scores.shape)
    return [scores[number, : len(row.choices)].tolist() for number, row in enumerate(rows)]


def _readings(rows: Sequence[Row]) -> Iterator[_Reading]:
    for number, row in enumerate(rows):
        mine: dict[bytes, _Reading] = {}
        for label, choice in enumerate(row.choices):
            ids = np.array([*row.context, *choice[:-1]], dtype=np.int64)
            reading = mine.setdefault(ids.tobytes(), _Reading(ids))
            for offset, token in enumerate(choice):
                reading.asked.append((number, label, row.first - 1 + offset, token))
        yield from mine.values()


def _likelihoods(
    objective: TuningObjective, group: Sequence[_Reading], device: torch.device
) -> Iterator[tuple[tuple[int, int], float]]:
    """((row, label), log-likelihood of one token)."""
    width = max(len(reading.ids) for reading in group)
    inputs = np.zeros((len(group), width), dtype=np.int64)
    for number, reading in enumerate(group):
        inputs[number, : len(reading.ids)] = reading.ids
    tokens = torch.from_numpy(inputs).to(device)
    asked = [(number, *question) for number, reading in enumerate(group) for question in reading.asked]
    number, _, _, position, wanted = torch.tensor(asked, device=device).T
    values = objective.likelihoods(tokens, (number, position), wanted).tolist()
    for (_, row, label, *_), value in zip(asked, values, strict=True):
        yield (row, label), value


def shared_passes(
    items: Sequence[T], lengths: Sequence[int], processes: Processes
) -> Iterator[tuple[list[T], bool]]:
    """This process's passes, and whether each counts; all make equally many, to gather weights."""
    found = list(passes(items, lengths))
    for first in range(0, len(found), processes.count):
        mine = first + processes.rank
        yield (found[mine], True) if mine < len(found) else (found[first], False)


def passes(items: Sequence[T], lengths: Sequence[int]) -> Iterator[list[T]]:
    """Neighbours in length, as many as fit into a pass; longest first."""
    order = sorted(range(len(items)), key=lambda number: -lengths[number])
    while order:
        n = max(1, TOKENS_PER_PASS // lengths[order[0]])
        yield [items[number] for number in order[:n]]
        order = order[n:]
