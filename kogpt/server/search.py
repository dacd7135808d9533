"""POST /v1/search: the passages of the server's index that answer a query.

Words find the passages. Vectors and the model order the first of them where a request asks for it. A passage
is data, never an instruction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.search.index import Hit, Index, require_query
from kogpt.search.reranking import RERANKED, Reranker, ordered
from kogpt.search.vectors import PROBE, NoVectors, beginning
from kogpt.server.aside import while_connected
from kogpt.server.embeddings import unit
from kogpt.server.fields import Body, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Service

MAX_HITS = 100
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class SearchBody(Body):
    """The body of /v1/search."""

    query: str
    top_n: int = Field(default=10, ge=1, le=MAX_HITS)
    vectors: bool = False  # whether to compare the vectors of the index, made by `model`
    rerank: bool = False  # whether the model orders the first hits


@dataclass(frozen=True, slots=True)
class Embedded:
    """A source of vectors that were made before, by text."""

    name: str
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def width(self) -> int:
        """Length of a vector."""
        return len(next(iter(self.vectors.values())))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) unit vectors; KeyError for a text without one."""
        return np.stack([self.vectors[text] for text in texts])


async def search(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The best passages, the best first, with source, position and score."""
    body = read(SearchBody, document)
    try:
        require_query(body.query)
    except KoGPTError as error:
        raise refusal(error, "query") from None
    n_hits = max(body.top_n, RERANKED) if body.rerank else body.top_n
    embedder = await _embedded(http, service, body) if body.vectors else None
    hits = await with_index(http, service, lambda index: index.query(body.query, n_hits, embedder))
    if body.rerank and hits:
        hits = await _reranked(http, service, body, hits)
    hits = hits[: body.top_n]
    return JSONResponse({"object": "list", "data": [asdict(hit) for hit in hits]})


async def _embedded(http: HttpRequest, service: Service, body: SearchBody) -> Embedded:
    """Vectors of the query and of PROBE, by which the index knows the model that made its own."""
    served = service.find(body.model)
    texts = [body.query, PROBE]
    try:
        requests = [served.model.embedding_request(beginning(text, served.model)) for text in texts]
    except KoGPTError as error:
        raise refusal(error, "query") from None
    service.check_cost(requests, "query")
    pieces = await while_connected(http, service.ask(requests))
    vectors = [unit(piece.event.pooled) for piece in pieces if piece.event.pooled is not None]
    return Embedded(served.name, dict(zip(texts, vectors, strict=True)))


async def _reranked(http: HttpRequest, service: Service, body: SearchBody, hits: Sequence[Hit]) -> list[Hit]:
    """The hits as Reranker orders them."""
    model = service.find(body.model).model.untuned()

    def questions() -> list[Request]:
        asked = Reranker(model).questions(body.query, hits)
        return [model.question_request(prompt, [text]) for prompt, text in asked]

    try:
        requests = await asyncio.to_thread(questions)
    except KoGPTError as error:
        raise refusal(error, "query") from None
    service.check_cost(requests, "query")
    pieces = await while_connected(http, service.ask(requests))
    return ordered(hits, [float(piece.event.choices[0].logprobs.sum()) for piece in pieces], body.query)


async def with_index(http: HttpRequest, service: Service, ask: Callable[[Index], Answer]) -> Answer:
    """What the index says, as it is now, asked in another thread.

    Refused: 404 without an index, 400 where its vectors are another model's, 503 for one that cannot be read;
    where it lies is told to the log alone.
    """
    folder = service.index
    if folder is None:
        raise Refused("this server has no index: kogpt serve --index INDEX", status=404, code="no_index")
    try:
        return await service.aside.run(http, lambda: _ask(folder, ask))
    except NoVectors:
        message = (
            "the index has no vectors of this model, or not of every paragraph: name the model that made "
            "them and index with --embed, or leave vectors out"
        )
        raise Refused(message, "vectors") from None
    except KoGPTError as error:
        logger.error("%s", error.en)
        message = "the index cannot be read now; the server's log says why"
        raise Refused(message, status=503, code="index") from None


def _ask(folder: Path, ask: Callable[[Index], Answer]) -> Answer:
    with Index.open(folder) as index:
        return ask(index)
