"""`kogpt serve --engine vllm` with a stand-in for the `vllm` command (vllm_stand_in.py)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kogpt.cli import command, main
from kogpt.cli.vllm import UNUSED
from kogpt.cluster.vllm import Deployment
from kogpt.config import SHAPES
from kogpt.errors import KoGPTError

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
KEY = {"Authorization": "Bearer secret"}
DOCS = Path(__file__).parents[2] / "docs"
VLLM = ("serve", "--engine", "vllm", "--print-commands")


def test_a_split_that_the_model_does_not_allow_is_refused() -> None:
    config = SHAPES["kogpt-6b"]
    Deployment(Path("m"), "m", 1, 8, 2, 2).check(config)
    for sizes, message in (
        ((3, 1, 1), "divide the 16 heads"),
        ((1, 29, 1), "28"),
        ((2, 1, 4), "--nnodes is 4"),
    ):
        with pytest.raises(KoGPTError, match=message):
            Deployment(Path("m"), "m", 1, *sizes).check(config)


def test_the_commands_of_every_machine(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--engine", "vllm", "--model", str(tiny_folder), "--phi-folder", str(tmp_path)]
    sizes = ["--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "10.0.0.1"]
    assert main([*command, *sizes, "--print-commands"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    [folder] = tmp_path.iterdir()
    assert first.startswith(f"vllm serve {folder} ") and "--node-rank 0" in first
    assert "--node-rank 1 --master-addr 10.0.0.1 --master-port 29501 --headless" in second


def test_without_vllm_it_says_what_to_install(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["serve", "--engine", "vllm", "--model", str(tiny_folder)]) == 2
    assert "pip install vllm" in capsys.readouterr().err


UNUSED_BY_VLLM = {
    "--filter": "mask",
    "--adapter": "sentiment=x",
    "--index": "x",
    "--rows": "4",
    "--drain-seconds": "3",
    "--device": "cuda",
    "--dtype": "bfloat16",
    "--cache-dtype": "int8",
    "--offload": "0",
    "--model_parallel": None,
}
USED_BY_VLLM_ALONE = {
    "--tensor-parallel-size": "4",
    "--pipeline-parallel-size": "2",
    "--nnodes": "2",
    "--master-addr": "10.0.0.1",
    "--phi-folder": "x",
    "--print-commands": None,
}
COMMON = ("help", "debug", "config", "engine", "model", "revision", "print_limits")
OF_BOTH = ("host", "port", "uds", "tls_certificate", "tls_key", "api_key_file", "allowed_host", "cors_origin")


def test_every_option_of_serve_is_known_to_be_used_by_vllm_or_not() -> None:
    dests = {flag: action.dest for action in command("serve")[1]._actions for flag in action.option_strings}
    unused = {dests[flag] for flag in UNUSED_BY_VLLM}, {dests[flag] for flag in USED_BY_VLLM_ALONE}
    assert tuple(map(set, UNUSED.values())) == unused
    assert set(dests.values()) - unused[0] - unused[1] == {*OF_BOTH, *COMMON}


@pytest.mark.parametrize("locale", ["C", "ko_KR.UTF-8"])
@pytest.mark.parametrize(
    ("words", "flag", "value"),
    [
        *((VLLM, flag, value) for flag, value in UNUSED_BY_VLLM.items()),
        *((("serve",), flag, value) for flag, value in USED_BY_VLLM_ALONE.items()),
    ],
)
def test_a_typed_option_that_the_engine_does_not_use_is_refused(
    words: tuple[str, ...],
    flag: str,
    value: str | None,
    locale: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    typed = [flag] if value is None else [flag, value]
    assert main([*words, "--model", "no-such-model", *typed]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and " ".join(typed) in err
    assert "--engine" in err and ("빼" in err) == (locale != "C")


def test_configured_options_that_vllm_does_not_use_are_told(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be meant for other commands; a filter would be missed by those who read."""
    monkeypatch.setenv("LC_ALL", "C")
    (tmp_path / "c.toml").write_text('dtype = "int8"\nmodel_parallel = false\n[serve]\nrows = 4\n')
    words = [*VLLM, "--config", str(tmp_path / "c.toml"), "--model", str(tiny_folder)]
    words += ["--phi-folder", str(tmp_path / "phi")]
    monkeypatch.setenv("KOGPT_DEVICE", "cuda:1")
    assert main([*words, "--dtype", "auto"]) == 0  # auto leaves the choice
    err = capsys.readouterr().err
    assert f"not used by --engine vllm: rows ({tmp_path / 'c.toml'}), device (KOGPT_DEVICE)\n" in err
    monkeypatch.setenv("KOGPT_FILTER", "mask")
    assert main(words) == 2
    assert "KOGPT_FILTER" in (err := capsys.readouterr().err) and "--filter off" in err
    assert main([*words, "--filter", "off"]) == 0


def test_configured_options_of_vllm_are_told_without_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("KOGPT_TENSOR_PARALLEL_SIZE", "4")
    assert main(["serve", "--index", "no-such-index"]) == 2
    told, refused = capsys.readouterr().err.splitlines()
    assert told == "kogpt: not used by --engine kogpt: tensor_parallel_size (KOGPT_TENSOR_PARALLEL_SIZE)"
    assert "no-such-index" in refused


@pytest.mark.parametrize("page", ["deploy.md", "ko/deploy.md"])
def test_the_page_names_the_routes_that_are_missing_in_front_of_vllm(page: str) -> None:
    from kogpt.server.access import Access
    from kogpt.server.proxy import Front, make_proxy

    guard: Any = make_proxy(Front("http://127.0.0.1:1", "m", lambda: True), Access())
    served = {route.path for route in guard.app.routes}
    rows = re.findall(r"^\| (`/.*?) \|", (DOCS / "server.md").read_text(encoding="utf-8"), re.MULTILINE)
    promised = {path for row in rows for path in re.findall(r"`(.*?)`", row)}
    named = re.findall(r"`(/v1/.*?)`", (DOCS / page).read_text(encoding="utf-8"))
    assert set(named) == promised - served and "/v1/filter" in named


@pytest.fixture
def server(tiny_folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in front of the stand-in; its process and URL."""
    executable = tmp_path / "bin" / "vllm"
    executable.parent.mkdir()
    script = Path(__file__).with_name("vllm_stand_in.py")
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    executable.chmod(0o755)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "keys").write_text("secret\n", encoding="utf-8")
    path = f"{executable.parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "kogpt", "serve", "--engine", "vllm", "--model", str(tiny_folder)]
    command += ["--phi-folder", str(tmp_path / "phi"), "--tensor-parallel-size", "2", "--port", str(port)]
    command += ["--api-key-file", str(tmp_path / "keys")]
    with subprocess.Popen(command, env=os.environ | {"PATH": path, "LC_ALL": "C"}) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        try:
            while not _is_ready(url):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield process, url
        finally:
            process.kill()


def _is_ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/ready", headers=KEY).status_code == 200)
    except httpx.HTTPError:
        return False


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the child in /proc")
def test_our_routes_stand_in_front_and_both_end_together(
    server: tuple[subprocess.Popen[bytes], str], tiny_folder: Path
) -> None:
    process, url = server
    with httpx.Client(base_url=url, headers=KEY) as client:
        body: dict[str, Any] = {"model": tiny_folder.name, "prompt": "질문"}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == " 답"
        assert client.get("/v1/models").json()["data"][0]["id"] == tiny_folder.name
        stream = client.post("/v1/completions", json={**body, "stream": True}).text
        assert stream.count("data: ") == 3 and stream.endswith("data: [DONE]\n\n")
        assert client.post("/v1/completions", json={**body, "model": "other"}).status_code == 404
        refused = httpx.post(f"{url}/v1/completions", json=body)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        kakao = client.post("/v1/inference/kogpt/generation", json={"prompt": "질문", "max_tokens": 1}).json()
        assert kakao["generations"] == [{"text": " 답", "tokens": 1}] and kakao["usage"]["total_tokens"] == 4
        wrong = client.post("/v1/inference/kogpt/generation", json={"prompt": "질문"})
        assert wrong.status_code == 400 and wrong.json()["code"] == -2
        assert client.get("/").headers["content-type"].startswith("text/html")
    [child] = children(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the child in /proc")
def test_it_ends_when_vllm_ends(server: tuple[subprocess.Popen[bytes], str]) -> None:
    process, _ = server
    [child] = children(process)
    os.kill(child, signal.SIGKILL)
    assert process.wait(30) == 1
