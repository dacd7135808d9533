"""Which documents repeat an earlier one, exactly or nearly; on disk, in bounded memory, always the same way.

A document's fingerprint is a 128-bit hash of its text and a MinHash signature (Broder 1997) of its shingles:
five consecutive letters or digits, whatever the spacing, punctuation and case between them. Signatures come
from `rensa`: datasketch computes the same estimate hundreds of times slower, and the indexes of both hold
every document in memory. So the search by bands (locality-sensitive hashing; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4) is done here, by sorting one band of keys at a time.

Knows nothing of files, tokens or processes: see pack.py. D documents in the order of the corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError, MissingExtra

SHINGLE = 5  # characters; two or three Korean words
SIGNATURE = 128  # slots; the estimate of a similarity of 0.8 is off by 0.035 (one standard deviation)
SEED = 0x6B6F677074
DETECTION = 0.9  # chance of a pair at the threshold to share a band
KEYS_AT_ONCE = 1 << 24  # keys sorted at a time: about 400 MB
SHINGLES_AT_ONCE = 1 << 20  # a flat buffer of 8 MB, and a few copies of it
# Leaders of one bucket that a document is compared with; buckets of more are formulas, not copies.
MAX_LEADERS = 16

WORDS = re.compile(r"[^\W_]+")

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of D documents: exact (D, 2) uint64, signatures (D, SIGNATURE) uint32, or (D, 0) if none are wanted."""

    exact: U64
    signatures: U32


def fingerprints(texts: Sequence[str], near: bool) -> Fingerprints:
    """Of texts in NFC; `near` says whether to make signatures."""
    exact = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    rows = [_signatures(group) for group in _groups(texts)] if near else []
    empty = np.empty((len(texts), 0), dtype=np.uint32)
    return Fingerprints(
        np.frombuffer(exact, dtype="<u8").reshape(-1, 2),
        np.concatenate(rows) if rows else empty,
    )


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts with about SHINGLES_AT_ONCE characters."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= SHINGLES_AT_ONCE or end == len(texts):
            yield texts[start:end]
            start, size = end, 0


def _signatures(texts: Sequence[str]) -> U32:
    """(n, SIGNATURE) MinHash signatures."""
    hashes = [shingle_hashes(text) for text in texts]
    offsets = np.concatenate(([0], np.cumsum([len(h) for h in hashes]))).astype(np.uint64)
    flat = np.concatenate(hashes)
    matrix = _rensa().digest_matrix_from_flat_token_hashes(flat, offsets, SIGNATURE, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def algorithm() -> str:
    """What signatures depend on: they differ between versions of the library."""
    return f"rensa R-MinHash {_rensa().ALGORITHM_VERSION}, {SHINGLE} characters, {SIGNATURE} slots"


def _rensa() -> Any:
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise MissingExtra("removing near-duplicates", "train") from error
    return RMinHash


def shingle_hashes(text: str) -> U64:
    """One 64-bit hash for each shingle; of the whole text where it is shorter than one."""
    letters = "".join(WORDS.findall(text.casefold())) or text
    points = np.frombuffer(letters.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    n = max(len(points) - SHINGLE + 1, 1)
    h = np.zeros(n, dtype=np.uint64)
    for offset in range(min(SHINGLE, len(points))):
        h = _mixed(h + points[offset : offset + n])
    return h


def _mixed(h: U64) -> U64:
    """A bijection of 64 bits that spreads every bit (the finaliser of SplitMix64; Steele et al. 2014)."""
    h = (h + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def rows_per_band(threshold: float) -> int:
    """The most rows whose bands still find a pair at `threshold` with a chance of DETECTION.

    SIGNATURE/r bands of r rows find a pair of similarity s with the chance 1 - (1 - s^r)^(SIGNATURE/r).
    More rows mean fewer pairs to compare in vain. InputError if the threshold is out of reach.
    """
    for rows in (16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (SIGNATURE // rows) >= DETECTION and 0 < threshold <= 1:
            return rows
    raise InputError(
        f"no near-duplicates at a similarity of {threshold}: give a number from 0.2 to 1, or 0 for off",
        f"유사도 {threshold}의 중복은 찾을 수 없습니다. 0.2에서 1 사이의 수를 주거나, 끄려면 0을 주세요",
    )


def band_keys(signatures: U32, rows: int) -> Iterator[U64]:
    """Per band, (D,) keys: equal keys mean (but for a chance of 2^-64) equal slots."""
    for start in range(0, SIGNATURE, rows):
        key = np.full(len(signatures), start, dtype=np.uint64)
        for slot in range(start, start + rows):
            key = _mixed(key ^ signatures[:, slot])
        yield key


def mark_exact(keys: U64, removed: NDArray[np.bool_]) -> int:
    """Mark in `removed` (D,) every document whose (D, 2) hash came before; how many were marked."""
    n_marked = 0
    for bucket in _buckets(keys[:, 0], removed):
        seen: set[int] = set()
        for document in bucket:
            low = int(keys[document, 1])
            if low in seen:
                removed[document] = True
                n_marked += 1
            seen.add(low)
    return n_marked


def mark_near(keys: U64, signatures: U32, removed: NDArray[np.bool_], threshold: float) -> int:
    """Mark documents that share a (D,) band key with an earlier one that is as similar as `threshold`.

    Only documents not yet marked take part, so bands go one after another. Returns how many were marked.
    """
    n_marked = 0
    for bucket in _buckets(keys, removed):
        leaders: list[Any] = []
        for document in bucket:
            row = signatures[document]
            if any((row == leader).mean() >= threshold for leader in leaders):
                removed[document] = True
                n_marked += 1
            elif len(leaders) < MAX_LEADERS:
                leaders.append(row)
    return n_marked


def _buckets(keys: U64, removed: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Documents not removed that share a key, two or more at a time, each bucket in the order of the corpus.

    The keys are sorted part by part, by their remainder, so that memory is bounded whatever D.
    """
    n_parts = -(-len(keys) // KEYS_AT_ONCE)
    for part in range(n_parts):
        chosen = [
            start + np.flatnonzero((keys[start : start + KEYS_AT_ONCE] % n_parts == part) & ~removed[window])
            for start in range(0, len(keys), KEYS_AT_ONCE)
            for window in [slice(start, start + KEYS_AT_ONCE)]
        ]
        documents = np.concatenate(chosen)
        some = keys[documents]
        order = np.argsort(some, kind="stable")
        documents, some = documents[order], some[order]
        starts = np.flatnonzero(np.concatenate(([True], some[1:] != some[:-1])))
        sizes = np.diff(np.append(starts, len(some)))
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            yield documents[start : start + size]
