"""The page at /: files of the package. They are the same in every installation and hold no secret."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response

from kogpt.examples import EXAMPLES

FOLDER = Path(__file__).with_name("page")
FILES = {f"/{path.name}": path for path in sorted(FOLDER.iterdir())}
FILES["/"] = FILES.pop("/index.html")
EXAMPLES_PATH = "/examples.json"
PATHS = (*FILES, EXAMPLES_PATH)
HEADERS = {  # the page runs its own scripts and talks to its own server; nothing comes from outside
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add a route for each file, and one for the examples."""
    for route, path in FILES.items():
        app.add_api_route(route, _sender(path), methods=["GET"], include_in_schema=False)
    app.add_api_route(EXAMPLES_PATH, _examples, methods=["GET"], include_in_schema=False)


def _sender(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path, headers=HEADERS)

    return send


async def _examples() -> Response:
    return JSONResponse([asdict(example) for example in EXAMPLES], headers=HEADERS)
