"""Server-sent events: one JSON document each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class EventStream(StreamingResponse):
    """Events as they come; `leave` is called at their end, also if the client left before they began."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


def event(document: Mapping[str, Any], name: str | None = None) -> str:
    """One event as it is sent; OpenAI's completions name none, its responses and Anthropic do."""
    data = f"data: {to_json(document)}\n\n"
    return data if name is None else f"event: {name}\n{data}"


def to_json(document: Mapping[str, Any]) -> str:
    """JSON for an event: in ASCII where a character is not printable.

    Some clients take U+0085 and U+2028 for the end of a line.
    """
    text = ENCODER.encode(document)
    return text if text.isprintable() else json.dumps(document, allow_nan=False)


def quoted(text: str) -> str:
    """A text as `to_json` writes it, several times as fast."""
    return encode_basestring(text) if text.isprintable() else encode_basestring_ascii(text)
