"""Server-sent events: one JSON document each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kogpt.server.aside import disconnected

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
DIRECT = "kogpt.send"  # in the scope: the server's own `send`
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class EventStream(StreamingResponse):
    """Events as they come; `leave` is called at their end, also if the client left before they began.

    Events go to the server past the middleware, which has nothing to do with them and takes as long as they.
    """

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        flow = asyncio.ensure_future(self._flow(send, scope.get(DIRECT, send)))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((flow, gone), return_when=asyncio.FIRST_COMPLETED)
            if flow.done():
                flow.result()
        finally:
            flow.cancel()
            gone.cancel()
            self._leave()

    async def _flow(self, send: Send, direct: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for text in self.body_iterator:
            assert isinstance(text, str)
            await direct({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await direct({"type": "http.response.body", "body": b"", "more_body": False})


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
