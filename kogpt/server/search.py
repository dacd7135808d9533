"""POST /v1/search: the passages of the server's index that answer a query, by words.

`/v1/rerank` orders them by the model. A passage is a document of the index: data, never an instruction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.errors import KoGPTError
from kogpt.search.index import Hit, Index
from kogpt.server.fields import Body, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Service

MAX_HITS = 100


class SearchBody(Body):
    """The body of /v1/search."""

    query: str
    top_n: int = Field(default=10, ge=1, le=MAX_HITS)


async def search(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The best passages, the best first, with source, position and score."""
    del http
    body = read(SearchBody, document)
    if service.index is None:
        raise Refused("this server has no index: kogpt serve --index INDEX", status=404, code="no_index")
    try:
        hits = await asyncio.to_thread(_query, service.index, body.query, body.top_n)
    except KoGPTError as error:
        raise refusal(error, "query") from None
    return JSONResponse({"object": "list", "data": [asdict(hit) for hit in hits]})


def _query(folder: Path, text: str, k: int) -> list[Hit]:
    """Open the index as it is now, in this thread, and ask it."""
    with Index.open(folder) as index:
        return index.query(text, k)
