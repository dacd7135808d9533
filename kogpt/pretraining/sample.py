"""The documents that a tokenizer is made from, and those it is measured on: chosen by hash, never both.

A document's lot is a number from 0 to 1 that depends on its text only. So the choice is the same in any
order, and copies of a held-out text are held out too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kogpt.errors import InputError
from kogpt.pretraining.corpus import BAD_NAMED, BadRecord, Reading, blocks, documents, require_few_bad
from kogpt.tokenizer import Tokenizer

HELD_OUT = 0.01  # share of the documents, from the top of the lots
MEASURED_BYTES = 10_000_000  # held-out text; more would not change three digits
BATCH = 256  # texts encoded at a time


@dataclass(frozen=True, slots=True)
class Measure:
    """How well a tokenizer fits a text."""

    documents: int
    characters: int
    n_bytes: int  # UTF-8
    tokens: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / self.tokens


def read_texts(files: Sequence[Path], reading: Reading, max_bad_share: float) -> Iterator[str]:
    """Every text of the corpus; InputError after the last one if too many of all records are bad."""
    records = n_bad = 0
    first: list[BadRecord] = []
    for block in blocks(files, reading):
        for record in documents(block, reading):
            records += 1
            if isinstance(record, BadRecord):
                n_bad += 1
                first = [*first, record][:BAD_NAMED]
            else:
                yield record.text
    require_few_bad(records, n_bad, first, max_bad_share)


def lot(text: str) -> float:
    """The text's number in [0, 1)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def training_texts(texts: Iterable[str], share: float) -> Iterator[str]:
    """`share` of the texts, from the bottom of the lots, without any that is held out."""
    return (text for text in texts if lot(text) < min(share, 1 - HELD_OUT))


def held_out_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts that `training_texts` never yields."""
    return (text for text in texts if lot(text) >= 1 - HELD_OUT)


def require_held_out(texts: Iterable[str]) -> None:
    """InputError if no text is held out, as is likely with fewer than some hundred."""
    if next(held_out_texts(texts), None) is None:
        raise InputError(
            "none of these documents is held out to measure the tokenizer on (one of a hundred is, by its "
            "hash): give a file with --held-out, or more documents; --split line makes each line one",
            "토크나이저를 재 볼 문서가 없습니다(해시로 백에 하나를 남겨 둡니다). --held-out으로 파일을 "
            "지정하거나 문서를 더 준비하세요. --split line은 줄마다 한 문서로 봅니다",
        )


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Measure:
    """Measure the first MEASURED_BYTES of the texts; InputError if there is none."""
    n_documents = characters = n_bytes = tokens = 0
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        n_documents, characters, n_bytes = (
            n_documents + 1,
            characters + len(text),
            n_bytes + len(text.encode()),
        )
        if len(batch) == BATCH:
            tokens += sum(map(len, tokenizer.encode_batch(batch)))
            batch = []
        if n_bytes >= MEASURED_BYTES:
            break
    tokens += sum(map(len, tokenizer.encode_batch(batch)))
    if not tokens:
        raise InputError(
            f"no text to measure the tokenizer on: with fewer than about {1 / HELD_OUT:.0f} documents, "
            "name a file with --held-out",
            f"토크나이저를 재어 볼 텍스트가 없습니다. 문서가 {1 / HELD_OUT:.0f}개쯤보다 적으면 "
            "--held-out으로 파일을 지정하세요",
        )
    return Measure(n_documents, characters, n_bytes, tokens)
