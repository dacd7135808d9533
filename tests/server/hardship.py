"""What a server has to bear, each as a function of how much: tests/server bears a little, scripts/soak a lot.

A function raises AssertionError where the server does harm, and returns what it measured in one line.
Goals: reliability of the server; no load leaves this machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from client import HOST, Reply, leave, post, quantile, request
from scripted import script, scripted
from serving import Running, serving

from kogpt import KoGPT
from kogpt.runner import Chunk
from kogpt.sampling import Chosen, Wanted
from kogpt.server.limits import Limits
from kogpt.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
WORDS = ("옛날", " 옛적에", " 서울의", " 봄은", "값이 0원", " 제1조", "ㅋㅋ", " 🌸", "똠방", " and ")
CANARIES = 4


# Neighbours


def body(rng: random.Random, **more: Any) -> dict[str, Any]:
    """A streamed request with a seed: its text is the same whoever else is served."""
    prompt = "".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    settings: dict[str, Any] = {"max_tokens": rng.randint(4, 60), "seed": rng.randrange(2**31)}
    settings["temperature"] = rng.choice((0, 0.8, 1.2))
    return {"prompt": prompt, "stream": True, **settings, **more}


def alone(model: KoGPT, wanted: dict[str, Any]) -> str:
    """The text of a request that nobody else disturbs, written without a server."""
    names = ("max_tokens", "seed", "temperature", "stop")
    prompt: str = wanted["prompt"]
    return model.generate(prompt, {k: v for k, v in wanted.items() if k in names}).text


def schedules(server: Running, count: int, seed: int = 0) -> str:
    """Streamed or whole, alone or among others, with stop strings or none: the same text."""
    rng = random.Random(seed)
    for _ in range(0, count, 20):
        bodies = [body(rng, stream=rng.random() < 0.7) for _ in range(20)]
        for wanted in bodies:
            if rng.random() < 0.4:
                wanted["stop"] = rng.sample(["다", " 봄", "\n", "ㅋ", "e", "는 것"], rng.randint(1, 3))
        texts = [alone(server.service.model, wanted) for wanted in bodies]
        replies = asyncio.run(gather(server, bodies))
        assert [reply.text for reply in replies] == texts
        assert all(reply.done and reply.finish in ("stop", "length") for reply in replies)
    return f"{count} answers equal those written alone"


async def gather(server: Running, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
    return list(await asyncio.gather(*(post(server.port, wanted) for wanted in bodies)))


POISON = "독"


@contextmanager
def poison(model: KoGPT, kind: str, after: int) -> Iterator[None]:
    """Rows whose prompt has POISON fail after so many steps: logits that are not finite, or an exception."""
    runner_type: Any = type(model.engine.runner)
    draw = runner_type.draw
    [marked] = model.tokenizer.encode(POISON)[:1]
    ages: dict[int, int] = {}

    def poisoned(self: Any, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        for chunk in chunks:
            if chunk.inputs.ndim == 1 and marked in chunk.inputs and chunk.row not in ages:
                ages[chunk.row] = 0
        bad = [chunk.row for chunk in chunks if chunk.row in ages and ages[chunk.row] >= after]
        if bad and kind == "exception":
            raise RuntimeError("poison")
        answers: list[Chosen] = draw(self, chunks, wanted)
        for chunk, answer in zip(chunks, answers, strict=True):
            if chunk.row in ages:
                ages[chunk.row] += 1
            if chunk.row in bad:
                answer.tokens[:] = [None] * len(answer.tokens)
        return answers

    runner_type.draw = poisoned
    try:
        yield
    finally:
        runner_type.draw = draw


def injections(server: Running, count: int, seed: int = 0) -> str:
    """A request that fails among 31 others fails alone: they are byte-identical, and the next one works."""
    rng, model = random.Random(seed), server.service.model
    bodies = [body(rng, max_tokens=24) for _ in range(31)]
    texts = [alone(model, wanted) for wanted in bodies]
    for number in range(count):
        bad = {"prompt": POISON, "max_tokens": 30, "stream": number % 3 != 0, "logit_bias": {"1": -100}}
        with poison(model, "exception" if number % 2 else "not finite", rng.randrange(12)):
            replies = asyncio.run(gather(server, [*bodies, bad]))
        assert [reply.text for reply in replies[:-1]] == texts, number
        assert replies[-1].error and not replies[-1].done, replies[-1]
    after = asyncio.run(gather(server, bodies[:1]))
    assert after[0].text == texts[0]
    return f"{count} poisoned requests failed alone among 31"


# Leaving


def census(server: Running) -> dict[str, int]:
    """What a request may hold while it lasts."""
    gc.collect()
    worker = server.service.worker
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        # asyncio's pool grows to a bound of its own and stays.
        "threads": sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()),
        "rows": server.service.model.engine.n_rows,
        "tickets": len(worker.tickets),
        "homes": len(worker._homes),
        "buffered": server.service.buffered,
    }


def settle(server: Running, before: dict[str, int], seconds: float = 20) -> dict[str, int]:
    """The census once it is as it was, or as it is after so many seconds."""
    deadline = time.monotonic() + seconds
    while (now := census(server)) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def cancellations(server: Running, count: int, seed: int = 0) -> str:
    """Clients that leave at any moment: nothing is left of them, and streams beside them are unharmed."""
    rng = random.Random(seed)
    warm = body(rng)
    texts = {0: asyncio.run(gather(server, [warm]))[0].text}
    before = settle(server, census(server), 0)
    began = time.perf_counter()
    slowest = 0.0
    for _ in range(0, count, 50):
        bodies = [body(rng, stream=rng.random() < 0.7, n=rng.randint(1, 3)) for _ in range(50)]

        async def crowd(bodies: Sequence[dict[str, Any]] = bodies) -> list[Reply]:
            canaries = asyncio.gather(*(post(server.port, warm) for _ in range(CANARIES)))
            await asyncio.gather(*(leave(server.port, wanted, rng) for wanted in bodies))
            return await canaries

        for canary in asyncio.run(crowd()):
            assert canary.text == texts[0] and canary.done
        left = time.perf_counter()
        now = settle(server, before)
        assert now == before, (now, before)
        slowest = max(slowest, time.perf_counter() - left)
    seconds = time.perf_counter() - began
    return f"{count} clients left in {seconds:.1f} s; all was free {slowest:.2f} s later at most"


# Slow clients


def slow_clients(tokenizer: Tokenizer, count: int, limits: Limits) -> str:
    """Headers, bodies and readers that do not come: evicted in time, and a stream beside them goes on."""
    model = scripted(tokenizer, max_rows=count + CANARIES, step_seconds=0.01)
    with serving(model, limits, send_buffer=4096) as server:
        before = census(server)
        worst = asyncio.run(_besiege(server, count, limits))
        now = settle(server, before)
        assert now == before, (now, before)
    return f"{count} slow clients evicted; longest gap of a stream beside them {1000 * worst:.0f} ms"


async def _besiege(server: Running, count: int, limits: Limits) -> float:
    kinds = (_late_header, _late_body, _no_reader)
    deadline = max(limits.header_seconds, limits.body_seconds, limits.stall_seconds)
    attackers = [asyncio.create_task(kinds[i % 3](server.port)) for i in range(count)]
    gaps: list[float] = []
    while not all(attacker.done() for attacker in attackers):
        reply = await post(server.port, {"prompt": "가", "max_tokens": 90, "stream": True})
        assert reply.done
        gaps += reply.gaps
    evicted = [attacker.result() for attacker in attackers]
    assert max(evicted) < deadline + 15, max(evicted)  # a loaded machine
    return max(gaps)


async def _late_header(port: int) -> float:
    return await _until_closed(port, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Sl", read=True)


async def _late_body(port: int) -> float:
    return await _until_closed(port, request(b'{"prompt":', length=4000), read=True)


async def _no_reader(port: int) -> float:
    raw = json.dumps({"prompt": "나", "max_tokens": 8000, "stream": True}).encode()
    return await _until_closed(port, request(raw), read=False)


async def _until_closed(port: int, raw: bytes, read: bool) -> float:
    """Seconds until the server closes the connection. One that is not read shows it by a reset."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    closed: asyncio.Future[None] = loop.create_future()

    class Attacker(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(raw)
            if not read:
                transport.pause_reading()
                self.probe(transport)

        def probe(self, transport: Any) -> None:
            """Whether the peer has closed: nothing else tells those who do not read."""
            state = transport.get_extra_info("socket").getsockopt(6, 11, 1)[0]  # TCP_INFO: 1 is established
            if state != 1:
                transport.abort()
            elif not closed.done():
                loop.call_later(0.2, self.probe, transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if not closed.done():
                closed.set_result(None)

    sock = socket.socket()
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
    )  # the kernel takes little for who does not read
    sock.setblocking(False)
    await loop.sock_connect(sock, (HOST, port))
    await loop.create_connection(Attacker, sock=sock)
    await closed
    return time.perf_counter() - began


def bodies(server: Running, count: int) -> str:
    """Bodies of 2 MiB that stay unfinished: together they never take more than the limit."""
    limits = server.service.limits
    peak = 0

    async def attack() -> None:
        nonlocal peak
        size = limits.body_bytes - 10
        connections = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(HOST, server.port)
            writer.write(request(b'{"prompt":"' + b"a" * (size - 1000), length=size))
            connections.append((reader, writer))
            peak = max(peak, server.service.buffered)
        for _ in range(100):
            peak = max(peak, server.service.buffered)
            await asyncio.sleep(0.01)
        for _, writer in connections:
            writer.transport.abort()

    before = census(server)
    asyncio.run(attack())
    assert peak <= limits.buffered_bytes + limits.body_bytes, peak
    assert settle(server, before) == before
    return f"{count} unfinished bodies took {peak / 2**20:.0f} MiB at most"


# Crowds


def crowd(tokenizer: Tokenizer, count: int, events_per_second: float = 5, n_tokens: int = 30) -> str:
    """So many streams at once, all written at the same time: each whole and right."""
    model = scripted(tokenizer, max_rows=count, step_seconds=1 / events_per_second)
    with serving(model, Limits(waiting=count)) as server:
        wanted = [{"prompt": f"글 {i}", "max_tokens": n_tokens, "stream": True} for i in range(count)]
        before = census(server)
        replies = asyncio.run(gather(server, wanted))
        for reply, asked in zip(replies, wanted, strict=True):
            assert reply.done and reply.finish == "length", reply
            assert reply.text == script(tokenizer.encode_prompt(str(asked["prompt"])), n_tokens // 3)
        assert settle(server, before) == before
    first = quantile([reply.first or 0 for reply in replies], 0.99)
    gap = quantile([gap for reply in replies for gap in reply.gaps], 0.99)
    return f"{count} streams whole; first text p99 {first:.2f} s, gap p99 {1000 * gap:.0f} ms"


def overload(tokenizer: Tokenizer, count: int) -> str:
    """More than there is room for: who is taken in gets the whole text, the others a 429 at once."""
    model = scripted(tokenizer, max_rows=4, step_seconds=0.005)
    with serving(model, Limits(waiting=max(4, count // 10))) as server:
        wanted = [{"prompt": f"글 {i}", "max_tokens": 30, "stream": i % 2 == 0} for i in range(count)]
        replies = asyncio.run(gather(server, wanted))
    taken = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status != 200]
    assert taken and all(reply.done for reply in taken)
    assert refused and all(reply.status == 429 and reply.headers["retry-after"] for reply in refused)
    slowest = quantile([reply.seconds for reply in refused], 0.99)
    return f"{len(taken)} of {count} finished, {len(refused)} got 429, p99 {1000 * slowest:.0f} ms"


def syllables(tokenizer: Tokenizer, count: int, at_once: int = 64) -> str:
    """So many syllables streamed, a byte a token: not one is broken."""
    each = min(2000, max(20, count // at_once))
    model = scripted(tokenizer, max_rows=at_once)
    written, began = 0, time.perf_counter()
    with serving(model, Limits(waiting=at_once)) as server:
        while written < count:
            wanted = [
                {"prompt": f"글 {written + i}", "max_tokens": 3 * each, "stream": True}
                for i in range(at_once)
            ]
            for reply, asked in zip(asyncio.run(gather(server, wanted)), wanted, strict=True):
                assert reply.text == script(tokenizer.encode_prompt(str(asked["prompt"])), each)
            written += at_once * each
    seconds = time.perf_counter() - began
    return f"{written:,} syllables streamed, none broken; {3 * written / seconds:,.0f} tokens/s"


# Hostile requests


STRANGE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**80,
    1.5,
    -0.0,
    1e308,
    1e-45,
    "",
    "5",
    "\x00",
    "\ufffe",
)
STRANGE += (
    "가" * 3000,
    "각" * 40,
    [],
    [[]],
    {},
    {"a": {}},
    [None],
    ["", 1],
    [[1, 2], [3]],
    [-1],
    [10**9],
    {"1": 1e9},
)
STRANGE += ({"type": "json_object"}, {"x": "\u202e"}, ["stop"] * 40, [0] * 3000, "0x10", "NaN", [True, False])
VALID: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "가", "max_tokens": 2, "n": 1, "stop": ["b"], "seed": 1, "stream": False},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "가"}], "max_tokens": 2},
    "/v1/embeddings": {"input": ["가"], "encoding_format": "float"},
    "/v1/responses": {"input": "가", "max_output_tokens": 2},
    "/v1/rerank": {"query": "가", "documents": ["나", "다"]},
    "/v1/score": {"text_1": "가", "text_2": ["나"]},
    "/v1/messages": {"messages": [{"role": "user", "content": "가"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "가"}]},
    "/tokenize": {"prompt": "가"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/inference/kogpt/generation": {"prompt": "가", "max_tokens": 2},
}
FIELDS: tuple[str, ...] = ("prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed")
FIELDS += ("stop", "logit_bias")
FIELDS += (
    "stream",
    "stream_options",
    "logprobs",
    "echo",
    "model",
    "messages",
    "tools",
    "best_of",
    "suffix",
    "user",
)
FIELDS += (
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "response_format",
    "input",
    "tokens",
)


def hostile(rng: random.Random, paths: Sequence[str]) -> tuple[str, bytes]:
    """A path and the raw bytes of a request to it that is wrong, most of the time."""
    path = rng.choice(paths)
    document = dict(VALID.get(path, {"prompt": "가", "max_tokens": 2}))
    for _ in range(rng.randint(0, 3)):
        document[rng.choice((*document, *FIELDS))] = rng.choice(STRANGE)
    raw = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 0, 1, 3))):  # bytes that no client library would send
        at = rng.randrange(len(raw) + 1)
        junk = rng.choice(
            (b"\xff", b"\x00", b"\\ud83d", b"NaN", b"1e999", b"[" * 80, b'"', b"}", b",", b"\xea\xb0")
        )
        raw = raw[:at] + junk + raw[at + rng.choice((0, 1)) :]
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += rng.choice(("", "", "", "X-A: " + "b" * 9000 + "\r\n", "Authorization: Bearer \xff\r\n"))
    length = rng.choice((f"{len(raw)}",) * 30 + ("-1", "1e3", f"{10**30}"))
    return path, f"{head}Content-Length: {length}\r\n\r\n".encode("latin-1") + raw


def fuzz(server: Running, count: int, paths: Sequence[str], seed: int = 0) -> str:
    """Requests of every kind of wrongness: a status below 500 for each, and the server lives."""
    rng = random.Random(seed)
    statuses: dict[int, int] = {}
    slowest = 0.0

    async def one(raw: bytes) -> None:
        nonlocal slowest
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(raw)
        began = time.perf_counter()
        try:
            line = await asyncio.wait_for(reader.readline(), 60)
            slowest = max(slowest, time.perf_counter() - began)
            status = int(line.split()[1]) if line else 0
            answer = await asyncio.wait_for(reader.read(65_536), 60)
            assert status < 500, (status, raw[:300], answer[-300:])
            assert b"Traceback" not in answer and b"site-packages" not in answer, answer
            statuses[status] = statuses.get(status, 0) + 1
        finally:
            writer.close()

    async def many(n: int) -> None:
        await asyncio.gather(*(one(hostile(rng, paths)[1]) for _ in range(n)))

    before = census(server)
    for done in range(0, count, 20):
        asyncio.run(many(min(20, count - done)))
    assert httpx.get(server.url + "/health").status_code == 200
    assert server.service.worker.dead is None
    assert settle(server, before)["rows"] == before["rows"]
    told = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
    return f"{count} hostile requests, none above 499 ({told}); slowest {slowest:.2f} s"


# Whole processes


@contextmanager
def process(
    folder: Path, log: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`kogpt serve` with a model folder, once it is ready; its address. All that it says goes to `log`."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kogpt", "serve", "--port", str(port), "--model", str(folder), *options]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | environment
        )
    url = f"http://{HOST}:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(url + "/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield child, url
    finally:
        child.kill()
        child.wait()


def drains(folder: Path, log: Path, count: int, streams: int = 20) -> str:
    """SIGTERM under load: what is being written is finished, what comes then gets a 503; exit code 0."""
    slowest = 0.0
    for _ in range(count):
        with process(folder, log) as (child, url):
            slowest = max(slowest, asyncio.run(_drain(child, int(url.rpartition(":")[2]), streams)))
    return f"{count} drains lost none of {streams} streams each; ended {slowest:.2f} s after the last"


async def _drain(child: subprocess.Popen[bytes], port: int, streams: int) -> float:
    wanted = {"prompt": "옛날", "max_tokens": 110, "stream": True, "logit_bias": {"1": -100}}
    flows = [asyncio.create_task(post(port, wanted | {"seed": i})) for i in range(streams)]
    while not any(flow.done() for flow in flows):  # all are accepted once one is finished
        await asyncio.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.05)
    late = await asyncio.gather(post(port, wanted), return_exceptions=True)
    for reply in late:
        assert isinstance(reply, OSError | IndexError) or (
            isinstance(reply, Reply) and reply.status == 503
        ), reply
    for reply in await asyncio.gather(*flows):
        assert reply.done and reply.finish == "length", reply
    began = time.perf_counter()
    assert await asyncio.to_thread(child.wait, 20) == 0
    return time.perf_counter() - began


def secrecy(folder: Path, log: Path) -> str:
    """A mark in prompts, answers, keys and routes is in no log, metric or command line, whatever happens."""
    mark = "XYZZY-4711-ABCDEFGH-비밀"
    key = {"authorization": f"Bearer {mark.encode().hex()}"}
    requests = (
        ("/v1/completions", {"prompt": mark, "max_tokens": 4}),
        ("/v1/completions", {"prompt": mark, "max_tokens": 4, "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": mark, "temperature": mark}),
        ("/v1/completions", {"prompt": mark, mark: 1}),
        ("/v1/completions", {"prompt": mark * 500}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": mark}], "user": mark, "max_tokens": 3},
        ),
        ("/v1/embeddings", {"input": mark}),
        ("/tokenize", {"prompt": mark}),
        (f"/{mark}", {"prompt": mark}),
    )
    with process(folder, log, "-d", KOGPT_API_KEY=mark.encode().hex()) as (child, url):
        for path, wanted in requests:
            httpx.post(url + path, json=wanted, headers=key, params={"q": mark}, timeout=60)
            httpx.post(url + path, json=wanted, headers={"authorization": "Bearer no-key"}, timeout=60)
        seen = httpx.get(url + "/metrics", headers=key).text
        seen += Path(f"/proc/{child.pid}/cmdline").read_text()
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    seen += log.read_text(encoding="utf-8")
    assert '"route"' in seen  # there is a log
    for secret in (mark, mark.encode().hex(), "XYZZY", "\\ube44"):
        assert secret not in seen, secret
    return f"{2 * len(requests)} requests left no trace of what they said"
