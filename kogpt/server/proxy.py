"""The server in front of another engine: our rules, limits and routes; the engine gets what they ask.

Routes of OpenAI's kind are passed on as they are, streams too. Kakao's route is translated to completions.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from kogpt import __version__
from kogpt.server import kakao, pages
from kogpt.server.access import Access, Guard
from kogpt.server.aside import while_connected
from kogpt.server.bodies import read_body
from kogpt.server.fields import read
from kogpt.server.limits import Limits
from kogpt.server.refusals import Refused
from kogpt.server.routes import error_body

KAKAO = "/v1/inference/kogpt/generation"
MODELS = "/v1/models"
READS = ("/metrics", "/version", "/load")
POSTS = (
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"),
    *("/v1/score", "/v1/rerank", "/tokenize", "/detokenize"),
)
USES: tuple[str, ...] = ()  # tabs of the page, beside writing, whose routes are here
PASSED_ON = ("content-type", "retry-after")  # headers of an answer


@dataclass(slots=True)
class Front:
    """What the access rules and the limits need to know of this server."""

    engine: str  # its URL
    model: str  # its name there
    goes_on: Callable[[], bool]  # whether the engine still runs
    limits: Limits = field(default_factory=Limits)
    draining: bool = False
    buffered: int = 0  # bytes of bodies that are being read


def make_proxy(front: Front, access: Access) -> ASGIApp:
    """The whole server as an ASGI application."""
    client = httpx.AsyncClient(
        base_url=front.engine,
        timeout=httpx.Timeout(None, connect=10),
        limits=httpx.Limits(max_connections=None),  # the engine has its own queue
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(title="KoGPT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    async def post(request: HttpRequest) -> Response:
        document = await read_body(request, front)
        return await _pass_on(request, client, json.dumps(document).encode())

    async def get(request: HttpRequest) -> Response:
        return await _pass_on(request, client, b"")

    async def models(request: HttpRequest) -> Response:
        return await _models(request, client)

    async def generation(request: HttpRequest) -> Response:
        return await _kakao(request, client, front)

    async def health() -> Response:
        alive = front.goes_on()
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def ready(request: HttpRequest) -> Response:
        able = not front.draining and await _is_ready(request, client)
        return JSONResponse({"status": "ready" if able else "not ready"}, 200 if able else 503)

    for path in POSTS:
        app.add_api_route(path, post, methods=["POST"])
    for path in READS:
        app.add_api_route(path, get, methods=["GET"])
    app.add_api_route(MODELS, models, methods=["GET"])
    app.add_api_route(KAKAO, generation, methods=["POST"])
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/ready", ready, methods=["GET"])
    pages.add_page(app)
    app.add_exception_handler(Refused, _refuse)
    return Guard(app, front, access)


async def _refuse(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error_body(request.url.path, error), error.status, error.headers)


async def _answer(http: HttpRequest, asked: Awaitable[httpx.Response]) -> httpx.Response:
    """The engine's answer; Refused (503) if it cannot be reached. Cancelled when the client leaves."""
    try:
        answer: httpx.Response = await while_connected(http, asked)
    except httpx.HTTPError as error:
        raise Refused(f"the engine does not answer ({type(error).__name__})", status=503) from None
    return answer


async def _is_ready(http: HttpRequest, client: httpx.AsyncClient) -> bool:
    """Whether the engine says that it can answer."""
    try:
        return (await _answer(http, client.get("/health"))).status_code == 200
    except Refused:
        return False


async def _models(http: HttpRequest, client: httpx.AsyncClient) -> Response:
    """The engine's models; the page is told that completions name no tokens by id and bytes, and its tabs."""
    answer = await _answer(http, client.get(MODELS))
    if answer.status_code != 200:
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
    found = answer.json()
    told = {"logprobs": False, "uses": USES}
    return JSONResponse(found | {"data": [entry | told for entry in found["data"]]})


async def _pass_on(http: HttpRequest, client: httpx.AsyncClient, body: bytes) -> Response:
    """The engine's answer, piece by piece."""
    headers = {"content-type": "application/json"}
    request = client.build_request(http.method, http.url.path, content=body, headers=headers)
    answer = await _answer(http, client.send(request, stream=True))
    headers = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
    return StreamingResponse(
        answer.aiter_bytes(), answer.status_code, headers, background=BackgroundTask(answer.aclose)
    )


async def _kakao(http: HttpRequest, client: httpx.AsyncClient, front: Front) -> Response:
    """Kakao's generation by the engine's completions."""
    body = read(kakao.GenerationBody, await read_body(http, front))
    asked = body.model_dump() | {"model": front.model}
    answer = await _answer(http, client.post("/v1/completions", json=asked))
    found = answer.json()
    if answer.status_code != 200:
        raise Refused(str((found.get("error") or found).get("message", "the engine refused"))[:200])
    usage = found["usage"]
    generations = [{"text": choice["text"], "tokens": None} for choice in found["choices"]]
    if len(generations) == 1:
        generations[0]["tokens"] = usage["completion_tokens"]
    totals = {
        "prompt_tokens": usage["prompt_tokens"],
        "generated_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    return JSONResponse({"id": secrets.token_hex(16), "generations": generations, "usage": totals})
