"""A runner without a model: it writes endless Hangul, three bytes a syllable, as fast or as slowly as told.

What a server costs, and what it does with a thousand streams, is then its own doing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from conftest import TINY
from numpy.typing import NDArray

from kogpt import KoGPT
from kogpt.adapter import Lora
from kogpt.engine import Engine
from kogpt.runner import Chunk
from kogpt.sampling import Chosen, SampledToken, Wanted
from kogpt.tokenizer import Tokenizer

FIRST, COUNT = 0xAC00, 11_172  # the Hangul syllables of Unicode
LENGTH = 8192  # context
PRIME = 1_000_003


class ScriptedRunner:
    """A row's text depends on its prompt alone: see `script`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    name = "scripted"
    dtype = "float32"
    prefill_tokens = 4096

    def __init__(self, tokenizer: Tokenizer, step_seconds: float = 0.0) -> None:
        self.config = replace(TINY, n_ctx=LENGTH)
        self.step_seconds = step_seconds
        self._bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.n_vocab) if i >= 5}
        self._rows: dict[int, list[int]] = {}
        self._plans: dict[int, tuple[int, int]] = {}  # row -> (hash of the prompt, its length)
        self._free: list[int] = []

    @classmethod
    def weight_bytes(cls, config: Any, dtype: str) -> int:
        return 0

    def open(self, adapter: int | None = None) -> int:
        row = self._free.pop() if self._free else len(self._rows)
        self._rows[row] = []
        return row

    def fork(self, row: int, length: int | None = None) -> int:
        child = self.open()
        self._rows[child] = self._rows[row][:length]
        if length is None and row in self._plans:
            self._plans[child] = self._plans[row]
        return child

    def close(self, row: int) -> None:
        del self._rows[row]
        self._plans.pop(row, None)
        self._free.append(row)

    def length(self, row: int) -> int:
        return len(self._rows[row])

    def truncate(self, row: int, length: int) -> None:
        del self._rows[row][length:]
        self._plans.pop(row, None)

    def room(self) -> int | None:
        return None

    def load_cache(self, row: int, keys: Any, values: Any) -> None:
        raise NotImplementedError

    def add_adapter(self, lora: Lora) -> int:
        raise NotImplementedError

    def drop_adapter(self, adapter: int) -> None:
        raise NotImplementedError

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.floating[Any]]]:
        for chunk in chunks:
            self._rows[chunk.row] += [int(token) for token in chunk.inputs]
        return [np.zeros((chunk.n_outputs, self.config.n_vocab), np.float32) for chunk in chunks]

    def hidden(self, chunks: Sequence[Chunk]) -> list[NDArray[np.floating[Any]]]:
        return [np.zeros((chunk.n_outputs, self.config.d_model), np.float32) for chunk in chunks]

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        time.sleep(self.step_seconds)
        answers = []
        for chunk, want in zip(chunks, wanted, strict=True):
            self._rows[chunk.row] += [int(token) for token in chunk.inputs]
            tokens: list[SampledToken | None] = [self._next(chunk.row) for _ in want.draws]
            answers.append(Chosen(tokens, np.zeros(0), np.zeros(0, np.int64)))
        return answers

    def _next(self, row: int) -> SampledToken:
        ids = self._rows[row]
        if row not in self._plans or self._plans[row][1] > len(ids):
            self._plans[row] = (hash(tuple(ids)) % PRIME, len(ids))
        start, begun = self._plans[row]
        place, byte = divmod(len(ids) - begun, 3)
        raw = chr(FIRST + (start + 7919 * place) % COUNT).encode()
        return SampledToken(self._bytes[raw[byte : byte + 1]], float("nan"), ())


def script(ids: Sequence[int], n_syllables: int) -> str:
    """What the runner writes after a prompt."""
    start = hash(tuple(ids)) % PRIME
    return "".join(chr(FIRST + (start + 7919 * place) % COUNT) for place in range(n_syllables))


def scripted(tokenizer: Tokenizer, max_rows: int = 16, step_seconds: float = 0.0) -> KoGPT:
    """A model that writes by the script."""
    runner = ScriptedRunner(tokenizer, step_seconds)
    return KoGPT(tokenizer, Engine(runner, max_rows=max_rows, n_vocab=tokenizer.n_vocab))
