"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.server.openai import read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Service


class TokenizeBody(BaseModel):
    """The body of /tokenize."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    prompt: str


class DetokenizeBody(BaseModel):
    """The body of /detokenize."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    tokens: list[int]


async def tokenize(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The ids of a text, as a prompt would have them."""
    body = read(TokenizeBody, document, service)
    try:
        ids = await asyncio.to_thread(service.model.tokenizer.encode_prompt, body.prompt)
    except KoGPTError as error:
        raise refusal(error, "prompt") from None
    tokens = [int(token) for token in ids]
    return JSONResponse({"count": len(tokens), "max_model_len": service.model.config.n_ctx, "tokens": tokens})


async def detokenize(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The text of ids."""
    body = read(DetokenizeBody, document, service)
    tokenizer = service.model.tokenizer
    if any(not 0 <= token < tokenizer.n_vocab for token in body.tokens):
        raise Refused(f"tokens has an id outside 0 to {tokenizer.n_vocab - 1}", "tokens")
    return JSONResponse({"prompt": tokenizer.decode(body.tokens)})
