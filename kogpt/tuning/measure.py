"""How well a model does on one split: a function of its rows, without state that a second split could see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from kogpt.training.processes import Processes
from kogpt.tuning.methods import TuningObjective
from kogpt.tuning.rows import Ids, Row, padded

TOKENS_PER_PASS = 8192
T = TypeVar("T")


def measure(
    objective: TuningObjective, rows: Sequence[Row], processes: Processes | None = None
) -> dict[str, float]:
    """`loss` per learnt token, nats; with labels also `accuracy` by their likelihoods and `macro_f1`.

    Several processes share the rows, and each learns the result.
    """
    processes = processes or Processes()
    found = {"loss": dev_loss(objective, rows, processes)}
    labels = [row.label for row in rows if row.label is not None]
    if labels:
        guesses = [int(np.argmax(scores)) for scores in label_scores(objective, rows, processes)]
        found["accuracy"] = float(np.mean([a == b for a, b in zip(guesses, labels, strict=True)]))
        found["macro_f1"] = macro_f1(guesses, labels)
    return found


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


def macro_f1(guesses: Sequence[int], labels: Sequence[int]) -> float:
    """The mean of F1 over the classes that occur."""
    found = []
    for label in sorted(set(labels) | set(guesses)):
        hits = sum(a == b == label for a, b in zip(guesses, labels, strict=True))
        found.append(2 * hits / (guesses.count(label) + labels.count(label)))
    return float(np.mean(found))
