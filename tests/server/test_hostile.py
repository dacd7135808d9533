"""Every field of every route with every bad value: a refusal in the route's shape, and never a failure."""

from __future__ import annotations

import json
import random
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
    "/v1/systemone": {"state": "가", "questions": {"q": {"type": "noul", "instructions": "나?"}}},
    "/v1/messages": {"messages": [{"role": "user", "content": "가"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "가"}]},
    "/tokenize": {"prompt": "가"},
    "/detokenize": {"tokens": [5, 6]},
    "/v1/inference/kogpt/generation": {"prompt": "가", "max_tokens": 2},
}
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
        assert client.post(path, content=json.dumps(GOOD[path])).status_code == 200
        for body in chosen[:40]:
            response = client.post(path, content=body)
            check(path, response)
            statuses.add(response.status_code)
        assert client.post(path, content=json.dumps(GOOD[path])).status_code == 200
    assert 400 in statuses


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


def test_every_route_has_an_example() -> None:
    assert set(GOOD) == set(POSTS)
