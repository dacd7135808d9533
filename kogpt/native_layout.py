"""Structs of native/ as they lie in memory: what a step reads and what it answers.

A step of a small model takes less than a millisecond, so what passes at every step lies in array.array and is
read by struct: both cost a fraction of numpy's views and of the fields of a ctypes.Structure.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.runner import Chunk
from kogpt.sampling import Chosen, Draw, SampledToken, Wanted

CHUNK = struct.Struct("iii4xPP")  # Chunk of model.h: row, t, n_outputs, ids, embeddings
DRAW = struct.Struct("QdddqiiiiPPPPP")  # Draw of sampling.h
FACTORS = struct.Struct("iif4xPP")  # Factors of adapter.h: index, rank, scale, a, b
WANTED = struct.Struct("PPiiPP")  # Wanted of model.h: draws, targets, n_draws, n_targets, answers, likeliest
TARGET = np.dtype([("output", np.int32), ("n_likeliest", np.int32), ("token", np.int64)])
ANSWER = struct.Struct("i4xd")  # Answer of sampling.h: token, logprob
ANSWERS = np.dtype([("token", np.int32), ("unused", np.int32), ("logprob", np.float64)])  # the same to numpy
LIKELY = struct.Struct("qd")  # Likely of sampling.h: token, logprob
NO_LOGPROBS = -1
NO_CHANGES = (0, 0, 0, 0)  # addresses of their ids, bias, factor and minus
NO_TARGETS = np.empty(0, TARGET)
NOTHING_SCORED = np.empty(0), np.empty(0, np.int64)  # log-probabilities and likeliest tokens of a Chosen


class Inputs:
    """Chunks as a step reads them; `packed` points into arrays that live as long as this."""

    def __init__(self, chunks: Sequence[Chunk], config: ModelConfig) -> None:
        self._ids = array("Q")  # unsigned: a negative id becomes a large one, which is refused
        for chunk in chunks:
            if chunk.inputs.ndim == 1:
                self._ids.frombytes(chunk.inputs.astype(np.int64, copy=False).tobytes())
        highest = max(self._ids, default=0)
        assert highest < config.n_vocab, highest
        self._embeddings: list[NDArray[np.float32]] = []
        place, _ = self._ids.buffer_info()
        packed = []
        for chunk in chunks:
            size = len(chunk.inputs)
            if chunk.inputs.ndim == 1:
                packed.append(CHUNK.pack(chunk.row, size, chunk.n_outputs, place, 0))
                place += size * self._ids.itemsize
                continue
            assert chunk.inputs.shape[1] == config.d_model, chunk.inputs.shape
            self._embeddings.append(np.ascontiguousarray(chunk.inputs, np.float32))
            embeddings = address(self._embeddings[-1])
            packed.append(CHUNK.pack(chunk.row, size, chunk.n_outputs, 0, embeddings))
        self.packed = b"".join(packed)


class Question:
    """Each chunk's Wanted as a step reads them, and room for the answers; `packed` points into both."""

    def __init__(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted], n_vocab: int) -> None:
        self._wanted = wanted
        self._n_vocab = n_vocab
        ends = list(accumulate(chunk.n_outputs for chunk in chunks))
        starts = [end - chunk.n_outputs for end, chunk in zip(ends, chunks, strict=True)]
        self._arrays: list[NDArray[Any]] = []  # that packed draws point to
        draws = []
        self._n_reported: list[int] = []  # likeliest tokens of each draw
        for want, start, end in zip(wanted, starts, ends, strict=True):
            for draw in want.draws:
                output = draw.output + (end if draw.output < 0 else start)
                assert start <= output < end, (draw.output, end - start)
                draws.append(self._pack(draw, output))
        self._targets, self._order = _sorted_targets(wanted, starts, ends, n_vocab)
        n_targets = len(self._targets)
        n_likeliest = sum(self._n_reported)
        if n_targets:
            n_likeliest += int(self._targets["n_likeliest"].sum())
        self._draws = array("B", b"".join(draws))
        self._answers = array("B", bytes((len(draws) + n_targets) * ANSWER.size))
        self._likeliest = array("B", bytes(n_likeliest * LIKELY.size))
        self.packed = WANTED.pack(
            self._draws.buffer_info()[0],
            address(self._targets.view(np.uint8)) if n_targets else 0,
            len(draws),
            n_targets,
            self._answers.buffer_info()[0],
            self._likeliest.buffer_info()[0],
        )

    def answers(self) -> list[Chosen]:
        """What the step wrote, for each chunk."""
        pairs = list(LIKELY.iter_unpack(self._likeliest))
        end = len(self._n_reported) * ANSWER.size
        drawn = self._drawn(ANSWER.iter_unpack(memoryview(self._answers)[:end]), pairs)
        if not len(self._targets):
            return [Chosen([next(drawn) for _ in want.draws], *NOTHING_SCORED) for want in self._wanted]
        scored = np.empty(len(self._targets), ANSWERS)
        scored[self._order] = np.frombuffer(self._answers, ANSWERS, offset=end)
        ends = np.empty(len(scored), np.int64)
        ends[self._order] = sum(self._n_reported) + np.cumsum(self._targets["n_likeliest"])
        result, first = [], 0
        for want in self._wanted:
            chosen = [next(drawn) for _ in want.draws]
            last = first if want.targets is None else first + len(want.targets)
            n_top = min(want.n_top, self._n_vocab)
            places = ends[first:last].tolist() if n_top else ()
            top = tuple(tuple(pairs[end - n_top : end]) for end in places)
            own = scored[first:last]
            result.append(Chosen(chosen, own["logprob"].copy(), own["token"].astype(np.int64), top))
            first = last
        return result

    def _drawn(
        self, answers: Iterator[tuple[int, float]], pairs: list[tuple[int, float]]
    ) -> Iterator[SampledToken | None]:
        start = 0
        for (token, logprob), count in zip(answers, self._n_reported, strict=True):
            top = tuple(pairs[start : start + count]) if count else ()
            start += count
            yield None if token < 0 else SampledToken(token, logprob, top)

    def _pack(self, draw: Draw, output: int) -> bytes:
        n_vocab = self._n_vocab if draw.n_vocab is None else min(draw.n_vocab, self._n_vocab)
        n_reported = NO_LOGPROBS if draw.logprobs is None else min(draw.logprobs, n_vocab)
        self._n_reported.append(max(0, n_reported))
        changes, n_changes = NO_CHANGES, 0
        if draw.changes is not None:
            c, n_changes = draw.changes, len(draw.changes.ids)
            assert not n_changes or (c.ids.min() >= 0 and c.ids.max() < n_vocab), n_vocab
            changes = (
                self._place(c.ids, np.int64),
                self._place(c.bias, np.float64),
                self._place(c.factor, np.float64),
                self._place(c.minus, np.float64),
            )
        allowed = 0
        if draw.allowed is not None:
            assert 32 * len(draw.allowed) >= n_vocab, (len(draw.allowed), n_vocab)
            words, rest = divmod(n_vocab, 32)
            some = draw.allowed[:words].any() or (rest and int(draw.allowed[words]) & ((1 << rest) - 1))
            assert some, "a mask allows at least one token"
            allowed = self._place(draw.allowed, np.uint32)
        filters = draw.temperature, draw.top_p, draw.min_p, min(draw.top_k, n_vocab)
        return DRAW.pack(draw.key, *filters, output, n_vocab, n_reported, n_changes, *changes, allowed)

    def _place(self, array: NDArray[Any], dtype: type) -> int:
        self._arrays.append(np.ascontiguousarray(array, dtype))
        return address(self._arrays[-1])


def _sorted_targets(
    wanted: Sequence[Wanted], starts: Sequence[int], ends: Sequence[int], n_vocab: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(K,) TARGET of all chunks by rising output, and where each stood before."""
    parts = []
    for want, start, end in zip(wanted, starts, ends, strict=True):
        if want.targets is None or want.outputs is None:
            continue
        part = np.empty(len(want.targets), TARGET)
        part["output"] = want.outputs + np.where(want.outputs < 0, end, start)
        part["n_likeliest"] = min(want.n_top, n_vocab)
        part["token"] = want.targets
        assert ((part["output"] >= start) & (part["output"] < end)).all(), (start, end)
        assert ((part["token"] >= 0) & (part["token"] < n_vocab)).all(), n_vocab
        parts.append(part)
    if not parts:
        return NO_TARGETS, NOTHING_SCORED[1]
    targets = np.concatenate(parts)
    order = np.argsort(targets["output"], kind="stable")
    return targets[order], order


def address(array: NDArray[Any]) -> int:
    """Where an array of numbers lies. `array.ctypes.data` takes a microsecond; of structs this takes 20."""
    place: int = array.__array_interface__["data"][0]
    return place
