"""What the torch runner says where memory ends; what it computes is tested in test_runners.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from runners import stored

from kogpt import torch_cache
from kogpt.adapter import KeyValuePrefix, Lora
from kogpt.engine import Engine
from kogpt.errors import NotEnoughMemory
from kogpt.request import Request
from kogpt.runner import Chunk
from kogpt.sampling import Draw, Wanted
from kogpt.torch_runner import TorchRunner

TENSORS = {name: stored(array) for name, array in random_tensors(TINY).items()}
IDS = np.arange(40)
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "10.50 MiB is free. Including non-PyTorch memory, this process has 78.00 GiB memory in use. Of the "
    "allocated memory 77.00 GiB is allocated by PyTorch\nsee documentation for Memory Management"
)
REFUSALS = [
    torch.OutOfMemoryError(CUDA),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
PREFIX = np.zeros((TINY.n_layers, 9, TINY.n_heads, TINY.d_head), np.float32)
CALLS: dict[str, Callable[[TorchRunner, int], Any]] = {
    "forward": lambda runner, row: runner.forward([Chunk(row, IDS)]),
    "hidden": lambda runner, row: runner.hidden([Chunk(row, IDS)]),
    "draw": lambda runner, row: runner.draw([Chunk(row, IDS)], [Wanted([Draw(key=0)])]),
    "load_cache": lambda runner, row: runner.load_cache(row, PREFIX, PREFIX),
}


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Makes every cache refuse to grow with an error of torch."""

    def refuse(error: Exception) -> None:
        def raising(*args: Any) -> None:
            raise error

        monkeypatch.setattr(torch_cache.PagedCache, "_require_free", raising)

    return refuse


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", REFUSALS, ids=["torch", "driver", "cuBLAS"])
def test_memory_that_ends_has_a_name(
    error: Exception, call: Callable[[TorchRunner, int], Any], refuse: Callable[[Exception], None]
) -> None:
    runner = TorchRunner(TINY, TENSORS)
    row = runner.open()
    refuse(error)
    with pytest.raises(NotEnoughMemory, match=r"not enough memory: CUDA .*: close other programs") as told:
        call(runner, row)
    assert told.value.__context__ is None, "it would hold the tensors of the pass"
    assert "--dtype" in told.value.ko and str(error).partition(".")[0].partition("\n")[0] in told.value.ko


def test_the_text_says_how_much_and_no_more(refuse: Callable[[Exception], None]) -> None:
    runner = TorchRunner(TINY, TENSORS)
    row = runner.open()
    refuse(torch.OutOfMemoryError(CUDA))
    with pytest.raises(NotEnoughMemory) as told:
        runner.forward([Chunk(row, IDS)])
    assert "allocate 2.00 GiB" in told.value.en and "10.50 MiB is free: close" in told.value.en
    assert "Including" not in told.value.en


def test_memory_of_the_host_has_a_name_too() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert "DefaultCPUAllocator" in str(found.value)


def test_adapters_and_weights_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> Any:
        raise torch.OutOfMemoryError(CUDA)

    runner = TorchRunner(TINY, TENSORS)
    monkeypatch.setattr(runner._loras, "add", refused)
    with pytest.raises(NotEnoughMemory):
        runner.add_adapter(Lora({}))
    monkeypatch.setattr("kogpt.torch_runner.load_model", refused)
    with pytest.raises(NotEnoughMemory):
        TorchRunner(TINY, TENSORS)


def test_other_errors_of_torch_stay_what_they_are(refuse: Callable[[Exception], None]) -> None:
    runner = TorchRunner(TINY, TENSORS)
    row = runner.open()
    refuse(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        runner.forward([Chunk(row, IDS)])


def test_a_prefix_is_loaded_once_the_prefix_cache_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(TorchRunner(TINY, TENSORS), max_cached=4)
    engine.run([Request(IDS)])
    reserve, refusals = torch_cache.PagedCache.reserve, [torch.OutOfMemoryError(CUDA)]

    def once(cache: torch_cache.PagedCache, sizes: Any) -> None:
        if refusals:
            raise refusals.pop()
        reserve(cache, sizes)

    monkeypatch.setattr(torch_cache.PagedCache, "reserve", once)
    handle = engine._store.load(KeyValuePrefix(PREFIX, PREFIX), None)
    assert engine.runner.length(handle) == 9 and not refusals
    engine.close()
