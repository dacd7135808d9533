"""Bits per byte of any text: what the model pays to write it, over the bytes of its UTF-8.

Unlike perplexity per token it can be compared between tokenizers. Every token is predicted once, with at
least half a context before it wherever the text has that much.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kogpt.errors import InputError
from kogpt.evaluation import scoring
from kogpt.evaluation.evaluate import Memory, Progress, Subject
from kogpt.evaluation.fewshot import Item
from kogpt.evaluation.store import BatchStore
from kogpt.request import Ids
from kogpt.texts import Record, format_of, printable_path, read_records, read_text


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Bits per byte and perplexity of one file."""

    file: str
    n_documents: int
    n_bytes: int
    n_tokens: int
    nats: float  # negative log-likelihood of all tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes

    @property
    def per_token(self) -> float:
        """Perplexity per token, comparable only between models with the same tokenizer."""
        return math.exp(self.nats / self.n_tokens)


def measure(
    subject: Subject, path: Path, out: Path | None = None, progress: Progress | None = None
) -> Perplexity:
    """Bits per byte of a file; one document a file (.txt), or a line ({"text"}: .jsonl, .jsonl.zst).

    Text is brought to NFC, as the tokenizer sees it. Raises InputError if the file cannot be read as text.
    """
    texts = read_texts(path)
    ids = [np.array(subject.tokenizer.encode(text), dtype=np.int64) for text in texts]
    start, n_ctx = subject.tokenizer.eos_token_id, subject.runner.config.n_ctx
    items = [item for document in ids for item in windows(document, start, n_ctx)]
    parts = {**subject.identity, "text": [_digest(texts), len(items)], "windows": 1}
    store = BatchStore(out / "batches", parts) if out is not None else None
    scores: scoring.Scores = []
    try:
        for done, finished in scoring.score(subject.runner, ids[0][:0], items, store or Memory()):
            if progress is not None:
                progress(f"ppl {path.name}", done, len(items))
            scores = finished or scores
    finally:
        if store is not None:
            store.close()
    return Perplexity(
        file=printable_path(Path(path.name)),
        n_documents=len(texts),
        n_bytes=sum(len(text.encode()) for text in texts),
        n_tokens=sum(map(len, ids)),
        nats=-math.fsum(row[0] for row in scores),
    )


def windows(ids: Ids, start: int, n_ctx: int) -> Iterator[Item]:
    """Cut a document so that every token is predicted once: `start` before the first, then half-steps."""
    whole = np.concatenate([[start], ids]).astype(np.int64)
    done = 1
    while done < len(whole):
        begin = max(0, done - n_ctx // 2)
        end = min(len(whole), begin + n_ctx)
        yield Item(whole[begin:done], (whole[done:end],), (1,))
        done = end


def read_texts(path: Path) -> list[str]:
    """The documents of a file, NFC, the empty ones left out. InputError if there is none, or for bad text."""
    text = read_text(path)
    documents = [text]
    format = format_of(path.name)
    if format in ("jsonl", "json", "csv", "tsv"):
        documents = [_text_of(record, path) for record in read_records(text, str(path), format)]
    documents = [unicodedata.normalize("NFC", document) for document in documents if document.strip()]
    if not documents:
        raise InputError(f"{path} holds no text", f"{path} 파일에 글이 없습니다")
    return documents


def _text_of(record: Record, path: Path) -> str:
    text = record.values.get("text")
    if not isinstance(text, str):
        raise InputError(
            f'{path} line {record.line} has no string under "text"',
            f'{path} {record.line}행: "text" 문자열이 없습니다',
        )
    return text


def _digest(texts: Sequence[str]) -> str:
    from hashlib import sha256

    return sha256("\x00".join(texts).encode()).hexdigest()
