"""POST /v1/rerank, as llama.cpp and Jina have it, and /v1/score, as vLLM has it.

A document is as relevant as it makes the query likely (Sachan et al. 2022, "Improving Passage Retrieval with
Zero-Shot Question Generation", arXiv 2204.07496): a base model can say that, without a head for it.
Two texts are as alike as their embeddings.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.server.aside import while_connected
from kogpt.server.embeddings import unit
from kogpt.server.fields import Body, Many, Strict, checked_count, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Served, Service

QUESTION = "\n위 글이 답이 되는 질문:"  # between a document and the query


class Document(Strict):
    """A document with its text."""

    text: str


class RerankBody(Body):
    """The body of /v1/rerank."""

    query: str
    documents: Many[str | Document]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = False


class ScoreBody(Body):
    """The body of /v1/score."""

    text_1: str | Many[str]
    text_2: str | Many[str]
    encoding_format: str | None = None


async def rerank(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The documents, the most relevant first; a score is the geometric mean of the query's probabilities."""
    body = read(RerankBody, document)
    served = service.find(body.model)
    checked_count(len(body.documents), "documents", service.limits.prompts)
    texts = [entry if isinstance(entry, str) else entry.text for entry in body.documents]
    n_read = sum(2 * len(text) + len(body.query) for text in texts)  # each alone, and with the query
    service.check_characters(n_read, "documents")
    requests = await asyncio.to_thread(_questions, served, body.query, texts)
    service.check_cost(requests, "documents")
    pieces = await while_connected(http, service.ask(requests))
    results: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        [scores] = piece.event.choices
        result = {"index": index, "relevance_score": math.exp(float(scores.logprobs.mean()))}
        results.append(result | ({"document": {"text": texts[index]}} if body.return_documents else {}))
    results.sort(key=lambda result: -result["relevance_score"])
    n_tokens = sum(len(request.inputs) + sum(map(len, request.choices)) for request in requests)
    return JSONResponse(
        {
            "object": "list",
            "model": served.name,
            "results": results[: body.top_n],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def score(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The cosine of the embeddings of two texts, of one and many, or of pairs."""
    body = read(ScoreBody, document)
    served = service.find(body.model)
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    for name, texts in (("text_1", first), ("text_2", second)):
        checked_count(len(texts), name, service.limits.prompts)
    if len(first) not in (1, len(second)):
        message = f"text_1 has {len(first)} texts, text_2 {len(second)}: give one, or as many"
        raise Refused(message, "text_1")
    requests = await asyncio.to_thread(_embeddings, served, [*first, *second])
    service.check_cost(requests, "text_2")
    vectors = []
    for piece in await while_connected(http, service.ask(requests)):
        assert piece.event.pooled is not None
        vectors.append(unit(piece.event.pooled))
    lefts, rights = vectors[: len(first)] * (len(second) if len(first) == 1 else 1), vectors[len(first) :]
    data = [
        {"index": index, "object": "score", "score": float(left @ right)}
        for index, (left, right) in enumerate(zip(lefts, rights, strict=True))
    ]
    n_tokens = sum(len(request.inputs) for request in requests)
    return JSONResponse(
        {
            "id": f"score-{secrets.token_hex(12)}",
            "object": "list",
            "created": int(time.time()),
            "model": served.name,
            "data": data,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


def _questions(served: Served, query: str, texts: Sequence[str]) -> list[Request]:
    try:
        return [served.model.question_request(text + QUESTION, [f" {query}"]) for text in texts]
    except KoGPTError as error:
        raise refusal(error, "documents") from None


def _embeddings(served: Served, texts: Sequence[str]) -> list[Request]:
    try:
        return [served.model.embedding_request(text) for text in texts]
    except KoGPTError as error:
        raise refusal(error, "text_2") from None
