"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.server.fields import Body, Many, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Service


class TokenizeBody(Body):
    """The body of /tokenize."""

    prompt: str


class DetokenizeBody(Body):
    """The body of /detokenize."""

    tokens: Many[int]


async def tokenize(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The ids of a text, as a prompt would have them."""
    body = read(TokenizeBody, document)
    model = service.find(body.model).model
    try:
        ids = await asyncio.to_thread(model.tokenizer.encode_prompt, body.prompt)
    except KoGPTError as error:
        raise refusal(error, "prompt") from None
    tokens = [int(token) for token in ids]
    return JSONResponse({"count": len(tokens), "max_model_len": model.config.n_ctx, "tokens": tokens})


async def detokenize(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The text of ids."""
    body = read(DetokenizeBody, document)
    tokenizer = service.find(body.model).model.tokenizer
    if any(not 0 <= token < tokenizer.n_vocab for token in body.tokens):
        raise Refused(f"tokens has an id outside 0 to {tokenizer.n_vocab - 1}", "tokens")
    return JSONResponse({"prompt": tokenizer.decode(body.tokens)})
