"""Static passes: what is recorded once holds for any texts, and a step that runs ahead changes no token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from runners import stored
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from kogpt import torch_decoder, torch_pass, torch_prompt
from kogpt.adapter import Lora, LowRank
from kogpt.engine import Engine
from kogpt.errors import NotEnoughMemory
from kogpt.numpy_runner import NumpyRunner
from kogpt.request import Request, Writing
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Sampler, Sampling, Wanted
from kogpt.torch_cache import BLOCK
from kogpt.torch_runner import TorchRunner

TENSORS = {name: stored(array) for name, array in random_tensors(TINY).items()}
IDS = np.random.default_rng(1).integers(0, TINY.n_vocab, (8, 100))
# Operations that make the host wait, or a shape depend on values.
REFUSED = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "repeat_interleave",
}


class Tape(TorchDispatchMode):
    """Records operations with their numbers and does them again on the tensors of now, as a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in REFUSED, name
        masks = [x for x in torch.utils._pytree.tree_leaves(args[1:]) if isinstance(x, torch.Tensor)]
        assert not (name.startswith("index") and any(mask.dtype == torch.bool for mask in masks)), name
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        made: dict[int, torch.Tensor] = {}

        def now(x: Any) -> Any:
            return made.get(id(x), x) if isinstance(x, torch.Tensor) else x

        with torch.inference_mode():
            for func, args, kwargs, result in self.calls:
                again = func(*tree_map(now, args), **tree_map(now, kwargs))
                pairs = zip(_leaves(result), _leaves(again), strict=True)
                made |= {id(old): new for old, new in pairs if old is not new}


def _leaves(x: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(x))


class Tapes:
    """A Capture that counts what it records and replays."""

    def __init__(self) -> None:
        self.n_recorded = 0
        self.n_replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.n_recorded += 1
        run()  # as CudaGraphs: recording comes after a run
        with Tape() as tape:
            run()

        def replay() -> None:
            self.n_replayed += 1
            tape.replay()

        return replay


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decoder, "CAPTURE_AFTER", 1)


def recorded(tapes: Tapes | None = None, dtype: str = "float32") -> TorchRunner:
    runner = TorchRunner(TINY, TENSORS, dtype)
    recorder = torch_decoder.Recorder(tapes or Tapes(), runner._decoder._model.addresses)
    runner._decoder._recorder = runner._prompts._recorder = recorder
    return runner


def write(runner: Runner, prompts: Sequence[Any], n: int, samplers: Sequence[Sampler]) -> list[list[int]]:
    """Write n tokens after each prompt, all rows at once, as the engine drives a runner."""
    rows = [runner.open() for _ in prompts]
    chunks = [Chunk(row, ids) for row, ids in zip(rows, prompts, strict=True)]
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(n):
        chosen = runner.draw(chunks, [Wanted([sampler.draw()]) for sampler in samplers])
        tokens = [found.tokens[0] for found in chosen]
        for text, sampler, token in zip(texts, samplers, tokens, strict=True):
            assert token is not None
            text.append(token.token)
            sampler.accept(token.token)
        chunks = [Chunk(row, np.array(text[-1:])) for row, text in zip(rows, texts, strict=True)]
    for row in rows:
        runner.close(row)
    return texts


def samplers(n: int, **settings: Any) -> list[Sampler]:
    return [Sampler(Sampling(seed=i, **settings), IDS[0, :0], 0, TINY.n_vocab - 9) for i in range(n)]


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.8, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_recorded_steps_write_what_the_numpy_runner_writes(settings: dict[str, Any], n_rows: int) -> None:
    prompts = [IDS[i, : 60 + i] for i in range(n_rows)]  # a border of blocks lies ahead
    tapes = Tapes()
    found = write(recorded(tapes), prompts, 9, samplers(n_rows, **settings))
    assert found == write(NumpyRunner(TINY, TENSORS), prompts, 9, samplers(n_rows, **settings))
    assert tapes.n_replayed >= 5


def test_tokens_do_not_depend_on_the_number_of_rows() -> None:
    prompts = [IDS[i, : 5 + 9 * i] for i in range(5)]
    runner = recorded()
    together = write(runner, prompts, 8, samplers(5, temperature=0.7))
    for i, prompt in enumerate(prompts):
        assert write(runner, [prompt], 8, samplers(5, temperature=0.7)[i : i + 1]) == [together[i]]


def test_graph_free_and_recorded_steps_give_the_same_bits() -> None:
    runner, plain = recorded(), TorchRunner(TINY, TENSORS)
    for some in (runner, plain):
        some.forward([Chunk(some.open(), IDS[i, : 10 + i], 0) for i in range(3)])
    for t in range(20, 24):
        chunks = [Chunk(i, IDS[i, t : t + 1]) for i in range(3)]
        for one, other in zip(runner.forward(chunks), plain.forward(chunks), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_pass_is_the_same_for_any_texts() -> None:
    """Every operation, shape and number of two steps of other rows, lengths and adapters."""
    runner = TorchRunner(TINY, TENSORS)
    name = "transformer.h.1.mlp.fc_in"
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, TINY.d_model), (TINY.d_ff, 2)))
    adapters = [None, runner.add_adapter(Lora({name: LowRank(a, b, 1.0)}))]
    rows = [runner.open(adapters[i % 2]) for i in range(4)]
    runner.forward([Chunk(row, IDS[i, : 7 * i + 3], 0) for i, row in enumerate(rows)])
    traces = []
    for some, t in ((rows[:3], 29), (rows[:3], 30), (rows[1:], 31)):  # the first makes the buffers
        with torch.inference_mode(), Tape() as tape:
            runner._decoder.logits(torch_decoder.Step(some, IDS[0, t : t + 3].tolist()))
        traces.append([_described(call) for call in tape.calls if call[0]._schema.name != "aten::clone"])
    assert traces[1] == traces[2]


def _described(call: Any) -> Any:
    func, args, kwargs, _ = call

    def shown(x: Any) -> Any:
        return (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x

    return str(func), str(tree_map(shown, args)), str(tree_map(shown, kwargs))


def test_rows_that_are_not_there_leave_no_trace() -> None:
    """A pass of three rows has a fourth, whose numbers may be anything: nobody reads them."""
    runner = TorchRunner(TINY, TENSORS)
    with torch.inference_mode():
        runner._model.transformer.wte.weight = torch.nn.Parameter(
            runner._model.transformer.wte.weight.clone(), requires_grad=False
        )
        runner._model.transformer.wte.weight[0] = torch.nan
    rows = [runner.open() for _ in range(3)]
    for t in range(3):
        logits = runner.forward([Chunk(row, IDS[i, t : t + 1] % 500 + 1) for i, row in enumerate(rows)])
        assert all(np.isfinite(x).all() for x in logits)
    null = runner._cache.layers[0][:, 0]
    assert not null[:, : BLOCK - 1].any()


# Prompts


def test_recorded_prompts_read_what_the_numpy_runner_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of several lengths, begun and continued, beside some that no recording is made for."""
    monkeypatch.setattr(torch_prompt, "SIZES", (8, 32))
    tapes = Tapes()
    runner, numpy_runner = recorded(tapes), NumpyRunner(TINY, TENSORS)
    runner._cache._require_free(4)  # or it grows, and recordings are made again
    for n, more in ((5, 20), (31, 9), (7, 32), (32, 64), (40, 8), (1, 3), (3, 100), (8, 88)):
        row = runner.open()
        assert numpy_runner.open() == row
        for ids in (IDS[0, :n], IDS[1, :more]):
            chunk = Chunk(row, ids, min(4, len(ids)))
            (found,), (wanted,) = runner.forward([chunk]), numpy_runner.forward([chunk])
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
        assert runner.length(row) == n + more
        runner.close(row)
        numpy_runner.close(row)
    assert tapes.n_replayed == 3  # two that begin, one that goes on


def test_positions_that_a_row_has_not_read_may_hold_anything() -> None:
    runner = recorded()
    row = runner.open()
    runner.forward([Chunk(row, IDS[0, :40], 0)])
    runner.truncate(row, 35)
    with torch.inference_mode():
        for layer in runner._cache.layers:
            layer[:, runner._cache.row(row).blocks[1], 35 % BLOCK :] = torch.nan
            layer[:, 0, BLOCK - 1] = torch.nan
    (logits,) = runner.forward([Chunk(row, IDS[1, :5])])
    assert np.isfinite(logits).all()


# Ahead


@contextmanager
def counted(runner: TorchRunner) -> Iterator[list[int]]:
    """The passes that are launched, by their number of rows."""
    launched: list[int] = []
    read = runner._decoder._read

    def counting(step: Any, columns: Any) -> Any:
        launched.append(len(step.rows))
        return read(step, columns)

    runner._decoder._read = counting  # type: ignore[method-assign]
    yield launched


def test_every_pass_but_the_last_is_used() -> None:
    runner = recorded()
    write(runner, [IDS[0, :9]], 6, samplers(1))  # records
    with counted(runner) as launched:
        write(runner, [IDS[1, :9]], 9, samplers(1))
    assert len(launched) == 9  # 8 steps after the prompt, and the one that nobody asked for


def step_all(runner: Runner, last: dict[int, int], drawing: dict[int, Sampler]) -> None:
    """One more token of each row, which `last` then names."""
    chunks = [Chunk(row, np.array([token])) for row, token in last.items()]
    chosen = runner.draw(chunks, [Wanted([drawing[row].draw()]) for row in last])
    for row, found in zip(list(last), chosen, strict=True):
        assert found.tokens[0] is not None
        last[row] = found.tokens[0].token
        drawing[row].accept(last[row])


def test_closing_a_row_keeps_the_step_of_the_others() -> None:
    runner = recorded()
    for n_rows in (3, 2):
        write(runner, [IDS[i, :9] for i in range(n_rows)], 6, samplers(n_rows))  # records
    rows = [runner.open() for _ in range(3)]
    runner.forward([Chunk(row, IDS[row, :9], 0) for row in rows])
    last, drawing = dict.fromkeys(rows, 5), dict(zip(rows, samplers(3), strict=True))
    step_all(runner, last, drawing)
    with counted(runner) as launched:
        runner.close(rows[1])
        del last[rows[1]]
        step_all(runner, last, drawing)
    assert launched == [2], "the step after it: its own ran ahead"


def test_a_handle_that_is_used_again_does_not_take_the_step_of_its_old_row() -> None:
    """The new row has the length, the token and the settings that the old one would have gone on with."""
    runner, numpy_runner = recorded(), NumpyRunner(TINY, TENSORS)
    write(runner, [IDS[0, :9]], 6, samplers(1))  # records
    drawn = []
    for some in (runner, numpy_runner):
        row = some.open()
        some.forward([Chunk(row, IDS[1, :9], 0)])
        last, drawing = {row: 5}, {row: samplers(1, temperature=0.9)[0]}
        step_all(some, last, drawing)  # a step runs ahead
        some.close(row)
        assert some.open() == row
        some.forward([Chunk(row, IDS[2, :10], 0)])
        with counted(runner) as launched:
            step_all(some, last, drawing)
        drawn.append(last[row])
        assert len(launched) == (2 if some is runner else 0), "its own step, and the one after it"
    assert drawn[0] == drawn[1]


def test_rows_that_come_go_fork_and_are_cut_find_no_stale_step() -> None:
    """Against the numpy runner, step by step, in an order that makes most guesses wrong."""
    torch_runner, numpy_runner = recorded(), NumpyRunner(TINY, TENSORS)
    rng = np.random.default_rng(3)
    texts: dict[int, Sampler] = {}
    last: dict[int, int] = {}
    for step in range(30):
        if len(texts) < 4 and step % 5 == 0:
            rows = [r.open() for r in (torch_runner, numpy_runner)]
            assert rows[0] == rows[1]
            texts[rows[0]] = samplers(4, temperature=0.8)[step % 4]
            last[rows[0]] = int(rng.integers(0, 500))
        if step % 7 == 3:
            row = int(rng.choice(list(texts)))
            cut = int(rng.integers(0, 2))
            for r in (torch_runner, numpy_runner):
                r.truncate(row, max(0, r.length(row) - cut))
        if step % 11 == 10:
            row = int(rng.choice(list(texts)))
            for r in (torch_runner, numpy_runner):
                r.close(row)
            del texts[row], last[row]
        if step % 13 == 12 and texts:
            parent = int(rng.choice(list(texts)))
            children = [r.fork(parent) for r in (torch_runner, numpy_runner)]
            texts[children[0]], last[children[0]] = samplers(9, temperature=0.8)[step % 9], last[parent]
        chunks = [Chunk(row, np.array([last[row]])) for row in texts]
        wanted = [Wanted([sampler.draw()]) for sampler in texts.values()]
        found, right = (r.draw(chunks, wanted) for r in (torch_runner, numpy_runner))
        for row, one, other in zip(texts, found, right, strict=True):
            assert one.tokens[0] is not None and other.tokens[0] is not None
            assert one.tokens[0].token == other.tokens[0].token, (step, row)
            last[row] = one.tokens[0].token
            texts[row].accept(last[row])


def test_the_context_may_be_filled() -> None:
    runner = recorded()
    prompt = np.concatenate([IDS[0], IDS[1, : TINY.n_ctx - 108]])
    found = write(runner, [prompt], 9, samplers(1, temperature=0.0))
    assert found == write(NumpyRunner(TINY, TENSORS), [prompt], 9, samplers(1, temperature=0.0))


def test_an_engine_writes_the_same_with_and_without() -> None:
    def texts(runner: Runner) -> dict[tuple[int, int], list[int]]:
        engine = Engine(runner, max_cached=4)
        for i in range(3):
            sampling = Sampling(temperature=0.9, seed=i, n=1 + i % 2)
            engine.add(Request(IDS[i, : 6 + 11 * i], writing=Writing(sampling, 4 + 2 * i, frozenset({7}))))
        found: dict[tuple[int, int], list[int]] = {}
        while not engine.idle:
            for event in engine.step():
                if event.token is not None:
                    found.setdefault((event.request, event.sample), []).append(event.token.token)
        engine.close()
        return found

    tapes = Tapes()
    assert texts(recorded(tapes)) == texts(NumpyRunner(TINY, TENSORS))
    assert tapes.n_replayed > 3


def test_recordings_are_made_again_when_the_cache_or_an_adapter_moves() -> None:
    tapes = Tapes()
    runner = recorded(tapes)
    for _ in range(2):  # the prompt is recorded the second time
        write(runner, [IDS[0, :9]], 5, samplers(1))
    before = tapes.n_recorded
    write(runner, [IDS[0, :9]], 3, samplers(1))
    assert tapes.n_recorded == before
    runner._cache._require_free(len(runner._cache._free) + 1)  # grows
    assert write(runner, [IDS[1, :9]], 5, samplers(1)) == write(
        NumpyRunner(TINY, TENSORS), [IDS[1, :9]], 5, samplers(1)
    )
    assert tapes.n_recorded > before


def test_tables_are_as_wide_as_the_longest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decoder, "MIN_WIDTH", 1)
    decoder = TorchRunner(TINY, TENSORS)._decoder
    widths = [decoder._width(n, torch_pass.PLAIN) for n in (1, 32, 33, 64, 65, 128)]
    assert widths == [1, 1, 2, 2, 4, 4]
    assert decoder._width(1, torch_pass.PLAIN._replace(by_length=True)) == 4


def test_other_steps_take_over_at_once() -> None:
    used = []

    def out(*args: Any) -> torch.Tensor:
        used.append(args)
        return torch_pass.out(*args)

    runner = recorded()
    write(runner, [IDS[0, :9]], 5, samplers(1))
    other = torch_pass.PLAIN._replace(out=out, by_length=True)
    runner.use_plan(torch_pass.StepPlan(other, 4, torch_pass.PLAIN))
    found = write(runner, [IDS[1, :9]], 5, samplers(1))
    assert found == write(NumpyRunner(TINY, TENSORS), [IDS[1, :9]], 5, samplers(1)) and used


class Pools:
    """The part of torch.cuda that CudaGraphs uses: a pool lives as long as a graph in it."""

    def __init__(self) -> None:
        self.graphs: dict[int, int] = {}  # alive, by pool
        self.n_pools = 0
        self.n_snapshots = 0
        self.stream = MagicMock()

    def handle(self) -> int:
        self.n_pools += 1
        return self.n_pools

    @contextmanager
    def record(self, graph: Graph, pool: int, stream: Any = None, **options: Any) -> Iterator[None]:
        assert self.graphs.get(pool) != 0, "a pool that torch has given back"
        self.graphs[pool] = self.graphs.get(pool, 0) + 1
        graph.pools, graph.pool = self, pool
        yield

    def snapshot(self) -> list[dict[str, Any]]:
        """A segment for each graph, and others that anybody's tensors may use."""
        self.n_snapshots += 1
        part = {"total_size": 1000, "allocated_size": 300}
        owners = [pool for pool, n in self.graphs.items() for _ in range(n)]
        return [{"segment_pool_id": owner, **part} for owner in ((0, 0), *owners, (0, 0))]


class Graph:
    """A CUDA graph that replays nothing."""

    pools: Pools
    pool: int

    def replay(self) -> None:
        pass

    def __del__(self) -> None:
        if hasattr(self, "pools"):  # it was recorded
            self.pools.graphs[self.pool] -= 1


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Pools:
    pools = Pools()
    fakes: dict[str, Any] = {
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "Stream": lambda *device: pools.stream,
        "current_stream": lambda device: MagicMock(),
        "graph_pool_handle": pools.handle,
        "CUDAGraph": Graph,
        "graph": pools.record,
        "memory_snapshot": pools.snapshot,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return pools


def test_graphs_share_a_pool_until_the_last_is_dropped(pools: Pools) -> None:
    recorder = torch_decoder.Recorder(torch_decoder.CudaGraphs(torch.device("cuda")), lambda: 0)
    for n_pools in (1, 2):
        for _ in range(torch_decoder.CAPTURE_AFTER + 1):
            for key in "ab":
                recorder.run(key, lambda: None)
        assert pools.graphs[n_pools] == 2 and len(pools.graphs) == n_pools
        recorder.forget()


def test_memory_of_the_pool_is_read_once_for_a_recording(pools: Pools) -> None:
    graphs = torch_decoder.CudaGraphs(torch.device("cuda"))
    assert (graphs.held_bytes(), pools.n_snapshots) == (0, 0)
    replay = graphs(lambda: None)
    assert [graphs.held_bytes() for _ in range(3)] == [700] * 3 and pools.n_snapshots == 1
    other = graphs(lambda: None)
    assert (graphs.held_bytes(), pools.n_snapshots) == (1400, 2)
    del replay, other
    assert graphs.held_bytes() == 0, "torch may give such a pool back"


@pytest.mark.parametrize("fails", ["the run before", "the recording"])
def test_a_pass_that_cannot_be_recorded_runs_on_without(fails: str, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    tries = 0

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        nonlocal tries
        tries += 1
        if fails == "the recording":
            run()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    address = 0
    recorder = torch_decoder.Recorder(capture, lambda: address)
    for step in range(6):
        ran.clear()
        assert recorder.run("read", lambda: ran.append("read")) is False
        assert ran, step
        address += step == 4  # the cache has grown
    assert tries == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Tried to allocate 2.00 GiB" in line and "--dtype" in line


def test_texts_go_on_where_recording_fails() -> None:
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        run()
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    runner = recorded()
    recorder = torch_decoder.Recorder(capture, runner._decoder._model.addresses)
    runner._decoder._recorder = runner._prompts._recorder = recorder
    prompts = [IDS[i, : 20 + i] for i in range(2)]
    found = write(runner, prompts, 9, samplers(2, temperature=0.8))
    assert found == write(NumpyRunner(TINY, TENSORS), prompts, 9, samplers(2, temperature=0.8))


def test_a_prompt_that_memory_ends_in_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, new_zeros = recorded(), torch.Tensor.new_zeros
    row = runner.open()
    chunk = Chunk(row, IDS[0, :9])

    def refused(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as short:
        short.setattr(torch.Tensor, "new_zeros", refused)
        with pytest.raises(NotEnoughMemory):
            runner.forward([chunk])
    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    (found,) = runner.forward([chunk])
    numpy_runner = NumpyRunner(TINY, TENSORS)
    (wanted,) = numpy_runner.forward([Chunk(numpy_runner.open(), IDS[0, :9])])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("settings", SETTINGS)
def test_cuda_graphs_write_what_the_numpy_runner_writes(settings: dict[str, Any]) -> None:
    runner = TorchRunner(TINY, TENSORS, "float32", "cuda")
    prompts = [IDS[i, : 40 + 9 * i] for i in range(5)]
    for _ in range(2):
        found = write(runner, prompts, 40, samplers(5, **settings))
        assert found == write(NumpyRunner(TINY, TENSORS), prompts, 40, samplers(5, **settings))
    assert runner._decoder._recorder._replays


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_cuda_graphs_read_prompts_as_the_numpy_runner() -> None:
    runner, numpy_runner = TorchRunner(TINY, TENSORS, "float32", "cuda"), NumpyRunner(TINY, TENSORS)
    for n in (20, 31, 32, 40, 9, 64):  # begun, and continued by as many
        row = runner.open()
        assert numpy_runner.open() == row
        for ids in (IDS[0, :n], IDS[1, :n]):
            chunk = Chunk(row, ids, 2)
            (found,), (wanted,) = runner.forward([chunk]), numpy_runner.forward([chunk])
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
        runner.close(row)
        numpy_runner.close(row)
    replays: Any = runner._decoder._recorder._replays
    kinds = {key[1:] for key in replays if key[0] == "prompt"}
    assert kinds == {(32, False), (32, True), (64, False), (64, True)}


@contextmanager
def refused_waiting() -> Iterator[None]:
    """An operation that makes the host wait for the GPU is an error; torch warns that it misses some."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_step_makes_the_host_wait_for_nothing_but_its_tokens() -> None:
    runner = TorchRunner(TINY, TENSORS, "float16", "cuda")
    write(runner, [IDS[0, :9]], 12, samplers(1))
    row = runner.open()
    step = torch_decoder.Step([row], [5])
    with refused_waiting(), torch.inference_mode():
        wait = runner._decoder.draw(step, [samplers(1)[0].draw()], ahead=True)
    assert 0 <= wait()[0] < TINY.n_vocab
