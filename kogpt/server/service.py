"""What every dialect of the server needs of the model: prompts -> requests within the limits -> pieces.

A dialect (openai.py, kakao.py) turns its own JSON into an Order and pieces into its own answers.
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
from kogpt.request import Request
from kogpt.sampling import Sampling
from kogpt.server.limits import Limits
from kogpt.server.metrics import Metrics, Stopwatch
from kogpt.server.refusals import Refused, failure, refusal
from kogpt.server.worker import Ticket, Worker
from kogpt.session import Piece

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Order:
    """What a client wants written."""

    prompts: Sequence[Prompt]
    settings: Mapping[str, Any]  # fields of Sampling that the client gave
    echo: bool = False
    namespace: str = ""  # of the prefix cache: clients with different keys share nothing


@dataclass(slots=True)
class Usage:
    """Tokens of one HTTP request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def openai(self) -> dict[str, int]:
        """As OpenAI counts."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(slots=True)
class Service:
    """The model behind the routes."""

    model: KoGPT
    worker: Worker
    metrics: Metrics
    limits: Limits
    draining: bool = False
    buffered: int = field(default=0)  # bytes of bodies that are being received

    @property
    def name(self) -> str:
        """The model's name for clients: of a folder its last part, so that no path is told."""
        return Path(self.model.name).name or "kogpt"

    async def requests(self, order: Order) -> list[Request]:
        """The requests of an order, tokenised off the event loop. Raises Refused."""
        self._check(order)
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
            sampling = self.model.sampling(dict(order.settings))
            found = [self.model.request(self.ids(prompt), sampling, order.echo) for prompt in order.prompts]
        except KoGPTError as error:
            raise refusal(error, _param(error)) from None
        cost = sum(len(r.inputs) + r.n_samples * (r.writing.limit if r.writing else 0) for r in found)
        if cost > self.limits.cost:
            raise Refused(
                f"prompts and answers may take {cost} tokens together, the limit is {self.limits.cost}:"
                " ask for fewer or shorter texts",
                "max_tokens",
            )
        return [replace(request, namespace=order.namespace) for request in found]

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

    async def pieces(self, ticket: Ticket, usage: Usage) -> AsyncIterator[list[tuple[int, Piece]]]:
        """The pieces as they come, all that are there at a time: (index of the request, piece)."""
        watch = Stopwatch(self.metrics)
        async for batch in ticket.batches():
            written = sum(piece.token is not None for _, piece in batch)
            usage.completion_tokens += written
            watch.tokens(written)
            for _, piece in batch:
                if piece.finish_reason:
                    watch.finish(piece.finish_reason)
            yield batch

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
        finally:
            self.worker.leave(ticket)
        return [answers[index] for index in range(len(requests))]


def _param(error: KoGPTError) -> str | None:
    """The field that a message of Sampling begins with."""
    first = error.en.split(" ", 1)[0]
    return first if first in Sampling.__dataclass_fields__ else None


async def while_connected(http: HttpRequest, work: Any) -> Any:
    """Await work; cancel it when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused("the client left", status=408)
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
