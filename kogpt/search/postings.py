"""A segment: the postings of up to 32,768 passages, written once, scored by BM25.

A passage has two fields, the stems of its words and their 2-grams, with a length each. The postings of a term
are the passages that hold it, uint16 numbers within the segment, then how often each does, uint8.
BM25 is that of Robertson and Zaragoza (2009), with Lucene's idf, which is never negative.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kogpt.search.analysis import GRAM, find_words, is_hangul, normalize, stem

SEGMENT_PASSAGES = 32_768
MAX_CACHED_WORDS = 500_000
MAX_COUNT = 255
MAX_LENGTH = 65_535
BYTES_PER_ENTRY = 3
CHECKSUM_BYTES = 4
HANGUL, N_SYLLABLES = ord("가"), 11_172
SECOND = N_SYLLABLES + 1  # values of a code's second part: 0 for none, then the syllables
# Chosen on KorQuAD, checked on TyDi (bench/search.py choose).
K1, B = 0.6, 0.3
STEM_WEIGHT = 1.0  # of a stem's score, beside 1 for a 2-gram's


class DamagedPostings(ValueError):
    """Bytes that are no postings."""


class SegmentBuilder:
    """Passages -> postings, in memory.

    Words are looked up one by one, each different one analysed once; 2-grams are found in the characters of
    all passages at once.
    """

    def __init__(self) -> None:
        self._stems: dict[str, int] = {}  # -> their numbers in this segment
        self._known: dict[str, int] = {}  # words -> number of the stem
        self._occurrences = array("I")  # numbers of the stems of all passages, one after another
        self._n_words = array("I")
        self._texts: list[str] = []  # normalised

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def full(self) -> bool:
        """Whether no more passages fit."""
        return len(self) >= SEGMENT_PASSAGES

    def add(self, text: str) -> None:
        """Add one passage."""
        normal = normalize(text)
        found = find_words(normal)
        known = self._known
        numbers = [known[word] if word in known else self._number(word) for word in found]
        self._occurrences.extend(numbers)
        self._n_words.append(len(numbers))
        self._texts.append(normal)

    def _number(self, word: str) -> int:
        if len(self._known) >= MAX_CACHED_WORDS:
            self._known.clear()
        number = self._known[word] = self._stems.setdefault(stem(word), len(self._stems))
        return number

    def finish(self) -> tuple[Lengths, Iterator[tuple[str, bytes]]]:
        """The lengths of both fields, and (term, its postings) sorted by term."""
        passages, grams = self._grams()
        fields = np.stack([np.array(self._n_words), np.bincount(passages, minlength=len(self))])
        # A length of 0 marks a passage that was removed.
        lengths = Lengths(np.clip(fields, 1, MAX_LENGTH).astype(np.uint16))
        return lengths, self._postings(passages, grams)

    def _postings(self, passages: NDArray[np.int64], grams: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        distinct, numbers = np.unique(grams, return_inverse=True)
        names = [GRAM + pair for pair in _spell(distinct)]  # in the order of text, as the numbers are
        yield from _group(names, numbers, passages)
        stems = sorted(self._stems)
        places = np.empty(len(stems), np.int64)  # number of a stem -> its place among the sorted
        places[[self._stems[name] for name in stems]] = np.arange(len(stems))
        holders = np.repeat(np.arange(len(self)), np.array(self._n_words, np.int64))
        yield from _group(stems, places[np.array(self._occurrences, np.int64)], holders)

    def _grams(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The 2-grams of all passages as (passage, code) in two arrays."""
        codes = np.frombuffer("\n".join(["", *self._texts, ""]).encode("utf-32-le"), np.uint32).astype(
            np.int64
        )
        starts = np.cumsum([0, *(len(text) + 1 for text in self._texts)])
        syllables = codes - HANGUL
        hangul = (syllables >= 0) & (syllables < N_SYLLABLES)
        before, here, after = hangul[:-2], hangul[1:-1], hangul[2:]
        pairs = np.flatnonzero(here & after) + 1
        alone = np.flatnonzero(here & ~before & ~after) + 1
        coded = [syllables[pairs] * SECOND + syllables[pairs + 1] + 1, syllables[alone] * SECOND]
        places = np.concatenate([pairs, alone])
        return np.searchsorted(starts, places - 1, side="right") - 1, np.concatenate(coded)


def _spell(grams: NDArray[np.int64]) -> Iterator[str]:
    """Codes of 2-grams as text."""
    for first, second in zip((grams // SECOND).tolist(), (grams % SECOND).tolist(), strict=True):
        yield chr(HANGUL + first) + (chr(HANGUL + second - 1) if second else "")


def _group(
    names: Sequence[str], numbers: NDArray[np.int64], passages: NDArray[np.int64]
) -> Iterator[tuple[str, bytes]]:
    """Occurrences, each the number of a name and a passage, as the sealed postings of every name."""
    keys, counts = np.unique((numbers << 16) | passages, return_counts=True)
    ends = np.searchsorted(keys, np.arange(1, len(names) + 1) << 16)
    entries = (keys & 0xFFFF).astype("<u2").tobytes()
    counted = np.minimum(counts, MAX_COUNT).astype(np.uint8).tobytes()
    start = 0
    for name, end in zip(names, ends.tolist(), strict=True):
        yield name, seal(entries[2 * start : 2 * end] + counted[start:end])
        start = end


def seal(data: bytes) -> bytes:
    """Bytes with their checksum in front, so that damage on the disk shows."""
    return zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little") + data


def unseal(data: bytes) -> bytes:
    """The bytes behind a checksum; DamagedPostings if it is another's."""
    inside = data[CHECKSUM_BYTES:]
    if zlib.crc32(inside).to_bytes(CHECKSUM_BYTES, "little") != data[:CHECKSUM_BYTES]:
        raise DamagedPostings("a checksum does not hold")
    return inside


def n_entries(n_bytes: int) -> int:
    """How many passages sealed postings of that size name."""
    return (n_bytes - CHECKSUM_BYTES) // BYTES_PER_ENTRY


def _split(data: bytes, n_passages: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Sealed postings as passages and counts."""
    entries = unseal(data)
    n = len(entries) // BYTES_PER_ENTRY
    passages = np.frombuffer(entries, "<u2", n)
    if n and int(passages[-1]) >= n_passages:
        raise DamagedPostings("a passage lies beyond the segment")
    return passages, np.frombuffer(entries, np.uint8, n, 2 * n)


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """(2, n) uint16: stems and 2-grams of each passage; 0 where it was removed."""

    fields: NDArray[np.uint16]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        return cls(np.frombuffer(unseal(data), "<u2").reshape(2, -1).copy())

    def to_bytes(self) -> bytes:
        """Both rows, sealed."""
        return seal(self.fields.astype("<u2").tobytes())

    def __len__(self) -> int:
        return int(self.fields.shape[1])

    @property
    def n_live(self) -> int:
        """Passages that were not removed."""
        return int(np.count_nonzero(self.fields[0]))

    def totals(self) -> NDArray[np.int64]:
        """(3,) passages that were not removed, and the sums of both lengths."""
        return np.array([self.n_live, *self.fields.sum(axis=1, dtype=np.int64)])


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What BM25 needs to know of the whole index."""

    mean_lengths: NDArray[np.float64]  # (2,)
    weights: Mapping[str, float]  # of the terms of a query: idf times occurrences times weight of the field

    @classmethod
    def of(cls, query: Sequence[str], found: Mapping[str, int], totals: NDArray[np.int64]) -> Self:
        """found: in how many passages each term occurs. totals: the sum of Lengths.totals."""
        n = int(totals[0])
        weights = {}
        for term, count in Counter(query).items():
            if n_found := found.get(term, 0):
                idf = float(np.log1p((max(n - n_found, 0) + 0.5) / (n_found + 0.5)))
                weights[term] = count * idf * _field_weight(term)
        return cls(np.maximum(totals[1:] / max(n, 1), 1.0), weights)


def _field_weight(term: str) -> float:
    """1 for a 2-gram, STEM_WEIGHT for a stem; a word of other letters has no 2-grams and counts for both."""
    if term.startswith(GRAM):
        return 1.0
    return STEM_WEIGHT if is_hangul(term) else STEM_WEIGHT + 1.0


def count_live(lengths: Lengths, data: bytes) -> int:
    """How many passages of a term's sealed postings were not removed."""
    passages, _ = _split(data, len(lengths))
    return int(np.count_nonzero(lengths.fields[0, passages]))


def score_segment(
    lengths: Lengths, postings: Iterable[tuple[str, bytes]], statistics: Statistics
) -> NDArray[np.float32]:
    """(n,) BM25 of every passage of a segment; 0 for one without a term, or removed."""
    relative = lengths.fields / statistics.mean_lengths[:, None].astype(np.float32)
    saturation = (K1 * (1 - B + B * relative)).astype(np.float32)
    scores = np.zeros(lengths.fields.shape[1], np.float32)
    for term, data in postings:
        passages, counts = _split(data, len(scores))
        field = saturation[1 if term.startswith(GRAM) else 0, passages]
        scores[passages] += statistics.weights[term] * (K1 + 1) * (counts / (counts + field))
    scores[lengths.fields[0] == 0] = 0
    return scores
