"""Vectors of passages: a file beside the index, one float16 vector for each different text.

They are written batch by batch, whatever becomes of the index meanwhile: a vector depends on the text and
the model alone. The file is bound to the model by the vector of a fixed sentence. The index names its file,
so that a rebuild replaces both at once: it writes to UNFINISHED, which then gets a name of its own.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.search import store

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

FILE = "vectors.sqlite"  # of an index that names no other
UNFINISHED = "new-vectors.sqlite"  # of a rebuild; an interrupted one goes on with it
_NAME = re.compile(r"((?:new-)?vectors(?:-[0-9a-f]{8})?\.sqlite)(-wal|-shm|-journal)?")
TABLE = "CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
PROBE_KEY = b"probe"  # shorter than a digest
PROBE = "세종대왕은 1443년에 훈민정음을 만들었다."
SAME = 0.995  # cosine of the probe's vectors; another precision of one model stays above it
EMBEDDED_AT_ONCE = 64
# Weight of a cosine, in standard deviations of the candidates, beside the score of words: with the adapter
# `search`, the largest that takes nothing from words on KorQuAD (bench/search.py vectors).
VECTOR_WEIGHT = 1.0


class NoVectors(InputError):
    """An index has no vectors, not all of them, or those of another model."""


class Embeds(Protocol):
    """A source of unit vectors for texts: a model, or vectors made before."""

    @property
    def name(self) -> str:
        """The model's name, for messages."""

    @property
    def width(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) unit vectors."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedder:
    """A model as a source of vectors."""

    model: KoGPT

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        return self.model.name

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.model.config.d_model

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) unit vectors; the end of a text that the model's context may not hold is left out."""
        vectors = self.model.embed([beginning(text, self.model) for text in texts])
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def beginning(text: str, model: KoGPT) -> str:
    """The part of a text that surely fits the model's context: a character takes up to four tokens."""
    return text[: model.config.n_ctx // 4]


class VectorStore:
    """The file of vectors of an index; made by `writing` and `reading`."""

    def __init__(self, folder: Path, database: sqlite3.Connection, width: int) -> None:
        self.folder = folder
        self._database = database
        self._width = width

    @classmethod
    @contextmanager
    def writing(cls, folder: Path, embedder: Embeds, file: str = FILE) -> Iterator[Self]:
        """The store, made if there is none. NoVectors if another model made it."""
        with store.explain_damage(folder):
            database = sqlite3.connect(folder / file, isolation_level=None)
            with closing(database):
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(TABLE)
                vectors = cls(folder, database, embedder.width)
                vectors._insert([PROBE_KEY], embedder.embed([PROBE]))
                vectors._require_same(embedder)
                yield vectors
                with suppress(sqlite3.OperationalError):  # a query has it open
                    database.execute("PRAGMA journal_mode=DELETE")

    @classmethod
    @contextmanager
    def reading(cls, folder: Path, embedder: Embeds, file: str = FILE) -> Iterator[Self]:
        """The store of an index. NoVectors if there is none, or another model made it."""
        path = folder / file
        if not path.is_file():
            raise _no_vectors(folder)
        with store.explain_damage(folder), closing(store.connect_reading(path)) as database:
            vectors = cls(folder, database, embedder.width)
            vectors._require_same(embedder)
            yield vectors

    def read(self, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """(n, width) vectors of texts, each of which has one."""
        marks = ",".join("?" * len(digests))
        select = f"SELECT digest, vector FROM vectors WHERE digest IN ({marks})"
        found = dict(self._database.execute(select, list(digests)).fetchall())
        if any(len(vector) != 2 * self._width for vector in found.values()):
            raise store.damaged(self.folder, "a vector is cut short")
        data = b"".join(found[digest] for digest in digests)
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, self._width)

    def count_missing(self, digests: Iterable[bytes]) -> int:
        """How many of the texts have no vector."""
        select = "SELECT 1 FROM vectors WHERE digest = ?"
        return sum(self._database.execute(select, (digest,)).fetchone() is None for digest in digests)

    def add_missing(self, rows: Sequence[tuple[bytes, str]], embedder: Embeds) -> None:
        """Make the vectors of texts, (digest, text) each, that have none."""
        texts = dict(rows)
        marks = ",".join("?" * len(texts))
        select = f"SELECT digest FROM vectors WHERE digest IN ({marks})"
        known = {row[0] for row in self._database.execute(select, list(texts))}
        missing = [digest for digest in texts if digest not in known]
        if missing:
            self._insert(missing, embedder.embed([texts[digest] for digest in missing]))

    def _insert(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        rows = [vector.astype("<f2").tobytes() for vector in vectors]
        insert = "INSERT OR IGNORE INTO vectors VALUES (?, ?)"
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(insert, zip(digests, rows, strict=True))
        self._database.execute("COMMIT")

    def _require_same(self, embedder: Embeds) -> None:
        select = "SELECT vector FROM vectors WHERE digest = ?"
        row = self._database.execute(select, (PROBE_KEY,)).fetchone()
        if row is None:
            raise _no_vectors(self.folder)
        found = np.frombuffer(row[0], "<f2").astype(np.float32)
        if len(found) != self._width or float(found @ embedder.embed([PROBE])[0]) < SAME:
            raise NoVectors(
                f"the vectors of {self.folder} were made by another model or adapter than {embedder.name}:"
                " name that one (--model, --adapter), or index again with --rebuild --embed",
                f"{self.folder}의 벡터는 다른 모델이나 어댑터로 만들었습니다(지금: {embedder.name}). 그것을"
                " --model, --adapter로 지정하거나 --rebuild --embed로 다시 색인하세요",
            )


def _no_vectors(folder: Path) -> NoVectors:
    return NoVectors(
        f"{folder} has no vectors: index again with --embed",
        f"{folder}: 벡터가 없습니다. --embed로 다시 색인하세요",
    )


def missing_vectors(folder: Path, n_missing: int) -> NoVectors:
    """The error for an index of which some paragraphs are newer than its vectors."""
    return NoVectors(
        f"{folder}: {n_missing:,} paragraphs have no vector yet: repeat kogpt search index with --embed",
        f"{folder}: 벡터가 없는 문단이 {n_missing:,}개 있습니다. --embed를 붙여 다시 색인하세요",
    )


def count_missing(folder: Path, file: str, digests: Iterable[bytes]) -> int:
    """How many of the texts have no vector in a file, which may be gone."""
    if not (folder / file).is_file():
        return sum(1 for _ in digests)
    with store.explain_damage(folder), closing(store.connect_reading(folder / file)) as database:
        return VectorStore(folder, database, 0).count_missing(digests)


def is_name(name: object) -> bool:
    """Whether an index may call its vectors so."""
    match = _NAME.fullmatch(str(name))
    return match is not None and match[2] is None


def new_name() -> str:
    """A name for the vectors of a rebuilt index that no index before it has used."""
    return f"vectors-{os.urandom(4).hex()}.sqlite"


def discard_unfit(folder: Path, embedder: Embeds) -> None:
    """Remove the vectors of an interrupted rebuild, unless they are whole and of this model."""
    try:
        with VectorStore.reading(folder, embedder, UNFINISHED):
            return
    except InputError:
        store.remove(folder / UNFINISHED)


def discard_others(folder: Path, kept: Sequence[str]) -> None:
    """Remove all files of vectors but those with the names."""
    for path in folder.iterdir():
        name = _NAME.fullmatch(path.name)
        if name is not None and name[1] not in kept:
            path.unlink(missing_ok=True)


def blend(scores: NDArray[np.float64], cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores of words plus cosines, measured in standard deviations among the candidates."""
    blended: NDArray[np.float64] = scores + VECTOR_WEIGHT * (cosines - cosines.mean()) / max(
        float(cosines.std()), 1e-6
    )
    return blended
