"""What every dialect of the server needs of the model: prompts -> requests within the limits -> pieces.

A dialect (completions.py, messages.py, kakao.py) turns its own JSON into an Order, and pieces into its own
answers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest

from kogpt.errors import KoGPTError
from kogpt.generation import KoGPT
from kogpt.request import FinishReason, Request
from kogpt.sampling import GRAMMARS, Sampling
from kogpt.server.aside import Aside, while_connected
from kogpt.server.limits import Limits
from kogpt.server.metrics import Metrics, Stopwatch
from kogpt.server.refusals import Refused, failure, refusal
from kogpt.server.templates import ChatTemplate
from kogpt.server.worker import Aborted, Ticket, Worker
from kogpt.session import Piece

Prompt = str | list[int]
SHORT = 1000  # characters or token ids: they are tokenised in a fraction of a millisecond


@dataclass(frozen=True, slots=True)
class Served:
    """A model, with or without an adapter, under the name that clients call it by."""

    name: str
    model: KoGPT


@dataclass(frozen=True, slots=True)
class Order:
    """What a client wants written."""

    served: Served
    prompts: Sequence[Prompt]
    settings: Mapping[str, Any]  # fields of Sampling that the client gave
    echo: bool = False
    grammar_field: str | None = None  # the client's name of what the answer has to match
    namespace: str = ""  # of the prefix cache: clients with different keys share nothing


@dataclass(slots=True)
class Usage:
    """Tokens of one HTTP request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)  # tokens of each request, by its index

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that the prefix cache saved from being read again."""
        return sum(self.cached.values())

    def openai(self) -> dict[str, Any]:
        """As OpenAI counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Meter:
    """Counts the pieces of one HTTP request, for its usage and for the metrics."""

    usage: Usage
    watch: Stopwatch

    def count(self, batch: Sequence[tuple[int, Piece]]) -> None:
        """Take in pieces as they came: (index of the request, piece)."""
        written = 0
        for index, piece in batch:
            written += piece.token is not None
            self.usage.cached[index] = piece.event.n_cached
            if piece.finish_reason:
                self.watch.finish(piece.finish_reason)
        self.usage.completion_tokens += written
        self.watch.tokens(written)


@dataclass(slots=True)
class Written:
    """One answer, whole or as far as it is written."""

    text: str = ""
    n_tokens: int = 0  # without the one that ended it
    finish: FinishReason | None = None
    stop: str | None = None  # the stop string that ended it, if one did

    def push(self, piece: Piece) -> None:
        """Take in a piece."""
        self.text += piece.text
        self.n_tokens += piece.token is not None and piece.event.finish != "stop"
        if piece.finish_reason:
            self.finish, self.stop = piece.finish_reason, piece.stop


@dataclass(slots=True)
class Service:
    """The models behind the routes: one, and the same with each adapter."""

    models: Mapping[str, KoGPT]  # by the names that clients use; the first is the model without adapters
    worker: Worker
    metrics: Metrics
    limits: Limits
    template: ChatTemplate | None = None  # of conversations; None: plain questions and answers
    index: Path | None = None  # of /v1/search
    draining: bool = False
    buffered: int = field(default=0)  # bytes of bodies that are being received
    aside: Aside = field(init=False)

    def __post_init__(self) -> None:
        self.aside = Aside(self.limits.aside)

    @property
    def base(self) -> Served:
        """The model without adapters."""
        return Served(*next(iter(self.models.items())))

    @property
    def model(self) -> KoGPT:
        """The same."""
        return self.base.model

    def find(self, name: str | None) -> Served:
        """A model by its name, the first if None; 404 for one that is not served."""
        if name is None:
            return self.base
        if name not in self.models:
            message = f"the model {name[:60]!r} does not exist here: GET /v1/models lists what does"
            raise Refused(message, "model", status=404, code="model_not_found")
        return Served(name, self.models[name])

    async def requests(self, order: Order) -> list[Request]:
        """The requests of an order; what takes long is tokenised off the event loop. Raises Refused."""
        self._check(order)
        if order.grammar_field is None and sum(map(len, order.prompts)) <= SHORT:
            return self._requests(order)  # takes less time than a thread takes to begin
        return await asyncio.to_thread(self._requests, order)

    def _check(self, order: Order) -> None:
        """Refuse what would cost too much, before any work."""
        if not order.prompts:
            raise Refused("prompt has no text: give at least one", "prompt")
        if len(order.prompts) > self.limits.prompts:
            raise Refused(
                f"prompt has {len(order.prompts)} texts, the limit is {self.limits.prompts}", "prompt"
            )
        n = order.settings.get("n") or 1
        if n > self.limits.n:
            raise Refused(f"n is {n}, the limit is {self.limits.n}", "n")

    def _requests(self, order: Order) -> list[Request]:
        try:
            model = order.served.model
            sampling = model.sampling(dict(order.settings))
            found = [model.request(self.ids(prompt), sampling, order.echo) for prompt in order.prompts]
        except KoGPTError as error:
            raise refusal(error, _param(error, order.grammar_field)) from None
        self.check_cost(found, "max_tokens")
        return [replace(request, namespace=order.namespace) for request in found]

    def check_cost(self, requests: Sequence[Request], param: str) -> None:
        """Refuse requests that may read and write too much together; `param` is the field to blame."""
        cost = sum(
            len(r.inputs) + sum(map(len, r.choices)) + r.n_samples * (r.writing.limit if r.writing else 0)
            for r in requests
        )
        if (named := sum(map(n_named, requests))) > self.limits.logprobs:
            raise Refused(
                f"logprobs would name {named} tokens and candidates, the limit is {self.limits.logprobs}:"
                " ask for fewer candidates, or for fewer or shorter texts",
                "logprobs",
            )
        if cost > self.limits.cost:
            raise Refused(
                f"prompts and answers may take {cost} tokens together, the limit is {self.limits.cost}:"
                " ask for fewer or shorter texts",
                param,
            )

    def check_characters(self, n: int, param: str) -> None:
        """Refuse texts that would take long to be tokenised. A context is tokenised once for each choice."""
        if n > self.limits.characters:
            raise Refused(
                f"the texts have {n} characters, each counted once for every choice after it; the limit is"
                f" {self.limits.characters}: ask for fewer or shorter texts",
                param,
            )

    def ids(self, prompt: Prompt) -> str | NDArray[np.int64]:
        """A prompt as a session takes it; Refused for ids that no vocabulary has."""
        if isinstance(prompt, str):
            return prompt
        n_vocab = self.model.tokenizer.n_vocab
        if any(not 0 <= token < n_vocab for token in prompt):
            raise Refused(f"the prompt has a token id outside 0 to {n_vocab - 1}", "prompt")
        return np.array(prompt, np.int64)

    def begin(self, requests: Sequence[Request], usage: Usage) -> Ticket:
        """Queue requests; `end` has to follow. Raises Refused where the queue is full."""
        ticket = self.worker.submit(requests)
        usage.prompt_tokens = sum(len(request.inputs) for request in requests)
        self.metrics.prompt_tokens.inc(usage.prompt_tokens)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """The client is served or gone; what is unfinished is dropped."""
        self.worker.leave(ticket)

    def meter(self, usage: Usage) -> Meter:
        """A counter of the pieces of one HTTP request."""
        return Meter(usage, Stopwatch(self.metrics))

    async def good_pieces(self, ticket: Ticket, usage: Usage) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the request, piece), one by one.

        Raises Refused where one fails, and where the server goes away.
        """
        meter = self.meter(usage)
        try:
            async for batch in ticket.batches():
                meter.count(batch)
                for index, piece in batch:
                    if piece.error is not None:
                        raise failure(piece.error)
                    yield index, piece
        except Aborted:
            raise stopping() from None

    async def write(self, http: HttpRequest, requests: Sequence[Request], usage: Usage) -> list[Written]:
        """The whole answers to requests, n for each. Raises Refused where one fails or the client leaves."""
        n = requests[0].n_samples
        answers = [Written() for _ in range(n * len(requests))]
        ticket = self.begin(requests, usage)

        async def collect() -> None:
            async for index, piece in self.good_pieces(ticket, usage):
                answers[index * n + piece.sample].push(piece)

        try:
            await while_connected(http, collect())
        finally:
            self.end(ticket)
        return answers

    async def ask(self, requests: Sequence[Request]) -> list[Piece]:
        """The answers to requests that write nothing, in order. Raises Refused where one fails."""
        ticket = self.worker.submit(requests)
        answers: dict[int, Piece] = {}
        try:
            async for batch in ticket.batches():
                for index, piece in batch:
                    if piece.error is not None:
                        raise failure(piece.error)
                    answers[index] = piece
        except Aborted:
            raise stopping() from None
        finally:
            self.worker.leave(ticket)
        return [answers[index] for index in range(len(requests))]


def stopping() -> Refused:
    """The refusal of what is unfinished when the server goes away."""
    return Refused("the server is shutting down", status=503)


def n_named(request: Request) -> int:
    """How many tokens and candidates the answer to a request may name."""
    writing = request.writing
    if writing is None or writing.sampling.logprobs is None:
        return 0
    n_tokens = request.n_samples * (request.n_scored + writing.limit)  # each answer echoes the prompt
    return n_tokens * (1 + writing.sampling.logprobs)


def _param(error: KoGPTError, grammar_field: str | None) -> str | None:
    """The client's field that a message of Sampling begins with, or that has the grammar that it refuses."""
    first = error.en.split(" ", 1)[0]
    if first in GRAMMARS or "grammar" in error.en:
        return grammar_field
    return first if first in Sampling.__dataclass_fields__ else None


def client_of(http: HttpRequest) -> str:
    """Who asks, as a namespace: clients with different keys share no prefix cache."""
    name: str = http.scope.get("kogpt.client", "")
    return name


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
