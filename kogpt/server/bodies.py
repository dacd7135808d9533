"""Bytes of a body -> a JSON object, strictly: what two parsers could read differently is refused.

RFC 8259 leaves open what lone surrogates, NaN and repeated keys mean; the refusals here close that.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from kogpt.server.limits import Host
from kogpt.server.refusals import Refused

# A string, or one that never ends: what begins like one is never tried again from a later quotation mark.
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKET = re.compile(r"[\[\]{}]")
SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DIGITS = 400  # of a number; float64 needs at most 309 before the point
MAX_KEYS = 4096  # of an object: each that is wrong costs a complaint
SHOWN = 60  # characters of a name in a complaint
LARGE = 1 << 16  # bytes of a body that is parsed beside the event loop, for that takes milliseconds


async def read_body(request: HttpRequest, host: Host) -> dict[str, Any]:
    """The JSON object of a body, within the limits of size, time and memory."""
    limits = host.limits
    parts: list[bytes] = []
    size = 0
    if int(request.headers.get("content-length") or 0) > limits.body_bytes:
        raise Refused(f"the body is larger than {limits.body_bytes} bytes", status=413)
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                host.buffered += len(part)
                if size > limits.body_bytes:
                    raise Refused(f"the body is larger than {limits.body_bytes} bytes", status=413)
                if host.buffered > limits.buffered_bytes:
                    raise Refused("too many bodies at once: try again later", status=503)
                parts.append(part)
        raw = b"".join(parts)
        if size > LARGE:
            return await asyncio.to_thread(parse_object, raw, limits.json_depth)
        return parse_object(raw, limits.json_depth)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise Refused(message, status=408, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refused("the client left", status=408) from None
    finally:
        host.buffered -= size


def parse_object(raw: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object of a body; Refused (400) says what is wrong and where."""
    text = _decode(raw)
    _check_depth(text, max_depth)
    try:
        document = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise Refused(message, code="invalid_json") from None
    if not isinstance(document, dict):
        raise Refused("the body must be a JSON object", code="invalid_json")
    _check_surrogates(document, "")
    return document


def _decode(raw: bytes) -> str:
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte {error.start} cannot be read"
        raise Refused(message, code="invalid_encoding") from None


def _check_depth(text: str, limit: int) -> None:
    depth = 0
    for bracket in BRACKET.findall(STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > limit:
            raise Refused(f"the body is nested deeper than {limit} levels", code="invalid_json")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise Refused(f"an object has {len(pairs)} keys, the limit is {MAX_KEYS}", code="invalid_json")
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise Refused(f"the key {twice[:SHOWN]!r} is there twice", twice[:SHOWN], code="invalid_json")
    return found


def _constant(name: str) -> float:
    raise Refused(f"{name} is no JSON number", code="invalid_json")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"the number {text[:40]} is too large", code="invalid_json")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Refused(f"a number of {len(text)} digits is too large", code="invalid_json")
    return int(text)


def _check_surrogates(value: object, where: str) -> None:
    """Half a character (an escape such as \\ud83d alone) cannot be written as UTF-8 again.

    where: the place of the value; short, for it is written for every value.
    """
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise _half(where)
    elif isinstance(value, dict):
        if any(map(SURROGATE.search, value)):
            raise _half("a key")
        for key, item in value.items():
            _check_surrogates(item, f"{where}.{key[:SHOWN]}".lstrip(".")[:SHOWN])
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, str | dict | list):
                _check_surrogates(item, f"{where}[{i}]"[:SHOWN])


def _half(where: str) -> Refused:
    return Refused(f"{where} has half a character (a lone surrogate)", where, code="invalid_encoding")
