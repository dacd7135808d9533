"""Kakao's KoGPT REST API: POST /v1/inference/kogpt/generation, as its clients use it.

Source: developers.kakao.com, "KoGPT", REST API. Errors are {code, msg}.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.server.openai import namespace
from kogpt.server.refusals import Refused, failure
from kogpt.server.service import Order, Service, Usage, while_connected

PATH = "/v1/inference/kogpt/generation"
BAD_REQUEST, UNAUTHORIZED, FAILED = -2, -401, -1  # codes of Kakao's API


class GenerationBody(BaseModel):
    """The body of a request."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    prompt: str
    max_tokens: int = Field(ge=1)
    temperature: float = Field(1.0, gt=0, le=1)
    top_p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=16)


def error_body(refused: Refused) -> dict[str, Any]:
    """A refusal in Kakao's shape."""
    codes = {401: UNAUTHORIZED, 500: FAILED, 503: FAILED}
    return {"code": codes.get(refused.status, BAD_REQUEST), "msg": refused.message}


async def generation(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """POST /v1/inference/kogpt/generation."""
    try:
        body = GenerationBody.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))
        raise Refused(f"{param}: {first['msg']}", param) from None
    order = Order([body.prompt], body.model_dump(exclude={"prompt"}), namespace=namespace(http))
    requests = await service.requests(order)
    usage = Usage()
    texts, counts = [""] * body.n, [0] * body.n

    ticket = service.begin(requests, usage)

    async def write() -> None:
        async for batch in service.pieces(ticket, usage):
            for _, piece in batch:
                if piece.error is not None:
                    raise failure(piece.error)
                texts[piece.sample] += piece.text
                counts[piece.sample] += piece.token is not None and piece.event.finish != "stop"

    try:
        await while_connected(http, write())
    finally:
        service.end(ticket)
    totals = {
        "prompt_tokens": usage.prompt_tokens,
        "generated_tokens": sum(counts),
        "total_tokens": usage.prompt_tokens + sum(counts),
    }
    generations = [{"text": text, "tokens": count} for text, count in zip(texts, counts, strict=True)]
    return JSONResponse({"id": secrets.token_hex(16), "generations": generations, "usage": totals})
