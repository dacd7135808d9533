"""Log-likelihood of every choice of every item. The prefix is read once for all items, a question once for
its choices.

Batches depend on the items alone. So an interrupted run computes exactly the batches that it lacks, and
floating-point sums are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from kogpt.evaluation.fewshot import Item
from kogpt.evaluation.task import Scoring
from kogpt.metrics import Floats, Ints
from kogpt.request import Event, Ids, Request, Tuned
from kogpt.request import Scores as TokenScores
from kogpt.session import Session

MAX_ROWS = 64  # questions in one batch
MAX_TOKENS = 4096  # tokens of the questions and choices in one batch, unless one item has more

PLAIN = Tuned()
Scores = list[list[float]]  # item by item, choice by choice: log-likelihood in nats


class Store(Protocol):
    """Keeps finished batches: a file (store.py), or a dict where nothing is to be kept."""

    def get(self, batch: int, /) -> Scores | None:
        """The scores of a finished batch."""

    def __setitem__(self, batch: int, scores: Scores, /) -> None:
        """Keep the scores of a batch."""


def score(
    session: Session, prefix: Ids, items: Sequence[Item], store: Store, tuned: Tuned = PLAIN
) -> Iterator[tuple[int, Scores | None]]:
    """Score what the store lacks. Yields (finished items, None) after each batch, then (all, scores)."""
    with shared_prefix(session, prefix, tuned) as handle:

        def compute(batch: Sequence[int]) -> Scores:
            asked = (items[i] for i in batch)
            requests = [question(item.context, item.choices, handle(), tuned.adapter) for item in asked]
            events = session.ask(requests)
            return [[float(scores.logprobs.sum()) for scores in scores_of(event)] for event in events]

        yield from in_batches(items, store, compute)


def in_batches(
    items: Sequence[Item], store: Store, compute: Callable[[Sequence[int]], Scores]
) -> Iterator[tuple[int, Scores | None]]:
    """Compute the batches that the store lacks; yields as `score` does."""
    batches = plan(items)
    scores: Scores = [[] for _ in items]
    done = 0
    for number, batch in enumerate(batches):
        kept = store.get(number)
        if kept is None:
            kept = compute(batch)
            store[number] = kept
        for i, row in zip(batch, kept, strict=True):
            scores[i] = row
        done += len(batch)
        yield done, None
    yield done, scores


def finish(steps: Iterator[tuple[int, Scores | None]]) -> Scores:
    """The scores at the end of `score`."""
    finished: Scores = []
    for _, scores in steps:
        finished = scores or finished
    return finished


@contextmanager
def shared_prefix(session: Session, prefix: Ids, tuned: Tuned = PLAIN) -> Iterator[Callable[[], int | None]]:
    """A function that gives the handle of the prefix; its first call reads the prefix, after a tuned one.

    Without a prefix of its own it gives the tuned one, or None.
    """
    handles: list[int] = []

    def handle() -> int | None:
        if len(prefix) and not handles:
            request = Request(prefix, prefix=tuned.prefix, adapter=tuned.adapter, keep=True, reusable=False)
            [event] = session.ask([request])
            assert event.prefix is not None
            handles.append(event.prefix)
        return handles[0] if handles else tuned.prefix

    try:
        yield handle
    finally:
        for ready in handles:
            session.release(ready)


def question(context: Ids, choices: Sequence[Ids], prefix: int | None, adapter: int | None = None) -> Request:
    """The request for the scores of choices. It stays out of the prefix cache; one choice needs no fork."""
    if len(choices) == 1:
        whole, n_scored = np.concatenate([context, choices[0]]), len(choices[0])
        return Request(whole, prefix=prefix, adapter=adapter, n_scored=n_scored, reusable=False)
    return Request(context, prefix=prefix, adapter=adapter, choices=choices, reusable=False)


def scores_of(event: Event) -> Sequence[TokenScores]:
    """The scores of a question's choices, from its answer."""
    return event.choices if event.scores is None else (event.scores,)


def plan(items: Sequence[Item]) -> list[list[int]]:
    """Indices of the items in batches of similar length, the longest first."""
    order = sorted(range(len(items)), key=lambda i: (-items[i].n_tokens, i))
    batches: list[list[int]] = []
    room = 0
    for i in order:
        n_tokens = items[i].n_tokens
        if not batches or len(batches[-1]) == MAX_ROWS or n_tokens > room:
            batches.append([])
            room = MAX_TOKENS
        batches[-1].append(i)
        room -= n_tokens
    return batches


def decide(
    scores: Scores, items: Sequence[Item], scoring: Scoring, content_free: Scores | None = None
) -> tuple[Ints, list[Floats]]:
    """The choice of each item, (N,), and the probabilities of its choices.

    raw: log-likelihood, summed over the tokens of a choice. normalised: divided by the choice's characters.
    calibrated: probabilities, divided by those of the content-free questions (arXiv 2102.09690, section 4).
    """
    logits = [np.array(row) for row in scores]
    if scoring == "normalised":
        logits = [row / np.array(item.lengths) for row, item in zip(logits, items, strict=True)]
    elif scoring == "calibrated":
        assert content_free, "calibration needs the same choices for every item"
        bias = np.log(np.mean([softmax(np.array(row)) for row in content_free], axis=0))
        logits = [row - bias for row in logits]
    choices = np.array([int(np.argmax(row)) for row in logits], dtype=np.int64)
    return choices, [softmax(row) for row in logits]


def softmax(logits: Floats) -> Floats:
    """Probabilities of unnormalised log-probabilities."""
    powers: Floats = np.exp(logits - logits.max())
    shares: Floats = powers / powers.sum()
    return shares
