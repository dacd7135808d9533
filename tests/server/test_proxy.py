"""The server in front of another engine, here a stand-in: connections, readiness, the list of models."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from kogpt.server import pages, routes
from kogpt.server.access import Access
from kogpt.server.proxy import KAKAO, POSTS, READS, USES, Front, make_proxy

N = 110  # more than the hundred connections that httpx has by itself
JSON = {"content-type": "application/json"}


class Engine(BaseHTTPRequestHandler):
    """Answers a completion once N of them are under way."""

    protocol_version = "HTTP/1.1"
    together = threading.Barrier(N)
    healthy = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        known = (self.path == "/health" and self.healthy) or self.path == "/v1/models"
        self._send(200 if known else 503, {"object": "list", "data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.together.wait(20)
        self._send(200, {"choices": []})

    def _send(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Crowded(ThreadingHTTPServer):
    request_queue_size = N
    daemon_threads = True


@pytest.fixture
def engine() -> Iterator[str]:
    Engine.together, Engine.healthy = threading.Barrier(N), True
    with Crowded(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def client_of(engine: str) -> httpx.AsyncClient:
    app = make_proxy(Front(engine, "m", lambda: True), Access())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


def test_readiness_may_be_asked_for_ever(engine: str) -> None:
    async def ask() -> list[int]:
        async with client_of(engine) as client:
            return [(await client.get("/ready")).status_code for _ in range(N)]

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == [200] * N
    Engine.healthy = False
    assert set(asyncio.run(asyncio.wait_for(ask(), 30))) == {503}


def test_an_engine_that_is_gone_is_not_ready() -> None:
    async def ask() -> list[int]:
        async with client_of("http://127.0.0.1:9") as client:
            return [(await client.get(path)).status_code for path in ("/ready", "/v1/models")]

    assert asyncio.run(ask()) == [503, 503]


def test_the_engine_and_not_the_front_says_how_many_answers_are_written_at_once(engine: str) -> None:
    async def ask() -> list[int]:
        async with client_of(engine) as client:
            asked = (client.post("/v1/completions", content=b"{}", headers=JSON) for _ in range(N))
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(asyncio.wait_for(ask(), 60)) == [200] * N


def test_the_page_is_told_that_no_token_is_named(engine: str) -> None:
    async def ask() -> httpx.Response:
        async with client_of(engine) as client:
            return await client.get("/v1/models")

    told = {"id": "m", "logprobs": False, "uses": []}
    assert asyncio.run(ask()).json() == {"object": "list", "data": [told]}


def test_the_page_offers_the_uses_whose_routes_are_there() -> None:
    """Each tab of the page asks /v1/ and its name; writing asks for completions."""
    page = (pages.FOLDER / "index.html").read_text(encoding="utf-8")
    tabs = set(re.findall(r'data-use="(\w+)"', page)) - {"write"}
    assert tabs == {tab for tab in tabs if f"/v1/{tab}" in routes.POSTS} and len(tabs) == 5
    assert {tab for tab in tabs if f"/v1/{tab}" in POSTS} == set(USES)


def scope_of(method: str, path: str) -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "scheme": "http", "http_version": "1.1", "root_path": ""}
    return scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in (*POSTS, KAKAO)),
        *(("GET", path) for path in (*READS, "/v1/models", "/ready")),
    ],
)
def test_the_engine_is_left_by_whom_its_client_leaves(method: str, path: str) -> None:
    """On every route that asks it, before it has answered: it need not write what nobody reads."""

    async def ask() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()  # the body and whatever comes, until the connection ends
            left.set()
            writer.close()

        messages = [{"type": "http.request", "body": b'{"prompt": "a", "max_tokens": 1}'}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asked.wait()
            return {"type": "http.disconnect"}

        async def send(_: object) -> None:
            pass

        async with await asyncio.start_server(engine, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            app: Any = make_proxy(Front(f"http://127.0.0.1:{port}", "m", lambda: True), Access())
            await asyncio.wait_for(app(scope_of(method, path), receive, send), 20)
            await asyncio.wait_for(left.wait(), 20)

    asyncio.run(ask())
