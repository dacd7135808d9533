"""OpenAI's responses: POST /v1/responses, without memory: nothing is stored, each request holds all turns."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.request import Request
from kogpt.server.chat import Role, conversation
from kogpt.server.fields import Many, Sampled, Strict, read, schema_without_use
from kogpt.server.refusals import Refused
from kogpt.server.service import Order, Served, Service, Usage, Written, client_of
from kogpt.server.streams import EventStream, event
from kogpt.server.worker import Ticket

CUT = {"length": "max_output_tokens", "filtered": "content_filter"}  # why an answer is incomplete


class InputText(Strict):
    """A part of an item; only text can be read."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Many[Any] | None = None
    logprobs: Many[Any] | None = None


class InputItem(Strict):
    """One turn; an answer of this route can be given back as it is."""

    type: Literal["message"] = "message"
    role: Role
    content: str | Many[InputText]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(Strict):
    """What the answer has to be; a schema's labels change nothing."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Strict):
    """The form of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseBody(Sampled):
    """The body of /v1/responses."""

    input: str | Many[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextConfig | None = None
    include: Many[str] | None = Field(default=None, max_length=0)

    def formats(self) -> Sequence[tuple[str, str, Any]]:
        """text.format as a setting."""
        wanted = self.text.format if self.text else None
        if wanted is None:
            return ()
        if wanted.type != "json_schema" and wanted.schema_ is not None:
            raise schema_without_use("text.format.schema", wanted.type)
        if wanted.type == "text":
            return ()
        if wanted.type == "json_schema" and wanted.schema_ is None:
            raise Refused("text.format.schema is missing", "text.format.schema")
        return (("text.format", "json_schema", wanted.schema_ or {"type": "object"}),)

    @property
    def turns(self) -> list[tuple[Role, str]]:
        """Instructions and input as turns of a conversation."""
        first: list[tuple[Role, str]] = [("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, ("user", self.input)]
        return [*first, *((item.role, item.text) for item in self.input)]


async def responses(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """Write the assistant's next turn."""
    body = read(ResponseBody, document)
    served = service.find(body.model)
    prompt, stops = await conversation(service, body.turns)
    settings = body.settings(service.limits)
    settings["stop"] = [*settings.get("stop", ()), *stops]
    if body.max_output_tokens is not None:
        settings["max_tokens"] = body.max_output_tokens
    order = Order(served, [prompt], settings, grammar_field=body.grammar_field, namespace=client_of(http))
    requests = await service.requests(order)
    answer = Answer(served, body, requests)
    if not body.stream:
        [written] = await service.write(http, requests, answer.usage)
        return JSONResponse(answer.finished(written))
    ticket = service.begin(requests, answer.usage)
    return EventStream(answer.stream(service, ticket), lambda: service.end(ticket))


@dataclass(slots=True)
class Answer:
    """One response while it is written."""

    served: Served
    body: ResponseBody
    requests: Sequence[Request]
    usage: Usage = field(default_factory=Usage)
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    item: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    n_events: int = 0

    def begun(self) -> dict[str, Any]:
        """The response before anything is written."""
        writing = self.requests[0].writing
        assert writing is not None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": {},
            "model": self.served.name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": writing.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": writing.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def finished(self, written: Written) -> dict[str, Any]:
        """The whole response."""
        reason = CUT.get(str(written.finish))
        status = "incomplete" if reason else "completed"
        return self.begun() | {
            "status": status,
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [self._message(status, [_part(written.text)])],
            "usage": {
                "input_tokens": self.usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": self.usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.usage.prompt_tokens + self.usage.completion_tokens,
            },
        }

    async def stream(self, service: Service, ticket: Ticket) -> AsyncIterator[str]:
        """Events as OpenAI's client reads them; one that fails ends with an error."""
        written = Written()
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self.begun())
        yield self._item_event("response.output_item.added", item=self._message("in_progress", []))
        yield self._part_event("response.content_part.added", part=_part(""))
        try:
            async for _, piece in service.good_pieces(ticket, self.usage):
                written.push(piece)
                if piece.text:
                    yield self._part_event("response.output_text.delta", delta=piece.text, logprobs=[])
        except Refused as refused:
            error = refused.openai()["error"]
            yield self._event("error", **error | {"type": "error"}, error=error)
            return
        for text in self._closing(written):
            yield text

    def _closing(self, written: Written) -> Iterator[str]:
        whole = self.finished(written)
        yield self._part_event("response.output_text.done", text=written.text, logprobs=[])
        yield self._part_event("response.content_part.done", part=_part(written.text))
        yield self._item_event("response.output_item.done", item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _event(self, name: str, **fields: Any) -> str:
        number, self.n_events = self.n_events, self.n_events + 1
        return event({"type": name, "sequence_number": number} | fields, name)

    def _item_event(self, name: str, **fields: Any) -> str:
        return self._event(name, output_index=0, **fields)

    def _part_event(self, name: str, **fields: Any) -> str:
        return self._event(name, item_id=self.item, output_index=0, content_index=0, **fields)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
