"""OpenAI's embeddings: POST /v1/embeddings, the mean of the last hidden states, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.server.aside import while_connected
from kogpt.server.fields import Body, Prompts, checked_count, read, split
from kogpt.server.refusals import refusal
from kogpt.server.service import Prompt, Served, Service


class EmbeddingBody(Body):
    """The body of /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = "float"


async def embeddings(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """A vector for each text."""
    body = read(EmbeddingBody, document)
    served = service.find(body.model)
    texts = split(body.input)
    checked_count(len(texts), "input", service.limits.prompts)
    requests = await asyncio.to_thread(_requests, service, served, texts)
    service.check_cost(requests, "input")
    pieces = await while_connected(http, service.ask(requests))
    data = []
    for index, piece in enumerate(pieces):
        assert piece.event.pooled is not None
        vector = _shown(unit(piece.event.pooled), body.encoding_format)
        data.append({"object": "embedding", "index": index, "embedding": vector})
    n_tokens = sum(len(request.inputs) for request in requests)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """A vector scaled to length 1."""
    scaled: NDArray[np.float32] = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
    return scaled


def _requests(service: Service, served: Served, texts: list[Prompt]) -> list[Request]:
    try:
        return [served.model.embedding_request(service.ids(text)) for text in texts]
    except KoGPTError as error:
        raise refusal(error, "input") from None


def _shown(vector: NDArray[np.float32], form: str | None) -> list[float] | str:
    return base64.b64encode(vector.tobytes()).decode() if form == "base64" else [float(x) for x in vector]
