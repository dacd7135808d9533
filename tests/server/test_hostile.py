"""Every field of every route with every bad value: a refusal in the route's shape, and never a failure."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from serving import Running

from kogpt.server.routes import POSTS

# The smallest body of each route that is served.
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "가", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "가"}], "max_tokens": 2},
    "/v1/responses": {"input": "가", "max_output_tokens": 2},
    "/v1/embeddings": {"input": "가"},
    "/v1/rerank": {"query": "가", "documents": ["나", {"text": "다"}]},
    "/v1/score": {"text_1": "가", "text_2": ["나", "다"]},
    "/v1/search": {"query": "가"},
    "/v1/classify": {"input": "가", "labels": ["나", "다"]},
    "/v1/summarize": {"input": "가나. 다라."},
    "/v1/ask": {"question": "가", "input": "가나. 다라."},
    "/v1/filter": {"input": "가"},
    "/v1/systemone": {"state": "가", "questions": {"q": {"type": "noul", "instructions": "나?"}}},
    "/v1/messages": {"messages": [{"role": "user", "content": "가"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "가"}]},
    "/tokenize": {"prompt": "가"},
    "/detokenize": {"tokens": [5, 6]},
    "/v1/inference/kogpt/generation": {"prompt": "가", "max_tokens": 2},
}
NO_INDEX = {"/v1/search": 404}  # status without an index; the other routes answer 200
MARKER = "비밀번호4711"
# JSON as it is sent: Python's json would not write some of it.
BAD = [
    *("null", "true", "-1", "0", "1.5", "1e308", "-1e308", "1e-45", "-0.0", str(10**30), '""', '"\\u0000"'),
    *("[]", "{}", "[[]]", "[null]", '[""]', "[1e308]", '{"":null}', '{"type":null}', "[[[[[[]]]]]]"),
    *('"\\ud83d"', '["\\udc00"]', '{"\\ud83d":1}', "NaN", "[Infinity]", "1e999", '{"a":1,"a":2}'),
    *(json.dumps([MARKER] * 70), json.dumps({MARKER + str(i): MARKER for i in range(1100)})),
    *(json.dumps(MARKER * 300), json.dumps("\ufffe\u202e" + "e\u0301" * 50), str([-1]), str([10**9])),
]


def bodies(path: str) -> Iterator[str]:
    """A good body with one field after another replaced, removed, or added; at every depth."""
    good = GOOD[path]
    fields = POSTS[path].body.model_fields
    names = [field.alias or name for name, field in fields.items()]
    for name in names:
        for bad in BAD:
            others = {key: value for key, value in good.items() if key != name}
            yield json.dumps(others)[:-1] + ("," if others else "") + f'"{name}":{bad}}}'
    for inner, closing in (('{"messages":[{"role":"user","content":', "}]}"), ('{"questions":{"q":', "}}")):
        for bad in BAD:
            yield inner + bad + closing


def check(path: str, response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 413), (response.status_code, response.text)
    if response.status_code == 200:
        return
    document = response.json()
    assert set(document) in ({"error"}, {"code", "msg"}, {"type", "error"}), document
    assert response.text.count(MARKER) * len(MARKER) <= 200, response.text


@pytest.mark.parametrize("path", POSTS)
def test_no_field_takes_the_server_down(server: Running, path: str) -> None:
    chosen = list(bodies(path))
    random.Random(path).shuffle(chosen)
    statuses: set[int] = set()
    with httpx.Client(
        base_url=server.url, headers={"content-type": "application/json"}, timeout=60
    ) as client:
        assert client.post(path, content=json.dumps(GOOD[path])).status_code == NO_INDEX.get(path, 200)
        for body in chosen[:25]:
            response = client.post(path, content=body)
            check(path, response)
            statuses.add(response.status_code)
        assert client.post(path, content=json.dumps(GOOD[path])).status_code == NO_INDEX.get(path, 200)
    assert 400 in statuses


def integer_fields(path: str) -> Iterator[str]:
    """Fields of a body that take a whole number, by its JSON Schema."""
    schema = POSTS[path].body.model_json_schema()
    for name, field in schema["properties"].items():
        if "integer" in json.dumps([field, schema.get("$defs") if "$ref" in json.dumps(field) else None]):
            yield name


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 2**70])
def test_no_whole_number_is_too_large_to_be_answered(server: Running, number: int) -> None:
    """Beyond int32, int64 and uint64: alone, in a list, and as the key of a mapping."""
    n_asked = 0
    for path in POSTS:
        for name in integer_fields(path):
            for value in (number, [number], [[number]]):
                response = httpx.post(server.url + path, json=GOOD[path] | {name: value}, timeout=60)
                check(path, response)
                n_asked += 1
    biased = GOOD["/v1/completions"] | {"logit_bias": {str(number): 1}}
    assert httpx.post(server.url + "/v1/completions", json=biased).status_code == 400
    assert n_asked > 30


ACCEPTED: Mapping[str, dict[str, Any]] = {
    "a NUL": {"prompt": "가\x00나"},
    "no character": {"prompt": "가\ufffe나"},
    "marks that turn the text": {"prompt": "\u202e가나\u202c"},
    "jamo": {"prompt": "한글"},
    "almost greedy": {"prompt": "가", "temperature": 1e-45},
    "minus zero": {"prompt": "가", "temperature": -0.0},
    "a seed below zero": {"prompt": "가", "seed": -1},
    "white space as a stop": {"prompt": "가", "stop": [" ", "\n"]},
    "null for everything": {"prompt": "가", "temperature": None, "n": None, "stop": None, "max_tokens": None},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_but_clear_requests_are_served(server: Running, name: str) -> None:
    response = httpx.post(server.url + "/v1/completions", json={"max_tokens": 2} | ACCEPTED[name], timeout=60)
    assert response.status_code == 200, response.text


BODY = b'{"prompt":"a","max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
LENGTH = b"Content-Length: 29\r\nConnection: close\r\n\r\n" + BODY
# Requests as bytes, and the status that each gets; none of them may reach a route.
RAW: dict[str, tuple[bytes, int]] = {
    "two ends": (POST + b"Transfer-Encoding: chunked\r\n" + LENGTH, 400),
    "two lengths": (POST + b"Content-Length: 3\r\n" + LENGTH, 400),
    "a length below zero": (POST + b"Content-Length: -5\r\n\r\n" + BODY, 400),
    "a length with a sign": (POST + b"Content-Length: +29\r\n\r\n" + BODY, 400),
    "an unknown encoding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY, 400),
    "a chunk of no size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY, 400),
    "no host": (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", 403),
    "two hosts": (GET + b"Host: evil.test\r\nConnection: close\r\n\r\n", 403),
    "half an address": (b"GET /v1/models HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n", 403),
    "an origin of half an address": (GET + b"Origin: http://[::1\r\nConnection: close\r\n\r\n", 403),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a NUL in a header": (GET + b"X: a\x00b\r\n\r\n", 400),
    "bytes in the path": (b"GET /\xed\xa0\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a way out": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
    "half a character": (GET.replace(b"models", b"models/%ED%A0%80") + b"Connection: close\r\n\r\n", 404),
    "a large header": (GET + b"X: " + b"a" * 40_000 + b"\r\nConnection: close\r\n\r\n", 431),
    "many headers": (GET + b"X: a\r\n" * 200 + b"Connection: close\r\n\r\n", 431),
    "headers without end": (GET + b"X: " + b"a" * 400_000, 431),
    "compressed": (POST + b"Content-Encoding: gzip\r\n" + LENGTH, 415),
    "another charset": (POST.replace(b"json", b"json; charset=UTF-16") + LENGTH, 415),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_clear_request_are_refused(server: Running, name: str) -> None:
    raw, status = RAW[name]
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(raw)
        with contextlib.suppress(ConnectionResetError):  # it does not read on
            while part := client.recv(65536):
                received += part
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert httpx.get(server.url + "/health").status_code == 200


def test_a_charset_of_utf8_is_no_harm(server: Running) -> None:
    headers = {"content-type": 'application/json; charset="UTF-8"', "content-encoding": "identity"}
    assert httpx.post(server.url + "/v1/completions", content=BODY, headers=headers).status_code == 200


def test_every_route_has_an_example() -> None:
    assert set(GOOD) == set(POSTS)


def lists_that_report_every_entry(schema: Any) -> Iterator[Any]:
    """Lists of a pydantic schema that go on after a wrong entry: a million of them cost a gigabyte."""
    if isinstance(schema, dict):
        if schema.get("type") == "list" and not schema.get("fail_fast") and "items_schema" in schema:
            yield schema
        schema = list(schema.values())
    for part in schema if isinstance(schema, list | tuple) else ():
        yield from lists_that_report_every_entry(part)


@pytest.mark.parametrize("path", POSTS)
def test_a_list_is_left_at_its_first_wrong_entry(path: str) -> None:
    assert list(lists_that_report_every_entry(POSTS[path].body.__pydantic_core_schema__)) == []


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"FOO /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 70_000, 431),
        (b"POST /v1/completions/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
         b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", 404),
    ],
)  # fmt: skip
def test_what_reaches_no_route_is_refused_in_openais_shape(server: Running, raw: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(raw)
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"application/json" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
