"""Measure kogpt search: what it finds, how fast it indexes and answers, and peers on the same terms.

    python bench/search.py quality --data DATA              # MRR@10 and recall on TyDi and KorQuAD
    python bench/search.py choose --data DATA               # constants of BM25, for both sets
    python bench/search.py vectors --data DATA --adapter search   # words and vectors, by weight
    python bench/search.py rerank --data DATA --adapter search    # and the first ten by the model
    python bench/search.py speed --data DATA                # 100,000 paragraphs of Korean Wikipedia
    python bench/search.py peers --data DATA                # FTS5, tantivy and bm25s (pip install them)
    python bench/search.py kills                            # 50 kills of `kogpt search index`

DATA holds eval/ and corpus/ as ../shared/data/README.md describes them.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from kogpt import KoGPT
from kogpt.search import postings, reranking
from kogpt.search.analysis import analyse_word, query_terms, words
from kogpt.search.index import Document, Hit, Index, Passage
from kogpt.search.vectors import Embedder

ROOT = Path(__file__).resolve().parents[1]
SPEED_PASSAGES, FILES = 100_000, 100
FloatArray = NDArray[np.float64]
Ranking = Sequence[str]  # ids of passages, best first


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Passages by id, and questions with the id of the one that is right."""

    name: str
    passages: dict[str, str]
    questions: list[tuple[str, str]]

    def sample(self, n: int) -> list[tuple[str, str]]:
        """n questions, the same ones every time."""
        return random.Random(0).sample(self.questions, min(n, len(self.questions)))


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows of a gzipped table without quoting."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        names, *rows = [line.rstrip("\n").split("\t") for line in file]
    return [dict(zip(names, row, strict=True)) for row in rows]


def read_sets(data: Path) -> list[RetrievalSet]:
    """KorQuAD and TyDi, each with all distractors."""
    folder = data / "eval"
    others = {row["pid"]: row["text"] for row in read_tsv(folder / "retrieval_distractors.tsv.gz")}
    tydi = {row["pid"]: row["text"] for row in read_tsv(folder / "retrieval_tydi_passages.tsv.gz")}
    asked = [(row["question"], row["pid"]) for row in read_tsv(folder / "retrieval_tydi_questions.tsv.gz")]
    contexts: dict[str, str] = {}
    questions = []
    with gzip.open(folder / "korquad_dev.json.gz", "rt", encoding="utf-8") as file:
        for article in json.load(file)["data"]:
            for paragraph in article["paragraphs"]:
                pid = contexts.setdefault(paragraph["context"], f"k{len(contexts)}")
                questions += [(question["question"], pid) for question in paragraph["qas"]]
    korquad = {pid: text for text, pid in contexts.items()}
    return [
        RetrievalSet("KorQuAD", korquad | others, questions),
        RetrievalSet("TyDi", tydi | others, asked),
    ]


def measure(questions: Sequence[tuple[str, str]], find: Callable[[str], Ranking]) -> str:
    """MRR@10, recall@1 and recall@10, and the median time of a query."""
    ranks, seconds = [], []
    for question, right in questions:
        started = time.perf_counter()
        ranking = list(find(question))[:10]
        seconds.append(time.perf_counter() - started)
        ranks.append(ranking.index(right) + 1 if right in ranking else 0)
    n = len(ranks)
    mrr = sum(1 / rank for rank in ranks if rank) / n
    first, ten = ranks.count(1) / n, sum(map(bool, ranks)) / n
    milliseconds = 1000 * statistics.median(seconds)
    return f"MRR@10 {mrr:.3f}  R@1 {first:.3f}  R@10 {ten:.3f}  {milliseconds:.1f} ms  ({n} questions)"


def build(folder: Path, passages: dict[str, str], embedder: Embedder | None = None) -> Index:
    """An index with a document for each passage, and the vectors of a model."""
    with Index.writing(folder) as writer:
        for pid, text in passages.items():
            writer.add(Document(pid, b"", [Passage(text, 1)]))
        for _ in writer.embed(embedder) if embedder is not None else ():
            pass
    return Index.open(folder)


def find_in(index: Index) -> Callable[[str], Ranking]:
    """The query of an index as a ranking of ids."""
    return lambda question: sources(index.query(question))


def sources(hits: Sequence[Hit]) -> Ranking:
    """The ids of the passages."""
    return [hit.source for hit in hits]


def quality(args: argparse.Namespace) -> None:
    """Words alone, on both sets."""
    for each in read_sets(args.data):
        with tempfile.TemporaryDirectory() as folder, build(Path(folder), each.passages) as index:
            print(f"{each.name:8} words  {measure(each.questions, find_in(index))}", flush=True)


def choose(args: argparse.Namespace) -> None:
    """MRR@10 of both sets for constants around those in use."""
    for each in read_sets(args.data):
        questions = each.sample(args.questions)
        with tempfile.TemporaryDirectory() as folder, build(Path(folder), each.passages) as index:
            for k1 in (0.3, 0.6, 0.9, 1.2):
                for b in (0.0, 0.3, 0.5, 0.75):
                    for weight in (0.5, 1.0, 2.0):
                        with patch.multiple(postings, K1=k1, B=b, STEM_WEIGHT=weight):
                            found = measure(questions, find_in(index))
                        print(f"{each.name:8} k1 {k1} b {b} stems {weight}  {found}", flush=True)


def load(args: argparse.Namespace) -> tuple[KoGPT, Embedder | None]:
    """The model, and the one whose vectors are compared, if an adapter is named."""
    model = KoGPT.from_pretrained(args.model, dtype=args.dtype, adapter=args.adapter)
    return model.untuned(), Embedder(model) if args.adapter else None


def vectors(args: argparse.Namespace) -> None:
    """Words and vectors, for several weights of the vectors."""
    _, embedder = load(args)
    for each in read_sets(args.data):
        questions = each.sample(args.questions)
        with tempfile.TemporaryDirectory() as folder, build(Path(folder), each.passages, embedder) as index:
            for weight in (0.0, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0):
                with patch("kogpt.search.vectors.VECTOR_WEIGHT", weight):
                    found = measure(questions, lambda text: sources(index.query(text, embedder=embedder)))
                print(f"{each.name:8} vectors {weight}  {found}", flush=True)


def rerank(args: argparse.Namespace) -> None:
    """The first ten by the model, for several weights of its likelihood, from one pass."""
    model, embedder = load(args)
    reranker = reranking.Reranker(model)
    for each in read_sets(args.data):
        with tempfile.TemporaryDirectory() as folder, build(Path(folder), each.passages, embedder) as index:
            rows = []
            started = time.perf_counter()
            for question, right in each.sample(args.questions):
                hits = index.query(question, embedder=embedder)
                prompts, asked = zip(*reranker.questions(question, hits), strict=True)
                likelihoods = np.array(reranker.model.score(prompts, asked)) / len(question)
                rows.append((sources(hits).index(right) if right in sources(hits) else -1, hits, likelihoods))
            seconds = (time.perf_counter() - started) / len(rows)
        for weight in (0.0, 5.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 100.0):
            print(f"{each.name:8} weight {weight:5}  MRR@10 {_mrr(rows, weight):.3f}", flush=True)
        print(f"{each.name:8} {seconds:.2f} s a question, {len(rows)} questions", flush=True)


def _mrr(rows: Sequence[tuple[int, Sequence[Hit], FloatArray]], weight: float) -> float:
    total = 0.0
    for right, hits, likelihoods in rows:
        if right >= 0:
            scores = np.array([hit.score for hit in hits]) + weight * likelihoods
            total += 1 / (1 + int((scores > scores[right]).sum()))
    return total / len(rows)


def read_corpus(data: Path, n: int) -> list[str]:
    """n paragraphs of Korean Wikipedia of 30 characters or more."""
    import zstandard

    found: list[str] = []
    for path in sorted((data / "corpus").glob("train_kowiki2_*.jsonl.zst")):
        with path.open("rb") as file:
            reader = zstandard.ZstdDecompressor().stream_reader(file)
            for line in io.TextIOWrapper(reader, encoding="utf-8"):
                found += [part for part in json.loads(line)["text"].split("\n") if len(part) >= 30]
                if len(found) >= n:
                    return found[:n]
    return found


def speed(args: argparse.Namespace) -> None:
    """`kogpt search index` of a folder of JSON Lines, an update of one file in a hundred, and queries."""
    texts = read_corpus(args.data, SPEED_PASSAGES)
    questions = [question for each in read_sets(args.data) for question, _ in each.sample(100)]
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name, "texts"), Path(name, "index")
        folder.mkdir()
        for number in range(FILES):
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[number::FILES]]
            (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "kogpt", "search", "index", str(folder), "--out", str(out)]
        for what in ("new", "unchanged", "one file changed"):
            if what == "one file changed":
                with (folder / "7.jsonl").open("a", encoding="utf-8") as file:
                    file.write('\n{"text": "새 문단입니다."}')
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            print(f"{what}: {seconds:.1f} s, {len(texts) / seconds:,.0f} passages/s", flush=True)
        n_bytes = sum(path.stat().st_size for path in out.iterdir())
        print(f"{n_bytes / 1e6:.0f} MB for {sum(len(text.encode()) for text in texts) / 1e6:.0f} MB of text")
        with Index.open(out) as index:
            times = sorted(_seconds(partial(index.query, question)) for question in questions)
        middle, most = statistics.median(times), times[int(0.95 * len(times))]
        print(f"query: median {1000 * middle:.1f} ms, 95 % {1000 * most:.1f} ms, {len(times)} questions")
        query = [sys.executable, "-m", "kogpt", "search", "query", str(out), questions[0]]
        whole = statistics.median(_seconds(lambda: _quietly(query)) for _ in range(5))
        print(f"command `kogpt search query`: {whole:.2f} s")


def _quietly(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peers(args: argparse.Namespace) -> None:
    """Other stores with the same terms: how fast they take them, how fast they answer, what they find."""
    for each in read_sets(args.data):
        texts = list(each.passages.values())
        terms = [[term for word in words(text) for term in analyse_word(word)] for text in texts]
        for name, make in (("FTS5", _fts5), ("tantivy", _tantivy), ("bm25s", _bm25s), ("kogpt", _kogpt)):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    started = time.perf_counter()
                    find = make(Path(folder), list(each.passages), terms, texts)
                    seconds = time.perf_counter() - started
                except ImportError as error:
                    print(f"{name}: {error}")
                    continue
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                found = measure(each.sample(args.questions), find)
            rate = len(texts) / seconds
            print(f"{each.name:8} {name:8} {rate:7,.0f} passages/s  {size / 1e6:.1f} MB  {found}", flush=True)


Find = Callable[[str], Ranking]


def _fts5(folder: Path, ids: list[str], terms: list[list[str]], texts: list[str]) -> Find:
    import sqlite3

    database = sqlite3.connect(folder / "fts")
    database.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, text TEXT)")
    tokenizer = "tokenize=\"unicode61 remove_diacritics 0 tokenchars '#'\""
    database.execute(f"CREATE VIRTUAL TABLE found USING fts5(terms, content='', {tokenizer})")
    with database:
        database.executemany("INSERT INTO passages VALUES (?, ?)", enumerate(texts))
        rows = ((number, " ".join(each)) for number, each in enumerate(terms))
        database.executemany("INSERT INTO found (rowid, terms) VALUES (?, ?)", rows)

    def find(question: str) -> Ranking:
        query = " OR ".join(f'"{term}"' for term in dict.fromkeys(query_terms(question)))
        select = "SELECT rowid FROM found WHERE found MATCH ? ORDER BY rank LIMIT 10"
        return [ids[row[0]] for row in database.execute(select, (query,))]

    return find


def _tantivy(folder: Path, ids: list[str], terms: list[list[str]], texts: list[str]) -> Find:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
    schema.add_text_field("text", stored=True, index_option="basic", tokenizer_name="raw")
    schema.add_unsigned_field("number", stored=True)
    built = schema.build()
    index = tantivy.Index(built, path=str(folder))
    writer = index.writer(heap_size=256 << 20, num_threads=1)
    for number, (each, text) in enumerate(zip(terms, texts, strict=True)):
        writer.add_document(tantivy.Document(terms=" ".join(each), text=text[:30], number=number))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def find(question: str) -> Ranking:
        asked = [
            tantivy.Query.term_query(built, "terms", term) for term in dict.fromkeys(query_terms(question))
        ]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, each) for each in asked])
        hits = searcher.search(query, 10).hits
        return [ids[searcher.doc(address)["number"][0]] for _, address in hits]

    return find


def _bm25s(folder: Path, ids: list[str], terms: list[list[str]], texts: list[str]) -> Find:
    import bm25s

    index = bm25s.BM25(k1=postings.K1, b=postings.B)
    index.index(terms, show_progress=False)
    index.save(folder, corpus=texts)

    def find(question: str) -> Ranking:
        numbers, _ = index.retrieve([query_terms(question)], k=10, show_progress=False)
        return [ids[number] for number in numbers[0]]

    return find


def _kogpt(folder: Path, ids: list[str], terms: list[list[str]], texts: list[str]) -> Find:
    del terms  # it makes them itself, and that is part of its time
    index = build(folder, dict(zip(ids, texts, strict=True)))
    return find_in(index)


def kills(args: argparse.Namespace) -> None:
    """Kill the command at random moments; each leaves the old state or the new one."""
    del args
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cli")]
    from test_search import CITIES, kill_and_check

    with tempfile.TemporaryDirectory() as name:
        texts = Path(name, "texts")
        texts.mkdir()
        for city, text in CITIES.items():
            (texts / f"{city}.txt").write_text(text, encoding="utf-8")
        old, new = kill_and_check(texts, Path(name, "index"), n_kills=50)
    print(f"50 kills: {old} left the old state, {new} the new one; the same command went on each time")


ACTIONS = {f.__name__: f for f in (quality, choose, vectors, rerank, speed, peers, kills)}


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--questions", type=int, default=1031, help="of each set (default: %(default)s)")
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--dtype", default="auto", help="precision of the model")
    parser.add_argument("--adapter", help="compare the vectors of this adapter as well")
    args = parser.parse_args()
    ACTIONS[args.action](args)


if __name__ == "__main__":
    main()
