"""The paged cache of the torch runner: its indexing, who holds which block, and what a step copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import stored
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt import torch_attention, torch_cache, torch_pass
from kogpt.errors import NotEnoughMemory
from kogpt.runner import Array, Chunk
from kogpt.torch_attention import split_rows
from kogpt.torch_cache import BLOCK, Paged, PagedCache, block_table, blocks_for
from kogpt.torch_runner import TorchRunner

TENSORS = {name: stored(array) for name, array in random_tensors(TINY).items()}
IDS = np.random.default_rng(1).integers(0, TINY.n_vocab, (8, 100))
CPU = torch.device("cpu")


def cache() -> PagedCache:
    return PagedCache(TINY, torch.float32, [CPU] * TINY.n_layers)


def read(pool: PagedCache, row: int, size: int) -> None:
    pool.reserve([(row, size)])
    pool.advance([(row, size)])


def test_the_example_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cache, "BLOCK", 4)
    pool = cache()
    first = pool.open()
    read(pool, first, 4)
    second = pool.fork(first, 4)
    read(pool, first, 2)
    read(pool, second, 3)
    assert [pool.rows[row].blocks for row in (first, second)] == [[1, 2], [1, 3]]
    pool.reserve([(first, 1), (second, 1)])
    table = torch.from_numpy(block_table([pool.rows[first], pool.rows[second]]))
    paged = Paged.of(table, torch.tensor([[6], [7]]))
    assert paged.slots.tolist() == [[4, 5, 6, 7, 8, 9, 10, 0], [4, 5, 6, 7, 12, 13, 14, 15]]
    assert paged.mask[:, 0, 0].tolist() == [[True] * 7 + [False], [True] * 8]
    pool.truncate(second, 3)
    assert pool.rows[second].blocks == [1]
    with torch.inference_mode():
        pool.layers[0][:, 1] = 7
    pool.reserve([(second, 1)])
    assert pool.rows[second].blocks == [3]
    assert (pool.layers[0][:, 3] == 7).all()
    assert pool.rows[first].blocks == [1, 2]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_blocks_are_counted_in_any_schedule(data: st.DataObject) -> None:
    """Every block is free, or held as often as tables name it."""
    pool = cache()
    for _ in range(data.draw(st.integers(1, 20))):
        row = data.draw(st.sampled_from(sorted(pool.rows))) if pool.rows else pool.open()
        action = data.draw(st.sampled_from(["read", "read", "fork", "truncate", "close", "reserve"]))
        length = pool.rows[row].length
        if action == "read":
            read(pool, row, data.draw(st.integers(1, 70)))
        elif action == "reserve":  # a pass that was interrupted
            pool.reserve([(row, data.draw(st.integers(1, 70)))])
        elif action == "fork":
            pool.fork(row, data.draw(st.integers(0, length)))
        elif action == "truncate":
            pool.truncate(row, data.draw(st.integers(0, length)))
        else:
            pool.close(row)
        named = [block for some in pool.rows.values() for block in some.blocks]
        counts = [1, *(named.count(block) for block in range(1, len(pool._holders)))]
        assert pool._holders == counts
        assert sorted(pool._free) == [block for block, n in enumerate(counts) if not n]
        assert all(len(some.blocks) >= blocks_for(some.length) for some in pool.rows.values())
    for row in list(pool.rows):
        pool.close(row)
    assert len(pool._free) == len(pool._holders) - 1


def test_a_fork_copies_nothing_and_a_block_when_it_writes() -> None:
    runner = TorchRunner(TINY, TENSORS)
    row = runner.open()
    runner.forward([Chunk(row, IDS[0, :40], 0)])
    with Copied() as copied:
        child = runner.fork(row)
        runner.truncate(child, 37)
        runner.truncate(row, 39)
    assert copied.n_bytes == 0
    assert runner._cache.rows[child].blocks == runner._cache.rows[row].blocks
    runner.forward([Chunk(child, IDS[0, 37:38])])
    first, second = runner._cache.rows[row].blocks, runner._cache.rows[child].blocks
    assert first[0] == second[0] and first[1] != second[1]


class Copied(TorchDispatchMode):
    """Counts the bytes of every tensor that operations make, views not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_bytes = 0
        self.largest = 0  # values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
                self.n_bytes += tensor.nbytes
                self.largest = max(self.largest, tensor.numel())
        return result


def test_a_step_after_a_row_was_replaced_copies_no_more_than_before() -> None:
    runner = TorchRunner(TINY, TENSORS)
    rows = [runner.open() for _ in range(8)]
    runner.forward([Chunk(row, IDS[i, :70], 0) for i, row in enumerate(rows)])

    def step(t: int) -> tuple[list[Array], int]:
        with Copied() as copied:
            logits = runner.forward([Chunk(row, IDS[i, t : t + 1]) for i, row in enumerate(rows)])
        return logits, copied.n_bytes

    step(70)  # makes the buffers of a pass
    _, before = step(71)
    runner.close(rows.pop(2))
    rows.append(runner.open())
    runner.forward([Chunk(rows[-1], IDS[7, :72], 0)])
    _, after = step(72)
    assert after == before


@pytest.mark.parametrize("limit", [1, 2 * 128 * TINY.d_model])
def test_what_a_step_gathers_is_bounded(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> tuple[list[Array], int]:
        runner = TorchRunner(TINY, TENSORS)
        rows = [runner.open() for _ in range(8)]
        runner.forward([Chunk(row, IDS[i, : 20 + 9 * i], 0) for i, row in enumerate(rows)])
        with Copied() as copied:
            logits = runner.forward([Chunk(row, IDS[i, -1:]) for i, row in enumerate(rows)])
        return logits, copied.largest

    whole, _ = steps()
    for module in (torch_attention, torch_pass):
        monkeypatch.setattr(module, "MAX_GATHERED", limit)
    parts, largest = steps()
    assert largest <= max(2 * limit, 2 * 128 * TINY.d_model, 8 * TINY.n_vocab)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "ends", "limit", "wanted"),
    [
        ([1, 1, 1], [5, 40, 3], 10**9, [[0, 1, 2]]),
        ([1, 1, 7, 7, 1], [5, 4, 7, 9, 2], 10**9, [[0, 1], [2, 3], [4]]),
        ([1, 1, 1, 1], [5, 5, 40, 5], 64, [[0, 1], [2], [3]]),
        ([1, 1], [500, 500], 0, [[0], [1]]),
    ],
)
def test_rows_are_split_where_sizes_change_and_at_the_limit(
    sizes: list[int], ends: list[int], limit: int, wanted: list[list[int]]
) -> None:
    everyone = list(range(len(sizes)))
    assert [everyone[some] for some in split_rows(sizes, ends, limit)] == wanted


def test_growing_that_fails_halfway_is_made_good_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings on the layers that moved are dropped, and no key or value is lost."""
    pool = cache()
    row = pool.open()
    read(pool, row, 2 * BLOCK)
    with torch.inference_mode():
        for layer in pool.layers:
            layer.normal_(generator=torch.Generator().manual_seed(0))
        held = [layer.clone() for layer in pool.layers]
    addresses = [layer.data_ptr() for layer in pool.layers]
    before, new_empty = pool.generation, torch.Tensor.new_empty
    refused = iter([False, True])

    def once(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        if next(refused, False):
            raise torch.OutOfMemoryError
        return new_empty(tensor, *args)

    monkeypatch.setattr(torch.Tensor, "new_empty", once)
    with pytest.raises(torch.OutOfMemoryError):
        pool.reserve([(row, 9 * BLOCK)])
    assert [layer.data_ptr() for layer in pool.layers] != addresses and pool.generation > before
    for size in (3 * BLOCK, 30 * BLOCK):  # less than what failed, and more
        pool.reserve([(row, size)])
        assert {layer.shape[1] for layer in pool.layers} == {len(pool._holders)}
        for layer, own in zip(pool.layers, held, strict=True):
            assert torch.equal(layer[:, : own.shape[1]], own)


def test_what_recordings_hold_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cache, "free_bytes", lambda device: 10**7)
    pool = cache()
    room = pool.room()
    pool.held_by_graphs = lambda: 10**7 - 1000
    assert room and pool.room() == 0
    with pytest.raises(NotEnoughMemory, match=r"needs .*, 1 kB is free"):
        pool.reserve([(pool.open(), 100)])


def test_the_pool_grows_by_what_fits_if_doubling_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = cache()
    row = pool.open()
    read(pool, row, 8 * BLOCK)
    n_blocks = len(pool._holders)
    layer = pool._block_bytes
    budget = (n_blocks + 2) * layer + 2 * layer * TINY.n_layers  # two blocks, and one layer held twice
    monkeypatch.setattr(torch_cache, "free_bytes", lambda device: int(budget / 0.9) + 9)
    assert pool.room() == BLOCK * (len(pool._free) + 2)
    read(pool, row, BLOCK * len(pool._free) + 1)
    assert len(pool._holders) == n_blocks + 2
