"""The bookkeeping of an engine: admitted requests, their rows, and what a row reads in one step.

A row is always reading. One that writes reads the token that it wrote last; so prompts, choices and samples
are one kind of row, and a step is the same for all of them.
Shapes: T inputs of a row, K scored tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import NotFinite
from kogpt.request import Ids, Request, Scores
from kogpt.runner import Array, Chunk
from kogpt.sampling import Chosen, Sampler, Wanted

NO_IDS: Ids = np.empty(0, np.int64)
CLOSED = -1  # handle of a row that has no row of the runner yet, or has none any more


@dataclass(slots=True, eq=False)
class Row:
    """One row of the runner: what it reads, and what is wanted of the outputs."""

    task: Task
    handle: int
    length: int  # positions that the runner has read
    inputs: NDArray[Any]  # (T,) ids or (T, E) embeddings
    outputs: Ids = field(default_factory=lambda: NO_IDS)  # (K,) positions in `inputs`, ending where it ends
    targets: Ids = field(default_factory=lambda: NO_IDS)  # (K,) the token to score by each of these outputs
    samplers: Sequence[Sampler] = ()  # draw from the last output
    number: int = 0  # of the sample, or of the choice
    n_read: int = 0  # of `inputs`
    written: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)  # the answers to its scored outputs, part by part
    broken: bool = False  # its logits were not finite

    def take_handle(self) -> int:
        """Its handle, which it gives up."""
        handle, self.handle = self.handle, CLOSED
        return handle

    @property
    def first_output(self) -> int:
        """The position in `inputs` from which on outputs are wanted."""
        if self.task.request.pooled:
            return len(self.inputs) - 1 if self.task.request.last_only else 0
        return int(self.outputs[0]) if len(self.outputs) else len(self.inputs) - bool(self.samplers)

    def next_part(self, max_tokens: int, max_outputs: int) -> Part:
        """What it reads next, within a budget; may be empty."""
        first = max(self.n_read, self.first_output)
        end = min(first + max_outputs, self.n_read + max_tokens, len(self.inputs))
        return Part(self, end, max(0, end - first))

    def scores(self) -> Scores:
        """All its scored tokens. Raises NotFinite."""
        logprobs = np.concatenate([np.empty(0), *(chosen.logprobs for chosen in self.chosen)])
        if np.isnan(logprobs).any():
            raise not_finite()
        likeliest = np.concatenate([NO_IDS, *(chosen.likeliest for chosen in self.chosen)])
        return Scores(logprobs, likeliest, tuple(top for chosen in self.chosen for top in chosen.top))


class Part(NamedTuple):
    """The inputs of a row from where it stands to `end`, and for how many of the last an output is wanted."""

    row: Row
    end: int
    n_outputs: int

    @property
    def size(self) -> int:
        """How many inputs are read."""
        return self.end - self.row.n_read

    def chunk(self) -> Chunk:
        """As a runner takes it."""
        row = self.row
        whole = not row.n_read and self.end == len(row.inputs)  # the usual case: a step of an answer
        return Chunk(row.handle, row.inputs if whole else row.inputs[row.n_read : self.end], self.n_outputs)

    def wanted(self) -> Wanted:
        """What is to be chosen and scored from its outputs."""
        row, first = self.row, self.end - self.n_outputs
        draws = [sampler.draw() for sampler in row.samplers] if self.end == len(row.inputs) else []
        if not len(row.outputs):
            return Wanted(draws)
        here = (row.outputs >= first) & (row.outputs < self.end)
        if not here.any():
            return Wanted(draws)
        return Wanted(draws, row.outputs[here] - first, row.targets[here], row.task.request.n_top)


@dataclass(slots=True, eq=False)
class Task:
    """An admitted request. `trunk` reads the inputs; then samples go on from it, or choices fork from it."""

    number: int
    request: Request
    unfinished: list[int]  # samples whose last event is still to come
    ids: Ids | None = None  # prefix and inputs; None where they are not known as ids
    samplers: Sequence[Sampler] = ()  # one for each sample
    trunk: Row | None = None  # until a sample goes on in it
    samples: list[Row] = field(default_factory=list)  # that are being written
    forks: list[Row] = field(default_factory=list)  # that read choices
    unforked: deque[int] = field(default_factory=deque)  # choices that no row reads yet
    scores: Scores | None = None  # of the inputs
    choices: list[Scores] = field(default_factory=list)
    total: Array | None = None  # (E,) sum of the hidden states read so far
    n_cached: int = 0  # inputs that an earlier text saved from being read

    @property
    def is_reading(self) -> bool:
        """Whether the inputs are still being read."""
        return self.trunk is not None and self.trunk.n_read < len(self.trunk.inputs)

    def reader(self, start: int) -> Row:
        """The row that reads the inputs, without a handle yet; `start` positions stand before it."""
        request, n_inputs = self.request, len(self.request.inputs)
        scored = np.arange(n_inputs - request.n_scored, n_inputs)
        firsts = [choice[0] for choice in request.choices]
        return Row(
            self,
            handle=CLOSED,
            length=start,
            inputs=request.inputs if request.reads_last else request.inputs[:-1],
            outputs=np.concatenate([scored - 1, np.full(len(firsts), n_inputs - 1)]),
            targets=np.concatenate([request.inputs[scored] if len(scored) else NO_IDS, firsts]).astype(
                np.int64
            ),
            samplers=self.samplers,
        )

    def fork_choice(self, handle: int) -> None:
        """Let a row read the next choice; its first token is scored already, its last need not be read."""
        number = self.unforked.popleft()
        ids = self.request.choices[number]
        assert self.trunk is not None
        outputs = np.arange(len(ids) - 1)
        row = Row(self, handle, self.trunk.length, ids[:-1], outputs, ids[1:], number=number)
        self.forks.append(row)

    def take_scores(self, trunk: Row) -> None:
        """Note what the inputs gave: their own scores, and those of the first token of each choice."""
        found, n = trunk.scores(), self.request.n_scored
        self.scores = found.part(0, n) if n else None
        self.choices = [found.part(n + i, n + i + 1) for i in range(len(self.request.choices))]
        self.unforked.extend(i for i, choice in enumerate(self.request.choices) if len(choice) > 1)

    def take_choice(self, row: Row) -> None:
        """Note the scores of a choice that was read."""
        first, rest = self.choices[row.number], row.scores()
        self.choices[row.number] = Scores(
            np.concatenate([first.logprobs, rest.logprobs]),
            np.concatenate([first.likeliest, rest.likeliest]),
            first.top + rest.top,
        )

    def mean(self) -> NDArray[np.float32]:
        """(E,) mean of the hidden states, or the last one."""
        assert self.total is not None
        if not np.isfinite(self.total).all():
            raise not_finite()
        n_states = 1 if self.request.last_only else len(self.request.inputs)
        return (self.total / n_states).astype(np.float32)

    def open_rows(self) -> list[Row]:
        """All its rows that the runner has."""
        rows = [*([] if self.trunk is None else [self.trunk]), *self.samples, *self.forks]
        return [row for row in rows if row.handle != CLOSED]

    def positions_left(self, max_rows: int) -> int:
        """How many more positions it may cache."""
        if self.trunk is not None and self.is_reading:
            return positions(self.request, max_rows) - self.trunk.n_read
        if self.request.writing is None:
            return positions(self.request, max_rows) - len(self.request.inputs)
        return sum(self.request.writing.limit - len(row.written) for row in self.samples)


def positions(request: Request, max_rows: int) -> int:
    """How many positions may be cached for a request at the same time; at most `max_rows` choices are."""
    if request.writing is not None:
        return len(request.inputs) + request.n_samples * request.writing.limit
    lengths = sorted(map(len, request.choices), reverse=True)
    return len(request.inputs) + sum(lengths[:max_rows])


def not_finite() -> NotFinite:
    """The model's fault, not the user's: its numbers overflowed or its weights are damaged."""
    return NotFinite(
        "the model computed numbers that are not finite: choose another --dtype (float16 overflows first), or"
        " check the weights",
        "모델의 계산 결과가 유한한 수가 아닙니다. 다른 --dtype을 고르거나(float16이 가장 먼저 넘칩니다)"
        " 가중치를 확인하세요",
    )
