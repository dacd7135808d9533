"""The seam: what an engine asks of whatever does the arithmetic.

A runner owns the weights and, row by row, the keys and values of what it has read. It knows nothing of
text, sampling or scheduling; an engine knows nothing of layers, precision or devices.
Shapes: T new positions of one row, E model width, V vocabulary, N outputs wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kogpt.adapter import Lora
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.memory import USABLE_SHARE
from kogpt.sampling import Chosen, Wanted, choose

Array = NDArray[np.floating[Any]]

# Prompt tokens of one step: 256 of the 6B shape take two cores seconds, and no other row is written then.
CPU_PREFILL_TOKENS = 256


class Chunk(NamedTuple):
    """The next positions of one row, and for how many of the last of them an output is wanted."""

    row: int
    inputs: NDArray[Any]  # (T,) int64 token ids, or (T, E) float32 embeddings (a soft prompt); T >= 1
    n_outputs: int = 1  # 0 <= n_outputs <= T; 0 only extends the row


class Runner(Protocol):
    """NumpyRunner, NativeRunner and TorchRunner; interchangeable, and tested against one another."""

    dtypes: ClassVar[tuple[str, ...]]  # of the weights in memory; the first is the default
    config: ModelConfig
    name: str  # "numpy", "native" or "torch"
    dtype: str  # of the weights in memory: "float32", "bfloat16", "int8", ...
    prefill_tokens: int  # of prompts in one step: enough to be fast, few enough that other rows can wait

    @classmethod
    def weight_bytes(cls, config: ModelConfig, dtype: str) -> int:
        """Bytes that the weights of a model take in one of `dtypes`."""

    def open(self, adapter: int | None = None) -> int:
        """A new row that has read nothing. Handles are small integers, reused after `close`.

        adapter: a handle of `add_adapter`, through which the row and its forks read.
        """

    def fork(self, row: int, length: int | None = None) -> int:
        """A new row that has read the first `length` positions of `row` (all of them if None)."""

    def close(self, row: int) -> None:
        """Forget a row and free what only it held."""

    def length(self, row: int) -> int:
        """How many positions the row has read."""

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions of a row from `length` on."""

    def room(self) -> int | None:
        """How many positions can still be cached, over all rows; None where no limit is known."""

    def load_cache(self, row: int, keys: Array, values: Array) -> None:
        """Extend a row by P positions whose keys and values are given, (L, P, H, D) float32 each.

        Keys are taken as the cache holds them: no rotation is applied (prefix tuning, arXiv 2110.07602).
        """

    def add_adapter(self, lora: Lora) -> int:
        """Take a LoRA, for rows to be opened with; its handle, a small integer. Adapters lie side by side."""

    def drop_adapter(self, adapter: int) -> None:
        """Forget a LoRA that no open row uses."""

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        """Read each chunk into its row (rows are distinct); logits (N, V) of each chunk, in order.

        float32, or float64 from a float64 runner. A row never grows past config.n_ctx: the engine
        checks that, a runner asserts it. A row's bits do not depend on the rows beside it.
        """

    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        """As `forward`, but (N, E): the trunk's output after the last LayerNorm, before the head."""

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        """As `forward`, then sampling.choose for each chunk: the same tokens from the same logits."""


def require_dtype(dtype: str, known: Collection[str], runner: str) -> None:
    """Raise KoGPTError unless the runner computes in `dtype`."""
    if dtype not in known:
        raise KoGPTError(
            f"dtype is {dtype!r}, must be one of {', '.join(known)} for the {runner} runner",
            f"dtype 값 {dtype!r} ({runner} 러너에서 가능한 값: {', '.join(known)})",
        )


def require_own_cache(cache_dtype: str, runner: str) -> None:
    """Raise KoGPTError unless the cache is left to a runner that keeps it in the dtype of its weights."""
    if cache_dtype != "auto":
        raise KoGPTError(
            f"the {runner} runner keeps its cache in the dtype of the weights, not in {cache_dtype}: "
            "leave --cache-dtype out, or run on a CPU with the native runner",
            f"{runner} 러너의 캐시는 가중치와 같은 형식이며 {cache_dtype} 형식을 쓸 수 없습니다. "
            "--cache-dtype을 빼거나 CPU의 native 러너를 쓰세요",
        )


def check_chunks(runner: Runner, chunks: Sequence[Chunk]) -> None:
    """Assert what `forward` and `hidden` demand of their caller."""
    assert len({chunk.row for chunk in chunks}) == len(chunks) > 0, "one chunk a row, at least one"
    for chunk in chunks:
        size = len(chunk.inputs)
        assert 0 <= chunk.n_outputs <= size > 0, (chunk.n_outputs, size)
        assert runner.length(chunk.row) + size <= runner.config.n_ctx, (runner.length(chunk.row), size)


def output_places(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """Where the wanted outputs lie when all new positions lie end to end; (M,), M the sum of n_outputs."""
    ends = np.cumsum([len(chunk.inputs) for chunk in chunks])
    return np.concatenate([np.arange(end - c.n_outputs, end) for end, c in zip(ends, chunks, strict=True)])


def cache_room(position_bytes: float, free: int | None) -> int | None:
    """How many positions of `position_bytes` fit what is free (None: not known), less a reserve."""
    return None if free is None else max(0, int(USABLE_SHARE * free / position_bytes))


def choose_all(outputs: Sequence[Array], wanted: Sequence[Wanted]) -> list[Chosen]:
    """Answer each chunk's Wanted from its (N, V) logits, on the host."""
    return [choose(logits, want) for logits, want in zip(outputs, wanted, strict=True)]


def split_outputs(packed: Array, chunks: Sequence[Chunk]) -> list[Array]:
    """(M, ...) outputs end to end -> (N, ...) of each chunk."""
    return np.split(packed, np.cumsum([chunk.n_outputs for chunk in chunks])[:-1])
