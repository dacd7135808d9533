"""Every route while the server goes away, and when the engine's thread dies: 503, or an event says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from serving import Running, serving
from test_hostile import GOOD

from kogpt import KoGPT
from kogpt.session import Session

# Routes whose answers come from the engine, whole.
WHOLE = [path for path in GOOD if path not in ("/v1/search", "/v1/summarize", "/v1/filter")]
WHOLE = [path for path in WHOLE if "tokenize" not in path and "count_tokens" not in path]
STREAMED = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"]


@dataclass(slots=True)
class Gate:
    """Where every step of the engine waits, and whether it then fails."""

    opened: threading.Event = field(default_factory=threading.Event)
    fails: bool = False


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, real = Gate(), Session.step

    def step(self: Session) -> Any:
        made.opened.wait(30)
        if made.fails:
            raise MemoryError("no step")
        return real(self)

    monkeypatch.setattr(Session, "step", step)
    yield made
    made.opened.set()


@contextmanager
def asked(server: Running) -> Iterator[dict[str, Future[httpx.Response]]]:
    """A request to each route, whole and streamed, that waits for its first step."""
    bodies = {path: GOOD[path] for path in WHOLE}
    bodies |= {f"{path}?stream": GOOD[path] | {"stream": True} for path in STREAMED}
    with ThreadPoolExecutor(len(bodies)) as clients:
        yield {
            name: clients.submit(httpx.post, server.url + name, json=body, timeout=60)
            for name, body in bodies.items()
        }


def wait_for(server: Running, n_tickets: int) -> bool:
    deadline = time.monotonic() + 20
    while len(server.service.worker.tickets) < n_tickets and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(server.service.worker.tickets) >= n_tickets


def check(answers: dict[str, Future[httpx.Response]], aborts: bool) -> None:
    for name, answer in answers.items():
        response = answer.result()
        if not name.endswith("?stream"):
            assert response.status_code == 503, (name, response.text)
        elif aborts and "completions" in name:
            assert '"finish_reason": "abort"' in response.text, name
        else:
            assert '"error"' in response.text and "[DONE]" not in response.text, name


def test_what_waits_when_the_server_goes_away_is_told(model: KoGPT, gate: Gate) -> None:
    with serving(model) as server, asked(server) as answers:
        assert wait_for(server, len(answers))
        loop = server.service.worker._loop
        assert loop is not None
        for ticket in list(server.service.worker.tickets):
            loop.call_soon_threadsafe(ticket.abort)
        check(answers, aborts=True)
        gate.opened.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_waits_when_the_engine_dies_is_told(model: KoGPT, gate: Gate) -> None:
    with serving(model) as server, asked(server) as answers:
        assert wait_for(server, len(answers))
        gate.fails = True
        gate.opened.set()
        check(answers, aborts=False)
        assert httpx.get(server.url + "/health").status_code == 503
