"""Kakao's KoGPT REST API: POST /v1/inference/kogpt/generation, as its clients use it.

Source: developers.kakao.com, "KoGPT", REST API. Errors are {code, msg}.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.server.fields import Body, read
from kogpt.server.refusals import Refused
from kogpt.server.service import Order, Service, Usage, client_of

BAD_REQUEST, UNAUTHORIZED, FAILED = -2, -401, -1  # codes of Kakao's API


class GenerationBody(Body):
    """The body of a request; Kakao's has no model."""

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
    """Continue a prompt, n times."""
    body = read(GenerationBody, document)
    settings = body.model_dump(exclude={"prompt", "model"})
    order = Order(service.find(body.model), [body.prompt], settings, namespace=client_of(http))
    usage = Usage()
    answers = await service.write(http, await service.requests(order), usage)
    n_written = sum(answer.n_tokens for answer in answers)
    totals = {
        "prompt_tokens": usage.prompt_tokens,
        "generated_tokens": n_written,
        "total_tokens": usage.prompt_tokens + n_written,
    }
    generations = [{"text": answer.text, "tokens": answer.n_tokens} for answer in answers]
    return JSONResponse({"id": secrets.token_hex(16), "generations": generations, "usage": totals})
