"""Bad input of `kogpt tune` and bad adapters: one line, exit code 2, and nothing half written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_tensors

from kogpt import checkpoint, peft
from kogpt.adapter import Lora, LowRank, SoftPrompt
from kogpt.cli import main
from kogpt.peft import Origin, SavedAdapter
from kogpt.training import checkpoints

Rows = list[dict[str, Any]]
GOOD: Rows = [{"text": f"글 {n} {'나라' if n % 2 else '바다'}", "label": n % 2} for n in range(40)]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tune(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Tunes on rows, and gives the one line that refused it."""

    def refused(rows: Rows, *options: str, method: str = "lora") -> str:
        out = tmp_path / "out"
        words = ["tune", method, "--data", str(write(tmp_path / "rows.jsonl", rows)), "--out", str(out)]
        words += ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "float32", "--epochs", "1"]
        assert main([*words, *options]) == 2
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if not line.startswith(("step ", "measuring "))]
        assert len(lines) == 1 and lines[0].startswith("kogpt: "), lines
        assert not (out / "adapter" / peft.CONFIG).exists() and not (out / "model").exists()
        return lines[0]

    return refused


def test_rows_that_cannot_be_meant(tune: Callable[..., str], tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", [{"text": "다른 글", "label": 7}])
    test = write(tmp_path / "test.jsonl", GOOD[:3])
    assert "label '7' is unknown" in tune(GOOD, "--dev", str(dev))
    assert "one class only" in tune([row for row in GOOD if row["label"]])
    assert "1 rows are empty" in tune([*GOOD, {"text": "", "label": 0}])
    assert "1 rows repeat" in tune([*GOOD, GOOD[0]])
    assert "3 training texts are held out" in tune(GOOD, "--test", str(test))
    assert "rows are longer than 9 tokens" in tune(GOOD, "--length", "9")


def test_nan_ends_a_run_without_a_result(tune: Callable[..., str], no_fsync: None) -> None:
    assert "nothing was updated" in tune(GOOD, "--rate", "1e30", "--batch", "4", method="full")


@pytest.mark.parametrize("method", ["lora", "p-tuning", "full"])
def test_a_full_disk_leaves_no_half_of_a_result(
    method: str, tune: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once the checkpoints are there."""
    best = checkpoints.best

    def fill(folder: Path) -> Path | None:
        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)
        return best(folder)

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(checkpoints, "best", fill)
    assert os.strerror(errno.ENOSPC) in tune(GOOD, method=method)


def saved(folder: Path, adapter: Lora | SoftPrompt, origin: Origin | None = None) -> Path:
    peft.save(folder, SavedAdapter(adapter, origin=origin or Origin()), TINY, "tiny")
    return folder


def lora() -> Lora:
    a, b = np.ones((2, TINY.d_model), np.float32), np.ones((TINY.d_model, 2), np.float32)
    return Lora({"transformer.h.0.attn.q_proj": LowRank(a, b, 1.0)})


def test_adapters_of_another_model_tokenizer_shape_or_method(
    tiny_folder: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    checkpoint.save(other, TINY, random_tensors(TINY, seed=9), dtype="float32", tokenizer=tiny_tokenizer)
    origin = Origin.of(checkpoint.load(other))
    mine = Origin.of(checkpoint.load(tiny_folder))
    unknown = saved(tmp_path / "unknown", lora())
    settings = json.loads((unknown / peft.CONFIG).read_text())
    (unknown / peft.CONFIG).write_text(json.dumps({**settings, "peft_type": "IA3"}))
    cases = {
        saved(tmp_path / "model", lora(), origin): "another model",
        saved(tmp_path / "tokenizer", lora(), Origin(mine.model, "0" * 64)): "another tokenizer",
        saved(tmp_path / "shape", SoftPrompt(np.ones((3, 32), np.float32))): "shape",
        unknown: "names the method 'IA3'",
    }
    for folder, words in cases.items():
        assert main(["generate", "--model", str(tiny_folder), "--adapter", str(folder), "글"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and words in lines[0], lines
