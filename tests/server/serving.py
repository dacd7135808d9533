"""A server in this process, on a free port, for the tests of kogpt/server."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from kogpt.generation import KoGPT
from kogpt.server.access import Access
from kogpt.server.app import make_app, make_service
from kogpt.server.limits import Limits
from kogpt.server.listen import with_deadlines
from kogpt.server.service import Service


@dataclass(frozen=True, slots=True)
class Running:
    """Where a server listens, and the service behind it."""

    url: str
    port: int
    service: Service


@contextmanager
def serving(
    model: KoGPT,
    limits: Limits | None = None,
    access: Access | None = None,
    adapters: Mapping[str, KoGPT] | None = None,
    send_buffer: int | None = None,
    certificate: Path | None = None,
) -> Iterator[Running]:
    """A server that answers within, and is gone afterwards.

    send_buffer: bytes that the kernel holds for a client who does not read; its own choice if None.
    certificate: with its key, for TLS.
    """
    limits = limits or Limits()
    service = make_service(model, limits, adapters)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(service, access or Access()),
        log_config=None,
        access_log=False,
        ws="none",
        http=with_deadlines(limits),
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        scheme = "http" if certificate is None else "https"
        yield Running(f"{scheme}://127.0.0.1:{port}", port, service)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
