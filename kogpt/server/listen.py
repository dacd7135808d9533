"""uvicorn, with what it lacks: deadlines for slow clients, and a drain that answers while it ends."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from kogpt.errors import InputError, localized
from kogpt.server.access import is_local
from kogpt.server.limits import Limits
from kogpt.server.refusals import Refused
from kogpt.server.service import Service

logger = logging.getLogger(__name__)
LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host and a port, or a UNIX socket; with certificates, TLS."""

    host: str = "127.0.0.1"
    port: int = 8000
    socket: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.socket is not None or is_local(self.host)

    def check(self, has_key: bool) -> None:
        """Raise InputError for a public address without an API key."""
        if not self.loopback and not has_key:
            raise InputError(
                f"--host {self.host} can be reached from other machines: set an API key (--api-key-file or"
                " KOGPT_API_KEY), or listen on 127.0.0.1",
                f"--host {self.host}: 다른 컴퓨터에서 접속할 수 있는 주소입니다. API 키를 지정하거나"
                " (--api-key-file 또는 KOGPT_API_KEY) 127.0.0.1을 쓰세요",
            )

    def check_free(self) -> None:
        """Raise InputError where nothing can listen, and for certificates that cannot be used."""
        _check_certificate(self.certificate, self.key)
        if self.socket is not None:
            _check_socket(self.socket)
            return
        if self.port > LAST_PORT:
            raise self._closed(f"the last port is {LAST_PORT}", f"가장 큰 포트는 {LAST_PORT}")
        family = socket.AF_INET6 if _is_ipv6(self.host) else socket.AF_INET
        try:
            socket.create_server((self.host, self.port), family=family).close()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise self._closed(reason, reason) from None

    def _closed(self, en: str, ko: str) -> InputError:
        """Error for an address that nothing can listen on, with the reason in both languages."""
        return InputError(
            f"cannot listen on {self.host}:{self.port} ({en}): choose another --host or --port",
            f"{self.host}:{self.port} 주소를 열 수 없습니다 ({ko}). 다른 --host나 --port를 지정하세요",
        )

    def __str__(self) -> str:
        if self.socket is not None:
            return f"unix:{self.socket}"
        scheme = "https" if self.certificate else "http"
        host = f"[{self.host}]" if _is_ipv6(self.host) else self.host
        return f"{scheme}://{host}:{self.port}"


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raise InputError for files that TLS cannot be served with. The key may stand in the certificate's."""
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise InputError(f"{path} is no file", f"{path}: 파일이 없습니다")
    if certificate is None:
        if key is not None:
            raise InputError(
                "--tls-key needs its certificate: --tls-certificate PATH",
                "--tls-key에는 인증서가 필요합니다. --tls-certificate도 지정하세요",
            )
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"TLS cannot use {certificate} with {key or 'no key'} ({reason}):"
            " give a certificate and its own private key as PEM",
            f"{certificate} 인증서와 {key or '지정하지 않은'} 키로는 TLS를 쓸 수 없습니다 ({reason})."
            " 짝이 맞는 PEM 인증서와 개인 키를 지정하세요",
        ) from None


def _check_socket(path: Path) -> None:
    """Raise InputError where a UNIX socket cannot be made; one that nobody listens on is replaced."""
    reason = localized("another program listens there", "다른 프로그램이 쓰고 있습니다")
    try:
        if path.exists() and not path.is_socket():
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not _listens(path):
            with socket.socket(socket.AF_UNIX) as probe:
                path.unlink(missing_ok=True)
                probe.bind(str(path))
                path.unlink()
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise InputError(
        f"cannot listen on {path} ({reason}): name another path with --uds",
        f"{path} 소켓을 열 수 없습니다 ({reason}). --uds로 다른 경로를 지정하세요",
    )


def _listens(path: Path) -> bool:
    """Whether somebody answers at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def run(app: ASGIApp, service: Service, address: Address, drain_seconds: float) -> None:
    """Serve until a signal comes; what is being written then may take `drain_seconds` more."""
    Server(_config(app, service.limits, address), service, drain_seconds).run()


def run_front(app: ASGIApp, address: Address, limits: Limits, goes_on: Callable[[], bool]) -> None:
    """Serve in front of another engine until a signal comes, or until `goes_on` says no."""

    class Front(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn's own raises the signal again after the end, before the caller can end the engine.
            self.force_exit = self.should_exit
            self.should_exit = True

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or not goes_on()

    Front(_config(app, limits, address)).run()


def _config(app: ASGIApp, limits: Limits, address: Address) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        uds=None if address.socket is None else str(address.socket),
        ssl_certfile=None if address.certificate is None else str(address.certificate),
        ssl_keyfile=None if address.key is None else str(address.key),
        http=with_deadlines(limits),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=32 * 1024,
    )


class Server(uvicorn.Server):
    """A server that goes on answering while it drains."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._deadline is not None:
            self._abort()  # so that streams end as such, where there is the time
            self.force_exit = self.should_exit = True
            return
        logger.warning("%s: finishing %d answers", signal.Signals(sig).name, self._service.worker.n_open)
        self._service.draining = True
        self._deadline = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        worker = self._service.worker
        if worker.dead is not None:
            self.should_exit = True
        if self._deadline is not None:
            if time.monotonic() >= self._deadline:
                self._abort()
                self.should_exit = True
            elif not worker.tickets:
                self.should_exit = True
        return await super().on_tick(counter)

    def _abort(self) -> None:
        for ticket in list(self._service.worker.tickets):
            ticket.abort()


def refuse(protocol: Any, refused: Refused) -> None:
    """End a connection whose request reaches no route: with a refusal, unless an answer is under way."""
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete or not cycle.response_started:
        body = json.dumps(refused.openai()).encode()
        status = HTTPStatus(refused.status)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        protocol.transport.write(head.encode() + body)
    protocol.transport.close()


def with_deadlines(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn, which drops clients that send no or endless headers, or do not read."""

    class Punctual(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen by uvicorn at run time
        header_timer: asyncio.TimerHandle | None = None
        stall_timer: asyncio.TimerHandle | None = None
        n_received = 0  # bytes of headers that are not complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Writing pauses as soon as the kernel takes no more; a limit of 0 pauses TLS where nothing waits.
            transport.set_write_buffer_limits(high=1, low=0)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self.cycle is not None and self.cycle.response_complete:
                self._expect()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel()
                return
            self.n_received += len(data)
            if self.n_received > limits.header_bytes and not self.transport.is_closing():
                message = f"the headers are larger than {limits.header_bytes} bytes"
                refuse(self, Refused(message, status=431, code="headers"))

        def send_400_response(self, msg: str) -> None:
            refuse(self, Refused("the request is no HTTP/1.1 that can be read", code="http"))

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            self._cancel_stall()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stall_timer = self.loop.call_later(limits.stall_seconds, self._reset)

        def resume_writing(self) -> None:
            self._cancel_stall()
            super().resume_writing()

        def _reset(self) -> None:
            """Drop the connection at once; closing it would wait for a client that does not read."""
            if (own := self.transport.get_extra_info("socket")) is not None:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

        def _cancel_stall(self) -> None:
            if self.stall_timer is not None:
                self.stall_timer.cancel()
                self.stall_timer = None

        def _expect(self) -> None:
            if self.header_timer is None:
                self.n_received = 0
                self.header_timer = self.loop.call_later(limits.header_seconds, self._evict)

        def _cancel(self) -> None:
            if self.header_timer is not None:
                self.header_timer.cancel()
                self.header_timer = None

        def _evict(self) -> None:
            self.header_timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Punctual
