"""Layers in CPU memory: the same bits, copies that nobody reads too early, and how many layers it takes.

No GPU is needed: `Late` imitates the copies. What is on its way is not a number until it was waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from runners import pretend_free, stored
from torch import Tensor

from kogpt import native_runner, torch_offload, torch_runner, torch_transfer
from kogpt.adapter import Lora, LowRank
from kogpt.checkpoint import Checkpoint
from kogpt.config import SHAPES
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.placement import Placement, fallbacks, load_runner
from kogpt.runner import Array, Chunk
from kogpt.sampling import Draw, Wanted
from kogpt.torch_offload import ALIGNED, Streamed
from kogpt.torch_runner import TorchRunner
from kogpt.torch_transfer import Wait
from kogpt.torch_weights import Layout, block_bytes, layers_to_offload

DEEP = replace(TINY, n_layers=6)
TENSORS = {name: stored(array) for name, array in random_tensors(DEEP).items()}
IDS = np.random.default_rng(1).integers(0, DEEP.n_vocab, (3, 60))
GPU = torch.device("cuda", 0)
NAN = 0xFF  # in every byte: not a number in any float


class Late:
    """Copies that arrive when they are waited for, and spoil their target until then."""

    made: ClassVar[list[Late]] = []

    def __init__(self, device: torch.device) -> None:
        self.events: list[str] = []
        self._sources: list[int] = []
        Late.made.append(self)

    def begin(self, sources: Sequence[Tensor], target: Tensor) -> Wait:
        target.fill_(NAN)
        if sources[0].data_ptr() not in self._sources:
            self._sources.append(sources[0].data_ptr())
        number = self._sources.index(sources[0].data_ptr())
        self.events.append(f"begin {number}")
        arrived: list[bool] = []

        def wait() -> None:
            self.events.append(f"wait {number}")
            if not arrived:
                target.copy_(torch.cat(list(sources)))
                arrived.append(True)

        return wait


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Late]]:
    monkeypatch.setattr(torch_offload, "Copies", Late)
    monkeypatch.setattr(torch_transfer, "LEAST_PINNED", ALIGNED)  # several pieces of a small block too
    Late.made.clear()
    yield Late


def passes(runner: TorchRunner, adapter: int | None = None) -> list[Array]:
    """Prompts, decoding of some rows, and drawing."""
    rows = [runner.open(adapter), runner.open()]
    found = runner.forward([Chunk(row, IDS[i, : 20 + i], 3) for i, row in enumerate(rows)])
    for t in range(30, 33):
        found += runner.forward([Chunk(row, IDS[i, t : t + 1]) for i, row in enumerate(rows)])
    chosen = runner.draw([Chunk(row, IDS[0, :1]) for row in rows], [Wanted([Draw(key=0)])] * 2)
    tokens = [one.tokens[0] for one in chosen]
    return [*found, np.array([token.token for token in tokens if token is not None], np.float64)]


@pytest.mark.parametrize(("dtype", "n"), [*(("float32", n) for n in (1, 2, 3, 6)), ("int8", 4), ("int4", 3)])
def test_logits_are_those_without(dtype: str, n: int) -> None:
    if dtype != "float32" and not native_runner.available():
        pytest.skip("rounding needs the native kernels")
    offloaded, whole = (TorchRunner(DEEP, TENSORS, dtype, offload=k) for k in (n, 0))
    for found, wanted in zip(passes(offloaded), passes(whole), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found, wanted)


def test_each_pass_copies_each_layer_once_while_the_one_before_computes(late: type[Late]) -> None:
    runner = TorchRunner(DEEP, TENSORS, offload=3)
    (copies,) = late.made
    row = runner.open()
    runner.forward([Chunk(row, IDS[0, :9])])
    assert copies.events == ["begin 0", "wait 0", "begin 1", "wait 1", "begin 2", "wait 2", "begin 0"]
    copies.events.clear()
    runner.forward([Chunk(row, IDS[0, 9:10])])
    assert copies.events == ["wait 0", "begin 1", "wait 1", "begin 2", "wait 2", "begin 0"]


def test_two_layers_stay_where_they_are(late: type[Late]) -> None:
    runner = TorchRunner(DEEP, TENSORS, offload=2)
    passes(runner)
    assert sum(event.startswith("begin") for event in late.made[0].events) == 2


def test_a_pass_that_broke_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, whole = TorchRunner(DEEP, TENSORS, offload=4), TorchRunner(DEEP, TENSORS)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(runner._model.transformer.h[4].mlp, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            runner.forward([Chunk(runner.open(), IDS[0, :5])])
    for found, wanted in zip(passes(runner), passes(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_adapters_on_offloaded_layers() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, DEEP.d_model), (DEEP.d_ff, 3)))
    lora = Lora({f"transformer.h.{i}.mlp.fc_in": LowRank(a, b, 0.2) for i in (0, 5)})
    runners = [TorchRunner(DEEP, TENSORS, offload=n) for n in (3, 0)]
    both = [passes(runner, runner.add_adapter(lora)) for runner in runners]
    for found, wanted in zip(*both, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_host_memory_holds_each_layer_once() -> None:
    runner = TorchRunner(DEEP, TENSORS, offload=4)
    streamed = runner._model.transformer.h
    assert isinstance(streamed, Streamed)
    held = {tensor.untyped_storage().data_ptr() for tensor in streamed.parameters()}
    slots = {slot.buffer.data_ptr() for slot in streamed._slots}
    kept = {buffer.data_ptr() for buffers in streamed._kept.values() for buffer in buffers}
    assert len(streamed._kept) == 4 < len(kept) and not held & kept and len(held & slots) == 1
    block = block_bytes(DEEP, "float32")
    assert all(block <= taken_pinned(buffers) < 1.1 * block for buffers in streamed._kept.values())


def taken_pinned(buffers: Sequence[Tensor]) -> int:
    """Bytes that torch takes for buffers where it pins them: powers of two (CachingHostAllocator.h)."""
    return sum(1 << (len(buffer) - 1).bit_length() for buffer in buffers)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
def test_pinned_layers_of_the_6b_take_what_is_counted(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_transfer, "LEAST_PINNED", 64 << 10)
    counted = block_bytes(SHAPES["kogpt-6b"], dtype)
    buffers = torch_transfer.host_buffers(counted, torch.device("cpu"))
    assert counted <= sum(map(len, buffers)) == taken_pinned(buffers) < 1.001 * counted
    assert len(buffers) < 16, "each is a copy by itself"


def test_buffers_are_copied_end_to_end() -> None:
    sources = [torch.arange(i, i + size, dtype=torch.uint8) for i, size in ((0, 8), (8, 4), (12, 1))]
    target = torch.zeros(13, dtype=torch.uint8)
    torch_transfer.Copies(torch.device("cpu")).begin(sources, target)()
    assert target.tolist() == list(range(13))


# How many, and what is said


@pytest.mark.parametrize(
    ("free", "n"), [(24e9, 0), (13.8e9, 0), (13.6e9, 5), (11.2e9, 10), (6e9, 22), (4e9, 27), (1e9, 28)]
)
def test_layers_that_have_no_room_are_offloaded(free: float, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_free(monkeypatch, lambda device: int(free) if device and device.type == "cuda" else 10**11)
    six = SHAPES["kogpt-6b"]
    assert layers_to_offload(six, "float16", [GPU]) == n
    assert layers_to_offload(six, "float16", [GPU, torch.device("cuda", 1)]) == 0
    assert layers_to_offload(six, "float16", [torch.device("cpu")]) == 0
    layout = Layout.of(six, "float16", [GPU], n)
    if free > 2e9:
        layout.require_memory()
    else:
        with pytest.raises(NotEnoughMemory, match=r"on cuda:0 needs 1\.9 GB, 1\.0 GB is free"):
            layout.require_memory()


def test_what_stays_must_fit_into_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_free(monkeypatch, lambda device: int(11.2e9) if device and device.type == "cuda" else 10**9)
    with pytest.raises(NotEnoughMemory, match=r"on cpu needs 4\.0 GB, 1\.0 GB is free"):
        Layout.of(SHAPES["kogpt-6b"], "float16", [GPU], 10).require_memory()


def test_the_cost_is_told(caplog: pytest.LogCaptureFixture) -> None:
    en, ko = Layout.of(SHAPES["kogpt-6b"], "float16", [GPU], 10).offload_texts()
    assert en == "18 of 28 layers on cuda:0, 10 in CPU memory: each step copies 4.0 GB"
    assert "18개는 cuda:0에, 10개는 CPU 메모리에" in ko and "4.0 GB를" in ko
    TorchRunner(DEEP, TENSORS, offload=3)
    assert "3 of 6 layers on cpu, 3 in CPU memory" in caplog.text


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(KoGPTError, match="--offload 7: the model has 6 layers"):
        TorchRunner(DEEP, TENSORS, offload=7)
    with pytest.raises(KoGPTError, match="beside one GPU, not 2"):
        TorchRunner(DEEP, TENSORS, device="cpu,cpu", offload=1)
    for value in (-1, True, "3", 1.0):
        with pytest.raises(KoGPTError, match="offload"):
            Placement(offload=value)  # type: ignore[arg-type]


def test_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = object()
    monkeypatch.setattr(torch_runner, "CudaGraphs", lambda device: graphs)
    assert torch_runner._capture(Layout.of(DEEP, "float16", [GPU], 3)) is None
    assert torch_runner._capture(Layout.of(DEEP, "float16", [GPU])) is graphs
    assert torch_runner._capture(Layout.of(DEEP, "float16", [GPU, torch.device("cuda", 1)])) is None


def test_the_placement_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Seen(TorchRunner):
        def __init__(self, *args: Any) -> None:
            seen.append(args[3:])

    monkeypatch.setattr(torch_runner, "TorchRunner", Seen)
    found = Checkpoint(Path(), DEEP, TENSORS)
    for offload in (None, 0, 4):
        load_runner(found, Placement("cuda:0", "float16", offload=offload))
    assert seen == [("cuda:0", None), ("cuda:0", 0), ("cuda:0", 4)]
    (line,) = fallbacks(Placement("cpu", offload=3), "native")
    assert line.startswith("--offload 3 has no effect on a CPU")
    assert list(fallbacks(Placement("cuda", offload=3), "torch")) == []
