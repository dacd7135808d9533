"""Who may ask: host, origin, key and content type are checked before a route sees the request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kogpt.server import pages
from kogpt.server.limits import Host
from kogpt.server.refusals import Refused
from kogpt.server.routes import error_body
from kogpt.server.streams import DIRECT

# Routes that need no key: who watches the process has none, and the page is where a person gives one.
OPEN = frozenset(("/health", *pages.PATHS))
logger = logging.getLogger("kogpt.access")


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server."""

    keys: Sequence[str] = ()  # empty: no key is asked for
    loopback: bool = True  # bound to this machine alone: other host names are DNS rebinding
    hosts: Sequence[str] = ()  # further host names that the server answers to; empty: any, unless loopback
    origins: Sequence[str] = ()  # pages of other origins that may ask (CORS)
    digests: tuple[bytes, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", tuple(_digest(key) for key in self.keys))

    def check_host(self, header: str) -> None:
        """403 for a host name that this server does not have (DNS rebinding)."""
        name = (_split(f"//{header}").hostname or "").rstrip(".").lower()
        if name in self.hosts or (not self.hosts and not self.loopback) or is_local(name):
            return
        raise Refused(
            "this server does not answer to that host name: see --allowed-host", status=403, code="host"
        )

    def check_origin(self, origin: str | None, host: str) -> None:
        """403 for a page of another origin, unless it is allowed."""
        if origin is None or origin in self.origins:
            return
        if _split(origin).netloc.lower() == host.lower() and origin != "null":
            return
        raise Refused("pages of that origin may not ask: see --cors-origin", status=403, code="origin")

    def client(self, headers: Mapping[str, str]) -> str:
        """Who asks, as a name for logs and caches; 401 without a key that fits."""
        if not self.digests:
            return ""
        offered = _digest(offered_key(headers))
        found = [hmac.compare_digest(offered, digest) for digest in self.digests]  # every one, in equal time
        if not any(found):
            challenge = {"WWW-Authenticate": 'Bearer realm="KoGPT"'}
            raise Refused(
                "an API key is needed: Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers=challenge,
            )
        return f"key-{found.index(True) + 1}"


def _split(url: str) -> SplitResult:
    """The parts of a URL; all empty where it is none, such as one with half of a pair of brackets."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def is_local(name: str) -> bool:
    """Whether a host name can only mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def offered_key(headers: Mapping[str, str]) -> str:
    """The key of a request: Bearer, Kakao's KakaoAK, Basic (its password, for browsers), or X-API-Key."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "kakaoak"):
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key", "")


class Guard:
    """ASGI middleware: refuses by the rules of Access, and logs one line a request."""

    def __init__(self, app: ASGIApp, host: Host, access: Access) -> None:
        self.app = app
        self.host = host
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        log = _LogLine(scope, send)
        scope[DIRECT] = send
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        log.extra = self._cors(headers)  # of a refusal too: without them a browser hides its status
        try:
            self._check(scope, headers)
        except Refused as refused:
            await answer(refused, scope, log.send)
        else:
            if scope["method"] == "OPTIONS" and headers.get("origin") in self.access.origins:
                await _answer(log.send, 204, b"", ())
            else:
                await self.app(scope, receive, log.send)
        finally:
            log.write()

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        limits = self.host.limits
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > limits.header_bytes or len(scope["headers"]) > limits.headers:
            said = f"{len(scope['headers'])} headers of {size} bytes: the limits are {limits.headers}"
            raise Refused(f"{said} and {limits.header_bytes}", status=431, code="headers")
        host = headers.get("host", "")
        self.access.check_host(host)
        self.access.check_origin(headers.get("origin"), host)
        if scope["method"] == "OPTIONS":
            return
        if scope["path"] not in OPEN:
            scope["kogpt.client"] = self.access.client(headers)
        if scope["method"] == "POST":
            if self.host.draining:
                raise Refused("the server is shutting down", status=503, headers={"Retry-After": "5"})
            _check_content(headers)

    def _cors(self, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or origin not in self.access.origins:
            return []
        # A preflight names the headers that it will send; OpenAI's client for browsers has some of its own.
        wanted = headers.get("access-control-request-headers")
        allowed = ", ".join(["authorization, content-type", *([wanted] if wanted else [])])
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", allowed.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"vary", b"Origin"),
        ]


def _check_content(headers: Mapping[str, str]) -> None:
    """415 for a body that is not JSON in plain UTF-8."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "application/json":
        raise Refused("the body must be application/json", status=415, code="content_type")
    name, _, charset = parameters.partition("=")
    if name.strip() == "charset" and charset.strip(' "') not in ("utf-8", "utf8"):
        raise Refused("the body must be UTF-8: leave the charset out", status=415, code="content_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("the body must not be compressed", status=415, code="content_encoding")


class _LogLine:
    """The one log line of a request; it never holds what the client wrote."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._status = 0
        self.extra: list[tuple[bytes, bytes]] = []

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self.extra, *SAFE_HEADERS]}
        await self._send(message)

    def write(self) -> None:
        """Log method, route, status, seconds and client."""
        route = self._scope.get("route")
        entry = {
            "method": self._scope["method"],
            "route": getattr(route, "path", "-"),
            "status": self._status,
            "seconds": round(time.perf_counter() - self._began, 4),
            "client": self._scope.get("kogpt.client", ""),
        }
        logger.info("%s", json.dumps(entry))


SAFE_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


async def answer(refused: Refused, scope: Scope, send: Send) -> None:
    """Send a refusal in the shape of the route's dialect."""
    body = json.dumps(error_body(scope["path"], refused), ensure_ascii=False).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    await _answer(send, refused.status, body, [(b"content-type", b"application/json"), *headers])


async def _answer(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
