"""OpenAI's chat completions: POST /v1/chat/completions.

A conversation becomes text by the model's own template. Without one it becomes questions and answers in plain
Korean form, as in Kakao's own example: a base model knows no chat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from kogpt.errors import KoGPTError
from kogpt.server.answers import Answer
from kogpt.server.fields import Many, Strict, Writing, checked_count, checked_top, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Order, Prompt, Service, client_of
from kogpt.server.templates import TemplateError

TURN_STOPS = ("\nQ:",)
TURN_PREFIXES = {"system": "", "developer": "", "user": "Q:", "assistant": "A:"}

Role = Literal["system", "developer", "user", "assistant"]


class TextPart(Strict):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Role
    content: str | Many[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Writing):
    """The body of /v1/chat/completions."""

    messages: Many[Message]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0)


async def chat(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """Write the assistant's next turn."""
    body = read(ChatBody, document)
    served = service.find(body.model)
    settings = body.settings(service.limits)
    if (max_tokens := body.max_completion_tokens or body.max_tokens) is not None:
        settings["max_tokens"] = max_tokens
    if body.logprobs:
        settings["logprobs"] = checked_top(body.top_logprobs or 0, "top_logprobs", service.limits)
    elif body.top_logprobs:
        raise Refused("top_logprobs needs logprobs: true", "top_logprobs")
    turns = [(message.role, message.text) for message in body.messages]
    prompt, stops = await conversation(service, turns)
    settings["stop"] = [*settings.get("stop", ()), *stops]
    order = Order(served, [prompt], settings, grammar_field=body.grammar_field, namespace=client_of(http))
    answer = Answer("chat.completion", served, service, await service.requests(order))
    return await answer.respond(http, body)


async def conversation(service: Service, turns: Sequence[tuple[Role, str]]) -> tuple[Prompt, Sequence[str]]:
    """The prompt for the turn after these, and the texts that end it. Raises Refused."""
    checked_count(len(turns), "messages", service.limits.messages)
    if service.template is None:
        return plain(turns), TURN_STOPS
    try:
        return await asyncio.to_thread(_templated, service, turns), ()
    except TemplateError as error:
        raise Refused(str(error), "messages") from None
    except KoGPTError as error:
        raise refusal(error, "messages") from None


def plain(turns: Sequence[tuple[Role, str]]) -> str:
    """A conversation as text that ends where the answer begins."""
    return "\n".join([*(TURN_PREFIXES[role] + text.strip() for role, text in turns), "A:"])


def _templated(service: Service, turns: Sequence[tuple[Role, str]]) -> Prompt:
    """The ids of a conversation: what clients wrote is plain text, only the template names special tokens."""
    assert service.template is not None
    tokenizer = service.model.tokenizer
    ids: list[int] = []
    for part in service.template.render([{"role": role, "content": text} for role, text in turns]):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part)
    return ids
