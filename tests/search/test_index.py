"""The index: what is found, changes, damage, other versions; beside a slow BM25 that is obviously right."""

from __future__ import annotations

import math
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from kogpt.errors import InputError
from kogpt.search import analysis, postings, store
from kogpt.search import index as index_module
from kogpt.search.analysis import analyse_word, query_terms, stem, words
from kogpt.search.index import Document, Index, Passage

TEXTS = (
    "세종대왕은 1443년에 훈민정음을 만들었다.",
    "이순신은 명량에서 왜군을 물리쳤다.",
    "서울은 대한민국의 수도이다.",
    "부산에서는 해마다 국제영화제가 열린다.",
    "훈민정음 해례본은 1940년 안동에서 발견되었다.",
)


def document(number: int, text: str, digest: bytes = b"1") -> Document:
    return Document(f"{number}.txt", digest, [Passage(text, 1)])


def documents(texts: Iterable[str] = TEXTS) -> list[Document]:
    return [document(number, text) for number, text in enumerate(texts)]


def found(folder: Path, query: str, k: int = 10) -> list[str]:
    with Index.open(folder) as index:
        return [hit.source for hit in index.query(query, k)]


def random_texts(n: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    vocabulary = [
        a + b + c for a in "가나다라마" for b in "사아자차" for c in ("", "는", "에서", "하", "X3", " 힣 ")
    ]
    return [" ".join(chance.choices(vocabulary, k=chance.randint(1, 30))) for _ in range(n)]


def slow_scores(texts: Sequence[str], query: str) -> list[float]:
    """BM25 by its formula, both fields."""
    fields = [
        [[stem(w) for w in words(t)], [g for w in words(t) for g in analyse_word(w)[1:]]] for t in texts
    ]
    scores = []
    for passage in fields:
        total = 0.0
        for term in query_terms(query):
            field = 1 if term.startswith(analysis.GRAM) else 0
            n_found = sum(term in other[field] for other in fields)
            mean = sum(len(other[field]) for other in fields) / len(texts)
            count = Counter(passage[field])[term]
            length = 1 - postings.B + postings.B * len(passage[field]) / mean
            idf = math.log(1 + (len(texts) - n_found + 0.5) / (n_found + 0.5))
            latin = not field and not "가" <= term[0] <= "힣"
            weight = 1.0 if field else postings.STEM_WEIGHT + latin
            total += weight * idf * count * (postings.K1 + 1) / (count + postings.K1 * length)
        scores.append(total)
    return scores


def test_a_question_finds_its_passage(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    with Index.open(tmp_path) as index:
        best, *_ = index.query("훈민정음을 만든 사람은 누구인가?")
        assert (best.passage, best.source, best.position) == (TEXTS[0], "0.txt", 1)
        assert index.info().n_passages == len(TEXTS)
        assert len(index.query("훈민정음", k=1)) == 1
        assert index.query("없는낱말") == []


@pytest.mark.parametrize("size", [7, 1000])
def test_scores_are_those_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(postings, "SEGMENT_PASSAGES", size)
    texts = random_texts(40)
    Index.add(tmp_path, documents(texts))
    with Index.open(tmp_path) as index:
        for query in ("가사는 나아에서", "라차하 x3 마자", "다사 다사는 힣"):
            hits = {hit.source: hit.score for hit in index.query(query, 40)}
            slow = slow_scores(texts, query)
            assert hits == pytest.approx({f"{i}.txt": s for i, s in enumerate(slow) if s}, rel=1e-5)


def test_changes_leave_what_a_new_index_would_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "SEGMENT_PASSAGES", 10)
    monkeypatch.setattr(index_module, "SEGMENT_PASSAGES", 10)
    texts = dict(enumerate(random_texts(50)))
    chance = random.Random(1)
    changed = tmp_path / "changed"
    Index.add(changed, documents(texts.values()))
    for step in range(12):
        with Index.writing(changed) as writer:
            for number in chance.sample(sorted(texts), 3):
                assert writer.remove(f"{number}.txt")
                del texts[number]
            for number, text in enumerate(random_texts(3, step + 9), 100 * (step + 1)):
                texts[number] = text
                writer.add(document(number, text))
    fresh = tmp_path / "fresh"
    Index.add(fresh, [document(number, text) for number, text in texts.items()])
    for query in ("가사는 나아에서", "라차하 x3 마자", "다사 다사는 힣"):
        both = []
        for folder in (changed, fresh):
            with Index.open(folder) as index:
                both.append({hit.source: hit.score for hit in index.query(query, 99)})
        assert both[0] == pytest.approx(both[1], rel=1e-5)


def test_a_document_is_replaced_by_its_source(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    with Index.writing(tmp_path) as writer:
        assert writer.has("2.txt", b"1") and not writer.has("2.txt", b"2")
        writer.add(document(2, "평양은 대동강 가에 있다.", b"2"))
    assert found(tmp_path, "서울") == []
    assert found(tmp_path, "대동강") == ["2.txt"]


def test_an_error_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    with pytest.raises(RuntimeError), Index.writing(tmp_path) as writer:
        writer.remove("2.txt")
        raise RuntimeError
    assert found(tmp_path, "서울") == ["2.txt"]


def test_queries_go_on_while_another_writes_and_a_second_writer_is_refused(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    with Index.writing(tmp_path) as writer:
        writer.remove("2.txt")
        assert found(tmp_path, "서울") == ["2.txt"]
        with pytest.raises(InputError, match="in use"), Index.writing(tmp_path):
            pass
    assert found(tmp_path, "서울") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.FILE, "lock"]


def test_a_query_takes_back_what_a_killed_writer_left_in_a_journal(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    program = f"""
import os, sqlite3
database = sqlite3.connect({str(tmp_path / store.FILE)!r}, isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN IMMEDIATE")
database.execute("DELETE FROM passages")
database.executemany("INSERT INTO passages VALUES (?, 1, 1, x'', ?)", [(i, 999 * "x") for i in range(50)])
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / f"{store.FILE}-journal").stat().st_size > 0
    assert found(tmp_path, "서울") == ["2.txt"]


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    Index.add(tmp_path, documents())
    (tmp_path / store.FILE).chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert found(tmp_path, "서울") == ["2.txt"]
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("query", "line"), [("", "no word"), (" ?! ", "no word"), ("가" * 10_001, "10,001 characters")]
)
def test_queries_that_are_refused(tmp_path: Path, query: str, line: str) -> None:
    Index.add(tmp_path, documents())
    with Index.open(tmp_path) as index, pytest.raises(InputError, match=line):
        index.query(query)


def test_no_index_and_no_passages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no index"):
        Index.open(tmp_path / "none")
    with pytest.raises(InputError, match="no passage"):
        Index.add(tmp_path, [])
    with pytest.raises(InputError, match="never finished"):
        Index.open(tmp_path)
    Index.add(tmp_path, documents())
    assert found(tmp_path, "서울") == ["2.txt"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("PRAGMA user_version=99", "version 99"),
        ("PRAGMA application_id=1", "not an index"),
        ("UPDATE meta SET value = '0-00' WHERE key = 'analysis'", "0-00"),
    ],
)
def test_another_version_is_refused(tmp_path: Path, change: str, line: str) -> None:
    Index.add(tmp_path, documents())
    database = sqlite3.connect(tmp_path / store.FILE)
    with database:
        database.execute(change)
    database.close()
    with pytest.raises(InputError, match=line):
        Index.open(tmp_path)
    with pytest.raises(InputError, match=line):
        Index.add(tmp_path, documents())


def test_damage_is_refused_or_does_no_harm_and_a_rebuild_mends_it(tmp_path: Path) -> None:
    Index.add(tmp_path, documents(random_texts(200)))
    path = tmp_path / store.FILE
    whole = path.read_bytes()
    queries = ("가사는", "라차하 마자")

    def answers() -> list[list[tuple[str, float]]]:
        with Index.open(tmp_path) as index:
            return [[(hit.passage, hit.score) for hit in index.query(query)] for query in queries]

    right = answers()
    chance, refused = random.Random(0), 0
    for _ in range(60):
        data = bytearray(whole)
        start = chance.randrange(len(data))
        data[start : start + 16] = chance.randbytes(len(data[start : start + 16]))
        path.write_bytes(data)
        try:
            assert answers() == right
        except InputError:
            refused += 1
    assert refused
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        answers()
    with pytest.raises(InputError, match="damaged"):
        Index.add(tmp_path, documents())
    with Index.writing(tmp_path, rebuild=True) as writer:
        for each in documents(random_texts(200)):
            writer.add(each)
    assert answers() == right
