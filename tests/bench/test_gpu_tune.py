"""Tuning of tiles where there is no GPU: what a job does with a tile that a card cannot run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
triton = pytest.importorskip("triton", reason="the kernels need triton: pip install 'kogpt[triton]'")
sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is no package that is installed

from bench import gpu_tune, gpu_weights  # noqa: E402
from kogpt import gpu_tiles  # noqa: E402


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        triton.runtime.errors.OutOfResources(245_760, 232_448, "shared memory"),
    ],
    ids=["launched", "too large"],
)
def test_a_tile_that_cannot_run_is_said_and_the_others_are_timed(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def seconds_of(*given: Any) -> float:
        if not tried:
            tried.append(given)
            raise error
        return 1.0

    tried: list[Any] = []
    monkeypatch.setattr(gpu_tune, "seconds_of", seconds_of)
    job = next(gpu_tune.OneLayer(gpu_weights.TINY, "float16", torch.device("cpu")).jobs())
    assert job.key.startswith("qkv float16 ")
    best = gpu_tiles.tune("card", [job], tmp_path / "tiles.json")
    assert best[job.key][0] != job.candidates()[0] and str(error)[:40] in capsys.readouterr().out


def test_shared_memory_is_the_card_s(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(shared_memory_per_block=48 << 10, shared_memory_per_block_optin=99 << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu_tune.shared_memory(torch.device("cuda", 1)) == 99 << 10
    assert gpu_tune.shared_memory(torch.device("cpu")) > 1 << 30
