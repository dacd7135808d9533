"""`kogpt info`: the published table, and sizes that are those of the arithmetic."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from kogpt import hub
from kogpt.cli import info, machine, main
from kogpt.cli.machine import Gpu
from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import columns
from kogpt.native_runner import NativeRunner
from kogpt.placement import cache_bytes

B6 = SHAPES["kogpt-6b"]


def test_the_published_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "kogpt-6b"]) == 0
    shown = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:10])
    assert shown == {
        "n_parameters": "6,166,502,400",
        "n_layers": "28",
        "d_model": "4,096",
        "d_ff": "16,384",
        "n_heads": "16",
        "d_head": "256",
        "n_ctx": "2,048",
        "n_vocab": "64,512",
    }


def test_json_of_a_folder(tiny_folder: Path, tiny: ModelConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_parameters"] == tiny.n_parameters
    assert facts["n_layers"] == tiny.n_layers
    assert facts["rotary_dim"] == tiny.rotary_dim
    assert facts["runner"] in ("numpy", "native", "torch")
    assert facts["memory"]["float32"]["fits_ram"] is True


def test_memory_of_the_6b_model() -> None:
    """Arithmetic of facts.md: 24.67 and 12.33 GB, 458,752 bytes of cache a token in 16 bits."""
    assert NativeRunner.weight_bytes(B6, "float32") == 24_666_009_600
    assert NativeRunner.weight_bytes(B6, "float16") == 12_333_004_800
    assert cache_bytes(B6, "bfloat16", 1024) == 1024 * 458_752
    assert cache_bytes(B6, "float32", 1024) == 2 * cache_bytes(B6, "bfloat16", 1024)
    assert cache_bytes(B6, "int8", 1024) == 2 * 28 * 1024 * (4096 + 16 * 4)
    matrices = B6.n_parameters - 2 * 64_512 * 4096  # but the embedding and the head
    embedding, head = 2 * 64_512 * 4096, 64_512 * 4096
    assert NativeRunner.weight_bytes(B6, "int8") == pytest.approx(embedding + head + matrices, rel=0.004)
    assert NativeRunner.weight_bytes(B6, "int4") == pytest.approx(
        embedding + 17 / 32 * (head + matrices), rel=0.004
    )


def test_a_tied_head_is_packed_beside_the_embedding(tiny: ModelConfig) -> None:
    tied = replace(tiny, tied_head=True)
    assert NativeRunner.weight_bytes(tied, "int8") == NativeRunner.weight_bytes(tiny, "int8")
    assert NativeRunner.weight_bytes(tied, "float16") < NativeRunner.weight_bytes(tiny, "float16")


@pytest.mark.parametrize(
    ("ram", "card", "expected"),
    [
        (30e9, None, {"float32": (True, None), "float16": (True, None)}),
        (16e9, 16e9, {"float32": (False, False), "float16": (True, True)}),
        (14e9, 9e9, {"float16": (False, False), "int8": (True, True)}),
        (None, 5.5e9, {"int8": (None, False), "int4": (None, True)}),
    ],
)
def test_what_fits(ram: float | None, card: float | None, expected: dict[str, tuple[object, object]]) -> None:
    cards = [] if card is None else [Gpu("small", 1, 1), Gpu("large", int(card), int(card))]
    memory = info.describe("x", B6, None if ram is None else int(ram), cards)["memory"]
    for dtype, fits in expected.items():
        assert (memory[dtype]["fits_ram"], memory[dtype]["fits_gpu"]) == fits, dtype


def test_the_whole_context_counts() -> None:
    short, long = replace(B6, n_ctx=16), replace(B6, n_ctx=65_536)
    ram = int(NativeRunner.weight_bytes(B6, "float16") / 0.9) + 10**9
    fits = [info.describe("x", c, ram, [])["memory"]["float16"]["fits_ram"] for c in (short, long)]
    assert fits == [True, False]


def test_the_table_of_memory_is_that_of_the_runners(tiny: ModelConfig) -> None:
    facts = info.describe("x", tiny, None, [])
    assert list(facts["memory"]) == ["float32", "float16", "int8", "int4"]
    for dtype, row in facts["memory"].items():
        assert row["weight_bytes"] == NativeRunner.weight_bytes(tiny, dtype)
        cache_dtype = "float32" if dtype == "float32" else "bfloat16"
        assert row["cache_bytes_per_1024_tokens"] == cache_bytes(tiny, cache_dtype, 1024)
    caches = {name: cache_bytes(tiny, name, 1024) for name in ("float32", "bfloat16", "int8")}
    assert facts["cache_bytes_per_1024_tokens"] == caches


def test_numpy_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kogpt.placement.has_cuda", lambda: False)
    monkeypatch.setattr("kogpt.native_runner.available", lambda: False)
    monkeypatch.setattr("kogpt.native_runner.LIBRARY", Path("not built"))
    reasons = {"C": "the native kernels were not built", "ko_KR.UTF-8": "native 커널이 빌드되지"}
    for locale, reason in reasons.items():
        monkeypatch.setenv("LC_ALL", locale)
        assert main(["info", "--tune"]) == 0
        shown = capsys.readouterr().out
        assert f"numpy ({reason}" in shown and ("tuning on a GPU" in shown) == (locale == "C")


def test_the_table_is_in_the_language_of_the_user(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "gpus", lambda: [Gpu("H100", 80 * 10**9, 79 * 10**9)])
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert main(["info", str(tiny_folder), "--tune"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line for line in lines if re.search("[A-Za-z]{3,} [A-Za-z]{3,}", line)] == []
    assert {"메모리", "위치", "RoPE", "방법", "저장", "남은", "GPU", "러너"} <= {
        line[:6].split()[0] for line in lines if line
    }
    [head, row] = [line for line in lines if line.startswith(("메모리", "int8"))]
    assert columns(head) == columns(row) and row.endswith(" 예")


def test_weights_are_not_needed(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"])
def test_shards_are_not_needed(
    name: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small files of a hub model hold the index of its shards."""
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    index = "model.safetensors.index.json" if name.endswith("s") else "pytorch_model.bin.index.json"
    (tmp_path / index).write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    assert main(["info", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] is None


def test_of_a_hub_model_only_small_files_are_fetched(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert main(["info", "kakaobrain/kogpt"]) == 0
    assert asked == [("kakaobrain/kogpt", "KoGPT6B-ryan1.5b-float16", ["*.json", "README.md", "LICENSE*"])]


def test_a_foreign_config_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert main(["info", str(tmp_path)]) == 2
    assert "not a GPT-J" in capsys.readouterr().err


def test_a_built_in_name_is_the_default(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setitem(hub.BUILT_IN, "kogpt-mini", tiny_folder)
    assert main(["info"]) == 0


def test_the_driver_is_asked_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    program.write_text(
        "#!/bin/sh\necho 'Card, A, 1000, 900'\necho 'Unified, [N/A], [N/A]'\n", encoding="utf-8"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert machine.gpus() == [Gpu("Card, A", 1000 << 20, 900 << 20)]
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert machine.gpus() == []
