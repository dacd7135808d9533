"""Files and named sets -> examples, checked and split: what a model is tuned on, and what it is judged by.

Rows have `prompt` and `completion`, or `text` and `label`, or `text` alone. A split is a tuple of examples. A
metric is a function of one split (see measure.py), so that no figure can mix two splits.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kogpt.errors import InputError
from kogpt.texts import format_of, read_records, read_text, text_lines

PLACE = "{text}"  # in a template
DEV_SHARE, MAX_DEV = 0.05, 2000  # of the rows; a larger dev split costs more time than it tells
SHOWN = 3  # places named in a message


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that is learnt; a plain text is an answer without prompt."""

    prompt: str
    answer: str
    label: int | None  # among the labels
    text: str  # of the row, as it stands in the file
    origin: str  # file and line

    def digest(self) -> bytes:
        """SHA-256 of the text in NFC, white space collapsed: rows with equal ones are the same text."""
        plain = " ".join(unicodedata.normalize("NFC", self.text).split())
        return hashlib.sha256(plain.encode()).digest()


@dataclass(frozen=True, slots=True)
class Task:
    """A named set: its files, columns, template and the word for each label."""

    train: tuple[str, ...]  # names of the file: as published, and as packed
    test: tuple[str, ...]
    column: str  # of the text
    template: str
    words: Mapping[str, str]  # by the label's value in the file


TASKS: Mapping[str, Task] = {
    "nsmc": Task(
        train=("ratings_train.txt", "nsmc_train.tsv.gz"),
        test=("ratings_test.txt", "nsmc_test.tsv.gz"),
        column="document",
        template="{text}\n감정:",
        words={"0": " 부정", "1": " 긍정"},
    ),
    "intent": Task(
        train=("intent_3i4k_train.tsv.gz",),
        test=("intent_3i4k_test.tsv.gz",),
        column="text",
        template="{text}\n의도:",
        words={
            "0": " 조각",
            "1": " 서술",
            "2": " 질문",
            "3": " 명령",
            "4": " 반문",
            "5": " 반어 명령",
            "6": " 억양에 따라 다름",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Wording:
    """How a text and its label become prompt and answer."""

    template: str = "{text}\n답:"
    words: Mapping[str, str] = field(default_factory=dict)  # by value; empty: the values themselves
    column: str = "text"

    def __post_init__(self) -> None:
        if PLACE not in self.template:
            raise InputError(
                f"the template {self.template!r} does not say where the text goes: write {PLACE} into it",
                f"템플릿 {self.template!r}에 글이 들어갈 자리가 없습니다. {PLACE}를 넣으세요",
            )
        if len(set(self.words.values())) < len(self.words):
            raise InputError(
                "two labels have the same word: give each its own",
                "두 레이블의 낱말이 같습니다. 서로 다른 낱말을 쓰세요",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The words in the order of the labels."""
        return tuple(self.words.values())


@dataclass(frozen=True, slots=True)
class Data:
    """What one run reads."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]  # empty where none was named; never trained on
    wording: Wording
    skipped: Mapping[str, int]  # rows left out, by reason

    def digest(self) -> str:
        """SHA-256 over all that is learnt from and judged by."""
        total = hashlib.sha256(repr(sorted(self.wording.words.items())).encode())
        for example in (*self.train, None, *self.dev):
            total.update(b"\0" if example is None else f"{example.prompt}\0{example.answer}\0".encode())
        return total.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Where the rows are, and what becomes of those that cannot be meant."""

    train: Path
    dev: Path | None = None  # None: a share of train, chosen by hash
    test: Path | None = None
    skip_bad: bool = False  # leave out empty, duplicate and test rows instead of refusing them
    allow_overlap: bool = False  # train on rows of test
    dev_share: float = DEV_SHARE
    published: bool = False  # a named set: columns by tabs, quotes are letters


def task_files(task: Task, folder: Path, **options: Any) -> Files:
    """The files of a named set below `folder`; InputError if one is missing.

    options: fields of Files.
    """
    return Files(train=_find(folder, task.train), test=_find(folder, task.test), published=True, **options)


def read_data(files: Files, wording: Wording) -> Data:
    """Read and split; InputError for rows that cannot be meant, named with file and line."""
    skipped: Counter[str] = Counter()
    published = files.published
    train = _clean(_read(files.train, wording, published), files.skip_bad, skipped, "train")
    dev = _clean(_read(files.dev, wording, False), files.skip_bad, skipped, "dev") if files.dev else []
    test = list(_read(files.test, wording, published)) if files.test else []
    if not files.allow_overlap:
        train = _apart(train, test, files, skipped)
        train = _apart(train, dev, files, skipped)
    if not train:
        raise InputError(
            f"{files.train} holds no row to learn from: give a file that has some",
            f"{files.train}: 학습할 행이 없습니다. 행이 있는 파일을 지정하세요",
        )
    wording = _with_words(wording, train, files.train)
    train, dev, test = (_labelled(rows, wording) for rows in (train, dev, test))
    if not dev:
        train, dev = _split(train, files.dev_share)
    _require_two(train, files.train)
    return Data(tuple(train), tuple(dev), tuple(test), wording, skipped)


def _find(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} holds none of {', '.join(names)}: name the folder of the set with --data or KOGPT_DATA",
        f"{folder}에 {', '.join(names)} 파일이 없습니다. --data나 KOGPT_DATA로 데이터 폴더를 지정하세요",
    )


def _read(path: Path, wording: Wording, published: bool) -> Iterator[Example]:
    """The rows of a file; the label's value stands in `answer` until the words are known."""
    text = read_text(path)
    if format_of(path.name) == "text" and not published:
        for number, line in text_lines(text):
            yield Example("", line, None, line, f"{path}:{number}")
        return
    read: Callable[[Mapping[str, Any], str], Example] | None = None
    for origin, values in _plain_table(text, path) if published else _records(text, path):
        read = read or _reader(values, wording, path)
        yield read(values, origin)


def _records(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kind = format_of(path.name)
    if kind is None or kind in ("parquet", "text"):
        raise InputError(
            f"{path}: rows are read from .jsonl, .json, .csv, .tsv and .txt, also under .gz and .zst",
            f"{path}: .jsonl, .json, .csv, .tsv, .txt 파일과 그 .gz, .zst만 읽습니다",
        )
    for record in read_records(text, str(path), kind):
        yield f"{path}:{record.line}", record.values


def _plain_table(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Published sets: columns by tabs, quotes are letters like any other."""
    lines = text_lines(text)
    _, header = next(lines)
    names = header.split("\t")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(names):
            raise InputError(
                f"{path} line {number} has {len(values)} columns instead of {len(names)}: get the file again",
                f"{path} {number}행: 열 {len(values)}개 (조건: {len(names)}개). 파일을 다시 받으세요",
            )
        yield f"{path}:{number}", dict(zip(names, values, strict=True))


def _reader(
    first: Mapping[str, Any], wording: Wording, path: Path
) -> Callable[[Mapping[str, Any], str], Example]:
    """How to read every row of a file, by the fields of its first."""

    def value(row: Mapping[str, Any], name: str, origin: str) -> str:
        found = row.get(name, "")
        if isinstance(found, list | dict):
            raise InputError(
                f"{origin}: {name} is not a text: write one string", f"{origin}: {name} 값을 글로 쓰세요"
            )
        return "" if found is None else str(found)

    def pair(row: Mapping[str, Any], origin: str) -> Example:
        prompt = value(row, "prompt", origin)
        return Example(prompt, value(row, "completion", origin), None, prompt, origin)

    def labelled(row: Mapping[str, Any], origin: str) -> Example:
        text = value(row, wording.column, origin)
        prompt = wording.template.replace(PLACE, text)
        return Example(prompt, value(row, "label", origin), -1, text, origin)

    def plain(row: Mapping[str, Any], origin: str) -> Example:
        text = value(row, "text", origin)
        return Example("", text, None, text, origin)

    if {"prompt", "completion"} <= first.keys():
        return pair
    if {wording.column, "label"} <= first.keys():
        return labelled
    if "text" in first:
        return plain
    raise InputError(
        f"{path} has the fields {', '.join(map(str, first))}: rows need prompt and completion, text and "
        "label, or text",
        f"{path}의 필드: {', '.join(map(str, first))}. prompt와 completion, text와 label, 또는 "
        "text가 필요합니다",
    )


def _clean(rows: Iterator[Example], skip_bad: bool, skipped: Counter[str], split: str) -> list[Example]:
    """Without empty and duplicate rows; InputError for them unless they may be skipped."""
    good: list[Example] = []
    empty: list[Example] = []
    doubled: list[Example] = []
    seen: set[bytes] = set()
    for row in rows:
        # One prompt may have several completions; a text has one label.
        key = row.digest() + (row.answer.encode() if row.label is None else b"")
        if not row.text.strip() or not row.answer.strip():
            empty.append(row)
        elif key in seen:
            doubled.append(row)
        else:
            seen.add(key)
            good.append(row)
    for bad, name, en, ko in (
        (empty, "empty", "rows are empty or have no answer", "행이 비었거나 답이 없습니다"),
        (doubled, "duplicate", "rows repeat an earlier one", "행이 앞의 행과 같습니다"),
    ):
        if bad and not skip_bad:
            raise InputError(
                f"{len(bad):,} {en} ({_places(bad)}): mend them, or leave them out with --skip-bad",
                f"{len(bad):,}개 {ko} ({_places(bad)}). 고치거나 --skip-bad로 빼세요",
            )
        skipped[f"{name} in {split}"] += len(bad)
    return good


def _apart(
    train: list[Example], held_out: Sequence[Example], files: Files, skipped: Counter[str]
) -> list[Example]:
    """The rows whose text is not held out; InputError for the others unless they may be skipped."""
    digests = {example.digest() for example in held_out}
    shared = [example for example in train if example.digest() in digests]
    if shared and not files.skip_bad:
        raise InputError(
            f"{len(shared):,} training texts are held out for dev or test as well ({_places(shared)}): leave "
            "them out with --skip-bad, or insist with --allow-overlap",
            f"학습 글 {len(shared):,}개가 검증이나 시험에도 있습니다 ({_places(shared)}). "
            "--skip-bad로 빼거나, 그래도 쓰려면 --allow-overlap을 지정하세요",
        )
    skipped["held out"] += len(shared)
    return [example for example in train if example.digest() not in digests]


def _with_words(wording: Wording, train: Sequence[Example], path: Path) -> Wording:
    """The wording with a word for each label: its value, where none was given. No labels: no words."""
    values = sorted({example.answer for example in train if example.label is not None})
    if not values:
        if wording.words:
            raise InputError(
                f"{path} has no labels: leave --labels out", f"{path}에 레이블이 없습니다. --labels를 빼세요"
            )
        return wording
    if wording.words:
        return wording
    return Wording(wording.template, {value: f" {value.strip()}" for value in values}, wording.column)


def _labelled(rows: Sequence[Example], wording: Wording) -> list[Example]:
    """Rows with the words of their labels as answers; InputError for a value without word."""
    numbers = {value: number for number, value in enumerate(wording.words)}
    found = []
    for row in rows:
        if row.label is None:
            found.append(row)
            continue
        if row.answer not in numbers:
            raise InputError(
                f"{row.origin}: label {row.answer[:40]!r} is unknown, must be one of {', '.join(numbers)}",
                f"{row.origin}: 알 수 없는 레이블 {row.answer[:40]!r} (가능: {', '.join(numbers)})",
            )
        answer = wording.words[row.answer]
        found.append(Example(row.prompt, answer, numbers[row.answer], row.text, row.origin))
    return found


def _split(rows: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Train and dev: the texts of the lowest hashes are dev, whatever the order of the rows."""
    if len(rows) < 2:
        raise InputError(
            "one row cannot be both learnt from and judged by: give more rows",
            "행이 하나뿐이어서 학습과 검증으로 나눌 수 없습니다. 행을 더 넣으세요",
        )
    n_dev = max(1, min(MAX_DEV, round(share * len(rows))))
    border = sorted(row.digest() for row in rows)[n_dev - 1]
    return [row for row in rows if row.digest() > border], [row for row in rows if row.digest() <= border]


def _require_two(train: Sequence[Example], path: Path) -> None:
    labels = {example.label for example in train}
    if len(labels) == 1 and None not in labels:
        only = train[0].answer.strip()
        raise InputError(
            f"{path} has one class only, {only!r}: a classifier needs two",
            f"{path}: 클래스가 {only!r} 하나뿐입니다. 두 개 이상 필요합니다",
        )
    if not train:
        raise InputError(
            f"{path}: every row went into the dev split: give more rows",
            f"{path}: 모든 행이 검증에 쓰였습니다. 행을 더 넣으세요",
        )


def _places(rows: Sequence[Example]) -> str:
    shown = ", ".join(row.origin for row in rows[:SHOWN])
    return shown + (", ..." if len(rows) > SHOWN else "")
