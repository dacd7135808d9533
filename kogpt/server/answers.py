"""Answers as objects of OpenAI's completions and chat completions, streamed or whole."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.request import Request, Scores
from kogpt.sampling import SampledToken
from kogpt.server.aside import while_connected
from kogpt.server.fields import Writing
from kogpt.server.refusals import Refused, failure
from kogpt.server.service import Served, Service, Usage, finite, n_named
from kogpt.server.streams import EventStream, event, quoted, to_json
from kogpt.server.worker import Aborted, Ticket
from kogpt.session import Piece
from kogpt.tokenizer import Tokenizer

# Why an answer ended, in OpenAI's words; anything else is told as it is.
FINISH = {"filtered": "content_filter"}
MANY = 2000  # tokens and candidates: some milliseconds
PREFIXES = {"text_completion": "cmpl", "chat.completion": "chatcmpl"}  # of ids


@dataclass(slots=True)
class Answer:
    """The answers to one HTTP request."""

    kind: Literal["text_completion", "chat.completion"]
    served: Served
    service: Service
    requests: Sequence[Request]
    echo: bool = False
    usage: Usage = field(default_factory=Usage)
    id: str = field(init=False)
    created: int = field(init=False)
    n_samples: int = field(init=False)  # answers to each prompt
    before_parts: str = field(init=False)  # JSON of an event of a stream, up to its choices

    def __post_init__(self) -> None:
        self.id = f"{PREFIXES[self.kind]}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.n_samples = self.requests[0].n_samples
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        self.before_parts = to_json(self._object(kind, [])).removesuffix("]}")

    async def respond(self, http: HttpRequest, body: Writing) -> Response:
        """Streamed or whole. A full queue is refused before the first byte."""
        ticket = self.service.begin(self.requests, self.usage)
        if not body.stream:
            try:
                whole: Response = await while_connected(http, self.whole(ticket))
                return whole
            finally:
                self.service.end(ticket)
        return EventStream(self.events(ticket, body.include_usage), lambda: self.service.end(ticket))

    async def whole(self, ticket: Ticket) -> Response:
        """An answer that is not streamed; one that names many tokens is put together beside the loop."""
        choices = self._choices()
        async for index, piece in self.service.good_pieces(ticket, self.usage):
            self._push(choices, index, piece)
        if sum(map(n_named, self.requests)) > MANY:
            return await asyncio.to_thread(self._whole, choices)
        return self._whole(choices)

    def _whole(self, choices: Sequence[Choice]) -> Response:
        document = self._object(self.kind, [choice.whole() for choice in choices])
        return JSONResponse(document | {"usage": self.usage.openai()})

    async def events(self, ticket: Ticket, include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events. A stream that fails ends with an error and without [DONE]."""
        choices, meter = self._choices(), self.service.meter(self.usage)
        usage = ', "usage": null' if include_usage else ""
        yield self._event([choice.opening() for choice in choices], usage)
        try:
            async for batch in ticket.batches():
                meter.count(batch)
                for index, piece in batch:
                    if piece.error is not None:
                        raise failure(piece.error)
                    self._push(choices, index, piece)
                if parts := [part for choice in choices if (part := choice.part()) is not None]:
                    yield self._event(parts, usage)
        except Refused as refused:
            yield event(refused.openai())
            return
        except Aborted:
            yield self._event([choice.abort() for choice in choices if not choice.closed], usage)
        if include_usage:
            yield self._event([], f', "usage": {to_json(self.usage.openai())}')
        yield "data: [DONE]\n\n"

    def _event(self, parts: Sequence[str], usage: str) -> str:
        """One event, put together from JSON: sixteen streams have hundreds of them a second."""
        return f"data: {self.before_parts}{', '.join(parts)}]{usage}}}\n\n"

    def _choices(self) -> list[Choice]:
        n = self.n_samples
        return [Choice(self, request, i * n + k) for i, request in enumerate(self.requests) for k in range(n)]

    def _push(self, choices: Sequence[Choice], index: int, piece: Piece) -> None:
        """Give a piece to its answer; the scores of a prompt, which come once, to every answer to it."""
        first = index * self.n_samples
        if piece.event.scores is not None:
            for choice in choices[first : first + self.n_samples]:
                choice.begin(piece.event.scores)
        choices[first + piece.sample].push(piece)

    def _object(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "choices": list(choices),
        }


@dataclass(slots=True)
class Choice:
    """One answer while it is written."""

    answer: Answer
    request: Request
    index: int
    text: str = ""  # not sent yet
    tokens: list[SampledToken] = field(default_factory=list)  # not sent yet
    finish: str | None = None
    closed: bool = False  # the reason of its end was sent
    sent: int = 0  # characters of text before the tokens that are not sent
    wants_logprobs: bool = field(init=False)

    def __post_init__(self) -> None:
        writing = self.request.writing
        self.wants_logprobs = writing is not None and writing.sampling.logprobs is not None
        if not self.request.n_scored:  # a prompt of one token, of which no scores come
            self.begin(None)

    @property
    def _chat(self) -> bool:
        return self.answer.kind == "chat.completion"

    def begin(self, scores: Scores | None) -> None:
        """Take in the tokens of an echoed prompt; scores: of all but the first, None where that is all."""
        if self.wants_logprobs and self.answer.echo:
            self.tokens = [*self._prompt_tokens(scores), *self.tokens]

    def push(self, piece: Piece) -> None:
        """Take in a piece."""
        self.text += piece.text
        if self.wants_logprobs:
            self._push_tokens(piece)
        if piece.finish_reason:
            self.finish = FINISH.get(piece.finish_reason, piece.finish_reason)

    def _push_tokens(self, piece: Piece) -> None:
        if piece.token is not None and (piece.event.finish != "stop" or self.answer.echo):
            self.tokens.append(piece.token)  # with an echo every token, also the end of text

    def opening(self) -> str:
        """JSON of the first part of a stream; of an echo the prompt."""
        if self._chat:
            return self._json('"delta": {"role": "assistant", "content": ""}')
        return self._json(f'"text": {quoted(self._prompt() if self.answer.echo else "")}')

    def part(self) -> str | None:
        """JSON of what came since the last part; None where there is nothing to say."""
        if self.closed or not (self.text or self.tokens or self.finish):
            return None
        self.closed = self.finish is not None
        text, logprobs = self._take()
        if not self._chat:
            return self._json(f'"text": {quoted(text)}', logprobs, self.finish)
        return self._json(
            f'"delta": {{"content": {quoted(text)}}}' if text else '"delta": {}', logprobs, self.finish
        )

    def abort(self) -> str:
        """JSON of the last part where the server goes away first."""
        return self._json('"delta": {}' if self._chat else '"text": ""', finish="abort")

    def _json(self, content: str, logprobs: dict[str, Any] | None = None, finish: str | None = None) -> str:
        """A part of a stream; content: the member that holds the text."""
        likely = "null" if logprobs is None else to_json(logprobs)
        end = "null" if finish is None else quoted(finish)
        return f'{{"index": {self.index}, {content}, "logprobs": {likely}, "finish_reason": {end}}}'

    def whole(self) -> dict[str, Any]:
        """The finished answer."""
        text, logprobs = self._take()
        if self._chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {
                "index": self.index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": self.finish,
            }
        text = self._prompt() + text if self.answer.echo else text
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish}

    def _take(self) -> tuple[str, dict[str, Any] | None]:
        text, tokens = self.text, self.tokens
        self.text, self.tokens = "", []
        if not self.wants_logprobs:
            return text, None
        content = [token_entry(self._tokenizer, token) for token in tokens]
        if self._chat:
            return text, {"content": content, "refusal": None}
        logprobs = _legacy(content, self.sent) | {"content": content}
        self.sent += sum(len(entry["token"]) for entry in content)
        return text, logprobs

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.answer.served.model.tokenizer

    def _prompt(self) -> str:
        return self._tokenizer.decode([int(token) for token in self.request.inputs])

    def _prompt_tokens(self, scores: Scores | None) -> Iterator[SampledToken]:
        """The prompt's own tokens; nothing precedes the first, so that it has no log-probability."""
        ids = [int(token) for token in self.request.inputs]
        yield SampledToken(ids[0], float("nan"), ())
        if scores is None:
            return
        for i, token in enumerate(ids[1:]):
            yield SampledToken(token, float(scores.logprobs[i]), scores.top[i] if scores.top else ())


def token_entry(tokenizer: Tokenizer, token: SampledToken) -> dict[str, Any]:
    """A token with its id, bytes and log-probability, and the likeliest in its place."""
    top = [_named(tokenizer, other, logprob) for other, logprob in token.top_logprobs]
    return _named(tokenizer, token.token, token.logprob) | {"top_logprobs": top}


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    text = raw.decode("utf-8", "replace")
    return {"id": token, "token": text, "bytes": list(raw), "logprob": finite(logprob)}


def _legacy(content: Sequence[Mapping[str, Any]], start: int) -> dict[str, Any]:
    """The form of completions: parallel lists, and the likeliest tokens by their texts."""
    offsets = [start]
    for entry in content:
        offsets.append(offsets[-1] + len(entry["token"]))
    return {
        "tokens": [entry["token"] for entry in content],
        "token_logprobs": [entry["logprob"] for entry in content],
        "top_logprobs": [
            {t["token"]: t["logprob"] for t in entry["top_logprobs"]} or None for entry in content
        ],
        "text_offset": offsets[:-1],
    }
