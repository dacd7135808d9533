"""Index: passages on disk, found again by words, by meaning, and by how likely the question is after them.

with Index.writing(folder) as writer:            # one transaction
    writer.add(Document("notes.txt", b"", [Passage("세종대왕은 훈민정음을 만들었다.", 1)]))
with Index.open(folder) as index:
    index.query("훈민정음을 만든 사람은?", k=3)      # [Hit(passage, score, source, position), ...]
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.search import analysis, store
from kogpt.search.postings import (
    SEGMENT_PASSAGES,
    DamagedPostings,
    Lengths,
    SegmentBuilder,
    Statistics,
    count_live,
    n_entries,
    score_segment,
)
from kogpt.search.vectors import (
    EMBEDDED_AT_ONCE,
    FILE,
    UNFINISHED,
    Embeds,
    VectorStore,
    blend,
    count_missing,
    discard_others,
    discard_unfit,
    is_name,
    missing_vectors,
    new_name,
)
from kogpt.texts import printable_path

DIGEST_BYTES = 16
MAX_SMALL_SEGMENTS = 8  # less than half full; where there are more, they are joined
RESCORED = 100  # passages, the best by words, whose vectors are compared
MAX_QUERY = 10_000  # characters
MAX_QUERY_TERMS = 500


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph, and where in its document it stands: a line, a page or a number, from 1."""

    text: str
    position: int


@dataclass(frozen=True, slots=True)
class Document:
    """A file or a record, as passages. An indexed document with the same digest is taken for the same."""

    source: str
    digest: bytes
    passages: Iterable[Passage]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that answers a query; a higher score is better, within one query."""

    passage: str
    score: float
    source: str
    position: int


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index holds."""

    n_documents: int
    n_passages: int
    n_bytes: int
    model: str | None  # that made its vectors; None where it has none


class Index:
    """An index that is read, by one thread; safe beside one process that writes.

    Where a rebuild has put another in its place, the next query is of that one: its words and its vectors.
    """

    def __init__(self, folder: Path) -> None:
        """As `open`."""
        self.folder = folder
        self._database, self._identity = self._opened()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a finished index. InputError where there is none, or it is damaged or of another version."""
        return cls(Path(path))

    def _opened(self) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        """The index of now; its identity is taken first, so that it is never that of a later one."""
        identity = store.identity(self.folder)
        database = store.open_reading(self.folder)
        with store.explain_damage(self.folder):
            _check_analysis(database, self.folder)
        return database, identity

    def _is_replaced(self) -> bool:
        return store.identity(self.folder) not in (None, self._identity)

    def _renew(self) -> None:
        """Open what a rebuild has put in the place of what is open. InputError as `open`."""
        if self._is_replaced():
            old = self._database
            self._database, self._identity = self._opened()
            old.close()

    @staticmethod
    @contextmanager
    def writing(path: str | Path, rebuild: bool = False) -> Iterator[IndexWriter]:
        """A writer of an index, made if there is none; its changes are kept if the block ends well.

        rebuild: begin with an empty index and no vectors; the old ones stay until the block has ended well.
        """
        folder = Path(path)
        with store.locked(folder):
            with store.open_writing(folder, rebuild) as database:
                _check_analysis(database, folder)
                _set_meta(database, "analysis", analysis.version())
                writer = IndexWriter(folder, database, rebuild)
                yield writer
                writer.finish()
            writer.publish()

    @classmethod
    def add(cls, path: str | Path, documents: Iterable[Document]) -> None:
        """Add documents, each in place of the one with its source."""
        with cls.writing(path) as writer:
            for document in documents:
                writer.add(document)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def info(self) -> IndexInfo:
        """What the index holds."""
        self._renew()
        with store.explain_damage(self.folder):
            n_documents, n_passages = (
                self._database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("documents", "passages")
            )
            model = _get_meta(self._database, "model")
        n_bytes = sum(path.stat().st_size for path in self.folder.glob("*.sqlite"))
        return IndexInfo(n_documents, n_passages, n_bytes, model)

    def count_missing_vectors(self) -> int:
        """How many passages have no vector, in an index whose others have one; 0 in one without vectors."""
        self._renew()
        return self._count_missing()

    def _count_missing(self) -> int:
        with store.explain_damage(self.folder):
            if _get_meta(self._database, "model") is None:
                return 0
            digests = (row[0] for row in self._database.execute("SELECT digest FROM passages"))
            return count_missing(self.folder, _vectors_name(self._database, self.folder), digests)

    def query(self, text: str, k: int = 10, embedder: Embeds | None = None) -> list[Hit]:
        """The k best passages, the best first; fewer where fewer share a term with the text.

        embedder: the model whose vectors the index holds; without it words decide alone. InputError for an
        empty or endless text, a damaged index, and vectors of another model or not of all passages.
        """
        require_query(text)
        while True:
            self._renew()
            try:
                return self._hits(text, k, embedder)
            except InputError:
                if not self._is_replaced():
                    raise  # else a rebuild has removed the vectors of the index that was read

    def _hits(self, text: str, k: int, embedder: Embeds | None) -> list[Hit]:
        with self._reading():
            ids, scores = self._lexical(text, max(k, RESCORED) if embedder else k)
            if embedder is not None and len(ids):
                scores = self._blended(embedder, text, ids, scores)
            order = np.argsort(-scores, kind="stable")[:k]
            return [self._hit(int(ids[place]), float(scores[place])) for place in order]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One state of the index throughout; damage in one line."""
        with store.explain_damage(self.folder):
            self._database.execute("BEGIN")
            try:
                yield
            except DamagedPostings as error:
                raise store.damaged(self.folder, error) from error
            finally:
                self._database.rollback()

    def _lexical(self, text: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k best passages by words, best first, and their scores."""
        terms = analysis.query_terms(text)[:MAX_QUERY_TERMS]
        segments = [
            (segment, first, Lengths.from_bytes(data))
            for segment, first, data in self._database.execute("SELECT id, first, lengths FROM segments")
        ]
        found: Counter[str] = Counter()
        for segment, _, lengths in segments:
            if lengths.n_live == len(lengths):
                sizes = self._postings(segment, terms, "length(entries)")
                found.update({term: n_entries(n_bytes) for term, n_bytes in sizes})
            else:
                entries = self._postings(segment, terms, "entries")
                found.update({term: count_live(lengths, data) for term, data in entries})
        totals = np.sum([lengths.totals() for _, _, lengths in segments], axis=0)
        statistics = Statistics.of(terms, found, totals)
        kept = list(statistics.weights)
        ids, scores = np.zeros(0, np.int64), np.zeros(0)
        for segment, first, lengths in segments:
            here = score_segment(lengths, self._postings(segment, kept, "entries"), statistics)
            best = np.argpartition(-here, min(k, len(here) - 1))[:k]
            best = best[here[best] > 0]
            ids, scores = np.concatenate([ids, best + first]), np.concatenate([scores, here[best]])
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], scores[order]

    def _postings(self, segment: int, terms: Sequence[str], what: str) -> Iterator[tuple[str, Any]]:
        """Each of the terms that the segment holds, with its entries or their length."""
        distinct = sorted(set(terms))
        marks = ",".join("?" * len(distinct))
        select = f"SELECT term, {what} FROM postings WHERE segment = ? AND term IN ({marks})"
        return self._database.execute(select, (segment, *distinct))

    def _blended(
        self, embedder: Embeds, text: str, ids: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Scores of words and vectors together."""
        select = f"SELECT id, digest FROM passages WHERE id IN ({','.join(map(str, ids.tolist()))})"
        digests = dict(self._database.execute(select).fetchall())
        wanted = [digests[number] for number in ids.tolist()]
        name = _vectors_name(self._database, self.folder)
        with VectorStore.reading(self.folder, embedder, name) as vectors:
            if n_missing := vectors.count_missing(wanted):
                raise missing_vectors(self.folder, self._count_missing() or n_missing)
            found = vectors.read(wanted)
        return blend(scores, found @ embedder.embed([text])[0])

    def _hit(self, passage: int, score: float) -> Hit:
        row = self._database.execute(
            "SELECT text, passages.digest, source, position FROM passages"
            " JOIN documents ON documents.id = document WHERE passages.id = ?",
            (passage,),
        ).fetchone()
        if row is None or digest_of(row[0]) != row[1]:
            raise DamagedPostings("a passage is missing or altered")
        return Hit(row[0], score, row[2], row[3])


class IndexWriter:
    """Changes to an index within one transaction; made by `Index.writing`."""

    def __init__(self, folder: Path, database: sqlite3.Connection, rebuild: bool = False) -> None:
        self.folder = folder
        self._database = database
        self._rebuild, self._embedded = rebuild, False
        if rebuild:
            _set_meta(database, "vectors", new_name())
        self._vectors_name = _vectors_name(database, folder)
        self._builder = SegmentBuilder()
        self._digests: dict[str, bytes] = dict(database.execute("SELECT source, digest FROM documents"))
        self._removed: list[int] = []  # passages
        ends = [first + len(lengths) for _, first, lengths in self._segments()]
        self._next = max(ends, default=1)
        self.n_added = self.n_removed = 0  # documents

    @property
    def sources(self) -> set[str]:
        """The sources of the documents in the index."""
        return set(self._digests)

    @property
    def n_passages(self) -> int:
        """Passages in the index, those included that this writer has added."""
        return int(self._database.execute("SELECT count(*) FROM passages").fetchone()[0])

    def bind(self, root: Path) -> None:
        """Say which folder the index mirrors. InputError if it mirrors another."""
        place = printable_path(root.resolve())
        bound = _get_meta(self._database, "root")
        if bound not in (None, place):
            raise InputError(
                f"{self.folder} is the index of {bound}: choose another --out, or --rebuild it from {root}",
                f"{self.folder}: {bound}의 색인입니다. 다른 --out을 고르거나 --rebuild로 다시 만드세요",
            )
        _set_meta(self._database, "root", place)

    def has(self, source: str, digest: bytes) -> bool:
        """Whether that document is in the index, unchanged."""
        return self._digests.get(source) == digest

    def add(self, document: Document) -> int:
        """Add a document in place of the one with its source; how many passages it has."""
        self.remove(document.source)
        row = self._database.execute(
            "INSERT INTO documents (source, digest) VALUES (?, ?)", (document.source, document.digest)
        )
        count = 0
        for passage in document.passages:
            self._add((row.lastrowid, passage.position, digest_of(passage.text), passage.text))
            count += 1
        self._digests[document.source] = document.digest
        self.n_added += 1
        return count

    def remove(self, source: str) -> bool:
        """Remove the document with that source; False where there is none."""
        if self._digests.pop(source, None) is None:
            return False
        [(number,)] = self._database.execute("SELECT id FROM documents WHERE source = ?", (source,))
        rows = self._database.execute("SELECT id FROM passages WHERE document = ?", (number,))
        self._removed += [row[0] for row in rows]
        self._database.execute("DELETE FROM passages WHERE document = ?", (number,))
        self._database.execute("DELETE FROM documents WHERE id = ?", (number,))
        self.n_removed += 1
        return True

    def embed(self, embedder: Embeds) -> Iterator[int]:
        """Make the vectors of passages that have none; yields how many passages are done, batch by batch.

        Vectors are kept batch by batch: after an interruption the same command goes on where it stopped.
        """
        if self._rebuild:
            discard_unfit(self.folder, embedder)
        name = UNFINISHED if self._rebuild else self._vectors_name
        with VectorStore.writing(self.folder, embedder, name) as vectors:
            passages = self._database.execute("SELECT digest, text FROM passages ORDER BY id")
            done = 0
            while batch := passages.fetchmany(EMBEDDED_AT_ONCE):
                vectors.add_missing(batch, embedder)
                done += len(batch)
                yield done
        _set_meta(self._database, "model", embedder.name)
        self._embedded = True

    def finish(self) -> None:
        """Write what is in memory and join small segments; called before the transaction ends."""
        self._flush()
        self._bury()
        small = [row for row in self._segments() if 2 * row[2].n_live < SEGMENT_PASSAGES]
        if len(small) > MAX_SMALL_SEGMENTS:
            self._join(small)
        if not self._segments():
            raise InputError(
                f"{self.folder} would hold no passage: give it documents with text",
                f"{self.folder}: 색인할 문단이 없습니다. 텍스트가 있는 문서를 주세요",
            )

    def publish(self) -> None:
        """Put a rebuilt index in place of the old one, and remove what no index names; after the transaction.

        A kill before the new index has its name leaves the old one with its vectors, and one after it the new
        one with its own; the next writer removes what is left over.
        """
        kept = [self._vectors_name]
        if self._rebuild:
            if self._embedded:
                (self.folder / UNFINISHED).replace(self.folder / self._vectors_name)
            store.replace(self.folder)
        else:
            store.remove(self.folder / store.NEW)
            kept.append(UNFINISHED)
        discard_others(self.folder, kept)

    def _add(self, row: tuple[Any, ...]) -> None:
        """Add a passage: its document, position, digest and text."""
        if self._builder.full:
            self._flush()
        self._builder.add(row[-1])
        self._database.execute("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", (self._next, *row))
        self._next += 1

    def _flush(self) -> None:
        """Write the passages in memory as a segment."""
        if not len(self._builder):
            return
        first = self._next - len(self._builder)
        lengths, postings = self._builder.finish()
        row = self._database.execute(
            "INSERT INTO segments (first, lengths) VALUES (?, ?)", (first, lengths.to_bytes())
        )
        self._database.executemany(
            "INSERT INTO postings VALUES (?, ?, ?)",
            ((row.lastrowid, term, entries) for term, entries in postings),
        )
        self._builder = SegmentBuilder()

    def _bury(self) -> None:
        """Set the lengths of removed passages to 0, and drop segments that have no others."""
        removed = np.array(self._removed, np.int64)
        for segment, first, lengths in self._segments():
            here = removed[(removed >= first) & (removed < first + len(lengths))] - first
            if not len(here):
                continue
            lengths.fields[:, here] = 0
            if lengths.n_live:
                values = (lengths.to_bytes(), segment)
                self._database.execute("UPDATE segments SET lengths = ? WHERE id = ?", values)
            else:
                self._drop(segment)
        self._removed.clear()

    def _join(self, segments: Sequence[tuple[int, int, Lengths]]) -> None:
        """Write the passages of several segments as one, or as few as can hold them."""
        for segment, first, lengths in segments:
            between = (first, first + len(lengths))
            select = "SELECT document, position, digest, text FROM passages WHERE id >= ? AND id < ?"
            rows = self._database.execute(select, between).fetchall()
            self._database.execute("DELETE FROM passages WHERE id >= ? AND id < ?", between)
            self._drop(segment)
            for row in rows:
                self._add(row)
        self._flush()

    def _drop(self, segment: int) -> None:
        self._database.execute("DELETE FROM postings WHERE segment = ?", (segment,))
        self._database.execute("DELETE FROM segments WHERE id = ?", (segment,))

    def _segments(self) -> list[tuple[int, int, Lengths]]:
        rows = self._database.execute("SELECT id, first, lengths FROM segments ORDER BY first")
        try:
            return [(segment, first, Lengths.from_bytes(data)) for segment, first, data in rows]
        except DamagedPostings as error:
            raise store.damaged(self.folder, error) from error


def digest_of(text: str) -> bytes:
    """What tells one passage from another, and a whole one from a damaged one."""
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def _get_meta(database: sqlite3.Connection, key: str) -> Any:
    row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _set_meta(database: sqlite3.Connection, key: str, value: object) -> None:
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _vectors_name(database: sqlite3.Connection, folder: Path) -> str:
    """The file of the vectors of an index."""
    name = _get_meta(database, "vectors") or FILE
    if not is_name(name):
        raise store.damaged(folder, f"its vectors are in {str(name)[:80]!r}")
    return str(name)


def _check_analysis(database: sqlite3.Connection, folder: Path) -> None:
    """Refuse an index whose terms another analysis has made."""
    found = _get_meta(database, "analysis")
    if found is not None and found != analysis.version():
        raise store.another_version(folder, f"{store.VERSION}/{found}")


def require_query(text: str) -> None:
    """Raise InputError for a query without a word, or a longer one than is taken."""
    if not analysis.words(text):
        raise InputError(
            "the query has no word: write what you look for", "검색어가 비어 있습니다. 찾을 말을 쓰세요"
        )
    if len(text) > MAX_QUERY:
        raise InputError(
            f"the query has {len(text):,} characters, at most {MAX_QUERY:,} are taken: shorten it",
            f"검색어가 {len(text):,}자입니다(최대 {MAX_QUERY:,}자). 줄이세요",
        )
