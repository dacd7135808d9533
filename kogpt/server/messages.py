"""Anthropic's messages: POST /v1/messages and /v1/messages/count_tokens, as its clients use them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.server.chat import TURN_STOPS, Role, conversation
from kogpt.server.fields import Body, Many, Strict, checked_stops, read
from kogpt.server.refusals import Refused
from kogpt.server.service import Order, Served, Service, Usage, Written, client_of
from kogpt.server.streams import EventStream, event
from kogpt.server.worker import Ticket

ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


CUT = {"length": "max_tokens", "filtered": "refusal"}  # why an answer is not whole


class TextBlock(Strict):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None  # the prefix cache needs no marks
    citations: None = None


Content = str | Many[TextBlock]


class Turn(Strict):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Content


class CountBody(Body):
    """The body of /v1/messages/count_tokens."""

    messages: Many[Turn]
    system: Content | None = None

    @property
    def turns(self) -> list[tuple[Role, str]]:
        """System and messages as turns of a conversation."""
        first: list[tuple[Role, str]] = [("system", _text(self.system))] if self.system else []
        return [*first, *((turn.role, _text(turn.content)) for turn in self.messages)]


class MessageBody(CountBody):
    """The body of /v1/messages."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop_sequences: Many[str] | None = None
    stream: bool | None = False


def error_body(refused: Refused) -> dict[str, Any]:
    """A refusal in Anthropic's shape."""
    kind = ERRORS.get(refused.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": refused.message}}


async def count_tokens(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """How many tokens a conversation has."""
    body = read(CountBody, document)
    served = service.find(body.model)
    prompt, _ = await conversation(service, body.turns)
    order = Order(served, [prompt], {"max_tokens": 1}, namespace=client_of(http))
    [request] = await service.requests(order)
    return JSONResponse({"input_tokens": len(request.inputs)})


async def messages(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """Write the assistant's next turn."""
    body = read(MessageBody, document)
    served = service.find(body.model)
    prompt, stops = await conversation(service, body.turns)
    names = ("max_tokens", "temperature", "top_p", "top_k")
    settings = {name: value for name in names if (value := getattr(body, name)) is not None}
    own = checked_stops(body.stop_sequences or [], "stop_sequences", service.limits)
    order = Order(served, [prompt], settings | {"stop": [*own, *stops]}, namespace=client_of(http))
    requests = await service.requests(order)
    usage = Usage()
    if not body.stream:
        [written] = await service.write(http, requests, usage)
        return JSONResponse(_message(served, usage, written, own))
    ticket = service.begin(requests, usage)
    return EventStream(_events(service, served, ticket, usage, own), lambda: service.end(ticket))


async def _events(
    service: Service, served: Served, ticket: Ticket, usage: Usage, own: Sequence[str]
) -> AsyncIterator[str]:
    """Events as Anthropic's client reads them; a stream that fails ends with an error."""
    written = Written()
    yield _event("message_start", message=_message(served, usage, None, own))
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    try:
        async for _, piece in service.good_pieces(ticket, usage):
            written.push(piece)
            if piece.text:
                delta = {"type": "text_delta", "text": piece.text}
                yield _event("content_block_delta", index=0, delta=delta)
    except Refused as refused:
        yield event(error_body(refused), "error")
        return
    yield _event("content_block_stop", index=0)
    yield _event("message_delta", delta=_ending(written, own), usage=_usage(usage))
    yield _event("message_stop")


def _message(served: Served, usage: Usage, written: Written | None, own: Sequence[str]) -> dict[str, Any]:
    """A message, or its frame before anything is written."""
    ending = {"stop_reason": None, "stop_sequence": None} if written is None else _ending(written, own)
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": served.name,
        "content": [] if written is None else [{"type": "text", "text": written.text}],
        **ending,
        "usage": _usage(usage),
    }


def _ending(written: Written, own: Sequence[str]) -> dict[str, Any]:
    """Why an answer ended; a stop string counts only if it is the client's, not one of the turn format."""
    if reason := CUT.get(str(written.finish)):
        return {"stop_reason": reason, "stop_sequence": None}
    if written.stop in own and written.stop not in TURN_STOPS:
        return {"stop_reason": "stop_sequence", "stop_sequence": written.stop}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """Tokens as Anthropic counts: those of the cache are not among the input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> str:
    return event({"type": kind} | fields, kind)


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
