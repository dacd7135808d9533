"""The one loop that drives a runner: add requests, step, read events.

Each step writes one token for every sample and reads the next part of every other text, within a budget.
Prompts, scored texts, choices, embeddings and prefixes all pass through `step`, so none of them keeps the
others waiting. A request that fails ends with an event that says why; the others go on bit for bit.
Knows nothing of text, files or HTTP, and does no arithmetic: a Runner computes and chooses.
Shapes: T tokens, P prefix positions, E model width, K scored tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.adapter import KeyValuePrefix, Lora
from kogpt.errors import NotEnoughMemory
from kogpt.request import Event, FinishReason, Ids, Request, Writing
from kogpt.row_store import RowStore
from kogpt.rows import CLOSED, NO_IDS, Part, Row, Task, not_finite, positions
from kogpt.runner import Array, Runner
from kogpt.sampling import Chosen, SampledToken, Sampler

MAX_ROWS = 16  # texts that are written at once
MAX_LOGITS = 2**24  # numbers in the logits of one pass: 64 MB in float32


class Engine:
    """Owns the rows of one runner.

    `add` may be called from any thread, everything else from one at a time (session.py sees to that).
    """

    def __init__(
        self,
        runner: Runner,
        max_rows: int = MAX_ROWS,
        chunk_tokens: int | None = None,
        n_vocab: int | None = None,
        max_cached: int = 0,
    ) -> None:
        """Write at most `max_rows` rows at once and read `chunk_tokens` inputs a step (None: the runner's).

        n_vocab: only ids below it are written (None: all). max_cached: closed rows that are kept as a prefix
        cache; close() frees them. With 0, no request begins with an earlier text.
        """
        self.runner = runner
        self.max_rows = max_rows
        self.chunk_tokens = chunk_tokens or runner.prefill_tokens
        self.n_vocab = n_vocab or runner.config.n_vocab
        self.max_outputs = max(1, MAX_LOGITS // runner.config.n_vocab)
        self._store = RowStore(runner, max_cached)
        self.counters = self._store.counters
        self._queue: deque[int] = deque()  # numbers of the waiting requests; cancelled ones are passed over
        self._waiting: dict[int, Request] = {}
        self._live: dict[int, Task] = {}
        self._events: list[Event] = []  # not delivered yet
        self._numbers = count(1)

    @property
    def n_waiting(self) -> int:
        """Requests not admitted yet."""
        return len(self._waiting)

    @property
    def n_rows(self) -> int:
        """Answers that are admitted and not finished."""
        return sum(len(task.unfinished) for task in list(self._live.values()))

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._waiting or self._live or self._events)

    def add(self, request: Request) -> int:
        """Queue a request; the number that its events will carry.

        Prefix, inputs and what is written or scored after them fit the context.
        """
        assert len(request.inputs) > request.n_scored >= 0 and all(map(len, request.choices))
        assert not (request.choices and request.writing), "choices or samples"
        assert not request.writing or bool(request.writing.sampling.grammar) == bool(request.writing.grammar)
        assert self._store.length(request.prefix) + request.longest <= self.runner.config.n_ctx
        assert self._store.prefix(request).adapter == request.adapter, "a prefix belongs to its adapter"
        number = next(self._numbers)
        self._waiting[number] = request
        self._queue.append(number)
        return number

    def cancel(self, number: int, sample: int | None = None) -> None:
        """Drop a request, or one of its samples; no event follows. Unknown and finished ones are ignored."""
        self._events = [
            e for e in self._events if e.request != number or (sample is not None and e.sample != sample)
        ]
        if sample is None:
            self._waiting.pop(number, None)
        task = self._live.get(number)
        if task is None:
            return
        if sample is None:
            self._end(task)
        for row in [row for row in task.samples if row.number == sample]:
            self._end_sample(row)

    def length(self, prefix: int | None) -> int:
        """How many positions a prefix takes."""
        return self._store.length(prefix)

    def release(self, prefix: int) -> None:
        """Free a prefix, once the requests that were added with it have begun."""
        self._store.release(prefix, list(self._waiting.values()))

    def load(self, prefix: KeyValuePrefix, adapter: int | None = None) -> int:
        """Make a prefix of keys and values that are given; freed by `release`. Raises NotEnoughMemory."""
        return self._store.load(prefix, adapter)

    def add_adapter(self, lora: Lora) -> int:
        """Take a LoRA; the handle for Request.adapter."""
        return self.runner.add_adapter(lora)

    def drop_adapter(self, adapter: int) -> None:
        """Forget a LoRA that no request and no prefix uses any more."""
        self._store.drop_adapter(adapter)

    def close(self) -> None:
        """Free every row: requests are dropped, prefixes and the prefix cache emptied."""
        for number in [*self._waiting, *self._live]:
            self.cancel(number)
        self._events.clear()
        self._store.close()

    def step(self) -> list[Event]:
        """Advance every request by a token or a part of its text; the events that came of it.

        After an interruption (Ctrl-C) the engine can go on: at most the request that was in hand fails.
        """
        self._admit()
        pooled: list[Part] = []
        others: list[Part] = []
        for part in self._plan():
            (pooled if part.row.task.request.pooled else others).append(part)
        for batch in self._batches(others):
            self._read(batch, pooled=False)
        self._read(pooled, pooled=True)
        events = self._events
        try:
            self._events = []
            return events
        except BaseException:  # events of an interrupted step come with the next
            self._events = events
            raise

    def run(self, requests: Sequence[Request]) -> list[Event]:
        """Add requests that write nothing and step until all are answered; the last event of each.

        Raises the error of one that fails and drops the rest. Events of other requests wait for `step`.
        """
        numbers = [self.add(request) for request in requests]
        answers: dict[int, Event] = dict.fromkeys(numbers, Event(0))
        others: list[Event] = []
        try:
            while any(event.finish is None for event in answers.values()):
                events = self.step()
                others += [event for event in events if event.request not in answers]
                answers |= {event.request: event for event in events if event.request in answers}
                if failed := next((event.error for event in answers.values() if event.error), None):
                    raise failed
        finally:
            for number in numbers:
                self.cancel(number)
            self._events = others + self._events
        return list(answers.values())

    def prefix(self, inputs: NDArray[Any]) -> int:
        """Read a prefix once, for many requests to begin with: (P,) ids, or (P, E) soft-prompt embeddings."""
        [event] = self.run([Request(inputs, keep=True)])
        assert event.prefix is not None
        return event.prefix

    def score(
        self, questions: Sequence[tuple[Ids, Sequence[Ids]]], prefix: int | None = None
    ) -> list[list[Array]]:
        """Log-probability of every token of every continuation, in nats.

        questions: (context (T,), its continuations); contexts and continuations have at least one token.
        """
        requests = [_question(context, choices, prefix) for context, choices in questions]
        return [
            [found.logprobs for found in event.choices or (event.scores,) if found]
            for event in self.run(requests)
        ]

    def pool(self, texts: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """(E,) mean of the last hidden states of each text of (T,) ids."""
        requests = [Request(ids, pooled=True, reusable=False) for ids in texts]
        return [event.pooled for event in self.run(requests) if event.pooled is not None]

    def _admit(self) -> None:
        """Begin waiting requests, in their order, while there are rows and memory for them."""
        room = self._store.room() if self._queue else None
        while self._queue:
            request = self._waiting.get(self._queue[0])
            if request is None:  # cancelled
                self._queue.popleft()
                continue
            if self._live and self.n_rows + request.n_samples > self.max_rows:
                break
            needed = self._promised() + positions(request, self.max_rows)
            room = self._store.enlarge(room, needed)
            missing = 0 if room is None else max(0, needed - room)
            if missing and self._live:
                break
            task = Task(self._queue[0], request, unfinished=list(range(request.n_samples)))
            with self._blame(task):
                self._live[task.number] = task
                del self._waiting[task.number]
                self._queue.popleft()
                if missing:
                    raise _no_room(missing)
                self._begin(task)
        self._store.free_released(list(self._waiting.values()))

    def _promised(self) -> int:
        """How many positions the admitted requests may still cache."""
        return sum(task.positions_left(self.max_rows) for task in self._live.values())

    def _begin(self, task: Task) -> None:
        """Give a request the row that reads its inputs."""
        request, prefix = task.request, self._store.prefix(task.request)
        if prefix.ids is not None and request.inputs.ndim == 1:
            task.ids = np.concatenate([prefix.ids, request.inputs])
        if request.writing is not None:
            known = NO_IDS if task.ids is None else task.ids
            task.samplers = self._samplers(request.writing, known)
        task.trunk = self._store.open(task.reader(prefix.length), self._running())

    def _running(self) -> Iterator[Row]:
        """A row of each request that is read or written."""
        for task in self._live.values():
            row = task.samples[0] if task.samples else task.trunk
            if row is not None:
                yield row

    def _samplers(self, writing: Writing, known: Ids) -> list[Sampler]:
        """One for each sample; `known`: what the repetition penalty counts as seen."""
        grammar = writing.grammar
        return [
            Sampler(writing.sampling, known, i, self.n_vocab, None if grammar is None else grammar.begin())
            for i in range(writing.sampling.n)
        ]

    def _plan(self) -> list[Part]:
        """Choose what each row reads: one token per sample, then prompts within the budget, oldest first."""
        parts = [Part(row, 1, 1) for task in self._live.values() for row in task.samples]
        tokens, outputs = self.chunk_tokens, max(1, self.max_outputs - len(parts))
        for task in [task for task in self._live.values() if task.trunk is not None or task.forks]:
            if not tokens or not outputs:
                break
            for row in self._readers(task):
                part = row.next_part(tokens, outputs)
                if not part.size:
                    break
                parts.append(part)
                tokens -= part.size
                outputs -= part.n_outputs
        return parts

    def _readers(self, task: Task) -> Iterator[Row]:
        """The rows of a request that read text. Choices fork as they are asked for, `max_rows` at most."""
        if task.trunk is not None and task.is_reading:
            yield task.trunk
        yield from list(task.forks)
        while task.trunk is not None and task.unforked:
            if sum(len(other.forks) for other in self._live.values()) >= self.max_rows and task.forks:
                return
            with self._blame(task):
                task.fork_choice(self._store.fork(task.trunk.handle))
            if task.forks:
                yield task.forks[-1]

    def _batches(self, parts: Sequence[Part]) -> Iterator[list[Part]]:
        """The parts in passes of at most `max_outputs` outputs."""
        batch: list[Part] = []
        room = self.max_outputs
        for part in parts:
            if batch and part.n_outputs > room:
                yield batch
                batch, room = [], self.max_outputs
            batch.append(part)
            room -= part.n_outputs
        if batch:
            yield batch

    def _read(self, parts: Sequence[Part], pooled: bool) -> None:
        """One pass of the runner. What was not taken in when it fails or is interrupted is forgotten."""
        unread = deque(part for part in parts if part.row.task.number in self._live)
        if not unread:
            return
        try:
            chunks = [part.chunk() for part in unread]
            answers: Sequence[Chosen | Array] = (
                self.runner.hidden(chunks)
                if pooled
                else self.runner.draw(chunks, [part.wanted() for part in unread])
            )
            for answer in answers:
                part = unread[0]  # an interruption before the next line finds it unread
                with self._blame(part.row.task):
                    unread.popleft()
                    self._accept(part, answer)
        except BaseException as error:
            for part in unread:
                if part.row.task.number in self._live:
                    self.runner.truncate(part.row.handle, part.row.length)
            if not isinstance(error, Exception):
                raise
            self._retry(list(unread), pooled, error)

    def _retry(self, parts: Sequence[Part], pooled: bool, error: Exception) -> None:
        """Read again after a failure, first without prefix cache, then each request alone: to find who fails.

        The oldest comes first, so where memory is short the newest fail.
        """
        tasks = list(dict.fromkeys(part.row.task for part in parts))
        if self._store.make_room():
            self._read(parts, pooled)
        elif len(tasks) == 1:
            self._fail(tasks[0], error)
        else:
            for task in tasks:
                self._read([part for part in parts if part.row.task is task], pooled)

    def _accept(self, part: Part, answer: Chosen | Array) -> None:
        """Take in what a row's part gave."""
        row, task = part.row, part.row.task
        row.length += part.size
        row.n_read = part.end
        if not isinstance(answer, Chosen):
            task.total = answer.sum(axis=0, dtype=np.float64) + (0 if task.total is None else task.total)
        elif len(answer.logprobs):
            row.chosen.append(answer)
        if row.n_read < len(row.inputs):
            return
        tokens = answer.tokens if isinstance(answer, Chosen) else []
        if row is task.trunk:
            self._inputs_read(task, row, tokens)
        elif not row.samplers:
            self._choice_read(row)
        elif not self._write(row, tokens[0]):
            self._end_sample(row)

    def _inputs_read(self, task: Task, trunk: Row, tokens: Sequence[SampledToken | None]) -> None:
        """The inputs are read: their scores are there, choices and samples can begin."""
        task.take_scores(trunk)
        if task.request.writing is None:
            self._report_if_done(task)
            return
        source = trunk.handle  # stays the same when the kept prefix or the first sample takes it over
        if task.request.n_scored or task.request.keep:
            self._report(task)
        trunk.broken = None in tokens
        for number, token in enumerate(tokens):
            row = Row(
                task, CLOSED, trunk.length, NO_IDS, samplers=task.samplers[number : number + 1], number=number
            )
            if not self._write(row, token):
                continue
            task.samples.append(row)
            row.handle = self._store.fork(source) if trunk.handle == CLOSED else trunk.take_handle()
            task.trunk = None
        if not task.unfinished:
            self._end(task)

    def _choice_read(self, row: Row) -> None:
        task = row.task
        task.take_choice(row)
        self._store.close_row(row)
        task.forks.remove(row)
        self._report_if_done(task)

    def _report_if_done(self, task: Task) -> None:
        if not task.unforked and not task.forks:
            self._report(task)
            self._end(task)

    def _report(self, task: Task) -> None:
        """Say what reading gave; of a request that writes nothing this is the last event."""
        request = task.request
        finish: FinishReason | None = "done" if request.writing is None else None
        pooled = task.mean() if request.pooled else None
        choices = tuple(task.choices)
        news = Event(
            task.number,
            finish=finish,
            scores=task.scores,
            choices=choices,
            pooled=pooled,
            n_cached=task.n_cached,
        )
        kept = task.trunk if request.keep else None
        self._events.append(news if kept is None else news._replace(prefix=self._store.keep(kept)))

    def _write(self, row: Row, token: SampledToken | None) -> bool:
        """Take in the next token of a sample; whether the sample goes on."""
        task, writing = row.task, row.task.request.writing
        assert writing is not None
        finish: FinishReason | None = None
        error = None
        if token is None:
            finish, error, row.broken = "failed", not_finite(), True
        else:
            row.written.append(token.token)
            row.inputs, row.n_read = np.array([token.token]), 0
            row.samplers[0].accept(token.token)
            self.counters.written += 1
            if token.token in writing.stop_ids:
                finish = "stop"
            elif len(row.written) == writing.limit:
                finish = "length"
        news = Event(task.number, row.number, token, finish, n_cached=task.n_cached, error=error)
        self._events.append(news)
        if finish is not None:
            task.unfinished.remove(row.number)
        return finish is None

    def _end_sample(self, row: Row) -> None:
        task = row.task
        self._store.retire(row)
        task.samples.remove(row)
        if row.number in task.unfinished:
            task.unfinished.remove(row.number)
        if not task.unfinished:
            self._end(task)

    def _end(self, task: Task) -> None:
        """Forget a request; its rows stay for a while as a prefix cache."""
        self._live.pop(task.number, None)
        for row in task.open_rows():
            self._store.retire(row)

    @contextmanager
    def _blame(self, task: Task) -> Iterator[None]:
        """What goes wrong within ends this request alone; an interruption goes on to the caller too."""
        try:
            yield
        except BaseException as error:
            self._fail(task, error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, task: Task, error: BaseException) -> None:
        """End a request with an event that says why, for each sample that has no last event."""
        ended = {event.sample for event in self._events if event.request == task.number and event.finish}
        self._events += [
            Event(task.number, sample, finish="failed", error=error)
            for sample in task.unfinished
            if sample not in ended
        ]
        self._waiting.pop(task.number, None)  # still there after a failure while it was admitted
        self._live.pop(task.number, None)
        for row in task.open_rows():
            self._store.close_row(row)


def _question(context: Ids, choices: Sequence[Ids], prefix: int | None) -> Request:
    """The request for the scores of choices after a context; one choice needs no fork."""
    if len(choices) == 1:
        whole = np.concatenate([context, choices[0]])
        return Request(whole, prefix=prefix, n_scored=len(choices[0]), reusable=False)
    return Request(context, prefix=prefix, choices=choices, reusable=False)


def _no_room(missing: int) -> NotEnoughMemory:
    return NotEnoughMemory(
        f"not enough memory: the cache lacks room for {missing:,} of the tokens that this request may need: "
        "close other programs, choose a smaller --dtype or model, or ask for a shorter or for fewer texts",
        f"메모리가 부족합니다: 이 요청에 필요할 수 있는 토큰 가운데 {missing:,}개의 캐시를 둘 곳이 없습니다. "
        "다른 프로그램을 닫거나, 더 작은 --dtype 또는 모델을 쓰거나, 더 짧은 글이나 더 적은 답을 요청하세요",
    )
