"""A client of raw sockets on asyncio: fast enough for a thousand streams, and able to misbehave."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"


@dataclass(slots=True)
class Reply:
    """What came back."""

    status: int = 0
    text: str = ""
    finish: str | None = None
    done: bool = False  # the stream ended with [DONE]
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # to the status
    first: float | None = None  # seconds to the first text
    gaps: list[float] = field(default_factory=list)  # seconds between events after it


def request(body: bytes, path: str = "/v1/completions", length: int | None = None) -> bytes:
    """The bytes of a POST; `length`: what Content-Length claims."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body


async def post(port: int, body: Mapping[str, Any]) -> Reply:
    """One completion, streamed or whole, to its end."""
    reply = Reply()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request(json.dumps(body).encode()))
        status = await reader.readline()
        reply.status, reply.seconds = int(status.split()[1]), time.perf_counter() - began
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            reply.headers[name.lower()] = value.strip()
        if "content-length" in reply.headers:
            _take_whole(reply, json.loads(await reader.readexactly(int(reply.headers["content-length"]))))
        else:
            await _take_events(reply, reader, began)
    finally:
        writer.close()
    return reply


def _take_whole(reply: Reply, answer: Mapping[str, Any]) -> None:
    if "error" in answer:
        reply.error = answer["error"]["message"]
    else:
        reply.text, reply.finish = answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]
        reply.done = True


async def _take_events(reply: Reply, reader: asyncio.StreamReader, began: float) -> None:
    """Server-sent events; the frames of a chunked body lie between the lines."""
    last = began
    while not reply.done and (line := await reader.readline()):
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            reply.done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            reply.error = event["error"]["message"]
            break
        now = time.perf_counter()
        for choice in event["choices"]:
            reply.finish = choice["finish_reason"] or reply.finish
            if choice["text"] and reply.first is None:
                reply.first = now - began
            elif reply.first is not None:
                reply.gaps.append(now - last)
            reply.text += choice["text"]
        last = now


async def leave(port: int, body: Mapping[str, Any], rng: random.Random) -> None:
    """Ask, and be gone at some moment: before all is sent, before anything or after something has come."""
    reader, writer = await asyncio.open_connection(HOST, port)
    raw = request(json.dumps(body).encode())
    writer.write(raw[: rng.choice((len(raw), len(raw), len(raw), rng.randrange(len(raw))))])
    try:
        async with asyncio.timeout(rng.choice((0.0, 0.01, 0.05, 0.2))):
            await reader.read(rng.choice((1, 200, 2000)))
    except TimeoutError:
        pass
    if rng.random() < 0.5:  # a reset instead of an orderly end
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if rng.random() < 0.5 else writer.close()


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
