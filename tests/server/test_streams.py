"""Events as text, whatever is written in them, and what is counted on the way."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from serving import Running

from kogpt.server.metrics import BETWEEN, Times
from kogpt.server.streams import quoted, to_json

TURNS = [{"role": "user", "content": "가"}]
# Characters that str.splitlines, and so some clients of HTTP, take for the end of a line.
LINES = 'a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r\n"\\가🌸'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "가"}),
        ("/v1/completions", {"prompt": "가", "logprobs": 1}),
        ("/v1/chat/completions", {"messages": TURNS}),
        ("/v1/responses", {"input": "가"}),
    ],
)
def test_no_character_ends_a_line_of_a_stream(server: Running, path: str, body: dict[str, Any]) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    wanted = body | {"choice": [LINES], "stream": True, limit: 90}
    text = ""
    with httpx.stream("POST", server.url + path, json=wanted, timeout=60) as response:
        for line in response.iter_lines():
            assert not line or line.startswith(("data: ", "event: ")), line
            if line.startswith("data: {"):
                text += written(json.loads(line[6:]))
    assert text == LINES


def written(event: dict[str, Any]) -> str:
    """The text that an event adds."""
    if event.get("type"):
        return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""
    choice = event["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))


def test_a_quoted_text_is_the_json_of_the_text() -> None:
    for text in ("", "가나 다", LINES, *map(chr, range(0x300)), "\ufeff\u200b\ud7a3"):
        assert json.loads(quoted(text)) == text == json.loads(to_json({"a": text}))["a"]
        assert (
            len(f"data: {quoted(text)}".splitlines())
            == len(f"data: {to_json({'a': text})}".splitlines())
            == 1
        )


def test_times_are_those_of_prometheus_own_histogram() -> None:
    rng, ours, theirs = random.Random(0), CollectorRegistry(), CollectorRegistry()
    times = Times("kogpt:x_seconds", "text", BETWEEN)
    ours.register(times)
    twin = Histogram("kogpt:x_seconds", "text", registry=theirs, buckets=BETWEEN)
    for _ in range(500):
        seconds = rng.choice((rng.random(), 100 * rng.random(), *BETWEEN))
        times.observe(seconds)
        twin.observe(seconds)
    lines = generate_latest(theirs).decode().splitlines()
    assert generate_latest(ours).decode().splitlines() == [line for line in lines if "_created" not in line]
