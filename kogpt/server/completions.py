"""OpenAI's completions: POST /v1/completions.

Beyond OpenAI's fields: top_k, min_p, repetition_penalty; `logprobs.content`, with ids and bytes as in chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from kogpt.server.answers import Answer
from kogpt.server.fields import Prompts, Writing, checked_top, read, split
from kogpt.server.service import Order, Service, client_of


class CompletionBody(Writing):
    """The body of /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = False


async def completions(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """Continue each prompt, n times."""
    body = read(CompletionBody, document)
    served = service.find(body.model)
    settings = body.settings(service.limits) | {"max_tokens": body.max_tokens or 16}
    if body.logprobs is not None:
        settings["logprobs"] = checked_top(body.logprobs, "logprobs", service.limits)
    prompts = split(body.prompt)
    order = Order(served, prompts, settings, bool(body.echo), body.grammar_field, client_of(http))
    answer = Answer("text_completion", served, service, await service.requests(order), bool(body.echo))
    return await answer.respond(http, body)
