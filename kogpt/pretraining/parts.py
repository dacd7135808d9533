"""Blocks of the corpus -> parts on disk: tokens, fingerprints and counts of a block's documents.

The work of packing, in as many processes as there are cores. A part is written whole or not at all, and
depends on its block and the options only. Knows nothing of duplicates between parts, or of shards: pack.py.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.files import atomic_write
from kogpt.pretraining import dedup, filters, shards
from kogpt.pretraining.corpus import (
    BadRecord,
    Block,
    Position,
    Reading,
    blocks,
    documents,
    require_few_bad,
)
from kogpt.texts import printable_path
from kogpt.tokenizer import Tokenizer

MAX_BAD_SHARE = 0.001
BAD_SHOWN = 20  # bad records that are kept by name
TEXTS_AT_ONCE = 256  # encoded at a time: the library's own form of them takes ten times their size


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of packing; every one of them decides the result."""

    reading: Reading = field(default_factory=Reading)
    left_out: tuple[str, ...] = ()  # names of filters
    keep_duplicates: bool = False
    near: float = 0.8  # similarity from which a document repeats another; 0 compares exactly only
    max_bad_share: float = MAX_BAD_SHARE  # share of all records; more are refused
    tokens_per_shard: int = shards.TOKENS_PER_SHARD

    @property
    def compares_nearly(self) -> bool:
        return bool(self.near) and not self.keep_duplicates

    def __post_init__(self) -> None:
        filters.rules_without(self.left_out)
        if self.near:
            dedup.rows_per_band(self.near)
        require_bad_share(self.max_bad_share)


def require_bad_share(share: float) -> None:
    """InputError for what is no share of records."""
    if not 0 <= share <= 1:
        raise InputError(
            f"share of bad records {share}: give a number from 0 to 1",
            f"잘못된 기록의 비율 {share}: 0에서 1 사이의 수를 지정하세요",
        )


@dataclass(slots=True)
class Counts:
    """What became of the records of a part, or of all of them."""

    records: int = 0
    bad: int = 0
    bad_shown: list[list[Any]] = field(default_factory=list)  # [file, line, key of REASONS]
    filtered: dict[str, int] = field(default_factory=dict)  # by rule
    documents: int = 0  # documents that passed the filters
    tokens: int = 0

    def add(self, other: Counts) -> None:
        self.records += other.records
        self.bad += other.bad
        self.bad_shown = (self.bad_shown + other.bad_shown)[:BAD_SHOWN]
        self.filtered = dict(Counter(self.filtered) + Counter(other.filtered))
        self.documents += other.documents
        self.tokens += other.tokens


@dataclass(frozen=True, slots=True)
class Part:
    """What the main process needs to know of a part."""

    counts: Counts
    end: Position


@dataclass(frozen=True, slots=True)
class Job:
    """Paths and settings that every worker gets."""

    tokenizer: Path
    work: Path
    options: Options

    def part(self, number: int) -> Path:
        return self.work / "parts" / f"{number:07d}.npz"


def read_corpus(files: Sequence[Path], job: Job, workers: int, progress: Callable[[int], None]) -> Counts:
    """Make every missing part, in parallel; return the summed counts. InputError if too many are bad.

    `progress` is called with the bytes of the files read so far, first with those that are in parts already.
    """
    total = Counts()
    start, number = Position(), 0
    while (path := job.part(number)).exists():  # parts of an earlier run, up to the first gap
        part = _facts(path)
        total.add(part.counts)
        start, number = part.end, number + 1
    before = np.cumsum([0] + [path.stat().st_size for path in files])
    progress(int(before[start.file]) + start.stored)
    for part in _parts(blocks(files, job.options.reading, start, number), job, workers):
        total.add(part.counts)
        progress(int(before[part.end.file]) + part.end.stored)
    first = [BadRecord(Path(file), line, reason) for file, line, reason in total.bad_shown]
    require_few_bad(total.records, total.bad, first, job.options.max_bad_share)
    if not total.documents:
        raise InputError(
            f"nothing to pack: {total.records} records, {total.bad} of them bad, the rest filtered out",
            f"묶을 문서가 없습니다: 기록 {total.records}개, 잘못된 것 {total.bad}개, 나머지는 필터에 걸림",
        )
    return total


def _parts(work: Iterable[Block], job: Job, workers: int) -> Iterator[Part]:
    """The part of every block, in order; never more than a few blocks in memory."""
    if workers == 1:
        yield from map(_Worker(job).part, work)
        return
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(job,))
        stack.callback(pool.shutdown, cancel_futures=True)
        pending: deque[Future[Part]] = deque()
        try:
            for block in work:
                pending.append(pool.submit(_work, block))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} workers was killed, perhaps for memory: repeat the command, it goes on "
                "where it stopped; fewer --workers need less memory",
                f"작업 프로세스 {workers}개 중 하나가 강제로 끝났습니다(메모리 부족일 수 있음). 같은 명령을 "
                "다시 쓰면 이어서 합니다. --workers를 줄이면 메모리를 덜 씁니다",
            ) from error


_worker: _Worker  # this process's worker; _start_worker sets it in a pool's processes only


def _start_worker(job: Job) -> None:
    global _worker
    signal(SIGINT, SIG_IGN)  # Ctrl-C is the main process's to answer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(job)


def _end_with_parent() -> None:
    """A pool's idle process would wait forever for a parent that was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(block: Block) -> Part:
    return _worker.part(block)


class _Worker:
    """One process's tokenizer and rules; `part` turns a block into a part."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokenizer = Tokenizer.from_file(job.tokenizer)
        self.rules = filters.rules_without(job.options.left_out)

    def part(self, block: Block) -> Part:
        path = self.job.part(block.number)
        if not path.exists():
            texts, counts = self._texts(block)
            prints = dedup.fingerprints(texts, near=self.job.options.compares_nearly)
            ids, lengths = self._tokens(texts)
            counts.documents, counts.tokens = len(texts), len(ids)
            facts = json.dumps({"counts": asdict(counts), "end": asdict(block.end)}).encode()
            with atomic_write(path) as file:
                np.savez(
                    file,
                    facts=np.frombuffer(facts, dtype=np.uint8),
                    tokens=ids,
                    lengths=lengths,
                    exact=prints.exact,
                    signatures=prints.signatures,
                )
        return _facts(path)

    def _texts(self, block: Block) -> tuple[list[str], Counts]:
        """Texts of the block that pass the filters."""
        texts: list[str] = []
        removed: list[str] = []
        counts = Counts()
        for record in documents(block, self.job.options.reading):
            counts.records += 1
            if isinstance(record, BadRecord):
                counts.bad += 1
                if counts.bad <= BAD_SHOWN:
                    counts.bad_shown.append([printable_path(record.path), record.line, record.reason])
            elif rule := filters.removed_by(record.text, self.rules):
                removed.append(rule)
            else:
                texts.append(record.text)
        counts.filtered = filters.tally(removed)
        return texts, counts

    def _tokens(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Ids of all texts one after another, each ended by [EOS]; and how many belong to each text."""
        dtype = shards.DTYPES[shards.id_dtype(self.tokenizer.n_vocab)]
        end = self.tokenizer.eos_token_id
        ids = [
            np.array([*row, end], dtype=dtype)
            for start in range(0, len(texts), TEXTS_AT_ONCE)
            for row in self.tokenizer.encode_batch(texts[start : start + TEXTS_AT_ONCE])
        ]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=dtype), *ids]), lengths


def _facts(path: Path) -> Part:
    """Counts and end of a part on disk."""
    with opened(path) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
    return Part(Counts(**facts["counts"]), Position(**facts["end"]))


@contextmanager
def opened(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of a part, each read and checked (CRC-32) when asked for."""
    try:
        with np.load(path) as arrays:
            yield arrays
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it and repeat the command",
            f"{path} 파일이 손상되었습니다({error}). 지운 뒤 같은 명령을 다시 쓰세요",
        ) from error
