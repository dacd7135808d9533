"""Vectors beside their index: rebuilds that are killed, refused or taken up again, paragraphs without one."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.search import store, vectors
from kogpt.search.index import Document, Index, Passage
from kogpt.search.vectors import NoVectors, VectorStore

OLD = ("서울 가가", "부산 나나", "경주 다다")
NEW = ("서울 라라", "부산 나나", "제주 다라")


class Killed(BaseException):
    """What nothing catches: the process is gone."""


class Letters:
    """Embeds a text as the counts of letters."""

    def __init__(self, letters: str = "가나다라") -> None:
        self.name, self.width = letters, len(letters)
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        counts = [[text.count(letter) + 0.1 for letter in self.name] for text in texts]
        rows = np.array(counts, np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kogpt.search.index.EMBEDDED_AT_ONCE", 1)


def write(folder: Path, texts: Iterable[str], embedder: Letters | None = None, rebuild: bool = False) -> None:
    with Index.writing(folder, rebuild) as writer:
        for number, text in enumerate(texts):
            writer.add(Document(str(number), b"", [Passage(text, 1)]))
        for _ in writer.embed(embedder) if embedder else ():
            pass


def answers(folder: Path, embedder: Letters | None = None) -> list[tuple[str, float, str]]:
    with Index.open(folder) as index:
        hits = index.query("서울 부산 경주 제주", embedder=embedder or Letters())
    return [(hit.passage, hit.score, hit.source) for hit in hits]


def files(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


@contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """The process dies at that change of a name of a file; yields the changes."""
    changes: list[str] = []

    def dying(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def change(*args: Any, **options: Any) -> object:
            changes.append(name)
            if len(changes) > step:
                raise Killed
            return original(*args, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, dying(name, getattr(Path, name)))
        yield changes


def test_a_rebuild_that_fails_leaves_the_old_vectors(tmp_path: Path) -> None:
    write(tmp_path, OLD, Letters())
    before = answers(tmp_path)
    with pytest.raises(InputError, match="no passage"):
        write(tmp_path, (), rebuild=True)
    with pytest.raises(KeyboardInterrupt), Index.writing(tmp_path, rebuild=True) as writer:
        writer.add(Document("a", b"", [Passage("가 나", 1), Passage("다 라", 2)]))
        next(writer.embed(Letters()))
        raise KeyboardInterrupt
    assert answers(tmp_path) == before


def test_a_rebuild_that_is_refused_leaves_the_vectors_of_the_one_that_runs(tmp_path: Path) -> None:
    embedder = Letters()
    with Index.writing(tmp_path) as writer:
        for number, text in enumerate(OLD):
            writer.add(Document(str(number), b"", [Passage(text, 1)]))
        steps = writer.embed(embedder)
        next(steps)
        with pytest.raises(InputError, match="in use"):
            write(tmp_path, NEW, Letters(), rebuild=True)
        assert [*steps][-1] == len(OLD)
    assert len(answers(tmp_path)) == len(OLD)


@pytest.mark.parametrize("model", [None, "가나다라", "다나가라마"])
def test_killed_at_any_step_a_rebuild_leaves_the_old_state_or_the_new(
    tmp_path: Path, model: str | None
) -> None:
    """model: what the rebuild embeds with; the old vectors are of 가나다라, the old index has a log."""
    old = tmp_path / "old"
    write(old, OLD, Letters())
    with closing(sqlite3.connect(old / store.FILE)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("UPDATE documents SET source = 'in the log' WHERE source = '0'")
        database.commit()
        shutil.copytree(old, tmp_path / "copy")
    before = answers(old)
    new = Letters(model) if model else None
    states = []
    for step in count():
        folder = shutil.copytree(tmp_path / "copy", tmp_path / str(step))
        with suppress(Killed), killed_at(step) as changes:
            write(folder, NEW, new, rebuild=True)
        with Index.open(folder) as index:
            states.append(bool(index.query("제주")))
            assert index.info().model == (model if states[-1] else "가나다라")
        if not states[-1]:
            assert answers(folder) == before
        elif new is not None:
            assert {text for text, *_ in answers(folder, new)} == set(NEW)
        write(folder, NEW, new, rebuild=True)
        assert files(folder) == ["index.sqlite", "lock", *(["vectors"] if model else [])]
        if len(changes) <= step:
            break
    assert (states[0], states[-1]) == (False, True) and states == sorted(states)


def test_an_interrupted_rebuild_goes_on_with_the_vectors_that_it_made(tmp_path: Path) -> None:
    write(tmp_path, OLD, Letters())
    first, second, other = Letters(), Letters(), Letters("다나가라마")
    for embedder in (first, second, other):
        if embedder is not first:
            write(tmp_path, NEW, embedder, rebuild=True)
            continue
        with pytest.raises(KeyboardInterrupt), Index.writing(tmp_path, rebuild=True) as writer:
            for number, text in enumerate(NEW):
                writer.add(Document(str(number), b"", [Passage(text, 1)]))
            for done in writer.embed(embedder):
                if done == 2:
                    raise KeyboardInterrupt
    assert set(first.embedded) == {vectors.PROBE, *NEW[:2]}
    assert set(second.embedded) == {vectors.PROBE, NEW[2]}
    assert set(other.embedded) == {vectors.PROBE, *NEW}
    assert len(answers(tmp_path, other)) == len(NEW)


@pytest.mark.parametrize("left", ["another model", "damage"])
def test_a_rebuild_does_not_go_on_with_what_it_cannot_use(tmp_path: Path, left: str) -> None:
    write(tmp_path, OLD, Letters())
    if left == "damage":
        (tmp_path / vectors.UNFINISHED).write_bytes(b"x" * 9000)
    else:
        with VectorStore.writing(tmp_path, Letters("다나가라마"), vectors.UNFINISHED):
            pass
    embedder = Letters()
    write(tmp_path, NEW, embedder, rebuild=True)
    assert {*NEW} <= {*embedder.embedded} and len(answers(tmp_path)) == len(NEW)


def test_a_rebuild_without_vectors_removes_the_old_ones(tmp_path: Path) -> None:
    write(tmp_path, OLD, Letters())
    write(tmp_path, NEW, rebuild=True)
    assert files(tmp_path) == ["index.sqlite", "lock"]
    with pytest.raises(NoVectors, match="has no vectors"):
        answers(tmp_path)
    embedder = Letters()
    write(tmp_path, NEW, embedder)
    assert {*NEW} <= {*embedder.embedded} and len(answers(tmp_path)) == len(NEW)


def test_the_journal_of_a_killed_writer_does_not_outlive_the_index_of_it(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    program = f"""
import os, sqlite3
database = sqlite3.connect({str(tmp_path / store.FILE)!r}, isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN IMMEDIATE")
database.executemany("INSERT INTO passages VALUES (?, 1, 1, x'', ?)", [(i + 9, 999 * "x") for i in range(50)])
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / f"{store.FILE}-journal").stat().st_size > 0
    write(tmp_path, NEW, Letters(), rebuild=True)
    assert {text for text, *_ in answers(tmp_path)} == set(NEW)


def test_paragraphs_without_a_vector_are_counted_and_the_remedy_keeps_the_others(tmp_path: Path) -> None:
    write(tmp_path, OLD, Letters())
    write(tmp_path, (*OLD, "서울 마마", "한강 바바", "한강 바바"))
    with Index.open(tmp_path) as index:
        assert index.count_missing_vectors() == 3
    with pytest.raises(NoVectors, match=r"3 paragraphs have no vector yet: repeat .* --embed") as error:
        answers(tmp_path)
    assert "벡터가 없는 문단이 3개 있습니다. --embed를 붙여 다시 색인하세요" in error.value.ko
    embedder = Letters()
    write(tmp_path, (*OLD, "서울 마마", "한강 바바", "한강 바바"), embedder)
    assert set(embedder.embedded) == {vectors.PROBE, "서울 마마", "한강 바바"}
    assert len(answers(tmp_path)) == 4
    with Index.open(tmp_path) as index:
        assert index.count_missing_vectors() == 0


def test_an_index_whose_vectors_are_gone_lacks_all_of_them(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with Index.open(tmp_path) as index:
        assert index.count_missing_vectors() == 0
    write(tmp_path, OLD, Letters())
    (tmp_path / vectors.FILE).unlink()
    with Index.open(tmp_path) as index:
        assert index.count_missing_vectors() == len(OLD)


def test_vectors_killed_before_the_first_are_none(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with closing(sqlite3.connect(tmp_path / vectors.FILE)) as database:
        database.execute(vectors.TABLE)
    with pytest.raises(NoVectors, match="has no vectors"):
        answers(tmp_path)


@pytest.mark.parametrize("name", ["../vectors.sqlite", "/etc/passwd", "vectors.sqlite-wal", b"\xff", 7])
def test_an_index_names_no_file_but_vectors(tmp_path: Path, name: object) -> None:
    write(tmp_path, OLD, Letters())
    with closing(sqlite3.connect(tmp_path / store.FILE)) as database:
        database.execute("INSERT OR REPLACE INTO meta VALUES ('vectors', ?)", (name,))
        database.commit()
    with pytest.raises(InputError, match="damaged"):
        answers(tmp_path)


def test_an_open_index_takes_up_a_rebuild_at_its_next_query(tmp_path: Path) -> None:
    """Words and vectors together, whatever the model; one without vectors too, and one that only grew."""
    write(tmp_path, OLD, Letters())
    with Index.open(tmp_path) as index:

        def told(letters: str | None) -> list[tuple[str, float, str]]:
            hits = index.query("서울 부산 경주 제주", embedder=Letters(letters) if letters else None)
            return [(hit.passage, hit.score, hit.source) for hit in hits]

        assert told("가나다라") == answers(tmp_path)
        write(tmp_path, NEW, Letters("라마"), rebuild=True)
        assert index.count_missing_vectors() == 0 and index.info().model == "라마"
        assert told("라마") == answers(tmp_path, Letters("라마"))
        assert {text for text, *_ in told(None)} == set(NEW)
        write(tmp_path, (*NEW, "경주 마마"), Letters("라마"))
        assert told("라마") == answers(tmp_path, Letters("라마"))
        write(tmp_path, OLD, rebuild=True)
        assert {text for text, *_ in told(None)} == set(OLD) and index.info().model is None
        with pytest.raises(NoVectors):
            told("라마")
        shutil.rmtree(tmp_path)
        assert {text for text, *_ in told(None)} == set(OLD)  # what is open stays as it was


def test_a_rebuild_between_words_and_vectors_is_taken_up_by_the_same_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, OLD, Letters())
    reading, rebuilt = VectorStore.reading, iter([NEW, (*NEW, "경주 가라")])

    def late(*given: Any) -> Any:
        with suppress(StopIteration), monkeypatch.context() as patch:
            patch.setattr(VectorStore, "reading", reading)
            write(tmp_path, next(rebuilt), Letters(), rebuild=True)
        return reading(*given)

    with Index.open(tmp_path) as index:
        monkeypatch.setattr(VectorStore, "reading", late)
        hits = index.query("서울 부산 경주 제주", embedder=Letters())
        assert {hit.passage for hit in hits} == {*NEW, "경주 가라"}


def test_an_open_index_refuses_a_rebuild_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, OLD)
    with Index.open(tmp_path) as index:
        with monkeypatch.context() as patch:
            patch.setattr("kogpt.search.analysis.version", lambda: "another")
            write(tmp_path, NEW, rebuild=True)
        for _ in range(2):
            with pytest.raises(InputError, match="--rebuild"):
                index.query("서울")
        write(tmp_path, NEW, rebuild=True)
        assert [hit.passage for hit in index.query("서울")] == [NEW[0]]
