"""bench/random_checkpoint.py: what it writes is a whole model folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import TINY, plain

from kogpt import checkpoint
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk
from kogpt.tokenizer import Tokenizer


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "random_checkpoint.py"
    spec = importlib.util.spec_from_file_location("random_checkpoint", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHAPES", {"tiny": TINY})
    return module


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_folder_loads_and_runs(script: ModuleType, tmp_path: Path, dtype: str) -> None:
    script.main(["tiny", str(tmp_path / "model"), "--dtype", dtype])
    stored = checkpoint.load(tmp_path / "model")
    assert stored.config == TINY
    assert {tensor.dtype for tensor in stored.tensors.values()} == {dtype}
    tokenizer = Tokenizer.from_file(tmp_path / "model" / "tokenizer.json")
    ids = tokenizer.encode("가을")
    assert len(ids) == 6 and tokenizer.decode(ids) == "가을"
    runner = NumpyRunner(stored.config, plain(stored.tensors))
    (logits,) = runner.forward([Chunk(runner.open(), np.array(ids))])
    assert np.isfinite(logits).all() and logits.std() > 0.01


def test_no_two_matrices_are_alike(script: ModuleType) -> None:
    tensors = script.RandomTensors(TINY, seed=0)
    matrices = [tensors[name] for name, shape in TINY.tensor_shapes().items() if len(shape) == 2]
    corners = {matrix[:4, :4].tobytes() for matrix in matrices}
    assert len(corners) == len(matrices)
    assert all(0.018 < matrix.std() < 0.022 for matrix in matrices)
