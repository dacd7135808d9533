"""`kogpt search`: index a folder, and find the paragraphs that answer a question."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt.cli import MISTAKE
from kogpt.cli.options import add_adapter_option, add_model_options, load_model, read_count
from kogpt.cli.progress import Progress
from kogpt.cli.without_model import refuse_model_options
from kogpt.errors import localized
from kogpt.files import require_folder
from kogpt.memory import amount
from kogpt.texts import ENCODINGS, decode, decode_argument, for_terminal, read_bytes, text_lines

if TYPE_CHECKING:
    from kogpt.search.index import Hit, Index
    from kogpt.search.update import Update

ACTIONS = {
    "index": "index a file or a folder: text, Markdown, JSON Lines, tables, HTML and PDF",
    "query": "find the paragraphs of an index that answer a question",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    children = {
        name: actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        for name, summary in ACTIONS.items()
    }
    _add_index(children["index"])
    _add_query(children["query"])
    for child in children.values():
        add_model_options(child)
        add_adapter_option(child)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder to index")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="INDEX",
        required=True,
        help="folder of the index; one that is there is brought up to date",
    )
    parser.add_argument(
        "--embed", action="store_true", help="give every paragraph a vector of the model as well; slow"
    )
    parser.add_argument("--rebuild", action="store_true", help="begin anew, whatever INDEX holds")
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default="auto", help="encoding of the files (default: %(default)s)"
    )


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder that kogpt search index wrote")
    parser.add_argument(
        "text", metavar="TEXT", help="question or words to find; - reads one per line from standard input"
    )
    parser.add_argument(
        "-k", type=read_count, default=10, metavar="N", help="paragraphs to show (default: %(default)s)"
    )
    parser.add_argument(
        "--rerank",
        action="store_true",
        help="order the first ten by how likely the model finds the question after each",
    )
    parser.add_argument(
        "--words-only", action="store_true", help="do not compare vectors, even if INDEX holds them"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per paragraph")


def run(args: argparse.Namespace) -> int:
    """Index or query."""
    return _index(args) if args.action == "index" else _query(args)


def _index(args: argparse.Namespace) -> int:
    from kogpt.search.index import Index
    from kogpt.search.update import Update
    from kogpt.search.vectors import Embedder

    if not args.embed:
        refuse_model_options(
            args,
            "paragraphs are indexed without a model: add --embed",
            "문단을 색인할 때는 모델을 쓰지 않습니다. --embed를 더하거나",
        )
    require_folder(args.out)
    embedder = Embedder(load_model(args)) if args.embed else None
    update = Update(args.path, args.encoding)
    with Index.writing(args.out, args.rebuild) as writer, Progress() as progress:
        for done, total in update.run(writer):
            progress.show(localized("files", "파일"), done, total)
        if embedder is not None:
            for done in writer.embed(embedder):
                progress.show(localized("vectors", "벡터"), done, writer.n_passages)
    for error in update.refused:
        print(f"kogpt: {error}", file=sys.stderr)
    _tell(update, args.out)
    _warn_of_missing_vectors(args.out)
    return MISTAKE if update.refused else 0


def _tell(update: Update, folder: Path) -> None:
    from kogpt.search.index import Index

    with Index.open(folder) as index:
        info = index.info()
    size = amount(info.n_bytes)
    en = (
        f"{folder}: {info.n_documents:,} files, {info.n_passages:,} paragraphs, {size}"
        f" ({update.n_new:,} new, {update.n_changed:,} changed, {update.n_removed:,} removed,"
        f" {len(update.refused):,} left out)"
    )
    ko = (
        f"{folder}: 파일 {info.n_documents:,}개, 문단 {info.n_passages:,}개, {size}"
        f" (추가 {update.n_new:,}, 변경 {update.n_changed:,}, 삭제 {update.n_removed:,},"
        f" 제외 {len(update.refused):,})"
    )
    print(localized(en, ko), file=sys.stderr)


def _warn_of_missing_vectors(folder: Path) -> None:
    """Say where queries would compare vectors and cannot: new paragraphs, indexed without --embed."""
    from kogpt.search.index import Index
    from kogpt.search.vectors import missing_vectors

    with Index.open(folder) as index:
        n_missing = index.count_missing_vectors()
    if n_missing:
        print(f"kogpt: {missing_vectors(folder, n_missing)}", file=sys.stderr)


def _query(args: argparse.Namespace) -> int:
    from kogpt.search.index import Index

    queries = [decode_argument(args.text, "TEXT")]
    if args.text == "-":
        source = localized("standard input", "표준 입력")
        queries = [line for _, line in text_lines(decode(read_bytes("-"), source))] or [""]
    with Index.open(args.index) as index:
        finder = _Finder(index, args)
        for number, query in enumerate(queries):
            hits = finder.find(query)
            if number and not args.json:
                print()
            for rank, hit in enumerate(hits, 1):
                print(_json(query, rank, hit) if args.json else _shown(rank, hit))
            if not hits:
                print(localized("nothing found", "찾은 문단이 없습니다"), file=sys.stderr)
    return 0


class _Finder:
    """An index, and the model where the options need one: it is loaded on first use."""

    def __init__(self, index: Index, args: argparse.Namespace) -> None:
        from kogpt.search.reranking import Reranker
        from kogpt.search.vectors import Embedder

        self._index, self._k = index, args.k
        embeds = index.info().model is not None and not args.words_only
        if not embeds and not args.rerank:
            refuse_model_options(
                args,
                "words are found without a model: add --rerank",
                "낱말로 찾을 때는 모델을 쓰지 않습니다. --rerank를 더하거나",
            )
        model = load_model(args) if embeds or args.rerank else None
        self._embedder = Embedder(model) if model and embeds else None
        self._reranker = Reranker(model.untuned()) if model and args.rerank else None

    def find(self, query: str) -> list[Hit]:
        """The best passages for a query."""
        if self._reranker is None:
            return self._index.query(query, self._k, self._embedder)
        hits = self._index.query(query, max(self._k, self._reranker.n_hits), self._embedder)
        return self._reranker.rerank(query, hits)[: self._k]


def _json(query: str, rank: int, hit: Hit) -> str:
    """One line of --json; these names are stable."""
    record = {"query": query, "rank": rank, "score": round(hit.score, 4), "source": hit.source}
    return json.dumps(record | {"position": hit.position, "passage": hit.passage}, ensure_ascii=False)


def _shown(rank: int, hit: Hit) -> str:
    """A hit for people: where it stands, and the paragraph."""
    lines = "\n".join(f"    {line}" for line in hit.passage.splitlines())
    shown = f"{rank}. {hit.source}:{hit.position} ({hit.score:.2f})\n{lines}"
    return for_terminal(shown)
