"""Vectors of passages: a file beside the index, one float16 vector for each different text.

They are written batch by batch, whatever becomes of the index meanwhile: a vector depends on the text and
the model alone. The file is bound to the model by the vector of a fixed sentence.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
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

FILE = "vectors.sqlite"
TABLE = "CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
PROBE_KEY = b"probe"  # shorter than a digest
PROBE = "세종대왕은 1443년에 훈민정음을 만들었다."
SAME = 0.995  # cosine of the probe's vectors; another precision of one model stays above it
EMBEDDED_AT_ONCE = 64
# Weight of a cosine, in standard deviations of the candidates, beside the score of words: with the adapter
# `search`, the largest that takes nothing from words on KorQuAD (bench/search.py vectors).
VECTOR_WEIGHT = 1.0


class NoVectors(InputError):
    """An index has no vectors, or those of another model."""


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
    def writing(cls, folder: Path, embedder: Embeds) -> Iterator[Self]:
        """The store, made if there is none. NoVectors if another model made it."""
        with store.explain_damage(folder):
            database = sqlite3.connect(folder / FILE, isolation_level=None)
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
    def reading(cls, folder: Path, embedder: Embeds) -> Iterator[Self]:
        """The store of an index. NoVectors if there is none, or another model made it."""
        path = folder / FILE
        if not path.is_file():
            raise NoVectors(
                f"{folder} has no vectors: index again with --embed",
                f"{folder}: 벡터가 없습니다. --embed로 다시 색인하세요",
            )
        with store.explain_damage(folder), closing(store.connect_reading(path)) as database:
            vectors = cls(folder, database, embedder.width)
            vectors._require_same(embedder)
            yield vectors

    def read(self, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """(n, width) vectors of texts. InputError where one is missing."""
        marks = ",".join("?" * len(digests))
        select = f"SELECT digest, vector FROM vectors WHERE digest IN ({marks})"
        found = dict(self._database.execute(select, list(digests)).fetchall())
        n_bytes = 2 * self._width
        if any(len(found.get(digest, b"")) != n_bytes for digest in digests):
            raise store.damaged(self.folder, "vectors are missing")
        data = b"".join(found[digest] for digest in digests)
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, self._width)

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
        [(data,)] = self._database.execute("SELECT vector FROM vectors WHERE digest = ?", (PROBE_KEY,))
        found = np.frombuffer(data, "<f2").astype(np.float32)
        if len(found) != self._width or float(found @ embedder.embed([PROBE])[0]) < SAME:
            raise NoVectors(
                f"the vectors of {self.folder} were made by another model or adapter than {embedder.name}:"
                " name that one (--model, --adapter), or index again with --rebuild",
                f"{self.folder}의 벡터는 다른 모델이나 어댑터로 만들었습니다(지금: {embedder.name}). 그것을"
                " --model, --adapter로 지정하거나 --rebuild로 다시 색인하세요",
            )


def discard_vectors(folder: Path) -> None:
    """Remove the vectors of an index that is made anew."""
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{FILE}{suffix}").unlink(missing_ok=True)


def blend(scores: NDArray[np.float64], cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores of words plus cosines, measured in standard deviations among the candidates."""
    blended: NDArray[np.float64] = scores + VECTOR_WEIGHT * (cosines - cosines.mean()) / max(
        float(cosines.std()), 1e-6
    )
    return blended
