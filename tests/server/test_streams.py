"""Events as text, whatever is written in them, and what is counted on the way."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from serving import Running

from kogpt.request import FinishReason
from kogpt.server.metrics import BETWEEN, Times
from kogpt.server.streams import quoted, to_json
from kogpt.server.worker import EVENTS, Pacer, Ticket
from kogpt.session import Piece

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


def test_many_quick_streams_share_a_budget_of_events() -> None:
    async def steps() -> None:
        pacer, tickets = Pacer(), [Ticket([], 1) for _ in range(20)]

        def step(finish: FinishReason | None = None) -> list[bool]:
            """Whether each ticket is awake after a piece for all of them."""
            event: Any = SimpleNamespace()
            piece, end = Piece("가", None, event), Piece("", finish, event)
            pacer.hand_out({ticket: [(0, piece)] for ticket in tickets} | {tickets[0]: [(0, end)]})
            awake = [ticket.woken.is_set() for ticket in tickets]
            for ticket in tickets:
                ticket.woken.clear()
            return awake

        assert all(step())  # the first text of all
        assert all(step())  # nobody was woken for a while
        assert not any(step())
        assert step("stop") == [True] + [False] * 19  # an end never waits
        await asyncio.sleep(3 * len(tickets) / EVENTS)  # no further step comes
        assert [ticket.woken.is_set() for ticket in tickets] == [False] + [True] * 19
        assert all(len(ticket.pieces) == 4 for ticket in tickets)

    asyncio.run(steps())


def test_a_ticket_that_is_woken_for_nothing_sleeps_on() -> None:
    async def main() -> None:
        ticket = Ticket([], 1)
        ticket.woken.set()
        waiting = asyncio.ensure_future(anext(ticket.batches()))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(main())
