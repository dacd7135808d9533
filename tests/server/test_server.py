"""What the server refuses, whom it lets in, and that nobody is harmed by a neighbour."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import TINY
from serving import Running, serving

from kogpt import KoGPT
from kogpt.adapter import SoftPrompt
from kogpt.cli import main
from kogpt.cli.serve import read_keys
from kogpt.engine import Engine
from kogpt.errors import InputError
from kogpt.peft import SavedAdapter
from kogpt.runner import Chunk
from kogpt.sampling import Chosen, Wanted
from kogpt.server import pages
from kogpt.server.access import Access
from kogpt.server.limits import Limits
from kogpt.server.listen import Address
from kogpt.server.routes import POSTS
from kogpt.session import Piece, Session

JSON = {"content-type": "application/json"}
PROMPT = {"prompt": "옛날 옛적에", "max_tokens": 4}
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # of its own authority, with its key: for tests alone


def post(
    server: Running, body: bytes | dict[str, Any], path: str = "/v1/completions", **headers: str
) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=raw, headers=JSON | headers, timeout=60)


# Bodies, byte by byte


BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"prompt=a",
    "a list": b"[]",
    "a text": b'"a"',
    "trailing garbage": b'{"prompt":"a"} x',
    "comment": b'{"prompt":"a"/**/}',
    "CP949": '{"prompt":"가"}'.encode("cp949"),
    "UTF-16": '{"prompt":"가"}'.encode("utf-16"),
    "UTF-32": '{"prompt":"가"}'.encode("utf-32"),
    "half an emoji": rb'{"prompt":"\ud83d"}',
    "half an emoji in a key": rb'{"prompt":"a","\ud83d":1}',
    "half an emoji in a stop": rb'{"prompt":"a","stop":["\udc00"]}',
    "NaN": b'{"prompt":"a","temperature":NaN}',
    "Infinity": b'{"prompt":"a","temperature":-Infinity}',
    "1e999": b'{"prompt":"a","temperature":1e999}',
    "10^400": b'{"prompt":"a","max_tokens":1' + b"0" * 400 + b"}",
    "10,000 digits": b'{"prompt":"a","max_tokens":' + b"9" * 10_000 + b"}",
    "keys twice": b'{"prompt":"a","prompt":"b"}',
    "deep": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep, not closed": b'{"prompt":' + b'{"a":' * 5_000,
    "a million stops": b'{"prompt":"a","stop":[' + b'"x",' * 10**5 + b'"x"]}',
    "bias of 1e308": b'{"prompt":"a","logit_bias":{"3":1e308}}',
    "bias of a word": b'{"prompt":"a","logit_bias":{"abc":1}}',
    "bias of a negative id": b'{"prompt":"a","logit_bias":{"-1":1}}',
    "max_tokens as text": b'{"prompt":"a","max_tokens":"5"}',
    "max_tokens 1.5": b'{"prompt":"a","max_tokens":1.5}',
    "max_tokens -1": b'{"prompt":"a","max_tokens":-1}',
    "max_tokens true": b'{"prompt":"a","max_tokens":true}',
    "n of a billion": b'{"prompt":"a","n":1000000000}',
    "no prompt": b'{"max_tokens":3}',
    "prompt null": b'{"prompt":null}',
    "prompt empty": b'{"prompt":""}',
    "prompts empty": b'{"prompt":[]}',
    "a thousand prompts": json.dumps({"prompt": ["a"] * 1000}).encode(),
    "mixed prompts": b'{"prompt":["a",1]}',
    "ids outside": b'{"prompt":[99999999]}',
    "ids negative": b'{"prompt":[-1]}',
    "ids of 2^80": b'{"prompt":[1208925819614629174706176]}',
    "a string without end": b'{"prompt":"' + rb"\"" * 200_000,
    "a key twice among 150,000": b"{" + b"".join(b'"%d":1,' % i for i in range(150_000)) + b'"7":1}',
    "a long name of many values": b'{"' + b"k" * 200_000 + b'":[' + b'"a",' * 200_000 + rb'"\ud83d"]}',
    "a million wrong values": b'{"prompt":[' + b"null," * 300_000 + b"null]}",
    "empty stop": b'{"prompt":"a","stop":""}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_at_once_in_openais_shape(server: Running, name: str) -> None:
    started = time.perf_counter()
    response = post(server, BAD_BODIES[name])
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 500
    assert time.perf_counter() - started < 10  # a loaded machine; alone it is milliseconds
    assert httpx.get(server.url + "/health").status_code == 200


def test_a_byte_order_mark_is_no_harm(server: Running) -> None:
    assert post(server, b"\xef\xbb\xbf" + json.dumps(PROMPT).encode()).status_code == 200


def test_nothing_of_a_long_input_is_echoed(server: Running) -> None:
    marker = "비밀" * 500
    for body in (
        {"prompt": "a", marker: 1},
        {"prompt": "a", "model": marker},
        {"prompt": "a", "stop": marker},
    ):
        response = post(server, body)
        assert response.status_code in (400, 404) and "비밀" * 110 not in response.text


@pytest.mark.parametrize("path", POSTS)
def test_every_route_refuses_what_is_no_json_object(server: Running, path: str) -> None:
    for body in (b"{", b"[]", b"\xff"):
        response = post(server, body, path)
        assert response.status_code == 400
        assert set(response.json()) in ({"error"}, {"code", "msg"}, {"type", "error"})
    assert (
        httpx.post(server.url + path, content=b"{}", headers={"content-type": "text/plain"}).status_code
        == 415
    )
    assert httpx.get(server.url + path).status_code == 405


# Who may ask


@pytest.fixture(scope="module")
def guarded(model: KoGPT) -> Any:
    with serving(
        model, access=Access(keys=("first", "둘째"), origins=("https://friend.example",))
    ) as running:
        yield running


def test_every_route_but_health_and_the_page_needs_the_key(guarded: Running) -> None:
    for path in ("/openapi.json", "/metrics", "/ready", "/v1/models", *POSTS, "/nowhere"):
        method = "POST" if path in POSTS else "GET"
        for headers in (
            {},
            {"authorization": "Bearer"},
            {"authorization": "Bearer firs"},
            {"x-api-key": "FIRST"},
        ):
            response = httpx.request(method, guarded.url + path, headers=JSON | headers, content=b"{}")
            assert response.status_code == 401, (path, headers)
    for path in ("/health", *pages.PATHS):
        assert httpx.get(guarded.url + path).status_code == 200


@pytest.mark.parametrize("header", ["Bearer first", "KakaoAK first", "Basic a29ncHQ6Zmlyc3Q="])
def test_a_key_opens(guarded: Running, header: str) -> None:
    assert httpx.get(guarded.url + "/v1/models", headers={"authorization": header}).status_code == 200
    assert httpx.get(guarded.url + "/v1/models", headers={"x-api-key": "first"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:80", "EVIL.TEST.", "[2001:db8::1]:80", "", "127.0.0.1.evil.test"]
)
def test_a_foreign_host_name_is_refused(server: Running, host: str) -> None:
    assert httpx.get(server.url + "/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:9", "127.0.0.1", "[::1]:8000", "kogpt.localhost"])
def test_names_of_this_machine_are_taken(server: Running, host: str) -> None:
    assert httpx.get(server.url + "/v1/models", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_are_refused(server: Running, guarded: Running) -> None:
    for origin in ("null", "https://evil.test", "http://127.0.0.1:1"):
        assert post(server, PROMPT, origin=origin).status_code == 403
    assert post(server, PROMPT, origin=server.url).status_code == 200
    friend = {"origin": "https://friend.example"}
    asked = httpx.options(guarded.url + "/v1/completions", headers=friend)
    assert asked.headers["access-control-allow-origin"] == "https://friend.example"
    answered = post(guarded, PROMPT, authorization="Bearer first", **friend)
    assert answered.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-origin" not in post(server, PROMPT).headers
    wanted = {"access-control-request-headers": "x-stainless-lang, x-stainless-os"}
    asked = httpx.options(guarded.url + "/v1/completions", headers=friend | wanted)
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]


def test_a_page_of_a_friend_can_read_why_it_is_refused(guarded: Running) -> None:
    friend = {"origin": "https://friend.example"}
    key = {"authorization": "Bearer first"}
    refusals = {
        401: post(guarded, PROMPT, **friend),
        415: post(guarded, PROMPT, **friend | key | {"content-encoding": "gzip"}),
        400: post(guarded, {"prompt": 1}, **friend | key),
        404: httpx.get(guarded.url + "/nowhere", headers=friend | key),
        431: post(guarded, PROMPT, **friend | key | {"x": "a" * 40_000}),
    }
    guarded.service.draining = True
    try:
        refusals[503] = post(guarded, PROMPT, **friend | key)
    finally:
        guarded.service.draining = False
    for status, response in refusals.items():
        assert response.status_code == status
        assert response.headers.get_list("access-control-allow-origin") == ["https://friend.example"]
    asked = httpx.options(guarded.url + "/v1/completions", headers=friend)
    assert asked.headers.get_list("access-control-allow-origin") == ["https://friend.example"]
    foreign = post(guarded, PROMPT, origin="https://evil.test")
    assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers


def test_a_public_address_needs_a_key() -> None:
    with pytest.raises(InputError, match="API key"):
        Address("0.0.0.0").check(has_key=False)
    Address("0.0.0.0").check(has_key=True)
    for address in (Address("127.0.0.1"), Address("::1"), Address("localhost"), Address(socket=Path("x"))):
        address.check(has_key=False)


def test_an_address_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="cannot listen"):
            Address("127.0.0.1", port).check_free()
    Address("127.0.0.1", port).check_free()
    with pytest.raises(InputError, match="is no file"):
        Address(certificate=Path("/nowhere/cert.pem")).check_free()


def test_the_log_never_holds_what_was_sent(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    marker = "XYZZY-비밀-4711"
    post(server, PROMPT | {"prompt": marker})
    post(server, {"prompt": marker, marker: 1})
    httpx.get(f"{server.url}/{marker}?q={marker}")
    assert marker not in caplog.text and marker not in httpx.get(server.url + "/metrics").text
    assert '"route": "/v1/completions"' in caplog.text


# Neighbours


def stream(server: Running, seed: int, max_tokens: int = 60) -> str:
    body = PROMPT | {"stream": True, "seed": seed, "temperature": 1.2, "max_tokens": max_tokens}
    text = ""
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


def settled(server: Running) -> bool:
    """Whether every row is free again, within a while."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if server.service.model.session.idle and not server.service.worker.tickets:
            return True
        time.sleep(0.02)
    return False


def test_clients_that_leave_free_their_rows_and_harm_nobody(server: Running) -> None:
    alone = stream(server, 7)
    beside: list[str] = []
    canary = threading.Thread(target=lambda: beside.append(stream(server, 7)))
    canary.start()
    for seed in range(12):
        body = PROMPT | {"stream": seed % 2 == 0, "seed": seed, "max_tokens": 100}
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            raw = json.dumps(body).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            client.sendall(head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            if seed % 3:
                client.recv(64)
    canary.join()
    assert beside == [alone]
    assert settled(server)


def test_a_poisoned_request_fails_alone_and_its_stream_does_not_end_well(
    model: KoGPT, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [stream(server, seed) for seed in range(6)]
    runner = model.engine.runner
    draw = type(runner).draw
    marked = int(model.tokenizer.encode("독")[0])

    def poisoned(self: Any, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        answers = draw(self, chunks, wanted)
        for chunk, answer in zip(chunks, answers, strict=True):
            if marked in np.atleast_1d(chunk.inputs):
                answer.tokens[:] = [None] * len(answer.tokens)
        return answers

    monkeypatch.setattr(type(runner), "draw", poisoned)
    texts: dict[int, str] = {}
    threads = [threading.Thread(target=lambda s=s: texts.update({s: stream(server, s)})) for s in range(6)]
    for thread in threads:
        thread.start()
    bad = post(server, {"prompt": "독", "stream": True, "max_tokens": 8})
    assert "[DONE]" not in bad.text and '"error"' in bad.text.splitlines()[-2]
    assert post(server, {"prompt": "독", "max_tokens": 8}).status_code == 500
    for thread in threads:
        thread.join()
    assert [texts[seed] for seed in range(6)] == alone


def test_a_full_queue_answers_429(model: KoGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, step = threading.Event(), Session.step

    def held(self: Session) -> list[tuple[int, Piece]]:
        gate.wait(30)
        return step(self)

    monkeypatch.setattr(Session, "step", held)
    with serving(model) as server:
        server.service.worker.capacity = 4
        body = PROMPT | {"stream": True, "n": 4, "max_tokens": 110}
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()  # held: a generator that is collected closes the connection
            next(lines)
            refused = post(server, PROMPT)
            gate.set()
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "queue_full"
        assert settled(server)
        assert post(server, PROMPT).status_code == 200


def test_one_request_may_cost_so_much_and_no_more(model: KoGPT) -> None:
    with serving(model, Limits(cost=500)) as server:
        assert post(server, PROMPT | {"max_tokens": 100}).status_code == 200
        refused = post(server, PROMPT | {"max_tokens": 100, "n": 6})
        assert refused.status_code == 400 and "the limit is 500" in refused.json()["error"]["message"]


def test_the_tokens_that_logprobs_name_are_counted(model: KoGPT) -> None:
    with serving(model, Limits(logprobs=500)) as server:
        body = PROMPT | {"max_tokens": 20, "logprobs": 20}
        assert post(server, body).status_code == 200
        for more in ({"n": 2}, {"echo": True, "prompt": "가나다라마바사아자차"}):
            refused = post(server, body | more)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (Address(port=99_999), "--port"),
        (Address(socket=Path("/proc/kogpt.sock")), "--uds"),
        (Address(socket=Path("/nowhere/kogpt.sock")), "--uds"),
        (Address(key=Path(__file__)), "--tls-certificate"),
        (Address(certificate=Path(__file__)), "PEM"),
        (Address(certificate=CERTIFICATE, key=Path(__file__)), "PEM"),
    ],
)
def test_an_address_that_cannot_be_served_is_told_before_the_model_is_loaded(
    address: Address, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        address.check_free()


def test_a_port_that_does_not_exist_is_told_in_both_languages() -> None:
    with pytest.raises(InputError) as caught:
        Address(port=99_999).check_free()
    assert "(the last port is 65535)" in caught.value.en
    assert "(가장 큰 포트는 65535)" in caught.value.ko


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "x"])
def test_a_time_to_drain_is_a_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--drain-seconds", seconds])
    assert caught.value.code == 2 and "--drain-seconds" in capsys.readouterr().err


def test_a_socket_in_use_is_told_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "kogpt.sock"
    Address(socket=path).check_free()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(InputError, match="--uds"):
            Address(socket=path).check_free()
    assert path.is_socket()
    Address(socket=path).check_free()  # nobody listens any more
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "none" / "s", tmp_path / ("a" * 120)):
        with pytest.raises(InputError, match="--uds"):
            Address(socket=wrong).check_free()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_tls_answers_at_once(model: KoGPT, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a TLS connection once paused before the first byte, until the client was given up."""
    if loop == "uvloop":
        monkeypatch.setattr(asyncio, "run", pytest.importorskip("uvloop").run)
    trusted = ssl.create_default_context(cafile=CERTIFICATE)
    with (
        serving(model, Limits(stall_seconds=2), certificate=CERTIFICATE) as server,
        httpx.Client(base_url=server.url, verify=trusted, timeout=60) as client,
    ):
        wanted = PROMPT | {"max_tokens": 40, "seed": 1}
        for _ in range(2):  # on one connection
            whole = client.post("/v1/completions", json=wanted).json()["choices"][0]["text"]
        lines = client.post("/v1/completions", json=wanted | {"stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == whole
        assert lines[-2:] == ["data: [DONE]", ""]


def test_an_adapter_is_served(tiny_folder: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((5, TINY.d_model)).astype(np.float32)
    plain = KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    tuned = KoGPT(plain.tokenizer, Engine(plain.engine.runner), tuned=SavedAdapter(SoftPrompt(noise)))
    with serving(tuned) as server:
        body = PROMPT | {"temperature": 0, "max_tokens": 12, "model": "kogpt"}
        text = post(server, body).json()["choices"][0]["text"]
        vector = post(server, {"input": "옛날"}, "/v1/embeddings").json()["data"][0]["embedding"]
    assert text == tuned.generate("옛날 옛적에", temperature=0, max_tokens=12).text
    assert text != plain.generate("옛날 옛적에", temperature=0, max_tokens=12).text
    wanted = tuned.embed("옛날")
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-6)


# Receiving


def test_headers_and_bodies_that_do_not_arrive_are_given_up(model: KoGPT) -> None:
    with serving(model, Limits(header_seconds=0.3, body_seconds=0.3)) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, 20) as late, socket.create_connection(address, 20) as slow:
            late.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert late.recv(100) == b""
            assert b"408" in slow.recv(100)
        assert httpx.get(server.url + "/health").status_code == 200


def test_a_large_body_is_refused_before_it_is_read(server: Running) -> None:
    response = post(server, json.dumps({"prompt": "가" * 2_000_000}, ensure_ascii=False).encode())
    assert response.status_code == 413


# The others


def test_kakaos_api(server: Running, model: KoGPT) -> None:
    path = "/v1/inference/kogpt/generation"
    response = post(server, {"prompt": "옛날", "max_tokens": 6, "n": 2}, path, authorization="KakaoAK key")
    found = response.json()
    assert set(found) == {"id", "generations", "usage"} and len(found["generations"]) == 2
    assert set(found["usage"]) == {"prompt_tokens", "generated_tokens", "total_tokens"}
    for bad in (
        {"prompt": "a"},
        {"prompt": "a", "max_tokens": 1, "temperature": 0},
        {"prompt": "a", "max_tokens": 1, "n": 17},
    ):
        refused = post(server, bad, path)
        assert refused.status_code == 400 and set(refused.json()) == {"code", "msg"}


def test_tokens_there_and_back(server: Running) -> None:
    text = "값이 0원인 봄🌸"
    ids = post(server, {"prompt": text}, "/tokenize").json()["tokens"]
    assert post(server, {"tokens": ids}, "/detokenize").json() == {"prompt": text}
    assert post(server, {"tokens": [10**9]}, "/detokenize").status_code == 400


def test_metrics_have_vllms_suffixes(server: Running) -> None:
    post(server, PROMPT)
    text = httpx.get(server.url + "/metrics").text
    for name in ("num_requests_running", "num_requests_waiting"):
        assert f"# TYPE kogpt:{name} gauge" in text
    for name in ("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens"):
        assert f"# TYPE kogpt:{name}_total counter" in text and f"\nkogpt:{name}_total " in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert f"kogpt:{name}_bucket" in text


def test_the_page_fetches_nothing_from_outside(server: Running) -> None:
    assert {"/", "/page.js", "/page.css"} <= set(pages.PATHS)
    for path in pages.PATHS:
        response = httpx.get(server.url + path)
        assert response.status_code == 200
        assert "https://" not in response.text and "http://" not in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]


TEXTS, SCRIPT = (pages.FOLDER / name for name in ("texts.js", "server.js"))


@pytest.mark.parametrize("language", ["ko", "en"])
def test_no_text_of_the_page_takes_the_place_of_another(language: str) -> None:
    """JavaScript keeps the last of two texts with one key, and says nothing."""
    source = TEXTS.read_text(encoding="utf-8")
    [texts] = re.findall(rf"^  {language}: \{{\n(.*?)^  \}},", source, re.MULTILINE | re.DOTALL)
    keys = re.findall(r"^    (\w+):", texts, re.MULTILINE)
    assert len(keys) >= 100
    assert [key for key in set(keys) if keys.count(key) > 1] == []
    [told] = re.findall(r"^const TOLD = \{(.*)\};", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    refusals = dict(re.findall(r'(\w+): "(\w+)"', told))
    assert refusals.keys() == {"no_index", "queue_full"} and set(refusals.values()) <= set(keys)


def test_a_signal_lets_answers_finish(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kogpt", "serve", "--port", str(port), "--model", str(tiny_folder)]
    root = Path(__file__).parents[2]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(url + "/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = PROMPT | {"stream": True, "max_tokens": 110, "logit_bias": {"1": -100}}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as response:
            events = response.iter_lines()
            next(events)
            process.send_signal(signal.SIGTERM)
            rest = list(events)
        assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"
        assert process.wait(20) == 0
        lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
        [entry] = [json.loads(line) for line in lines if "/v1/completions" in line]
        assert (entry["method"], entry["status"]) == ("POST", 200)
    finally:
        process.kill()
        process.wait()


def test_a_key_that_no_header_carries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("secret\n열쇠\n", encoding="utf-8")
    with pytest.raises(InputError, match="no HTTP header carries"):
        read_keys(str(tmp_path / "keys"))
    monkeypatch.setenv("KOGPT_API_KEY", "a\tb")
    with pytest.raises(InputError, match="no HTTP header carries") as caught:
        read_keys(None)
    assert "a\tb" not in str(caught.value)
