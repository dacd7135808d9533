"""Advance rows of token ids, many at a time: add, step, cancel, share a prefix.

One loop serves one prompt, a batch and a server: each step reads the next piece of the prompts that are
still being read and writes one token for every row that has been. Knows nothing of text, files or HTTP,
and does no arithmetic: a Runner computes logits, sampling.py chooses.
Shapes: T tokens, P prefix positions, E model width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kogpt.runner import Array, Chunk, Runner
from kogpt.sampling import SampledToken, Sampler, Sampling, log_softmax, sample

FinishReason = Literal["stop", "length", "error"]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue. `limit` new tokens at most; prefix, prompt and limit fit the context."""

    ids: Ids  # (T,), T >= 1
    sampling: Sampling
    limit: int
    stop_ids: frozenset[int] = frozenset()
    prefix: int | None = None  # handle from Engine.prefix


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one sample; `finish` is set on a sample's last event.

    finish "stop": `drawn.token` is a stop id. "error": the logits were not finite and `drawn` is None;
    the other rows go on.
    """

    request: int
    sample: int
    drawn: SampledToken | None
    finish: FinishReason | None


@dataclass(slots=True)
class _Row:
    """One sample being written."""

    sample: int
    handle: int
    sampler: Sampler
    last: int = 0  # the token written last, not yet read by the runner
    n_written: int = 0


@dataclass(slots=True)
class _Sequence:
    """An admitted request: its prompt is being read (`rows` empty), or its samples are being written."""

    number: int
    request: Request
    handle: int
    n_read: int = 0
    rows: list[_Row] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        return len(self.rows) or self.request.sampling.n


class Engine:
    """Owns the rows of one runner. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        runner: Runner,
        max_rows: int = 16,
        chunk_tokens: int | None = None,
        n_vocab: int | None = None,
    ) -> None:
        """At most `max_rows` rows at once, `chunk_tokens` prompt tokens a step, ids below `n_vocab`.

        By default the runner's own `prefill_tokens`, and its vocabulary.
        """
        self.runner = runner
        self.max_rows = max_rows
        self.chunk_tokens = chunk_tokens or runner.prefill_tokens
        self.n_vocab = n_vocab or runner.config.n_vocab
        self._waiting: deque[tuple[int, Request]] = deque()
        self._live: dict[int, _Sequence] = {}
        self._count = 0

    @property
    def n_waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self._live

    def add(self, request: Request) -> int:
        """Queue a request; the number that its events will carry."""
        position = self.runner.length(request.prefix) if request.prefix is not None else 0
        assert len(request.ids) > 0 and request.limit > 0
        assert position + len(request.ids) + request.limit <= self.runner.config.n_ctx
        self._count += 1
        self._waiting.append((self._count, request))
        return self._count

    def cancel(self, number: int, sample: int | None = None) -> None:
        """Drop a request, or one of its samples, between steps; unknown or finished ones are ignored."""
        if number not in self._live:
            if sample is None:
                self._waiting = deque(entry for entry in self._waiting if entry[0] != number)
            return
        live = self._live[number]
        if not live.rows:
            assert sample is None, "a sample exists once its prompt has been read"
            self.runner.close(live.handle)
            del self._live[number]
        for row in [row for row in live.rows if sample is None or row.sample == sample]:
            self._close(live, row)

    def prefix(self, inputs: NDArray[Any]) -> int:
        """Read a prefix once, for many requests to begin with: (P,) ids, or (P, E) soft-prompt embeddings.

        The handle is freed by `release`; requests that began with it do not need it any more.
        """
        handle = self.runner.open()
        try:
            self._read(handle, inputs)
        except BaseException:
            self.runner.close(handle)
            raise
        return handle

    def release(self, prefix: int) -> None:
        """Free a prefix."""
        self.runner.close(prefix)

    def step(self) -> list[Event]:
        """Advance everything by one token or one piece of prompt; the events that came of it."""
        self._admit()
        writing = [(live, row) for live in self._live.values() for row in live.rows]
        reading = self._next_pieces()
        chunks = [Chunk(row.handle, np.array([row.last]), 1) for _, row in writing]
        for live, end in reading:
            piece = live.request.ids[live.n_read : end]
            chunks.append(Chunk(live.handle, piece, int(end == len(live.request.ids))))
        if not chunks:
            return []
        outputs = self.runner.forward(chunks)
        events = []
        for (live, row), logits in zip(writing, outputs, strict=False):
            events.append(self._write(live, row, logits[-1]))
        for (live, end), logits in zip(reading, outputs[len(writing) :], strict=True):
            live.n_read = end
            if len(logits):
                events += self._begin(live, logits[-1])
        return events

    def score(
        self, questions: Sequence[tuple[Ids, Sequence[Ids]]], prefix: int | None = None
    ) -> list[list[Array]]:
        """Log-probability of every token of every continuation, in nats.

        questions: (context (T,), its continuations); contexts and continuations have at least one token.
        The prefix has been read already, a context is read once, however many its continuations; questions
        run in batches of at most `max_rows`.
        """
        results: list[list[Array]] = []
        for start in range(0, len(questions), self.max_rows):
            results += self._score_batch(questions[start : start + self.max_rows], prefix)
        return results

    def hidden(self, ids: Sequence[Ids]) -> list[Array]:
        """(T, E) outputs of the trunk for each text of (T,) ids, T at most the context length."""
        results = []
        for start in range(0, len(ids), self.max_rows):
            batch = ids[start : start + self.max_rows]
            handles = [self.runner.open() for _ in batch]
            try:
                results += self.runner.hidden(
                    [Chunk(handle, row, len(row)) for handle, row in zip(handles, batch, strict=True)]
                )
            finally:
                self._close_all(handles)
        return results

    def _admit(self) -> None:
        n_rows = sum(live.n_rows for live in self._live.values())
        while self._waiting and (not self._live or n_rows + self._waiting[0][1].sampling.n <= self.max_rows):
            number, request = self._waiting.popleft()
            self._live[number] = _Sequence(number, request, self._open(request.prefix))
            n_rows += request.sampling.n

    def _next_pieces(self) -> list[tuple[_Sequence, int]]:
        """The prompts to read from in this step, each with where its piece ends."""
        budget, pieces = self.chunk_tokens, []
        for live in self._live.values():
            if live.rows or not budget:
                continue
            end = min(live.n_read + budget, len(live.request.ids))
            budget -= end - live.n_read
            pieces.append((live, end))
        return pieces

    def _begin(self, live: _Sequence, logits: Array) -> list[Event]:
        """The prompt is read: every sample forks from it and writes its first token."""
        request = live.request
        handles = [live.handle] + [self.runner.fork(live.handle) for _ in range(request.sampling.n - 1)]
        live.rows = [
            _Row(i, handle, Sampler(request.sampling, request.ids, i)) for i, handle in enumerate(handles)
        ]
        return [self._write(live, row, logits) for row in list(live.rows)]

    def _write(self, live: _Sequence, row: _Row, logits: Array) -> Event:
        """Choose the row's next token; a row that ends is freed at once."""
        logits = logits[: self.n_vocab]
        drawn = sample(logits, row.sampler.draw())
        row.n_written += 1
        finish: FinishReason | None = None
        if drawn is None:
            finish = "error"
        elif drawn.token in live.request.stop_ids:
            finish = "stop"
        elif row.n_written == live.request.limit:
            finish = "length"
        if drawn is not None:
            row.last = drawn.token
            row.sampler.accept(drawn.token)
        if finish:
            self._close(live, row)
        return Event(live.number, row.sample, drawn, finish)

    def _close(self, live: _Sequence, row: _Row) -> None:
        live.rows.remove(row)
        self.runner.close(row.handle)
        if not live.rows:
            del self._live[live.number]

    def _open(self, prefix: int | None) -> int:
        return self.runner.open() if prefix is None else self.runner.fork(prefix)

    def _close_all(self, handles: Sequence[int]) -> None:
        for handle in handles:
            self.runner.close(handle)

    def _read(self, handle: int, inputs: NDArray[Any]) -> None:
        """Extend a row without asking for logits, a chunk at a time."""
        for start in range(0, len(inputs), self.chunk_tokens):
            self.runner.forward([Chunk(handle, inputs[start : start + self.chunk_tokens], 0)])

    def _score_batch(
        self, questions: Sequence[tuple[Ids, Sequence[Ids]]], prefix: int | None
    ) -> list[list[Array]]:
        handles: list[int] = []
        try:
            handles += [self._open(prefix) for _ in questions]
            first = self._read_contexts(handles, [context for context, _ in questions])
            # A continuation's first token is scored by its context's logits, the others after a fork.
            longer = [
                (q, i, ids)
                for q, (_, continuations) in enumerate(questions)
                for i, ids in enumerate(continuations)
                if len(ids) > 1
            ]
            rest = self._score_forks(handles, longer)
        finally:
            self._close_all(handles)
        return [
            [
                np.concatenate([first[q][ids[:1]], rest.get((q, i), first[q][:0])])
                for i, ids in enumerate(continuations)
            ]
            for q, (_, continuations) in enumerate(questions)
        ]

    def _read_contexts(self, handles: Sequence[int], contexts: Sequence[Ids]) -> list[Array]:
        """Read each context into its row; (V,) log-probabilities of what follows it."""
        tails = []
        for handle, context in zip(handles, contexts, strict=True):
            cut = max(0, len(context) - self.chunk_tokens)
            self._read(handle, context[:cut])
            tails.append(Chunk(handle, context[cut:], 1))
        return [log_softmax(logits[-1]) for logits in self.runner.forward(tails)]

    def _score_forks(
        self, handles: Sequence[int], longer: Sequence[tuple[int, int, Ids]]
    ) -> dict[tuple[int, int], Array]:
        """Log-probabilities of all but the first token of each (question, choice, ids)."""
        scores = {}
        for start in range(0, len(longer), self.max_rows):
            batch = longer[start : start + self.max_rows]
            forks = [self.runner.fork(handles[q]) for q, _, _ in batch]
            try:
                chunks = [
                    Chunk(fork, ids[:-1], len(ids) - 1)
                    for fork, (_, _, ids) in zip(forks, batch, strict=True)
                ]
                for (q, i, ids), logits in zip(batch, self.runner.forward(chunks), strict=True):
                    scores[q, i] = log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
            finally:
                self._close_all(forks)
        return scores
