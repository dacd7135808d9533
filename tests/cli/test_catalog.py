"""`kogpt models`: what is here, and nothing that KoGPT cannot run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from kogpt.cli import main
from kogpt.errors import columns


@pytest.fixture
def cache(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with a KoGPT, a llama and a KoGPT without weights."""
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path))
    for name in ("kakaobrain--kogpt", "some--llama", "some--empty"):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / ("0123456789abcdef" + "0" * 24)
        shutil.copytree(tiny_folder, snapshot)
        refs = tmp_path / f"models--{name}" / "refs"
        refs.mkdir()
        (refs / "main").write_text(snapshot.name)
        if name == "some--llama":
            (snapshot / "config.json").write_text('{"model_type": "llama"}')
        if name == "some--empty":
            (snapshot / "model.safetensors").unlink()
    return tmp_path


@pytest.mark.parametrize("word", ["models", "list"])
def test_built_in_and_cached_models_are_listed(
    word: str, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.cli.catalog.available_memory", lambda: 10**9)
    monkeypatch.setattr("kogpt.cli.catalog.gpus", list)
    assert main([word, "--json"]) == 0
    mini, kogpt = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (mini["model"], mini["licence"], mini["fits"]) == ("kogpt-mini", "cc-by-sa-4.0", "float32")
    assert mini["bytes"] > 65_000_000
    assert kogpt.pop("bytes") > 800_000
    expected = {"model": "kakaobrain/kogpt", "revision": "main", "licence": "cc-by-nc-nd-4.0"}
    assert kogpt == expected | {"fits": "float32"}


def test_what_does_not_fit_says_so(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.cli.catalog.available_memory", lambda: 10**6)
    monkeypatch.setattr("kogpt.cli.catalog.gpus", list)
    monkeypatch.setenv("LC_ALL", "C")
    assert main(["models"]) == 0
    head, mini, kogpt = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "revision", "size", "licence", "fits"]
    assert mini.endswith(" no") and kogpt.endswith((" int8", " int4", " float16"))


def test_columns_are_straight_in_korean(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert main(["models"]) == 0
    head, mini, _ = capsys.readouterr().out.splitlines()
    assert columns(head[: head.index("라이선스")]) == mini.index("cc-by-sa-4.0")


def test_a_model_in_gguf_is_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [folder] = cache.glob("models--some--empty/snapshots/*")
    (folder / "model.Q8_0.gguf").touch()
    assert main(["models", "--json"]) == 0
    assert "some/empty" in [json.loads(line)["model"] for line in capsys.readouterr().out.splitlines()]


def test_no_cache_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path / "absent"))
    assert main(["models"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
