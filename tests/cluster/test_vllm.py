"""`kogpt serve --engine vllm` with a stand-in for the `vllm` command (vllm_stand_in.py)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kogpt.cli import main
from kogpt.cluster.vllm import Deployment
from kogpt.config import SHAPES
from kogpt.errors import KoGPTError

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
KEY = {"Authorization": "Bearer secret"}


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
