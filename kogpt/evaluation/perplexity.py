"""Bits per byte of a text file, as kogpt/bits.py defines them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from kogpt.bits import Window, per_byte, split_windows
from kogpt.errors import InputError
from kogpt.evaluation import scoring
from kogpt.evaluation.evaluate import EvaluatedModel, Progress
from kogpt.evaluation.fewshot import Item
from kogpt.evaluation.store import open_store
from kogpt.texts import Record, format_of, nfc, printable_path, read_records, read_text

WINDOWS = 2  # version of the windows; raised whenever the same text would give other scores


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
        """Comparable between models with different vocabularies."""
        return per_byte(self.nats, self.n_bytes)

    @property
    def per_token(self) -> float:
        """Perplexity per token, comparable only between models with the same tokenizer."""
        return math.exp(self.nats / self.n_tokens)


def measure(
    model: EvaluatedModel, path: Path, out: Path | None = None, progress: Progress | None = None
) -> Perplexity:
    """Bits per byte of a file: one document a file (.txt), or one a record ({"text"}: .jsonl, .jsonl.zst).

    Text is brought to NFC, as the tokenizer reads it. With `out`, finished batches are kept there.
    Raises InputError if the file cannot be read as text.
    """
    texts = read_texts(path)
    ids = [np.array(document, dtype=np.int64) for document in model.tokenizer.encode_batch(texts)]
    start, n_ctx = model.tokenizer.document_start, model.n_ctx
    items = [_item(window) for document in ids for window in split_windows(document, start, n_ctx)]
    parts = {**model.identity, "text": [_digest(texts), len(items)], "windows": WINDOWS}
    with open_store(out, parts) as store:
        scores: scoring.Scores = []
        for done, finished in scoring.score(model.session, ids[0][:0], items, store, model.model.handles):
            if progress is not None:
                progress(f"ppl {path.name}", done, len(items))
            scores = finished or scores
    return Perplexity(
        file=printable_path(Path(path.name)),
        n_documents=len(texts),
        n_bytes=sum(len(text.encode()) for text in texts),
        n_tokens=sum(map(len, ids)),
        nats=-math.fsum(row[0] for row in scores),
    )


def _item(window: Window) -> Item:
    """A window as a question with one choice: the tokens that it scores."""
    tokens, first = window
    return Item(tokens[:first], (tokens[first:],), (1,))


def read_texts(path: Path) -> list[str]:
    """The documents of a file that are not empty, in NFC. InputError if there is none, or for bad text."""
    text = read_text(path)
    documents = [text]
    format = format_of(path.name)
    if format in ("jsonl", "json", "csv", "tsv"):
        documents = [_text_of(record, path) for record in read_records(text, str(path), format)]
    documents = [nfc(document) for document in documents if document.strip()]
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
    return sha256("\x00".join(texts).encode()).hexdigest()
