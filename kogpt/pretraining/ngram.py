"""What counting alone predicts of a text: an interpolated modified Kneser-Ney model over bytes.

Kneser & Ney 1995 with the three discounts per order of Chen & Goodman 1999 (section 3); a yardstick for
trained models. A gram is a number of 64 bits, its last byte lowest, so those of one context are neighbours
once they are sorted. Zero bytes stand before the start of a document: context only, never counted themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import ConfigError, InputError

ORDER = 6
MAX_ORDER = 8  # bytes of a key
CHUNK_BYTES = 1 << 26  # of text counted at a time; the memory is about 40 times that, and 50 bytes a gram
FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts are too few to estimate them, as KenLM's lmplz

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Level:
    """All grams of one length: G of them, in C contexts, both sorted."""

    grams: Keys  # (G,)
    shares: Floats  # (G,) the count less its discount, of all counts of the context
    contexts: Keys  # (C,) grams without their last byte
    rests: Floats  # (C,) what the discounts leave to the next shorter context


class KneserNey:
    """A model of the byte that follows up to `order` - 1 others."""

    def __init__(self, grams: Keys, counts: Counts, order: int) -> None:
        """From all different grams of `order` bytes, sorted, and how often each occurs."""
        self.order = order
        self._levels = [_level(grams, counts)]  # shortest first
        for width in range(order - 1, 0, -1):
            # How many different bytes a shorter gram follows: the longer ones that end in it.
            grams, counts = _counted(grams & _ones(width))
            self._levels.insert(0, _level(grams, counts))

    @classmethod
    def train(cls, texts: Iterable[str], order: int = ORDER, chunk_bytes: int = CHUNK_BYTES) -> Self:
        """Count the documents; ConfigError for an order that does not fit a key, InputError without text."""
        if not 1 <= order <= MAX_ORDER:
            raise ConfigError(
                f"order is {order}, must be from 1 to {MAX_ORDER}",
                f"order 값 {order} (조건: 1에서 {MAX_ORDER})",
            )
        grams, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for chunk in _chunks(texts, order, chunk_bytes):
            grams, counts = _merged(grams, counts, *_counted(chunk))
        if not len(grams):
            raise InputError("there is no text to count", "셀 텍스트가 없습니다")
        return cls(grams, counts, order)

    @property
    def sizes(self) -> list[int]:
        """Different grams of 1 byte, 2 bytes, ..."""
        return [len(level.grams) for level in self._levels]

    def probabilities(self, text: bytes) -> Floats:
        """(len(text),): of each byte given those before it in this document."""
        windows = _windows(np.frombuffer(bytes(self.order - 1) + text, np.uint8), self.order)
        probabilities = np.full(len(text), 1 / 256)
        for width, level in enumerate(self._levels, 1):
            grams = windows & _ones(width)
            probabilities *= _found(level.contexts, level.rests, grams >> np.uint64(8), missing=1.0)
            probabilities += _found(level.grams, level.shares, grams, missing=0.0)
        return probabilities

    def bits_per_byte(self, texts: Iterable[str]) -> float:
        """Over all bytes of the documents."""
        bits, n_bytes = 0.0, 0
        for text in texts:
            probabilities = self.probabilities(text.encode())
            bits -= float(np.log2(probabilities).sum())
            n_bytes += len(probabilities)
        return bits / max(1, n_bytes)


def discounts(counts: Counts) -> Floats:
    """(4,): what is taken from a count of 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 26)."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not n1 * n2 * n3 * n4:
        return np.array([0.0, *FALLBACK])
    y = n1 / (n1 + 2 * n2)
    estimates = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return estimates if (estimates >= 0).all() else np.array([0.0, *FALLBACK])


def _level(grams: Keys, counts: Counts) -> _Level:
    contexts = grams >> np.uint64(8)
    first = _firsts(contexts)
    totals = np.add.reduceat(counts, first)
    taken = discounts(counts)[np.minimum(counts, 3)]
    shares = (counts - taken) / np.repeat(totals, np.diff(first, append=len(grams)))
    return _Level(grams, shares, contexts[first], np.add.reduceat(taken, first) / totals)


def _chunks(texts: Iterable[str], order: int, chunk_bytes: int) -> Iterator[Keys]:
    """The gram that ends in each byte of the texts, many texts at a time."""
    start = bytes(order - 1)
    held = bytearray()
    for text in texts:
        held += start + text.encode()
        if len(held) >= chunk_bytes:
            yield _ending_in_text(held, order)
            held = bytearray()
    yield _ending_in_text(held, order)


def _ending_in_text(data: bytearray, order: int) -> Keys:
    symbols = np.frombuffer(data, np.uint8)
    keys: Keys = _windows(symbols, order)[symbols[order - 1 :] != 0]
    return keys


def _windows(symbols: NDArray[np.uint8], order: int) -> Keys:
    """(T,) -> (T - order + 1,): every stretch of `order` bytes as a number, the last byte lowest."""
    n_windows = max(0, len(symbols) - order + 1)
    keys = np.zeros(n_windows, np.uint64)
    for place in range(order):
        keys <<= np.uint64(8)
        keys |= symbols[place : place + n_windows]
    return keys


def _counted(keys: Keys) -> tuple[Keys, Counts]:
    """The different keys, sorted, and how many there are of each; sorts `keys` in place."""
    keys.sort()
    first = _firsts(keys)
    return keys[first], np.diff(first, append=len(keys))


def _merged(keys: Keys, counts: Counts, more: Keys, more_counts: Counts) -> tuple[Keys, Counts]:
    """Two countings as one."""
    if not len(keys):
        return more, more_counts
    keys, counts = np.concatenate((keys, more)), np.concatenate((counts, more_counts))
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    first = _firsts(keys)
    return keys[first], np.add.reduceat(counts, first)


def _firsts(keys: Keys) -> NDArray[np.int64]:
    """Where each different key starts among sorted ones."""
    changes = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def _found(keys: Keys, values: Floats, wanted: Keys, missing: float) -> Floats:
    """The value of each wanted key, or `missing`."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def _ones(n_bytes: int) -> np.uint64:
    return np.uint64((1 << (8 * n_bytes)) - 1)
