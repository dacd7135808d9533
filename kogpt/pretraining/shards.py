"""Token shards: documents as one long line of ids on disk, memory-mapped for training.

A folder holds `index.json` and shard_00000.bin, shard_00001.bin, ...: little-endian token ids, uint16 where
the vocabulary allows it, else uint32; every document is ended by [EOS]. The index is written last, so a
folder without one is unfinished. It names, for each shard, its tokens, documents and SHA-256, and the size of
the vocabulary, which older folders do not say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.files import atomic_write

VERSION = 1
INDEX = "index.json"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
TOKENS_PER_SHARD = 2**26  # 128 MiB of uint16
READ_BYTES = 1 << 20  # whole ids of either type
READ_TOKENS = 1 << 24  # compared at a time

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One line of the index."""

    file: str
    tokens: int
    documents: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """What index.json says."""

    dtype: str
    tokenizer_sha256: str
    shards: tuple[Shard, ...]
    n_vocab: int | None = None  # every id is below it

    @property
    def n_tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "dtype": self.dtype,
            "n_vocab": self.n_vocab,
            "n_tokens": self.n_tokens,
            "tokenizer_sha256": self.tokenizer_sha256,
            "shards": [asdict(shard) for shard in self.shards],
        }


def id_dtype(n_vocab: int) -> str:
    """The narrower name of DTYPES that holds every id of a vocabulary."""
    return "uint16" if n_vocab <= 2**16 else "uint32"


def write_shard(folder: Path, number: int, documents: Sequence[Ids], dtype: str) -> Shard:
    """Write shard `number` whole or not at all; each document must end with [EOS] already."""
    name = f"shard_{number:05d}.bin"
    digest = hashlib.sha256()
    n_tokens = 0
    with atomic_write(folder / name) as file:
        for ids in documents:
            raw = ids.astype(DTYPES[dtype]).tobytes()
            digest.update(raw)
            file.write(raw)
            n_tokens += len(ids)
    return Shard(name, n_tokens, len(documents), digest.hexdigest())


def write_index(folder: Path, index: Index) -> None:
    """Finish a folder of shards."""
    with atomic_write(folder / INDEX) as file:
        file.write((json.dumps(index.to_json(), indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read index.json; InputError if it is missing, foreign or incomplete."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} has no {INDEX}: not a folder of token shards, or packing did not finish",
            f"{folder}에 {INDEX} 파일이 없습니다. 토큰 조각 폴더가 아니거나 만들기가 끝나지 않았습니다",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(Shard(**shard) for shard in document["shards"])
        index = Index(document["dtype"], document["tokenizer_sha256"], shards, document.get("n_vocab"))
        version = document["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"not an index: {error}", f"색인이 아닙니다: {error}") from error
    facts = f"{version!r}, dtype {index.dtype!r}, n_vocab {index.n_vocab!r}"
    if version != VERSION or index.dtype not in DTYPES or not isinstance(index.n_vocab, int | None):
        raise _damaged(path, f"version {facts}", f"버전 {facts}")
    return index


class Shards:
    """The tokens of one folder as one line, memory-mapped: `len`, and windows by position."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self._parts = [self._open(shard) for shard in self.index.shards if shard.tokens]
        self._ends = np.cumsum([len(part) for part in self._parts])
        if not self._parts:
            raise _damaged(folder / INDEX, "no tokens", "토큰이 없습니다")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens start..start+length, across shard borders, as a copy; 0 <= start <= len - length."""
        assert 0 <= start <= len(self) - length, (start, length, len(self))
        out = np.empty(length, dtype=np.int64)
        filled = 0
        part = int(np.searchsorted(self._ends, start, side="right"))
        while filled < length:
            offset = start + filled - (int(self._ends[part - 1]) if part else 0)
            piece = self._parts[part][offset : offset + length - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            part += 1
        return out

    def documents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each document starts, and its tokens with [EOS]; (D,) both.

        The last token of the shards is [EOS]. Reads everything once, in order.
        """
        eos, first = self._parts[-1][-1], 0
        ends = []
        for part in self._parts:
            for start in range(0, len(part), READ_TOKENS):
                ends.append(np.flatnonzero(part[start : start + READ_TOKENS] == eos) + first + start + 1)
            first += len(part)
        found = np.concatenate(ends).astype(np.int64)
        starts = np.concatenate(([0], found[:-1]))
        return starts, found - starts

    def verify(self) -> None:
        """Compare size, SHA-256 and ids of every shard with the index; InputError for the first that differs.

        Reads everything once, in order.
        """
        for shard in self.index.shards:
            path = self._whole(shard)
            digest, largest = hashlib.sha256(), -1
            with path.open("rb") as file:
                while piece := file.read(READ_BYTES):
                    digest.update(piece)
                    largest = max(largest, int(np.frombuffer(piece, DTYPES[self.index.dtype]).max()))
            if (found := digest.hexdigest()) != shard.sha256:
                was, now = shard.sha256[:12], found[:12]
                raise _damaged(path, f"SHA-256 {now}, expected {was}", f"SHA-256 {now}, 기대값 {was}")
            if (n_vocab := self.index.n_vocab) is not None and largest >= n_vocab:
                raise _damaged(
                    path,
                    f"id {largest} in a vocabulary of {n_vocab}",
                    f"어휘 {n_vocab}개에 없는 번호 {largest}",
                )

    def _open(self, shard: Shard) -> Ids:
        return np.memmap(self._whole(shard), dtype=DTYPES[self.index.dtype], mode="r")

    def _whole(self, shard: Shard) -> Path:
        """The shard's file; InputError unless it is in the folder and as long as the index says."""
        path = self.folder / shard.file
        if path.parent != self.folder:
            raise _damaged(
                self.folder / INDEX,
                f"file {shard.file!r} is outside the folder",
                f"폴더 밖의 파일 {shard.file!r}",
            )
        size = path.stat().st_size if path.is_file() else -1
        expected = shard.tokens * np.dtype(DTYPES[self.index.dtype]).itemsize
        if size != expected:
            raise _damaged(
                path, f"{size} bytes, expected {expected}", f"{size}바이트, 기대값 {expected}바이트"
            )
        return path


def _damaged(path: Path, en: str, ko: str) -> InputError:
    return InputError(
        f"{path} is damaged or foreign ({en}): pack the corpus again",
        f"{path} 파일이 손상되었거나 형식이 다릅니다({ko}). 말뭉치를 다시 묶으세요",
    )
