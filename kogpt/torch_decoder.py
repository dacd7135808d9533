"""Decoding steps on one device: which pass a step takes, when it is recorded, and what runs ahead.

A step of n rows takes the pass of the next size in ROWS. It runs graph-free at first, so that nothing is
waited for before the first token, and is recorded once its kind has come CAPTURE_AFTER times. Recording is
behind one seam, `Capture`: CUDA graphs here, an imitation in the tests.

While the host reads the tokens of step n, the device computes step n + 1: right after a recorded step, the
same rows are launched again with the tokens that it drew, which the host does not know yet. If the next call
asks for rows, tokens and settings as guessed, or for some of them, its answer is on the way; else what was
computed is forgotten: it wrote behind the rows' ends only.
Shapes: n rows, B rows of the pass, V vocabulary, W blocks.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kogpt.errors import localized
from kogpt.sampling import Draw
from kogpt.torch_cache import PagedCache, Row, blocks_for
from kogpt.torch_pass import Buffers, StaticModel, StepPlan, Steps, pack_inputs
from kogpt.torch_sampling import DrawKind, settings_columns
from kogpt.torch_transfer import Reading, queue_copy

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CAPTURE_AFTER = 3  # graph-free steps of a kind; recording the 6B shape takes as long as some five of them
MIN_WIDTH = 4  # blocks of the narrowest table

logger = logging.getLogger(__name__)

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]  # runs what it is given, and records it


class CudaGraphs:
    """A Capture by CUDA graphs, which share one pool of memory.

    A pool ends with the last graph in it: torch frees its memory and refuses to record into it again. So the
    next graph begins another pool.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream for all: cuBLAS keeps a workspace for each stream, 32 MB on Hopper. A run on the stream
        # before the recording makes it outside the pool.
        self._side = torch.cuda.Stream(device)
        self._pool: Any = None
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._held: int | None = None  # cached value of held_bytes; None: not read yet

    def __call__(self, run: Callable[[], None]) -> Replay:
        self._held = None
        current, side = torch.cuda.current_stream(self._device), self._side
        # Left as it was entered, also where a recording fails: torch then leaves its stream the current one.
        with torch.cuda.device(self._device), torch.cuda.stream(current):
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    run()  # libraries make their handles and workspaces here, which may not be recorded
            finally:  # kernels queued before a failure may still run
                current.wait_stream(side)
            if not self._alive:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads of a server may use CUDA meanwhile.
            with torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"):
                run()
            self._alive.add(graph)
        return graph.replay

    def held_bytes(self) -> int:
        """Bytes that torch keeps for recordings between their replays: reserved, but nobody else's to use.

        Asking torch takes milliseconds, so it is asked once after each recording.
        """
        if not self._alive:
            return 0  # torch frees a pool without graphs when it needs the memory
        if self._held is None:
            own = [part for part in torch.cuda.memory_snapshot() if part["segment_pool_id"] == self._pool]
            self._held = sum(part["total_size"] - part["allocated_size"] for part in own)
        return self._held


class Recorder:
    """Passes by their key: run graph-free, then recorded, then replayed.

    A pass that cannot be recorded runs once more, which gives the same, and graph-free from then on.
    """

    def __init__(self, capture: Capture | None, addresses: Callable[[], Hashable]) -> None:
        """capture: None where nothing is ever recorded. addresses: changes when recordings become wrong."""
        self._capture = capture
        self._addresses = addresses
        self._recorded_at = addresses()
        self._counts: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Replay] = {}
        self._refused: set[Hashable] = set()  # could not be recorded

    @property
    def records(self) -> bool:
        """Whether anything is ever recorded."""
        return self._capture is not None

    def run(self, key: Hashable, run: Callable[[], None]) -> bool:
        """Run a pass; whether it was replayed."""
        if self._recorded_at != self._addresses():
            self.forget()
        if key in self._replays:
            self._replays[key]()
            return True
        self._counts[key] += 1
        recorded = self._counts[key] > CAPTURE_AFTER and key not in self._refused and self._record(key, run)
        if not recorded:
            run()
        return False

    def _record(self, key: Hashable, run: Callable[[], None]) -> bool:
        """Run a pass and record it; False where that failed, however far it ran, or nothing is recorded."""
        if self._capture is None:
            return False
        try:
            self._replays[key] = self._capture(run)
        except RuntimeError as error:  # torch's errors of CUDA and of memory are among them
            self._refused.add(key)
            logger.warning(localized(*unrecorded(error)))
            return False
        return True

    def forget(self) -> None:
        """Drop all recordings."""
        self._replays.clear()
        self._recorded_at = self._addresses()


class Step(NamedTuple):
    """One more token of each of n rows: an id, or -1 - place of one that the last step drew."""

    rows: Sequence[int]
    tokens: Sequence[int]


@dataclass(slots=True)
class Launched:
    """A step whose tokens are drawn, or are being drawn, on the device."""

    rows: list[Row]
    lengths: list[int]  # lengths of the rows before this step
    draws: Sequence[Draw]
    ids: Reading
    tokens: list[int]  # what its rows read; empty until the host knows


class Decoder:
    """The static passes of one device."""

    def __init__(self, model: StaticModel, cache: PagedCache, recorder: Recorder) -> None:
        """recorder: where it records nothing, every step is graph-free, and nothing runs ahead."""
        config = model.model.config
        self._model = model
        self._cache = cache
        self._recorder = recorder
        self._buffers: dict[int, Buffers] = {}
        self._n_ctx, self._n_vocab = config.n_ctx, config.n_vocab
        self._previous = torch.zeros(ROWS[-1], dtype=torch.int64, device=model.stages[0].device)
        self._ahead: Launched | None = None
        self._replayed = False  # whether the last pass was

    def use(self, plan: StepPlan) -> None:
        """Compute the layers by other functions from now on."""
        self._model.plan = plan
        self._recorder.forget()
        self._ahead = None

    def forget(self, row: int) -> None:
        """A row is cut or read in another way: nothing that was guessed about it holds.

        Closing one needs no word: a step is found by its rows, not by handles that a later row may have.
        """
        if self._ahead is not None and any(self._cache.row(row) is other for other in self._ahead.rows):
            self._ahead = None

    def logits(self, step: Step) -> Tensor:
        """(n, V) logits after one more token of each row, which then count as read."""
        self._ahead = None
        self._cache.reserve([(row, 1) for row in step.rows])  # all or none
        parts = []
        for start in range(0, len(step.rows), ROWS[-1]):
            part = Step(step.rows[start : start + ROWS[-1]], step.tokens[start : start + ROWS[-1]])
            buffers, _ = self._read(part, {})
            parts.append(buffers.logits[: len(part.rows)].clone())
        self._cache.advance([(row, 1) for row in step.rows])
        return torch.cat(parts)

    def draw(self, step: Step, draws: Sequence[Draw], ahead: bool) -> Callable[[], list[int]]:
        """Advance as `logits` does, and draw a token for each row. The answer, when called, waits for them.

        At most ROWS[-1] rows, and draws for which `is_plain` holds. ahead: whether to guess the next step.
        """
        places = self._guessed(step, draws)
        launched = self._ahead
        if places is None or launched is None:
            places, launched = list(range(len(draws))), self._launch(step, draws)
        self._cache.advance([(row, 1) for row in step.rows])
        following = self._guess(step.rows, places, draws) if ahead else None
        self._ahead = following
        ids, order = launched.ids, places

        def wait() -> list[int]:
            found = ids.result().tolist()
            tokens = [int(found[place]) for place in order]
            if following is not None:
                following.tokens = tokens
            return tokens

        return wait

    def _guessed(self, step: Step, draws: Sequence[Draw]) -> list[int] | None:
        """The places of these rows in the step that ran ahead; None unless it is what they ask for."""
        ahead = self._ahead
        if ahead is None:
            return None
        places = {id(row): place for place, row in enumerate(ahead.rows)}
        found = []
        for handle, token, draw in zip(step.rows, step.tokens, draws, strict=True):
            row = self._cache.row(handle)
            place = places.get(id(row), -1)
            if (
                place < 0
                or not ahead.tokens
                or (row.length, token) != (ahead.lengths[place], ahead.tokens[place])
            ):
                return None
            if draw._replace(following=None) != ahead.draws[place]._replace(following=None):
                return None
            found.append(place)
        return found

    def _guess(self, rows: Sequence[int], places: Sequence[int], draws: Sequence[Draw]) -> Launched | None:
        """Launch the next step of these rows, whose tokens lie at `places` of what was drawn last."""
        if not self._replayed or any(draw.following is None for draw in draws):
            return None
        sizes = [(row, 1) for row in rows]
        if any(self._cache.row(row).length >= self._n_ctx for row in rows) or not self._cache.has_free(sizes):
            return None
        step = Step(rows, [-1 - place for place in places])
        return self._launch(step, [draw._replace(key=draw.following or 0, following=None) for draw in draws])

    def _launch(self, step: Step, draws: Sequence[Draw]) -> Launched:
        """Queue a step and its draws."""
        self._ahead = None
        self._cache.reserve([(row, 1) for row in step.rows])
        buffers, self._replayed = self._read(step, settings_columns(draws, self._n_vocab))
        kind = DrawKind.of(draws)
        key = ("draw", buffers.n_rows, kind)
        self._recorder.run(key, lambda: self._model.draw(buffers, kind))
        self._previous[: buffers.n_rows].copy_(buffers.ids)
        rows = [self._cache.row(row) for row in step.rows]
        return Launched(rows, [row.length for row in rows], draws, Reading(buffers.ids), [])

    def _read(self, step: Step, columns: Mapping[str, NDArray[Any]]) -> tuple[Buffers, bool]:
        """Queue a pass over reserved rows, ROWS[-1] at most; its buffers, and whether it was replayed."""
        rows = [self._cache.row(row) for row in step.rows]
        adapters = [0 if row.adapter is None else row.adapter + 1 for row in rows]
        fields = {
            "token": np.array(step.tokens, np.int64),
            "position": np.array([row.length for row in rows]),
            "adapter": np.array(adapters),
            **columns,
        }
        n_rows = next(size for size in ROWS if size >= len(rows))
        adapted = any(adapters)
        width = self._width(max(row.length for row in rows) + 1, self._model.steps(n_rows, adapted))
        table = np.zeros((len(rows), width), np.int64)
        for own, row in zip(table, rows, strict=True):
            own[: len(row.blocks)] = row.blocks
        buffers = self._buffers_of(n_rows)
        packed = pack_inputs(fields, table, n_rows)
        queue_copy(packed, buffers.inputs[: len(packed)])
        replayed = self._recorder.run(
            ("read", n_rows, width, adapted),
            lambda: self._model.read(buffers, self._previous, width, adapted),
        )
        return buffers, replayed

    def _width(self, length: int, steps: Steps) -> int:
        """Blocks of the table of a pass whose longest row has `length` positions."""
        widest = blocks_for(self._n_ctx)
        if steps.by_length:
            return widest
        return min(widest, max(MIN_WIDTH, 1 << (blocks_for(length) - 1).bit_length()))

    def _buffers_of(self, n_rows: int) -> Buffers:
        if n_rows not in self._buffers:
            width = blocks_for(self._n_ctx)
            self._buffers[n_rows] = Buffers(n_rows, width, self._n_vocab, self._model)
        return self._buffers[n_rows]


def unrecorded(error: RuntimeError) -> tuple[str, str]:
    """The line about passes that stay graph-free; English and Korean."""
    reason = str(error).partition("\n")[0][:200]
    return (
        "passes of one size run without a CUDA graph from now on, which takes longer: recording failed "
        f"({reason}); where memory is short, run fewer texts at once or choose a smaller --dtype",
        f"CUDA 그래프를 기록하지 못해({reason}) 이 크기의 단계는 그래프 없이 더 느리게 실행합니다. "
        "메모리가 부족하면 한 번에 처리하는 글을 줄이거나 더 작은 --dtype을 지정하세요",
    )


def is_plain(draw: Draw) -> bool:
    """Whether a recorded pass can draw it: it knows no bias, penalties, masks and log-probabilities."""
    return draw.changes is None and draw.allowed is None and draw.logprobs is None
