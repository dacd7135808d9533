"""OpenAI's API: models, completions, chat completions and embeddings, streamed or whole.

What this model cannot do is refused by the name of the field, never passed over. Beyond OpenAI's fields:
top_k, min_p, repetition_penalty; `logprobs.content` of completions, with ids and bytes as in chat.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kogpt.errors import KoGPTError
from kogpt.request import Request, Scores
from kogpt.sampling import SampledToken
from kogpt.server.refusals import Refused, failure, refusal
from kogpt.server.service import Order, Prompt, Service, Usage, finite, while_connected
from kogpt.server.worker import Aborted, Ticket
from kogpt.session import Piece
from kogpt.tokenizer import Tokenizer

# Fields of OpenAI's API that change nothing here: labels for its own books.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Values of fields that mean "not wanted"; any other is refused, since it could not be followed.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
    "dimensions": (None,),
}
# Fields that Sampling has under the same name.
SAMPLING: tuple[str, ...] = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SAMPLING += ("presence_penalty", "frequency_penalty", "n")
KNOWN_BIAS = 100.0  # OpenAI's bound of a logit bias

B = TypeVar("B", bound=BaseModel)
Prompts = str | list[str] | list[int] | list[list[int]]
Finish = Literal["stop", "length", "cancelled", "failed"]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class Common(BaseModel):
    """Fields that completions and chat share."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    def settings(self, service: Service) -> dict[str, Any]:
        """The fields of Sampling that were given."""
        given = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            given["seed"] = self.seed % 2**63
        if self.stop is not None:
            given["stop"] = _stops(self.stop, service)
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias, service)
        return given

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Common):
    """The body of /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = False


class Message(BaseModel):
    """One turn of a conversation."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class ChatBody(Common):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0)


class EmbeddingBody(BaseModel):
    """The body of /v1/embeddings."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = "float"


def read(kind: type[B], body: Mapping[str, Any], service: Service) -> B:
    """The body as its class; Refused names the first field that is wrong."""
    for name, harmless in UNSUPPORTED.items():
        if name in body and body[name] not in harmless:
            raise Refused(f"{name} is not supported: leave it out", name, code="unsupported_parameter")
    known = {k: v for k, v in body.items() if k not in IGNORED and (k not in UNSUPPORTED)}
    try:
        found = kind.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
        param = ".".join(names[:3])
        if first["type"] == "extra_forbidden":
            raise Refused(f"there is no field {param[:60]!r}", param[:60], code="unknown_parameter") from None
        if first["type"] == "missing":
            raise Refused(f"{param} is missing", param) from None
        raise Refused(f"{param}: {first['msg']}", param) from None
    check_model(getattr(found, "model", None), service)
    return found


def split(prompts: Prompts) -> list[Prompt]:
    """Each text, or each list of ids."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [[token for token in prompts if isinstance(token, int)]]
    return [text for text in prompts if isinstance(text, str | list)]


def check_model(name: str | None, service: Service) -> None:
    """404 for a model that is not served."""
    if name is not None and name != service.name:
        message = f"the model {name[:60]!r} does not exist here: GET /v1/models lists what does"
        raise Refused(message, "model", status=404, code="model_not_found")


def models(service: Service) -> dict[str, Any]:
    """The body of GET /v1/models."""
    entry = {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "kogpt",
        "max_model_len": service.model.config.n_ctx,
    }
    return {"object": "list", "data": [entry]}


async def completions(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """POST /v1/completions."""
    body = read(CompletionBody, document, service)
    settings = body.settings(service) | {"max_tokens": body.max_tokens or 16}
    if body.logprobs is not None:
        settings["logprobs"] = _top(body.logprobs, "logprobs", service)
    order = Order(split(body.prompt), settings, bool(body.echo), namespace(http))
    requests = await service.requests(order)
    answer = Answer("text_completion", "cmpl", service, requests, bool(body.echo))
    return await answer.respond(http, body)


async def chat(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """POST /v1/chat/completions."""
    body = read(ChatBody, document, service)
    if not body.messages or len(body.messages) > service.limits.messages:
        limit = service.limits.messages
        raise Refused(f"messages has {len(body.messages)} entries, must be 1 to {limit}", "messages")
    settings = body.settings(service)
    if (max_tokens := body.max_completion_tokens or body.max_tokens) is not None:
        settings["max_tokens"] = max_tokens
    if body.logprobs:
        settings["logprobs"] = _top(body.top_logprobs or 0, "top_logprobs", service)
    elif body.top_logprobs:
        raise Refused("top_logprobs needs logprobs: true", "top_logprobs")
    settings["stop"] = [*settings.get("stop", ()), *TURN_STOPS]
    order = Order([turns(body.messages)], settings, namespace=namespace(http))
    requests = await service.requests(order)
    answer = Answer("chat.completion", "chatcmpl", service, requests)
    return await answer.respond(http, body)


async def embeddings(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """POST /v1/embeddings: the mean of the last hidden states, scaled to length 1."""
    body = read(EmbeddingBody, document, service)
    texts = split(body.input)
    if not texts or len(texts) > service.limits.prompts:
        raise Refused(f"input has {len(texts)} texts, must be 1 to {service.limits.prompts}", "input")
    try:
        requests = [service.model.embedding_request(service.ids(text)) for text in texts]
    except KoGPTError as error:
        raise refusal(error, "input") from None
    pieces = await while_connected(http, service.ask(requests))
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(piece, body.encoding_format)}
        for i, piece in enumerate(pieces)
    ]
    n_tokens = sum(len(request.inputs) for request in requests)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})


# A base model knows no chat format: questions and answers in plain Korean form, as Kakao's own example.
TURN_STOPS = ("\nQ:",)
PREFIXES = {"system": "", "developer": "", "user": "Q:", "assistant": "A:"}


def turns(messages: Sequence[Message]) -> str:
    """A conversation as text that ends where the answer begins."""
    lines = [PREFIXES[message.role] + message.text.strip() for message in messages]
    return "\n".join([*lines, "A:"])


def namespace(http: HttpRequest) -> str:
    """Clients with different keys share no prefix cache."""
    name: str = http.scope.get("kogpt.client", "")
    return name


@dataclass(slots=True)
class Answer:
    """The answers to one HTTP request, as objects of OpenAI's API."""

    kind: Literal["text_completion", "chat.completion"]
    prefix: str
    service: Service
    requests: Sequence[Request]
    echo: bool = False
    usage: Usage = field(default_factory=Usage)
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    async def respond(self, http: HttpRequest, body: Common) -> Response:
        """Streamed or whole. A full queue is refused before the first byte."""
        ticket = self.service.begin(self.requests, self.usage)
        if not body.stream:
            try:
                return JSONResponse(await while_connected(http, self.whole(ticket)))
            finally:
                self.service.end(ticket)
        return EventStream(self.events(ticket, body.include_usage), lambda: self.service.end(ticket))

    async def whole(self, ticket: Ticket) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = self._choices()
        async for batch in self.service.pieces(ticket, self.usage):
            for index, piece in batch:
                if piece.error is not None:
                    raise failure(piece.error)
                choices[self._place(index, piece)].push(piece)
        return self._object([choice.whole() for choice in choices]) | {"usage": self.usage.openai()}

    async def events(self, ticket: Ticket, include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events. A stream that fails ends with an error and without [DONE]."""
        choices = self._choices()
        usage = {"usage": None} if include_usage else {}
        yield _event(self._chunk([choice.opening() for choice in choices]) | usage)
        try:
            async for batch in self.service.pieces(ticket, self.usage):
                for index, piece in batch:
                    if piece.error is not None:
                        raise failure(piece.error)
                    choices[self._place(index, piece)].push(piece)
                if parts := [part for choice in choices if (part := choice.part()) is not None]:
                    yield _event(self._chunk(parts) | usage)
        except Refused as refused:
            yield _event(refused.openai())
            return
        except Aborted:
            parts = [choice.abort() for choice in choices if not choice.closed]
            yield _event(self._chunk(parts) | usage)
        if include_usage:
            yield _event(self._chunk([]) | {"usage": self.usage.openai()})
        yield "data: [DONE]\n\n"

    def _choices(self) -> list[Choice]:
        n = self.requests[0].n_samples
        return [Choice(self, request, i * n + k) for i, request in enumerate(self.requests) for k in range(n)]

    def _place(self, index: int, piece: Piece) -> int:
        return index * self.requests[0].n_samples + piece.sample

    def _object(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.service.name,
            "choices": list(choices),
        }

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return self._object(choices) | {"object": kind}


@dataclass(slots=True)
class Choice:
    """One answer while it is written."""

    answer: Answer
    request: Request
    index: int
    text: str = ""  # not sent yet
    tokens: list[SampledToken] = field(default_factory=list)  # not sent yet
    finish: Finish | None = None
    closed: bool = False  # the reason of its end was sent
    sent: int = 0  # characters of text before the tokens that are not sent

    @property
    def _chat(self) -> bool:
        return self.answer.kind == "chat.completion"

    @property
    def _wants_logprobs(self) -> bool:
        writing = self.request.writing
        return writing is not None and writing.sampling.logprobs is not None

    def push(self, piece: Piece) -> None:
        """Take in a piece."""
        if piece.event.scores is not None and self.answer.echo:
            self.tokens = [*self._prompt_tokens(piece.event.scores), *self.tokens]
        self.text += piece.text
        if piece.token is not None and piece.event.finish != "stop":
            self.tokens.append(piece.token)
        if piece.finish_reason:
            self.finish = "stop" if piece.finish_reason == "stop" else _finish(piece)

    def opening(self) -> dict[str, Any]:
        """The first part of a stream; of an echo the prompt."""
        if self._chat:
            return {"index": self.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        text = self._prompt() if self.answer.echo else ""
        return {"index": self.index, "text": text, "logprobs": None, "finish_reason": None}

    def part(self) -> dict[str, Any] | None:
        """What came since the last part; None where there is nothing to say."""
        if self.closed or not (self.text or self.tokens or self.finish):
            return None
        self.closed = self.finish is not None
        text, logprobs = self._take()
        if self._chat:
            delta = {"content": text} if text else {}
            return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": self.finish}
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish}

    def abort(self) -> dict[str, Any]:
        """The last part where the server goes away first."""
        empty: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return {"index": self.index, **empty, "logprobs": None, "finish_reason": "abort"}

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
        if not self._wants_logprobs:
            return text, None
        content = [token_entry(self._tokenizer, token) for token in tokens]
        if self._chat:
            return text, {"content": content, "refusal": None}
        logprobs = _legacy(content, self.sent) | {"content": content}
        self.sent += sum(len(entry["token"]) for entry in content)
        return text, logprobs

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.answer.service.model.tokenizer

    def _prompt(self) -> str:
        return self._tokenizer.decode([int(token) for token in self.request.inputs])

    def _prompt_tokens(self, scores: Scores) -> Iterator[SampledToken]:
        """The prompt's own tokens; nothing precedes the first, so that it has no log-probability."""
        ids = [int(token) for token in self.request.inputs]
        yield SampledToken(ids[0], float("nan"), ())
        for i, token in enumerate(ids[1:]):
            yield SampledToken(token, float(scores.logprobs[i]), scores.top[i] if scores.top else ())


STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


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


def _finish(piece: Piece) -> Finish:
    return "length" if piece.finish_reason == "length" else "cancelled"


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False, allow_nan=False)}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; `leave` is called at their end, also if the client left before they began."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def _vector(piece: Piece, form: str | None) -> list[float] | str:
    vector = piece.event.pooled
    assert vector is not None
    unit = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return base64.b64encode(unit.tobytes()).decode() if form == "base64" else [float(x) for x in unit]


def _top(wanted: int, name: str, service: Service) -> int:
    if wanted > service.limits.top_logprobs:
        raise Refused(f"{name} is {wanted}, the limit is {service.limits.top_logprobs}", name)
    return wanted


def _stops(stop: str | list[str], service: Service) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > service.limits.stops:
        raise Refused(f"stop has {len(stops)} texts, the limit is {service.limits.stops}", "stop")
    longest = max(map(len, stops), default=0)
    if longest > service.limits.stop_characters:
        raise Refused(f"stop has {longest} characters, the limit is {service.limits.stop_characters}", "stop")
    return stops


def _biases(given: Mapping[str, float], service: Service) -> dict[int, float]:
    if len(given) > service.limits.biases:
        raise Refused(
            f"logit_bias has {len(given)} entries, the limit is {service.limits.biases}", "logit_bias"
        )
    found = {}
    for token, value in given.items():
        if not token.isascii() or not token.isdecimal() or len(token) > 10:
            raise Refused(f"logit_bias has the key {token[:60]!r}, must be a token id", "logit_bias")
        if abs(value) > KNOWN_BIAS:
            raise Refused(f"logit_bias of {token} is {value:g}, must be -100 to 100", "logit_bias")
        found[int(token)] = value
    return found
