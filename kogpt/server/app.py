"""The routes of the server, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from kogpt import __version__
from kogpt.errors import InputError, KoGPTError
from kogpt.generation import KoGPT
from kogpt.server import listing
from kogpt.server.access import Access, Guard
from kogpt.server.bodies import read_body
from kogpt.server.limits import Limits
from kogpt.server.metrics import Metrics
from kogpt.server.pages import add_page
from kogpt.server.refusals import Refused, failure
from kogpt.server.routes import POSTS, Handler, error_body
from kogpt.server.service import Service
from kogpt.server.templates import ChatTemplate, find_template
from kogpt.server.worker import Worker


def make_service(model: KoGPT, limits: Limits, adapters: Mapping[str, KoGPT] | None = None) -> Service:
    """The models behind a worker that is not started yet. adapters: `model` with each, by name.

    Raises InputError for an adapter with the model's own name, CheckpointError for a bad chat template.
    """
    name = Path(model.name).name or "kogpt"  # of a folder its last part, so that no path is told
    if name in (adapters or {}):
        raise InputError(
            f"an adapter has the model's own name {name!r}: give another, --adapter NAME=DIR",
            f"어댑터의 이름 {name!r}: 모델의 이름과 같습니다. --adapter 이름=폴더로 다른 이름을 지정하세요",
        )
    worker = Worker(model.session, model.engine.max_rows + limits.waiting)
    models = {name: model} | dict(adapters or {})
    return Service(models, worker, Metrics(worker), limits, _template(model))


def _template(model: KoGPT) -> ChatTemplate | None:
    source = None if model.folder is None else find_template(model.folder)
    if source is None:
        return None
    tokenizer = model.tokenizer
    return ChatTemplate(source, tokenizer.special, tokenizer.roles)


def make_app(service: Service, access: Access) -> ASGIApp:
    """The whole server as an ASGI application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop)
        service.aside.close()
        if service.template is not None:
            service.template.close()

    app = FastAPI(title="KoGPT", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False  # a redirect would name the host that the client has claimed
    for path, route in POSTS.items():
        answer = _route(service, route.handler)
        app.add_api_route(path, answer, methods=["POST"], openapi_extra=_schema(route.body))
    _add_reading_routes(app, service)
    add_page(app)
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(404, _refuse)
    app.add_exception_handler(405, _refuse)
    app.add_exception_handler(Exception, _fail)
    return Guard(app, service, access)


def _add_reading_routes(app: FastAPI, service: Service) -> None:
    async def health() -> Response:
        alive = service.worker.dead is None
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def ready() -> Response:
        able = service.worker.dead is None and not service.draining
        return JSONResponse({"status": "ready" if able else "not ready"}, 200 if able else 503)

    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.render(), media_type="text/plain; version=0.0.4")

    async def models() -> Response:
        return JSONResponse(listing.models(service))

    async def model(name: str) -> Response:
        return JSONResponse(listing.model(service, name))

    routes = {"/health": health, "/ready": ready, "/metrics": metrics, "/v1/models": models}
    for path, route in (routes | {"/v1/models/{name:path}": model}).items():
        app.add_api_route(path, route, methods=["GET"])


def _route(service: Service, handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def route(request: HttpRequest) -> Response:
        document = await read_body(request, service)
        return await handler(request, service, document)

    return route


def _schema(body: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def _refuse(request: HttpRequest, error: Exception) -> Response:
    if isinstance(error, Refused):
        refused = error
    else:
        status = getattr(error, "status_code", 404)
        texts = {404: "there is no such route", 405: "this route does not take that method"}
        refused = Refused(texts.get(status, "the request is refused"), status=status)
    return JSONResponse(error_body(request.url.path, refused), refused.status, headers=refused.headers)


async def _fail(request: HttpRequest, error: Exception) -> Response:
    return await _refuse(request, failure(error if isinstance(error, KoGPTError) else RuntimeError()))
