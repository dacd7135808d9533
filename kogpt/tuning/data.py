"""Files and named sets -> examples, checked and split: what a model is tuned on, and what it is judged by.

Rows have `prompt` and `completion`, `text` and `label`, `text1`, `text2` and `label` or `score`, or `text`
alone. A split is a tuple of examples. A metric is a function of one split (see measure.py), so that no figure
can mix two splits.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kogpt import data_files
from kogpt.errors import InputError
from kogpt.texts import format_of, nfc, read_records, read_text, text_lines
from kogpt.tuning.tasks import NUMBERED, Part, Task

ONE, PAIR = ("text",), NUMBERED  # names of a row's texts, in files and in templates
PLACES = re.compile(r"\{(\w+)\}")
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
    choices: tuple[str, ...] = ()  # of its own, instead of labels
    grade: float | None = None
    swapped: str | None = None  # the prompt with its two texts in the other order
    pair: tuple[str, str] | None = None  # two texts that mean the same, for embeddings

    @property
    def kind(self) -> str:
        """What is learnt, by the name of its field."""
        if self.label is not None:
            return "label"
        return "score" if self.grade is not None else "text"

    def digest(self) -> bytes:
        """SHA-256 of the text in NFC, white space collapsed: rows with equal ones are the same text."""
        plain = " ".join(nfc(self.text).split())
        return hashlib.sha256(plain.encode()).digest()


@dataclass(frozen=True, slots=True)
class Wording:
    """How a text and its label become prompt and answer."""

    template: str = "{text}\n답:"
    words: Mapping[str, str] = field(default_factory=dict)  # by value; empty: the values themselves

    def __post_init__(self) -> None:
        if len(set(self.words.values())) < len(self.words):
            raise InputError(
                "two labels have the same word: give each its own",
                "두 레이블의 낱말이 같습니다. 서로 다른 낱말을 쓰세요",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The words in the order of the labels."""
        return tuple(self.words.values())

    def fill(self, fields: Mapping[str, str], names: Sequence[str]) -> str:
        """The prompt of one row; InputError for a template without places for its texts."""
        if missing := [name for name in names if f"{{{name}}}" not in self.template]:
            place = f"{{{missing[0]}}}"
            raise InputError(
                f"the template {self.template!r} does not say where the text goes: write {place} into it",
                f"템플릿 {self.template!r}에 글이 들어갈 자리가 없습니다. {place} 자리를 넣으세요",
            )
        return fill(self.template, fields)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A template with {name} replaced by each field; braces inside a text stay."""
    return PLACES.sub(lambda place: fields.get(place[1], place[0]), template)


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
        words = list(self.wording.words.items())  # in their order: a label's number is its place
        total = hashlib.sha256(repr(words).encode())
        for example in (*self.train, None, *self.dev):
            told = "" if example is None else f"{example.prompt}\0{example.answer}\0{example.pair or ''}"
            total.update(f"{told}\0".encode())
        return total.hexdigest()

    @property
    def asked(self) -> bool:
        """Whether the template makes the prompts; rows without labels or numbers bring their own, or none."""
        return self.graded or self.train[0].label is not None

    @property
    def graded(self) -> bool:
        """Whether numbers are learnt."""
        return self.train[0].grade is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which rows are used, and what becomes of those that cannot be meant."""

    skip_bad: bool = False  # leave out empty, duplicate and test rows instead of refusing them
    allow_overlap: bool = False  # train on rows of test
    dev_share: float = DEV_SHARE
    rows: int | None = None  # so many training rows and no more, chosen by hash
    test_rows: int | None = None  # so many test rows and no more; none of the others is learnt from either


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Where rows of one's own are."""

    train: Path
    dev: Path | None = None  # None: a share of train, chosen by hash
    test: Path | None = None


@dataclass(slots=True)
class _Splits:
    """Rows as they were read."""

    train: list[Example]
    dev: list[Example] | None  # None: a share of train
    test: list[Example]
    where: str  # train's place, for messages


def read_data(files: Files, wording: Wording, choice: Choice | None = None, pairs: bool = False) -> Data:
    """Read and split files; InputError for rows that cannot be meant, named with file and line.

    pairs: rows are two texts that mean the same.
    """
    train = list(_read(files.train, wording, pairs))
    dev, test = (_held_out(path, wording, pairs) for path in (files.dev, files.test))
    return _assemble(_Splits(train, dev, test or [], str(files.train)), wording, choice or Choice())


def read_task(task: Task, folder: Path | None, choice: Choice | None = None, dev: Path | None = None) -> Data:
    """A named task; folder: of its files, None as in data_files.load. dev: a file of rows like one's own.

    Raises as read_data.
    """
    words = {} if task.own_choices else {str(n): word for n, word in enumerate(task.answers)}
    wording = Wording(task.template, words)
    judged = _held_out(dev, wording, False)
    train, test = (
        [example for part in parts for example in _examples(task, part, folder)]
        for parts in (task.train, task.test)
    )
    where = task.train[0].sources[0].file
    return _assemble(_Splits(train, judged, test, where), wording, choice or Choice())


def _assemble(read: _Splits, wording: Wording, choice: Choice) -> Data:
    skipped: Counter[str] = Counter()
    train = _clean(read.train, choice.skip_bad, skipped, "train")
    dev = _clean(read.dev or [], choice.skip_bad, skipped, "dev")
    test = read.test
    if not choice.allow_overlap:
        train = _apart(train, test, choice.skip_bad, skipped)
        train = _apart(train, dev, choice.skip_bad, skipped)
    if read.dev is not None and not dev:
        raise _without_rows(read.dev[0].origin.rpartition(":")[0])
    if not train:
        raise InputError(
            f"{read.where} holds no row to learn from: give a file that has some",
            f"{read.where}: 학습할 행이 없습니다. 행이 있는 파일을 지정하세요",
        )
    _require_alike(train[0], [*dev[:1], *test[:1]])
    if choice.rows is not None:
        train = lowest(train, choice.rows)
    if choice.test_rows is not None:
        test = lowest(test, choice.test_rows)
    wording = _with_words(wording, train, read.where)
    train, dev, test = (_labelled(rows, wording) for rows in (train, dev, test))
    if read.dev is None:
        train, dev = _split(train, choice.dev_share)
    _require_two(train, read.where)
    return Data(tuple(train), tuple(dev), tuple(test), wording, skipped)


def _held_out(path: Path | None, wording: Wording, pairs: bool) -> list[Example] | None:
    """The rows of a file that was named; InputError where it has none."""
    found = None if path is None else list(_read(path, wording, pairs))
    if found == []:
        raise _without_rows(str(path))
    return found


def _without_rows(where: str) -> InputError:
    return InputError(
        f"{where} holds no row to judge by: give a file that has some, or leave it out",
        f"{where}: 평가할 행이 없습니다. 행이 있는 파일을 지정하거나 빼세요",
    )


def _require_alike(learnt: Example, judged: Sequence[Example]) -> None:
    """InputError where dev or test has another kind of answers than train."""
    for example in judged:
        if example.kind != learnt.kind:
            raise InputError(
                f"{example.origin} has a {example.kind}, training rows have a {learnt.kind}: give one kind",
                f"{example.origin}: 학습 행은 {learnt.kind}인데 {example.kind}입니다. 같은 종류를 쓰세요",
            )


def _examples(task: Task, part: Part, folder: Path | None) -> Iterator[Example]:
    """Rows of a published file as they are learnt."""
    table = data_files.load(part.sources, folder)
    for number, row in enumerate(table.rows, 2):
        example = part.read(row)
        fields = task.fields(example)
        prompt, swapped = fill(task.template, fields), None
        answers = tuple(fill(answer, fields) for answer in task.answers)
        if task.graded:
            first, second = NUMBERED
            swapped = fill(task.template, {first: fields[second], second: fields[first]})
        text = "\n".join(fields[name] for name in task.texts) or prompt
        answer = str(example.grade) if task.graded else answers[example.answer]
        yield Example(
            prompt,
            answer,
            None if task.graded else example.answer,
            text if not task.own_choices else "\n".join((text, *answers)),
            f"{table.file}:{number}",
            answers if task.own_choices else (),
            example.grade if task.graded else None,
            swapped,
        )


def _read(path: Path, wording: Wording, pairs: bool) -> Iterator[Example]:
    """The rows of a file; the label's value stands in `answer` until the words are known."""
    text = read_text(path)
    if format_of(path.name) == "text" and not pairs:
        for number, line in text_lines(text):
            yield Example("", line, None, line, f"{path}:{number}")
        return
    read: Callable[[Mapping[str, Any], str], Example] | None = None
    for origin, values in _records(text, path):
        read = read or _reader(values, wording, path, pairs)
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


def _reader(
    first: Mapping[str, Any], wording: Wording, path: Path, pairs: bool
) -> Callable[[Mapping[str, Any], str], Example]:
    """How to read every row of a file, by the fields of its first."""
    names = PAIR if PAIR[0] in first else ONE

    def completion(row: Mapping[str, Any], origin: str) -> Example:
        prompt = _value(row, "prompt", origin)
        return Example(prompt, _value(row, "completion", origin), None, prompt, origin)

    def labelled(row: Mapping[str, Any], origin: str) -> Example:
        fields = {name: _value(row, name, origin) for name in names}
        prompt = wording.fill(fields, names)
        return Example(prompt, _value(row, "label", origin), -1, "\n".join(fields.values()), origin)

    def graded(row: Mapping[str, Any], origin: str) -> Example:
        fields = {name: _value(row, name, origin) for name in names}
        swapped = wording.fill(dict(zip(names, reversed(fields.values()), strict=True)), names)
        grade = _grade(row, origin)
        text = "\n".join(fields.values())
        return Example(
            wording.fill(fields, names),
            str(grade),
            None,
            text,
            origin,
            grade=grade,
            swapped=swapped if names == PAIR else None,
        )

    def plain(row: Mapping[str, Any], origin: str) -> Example:
        text = _value(row, "text", origin)
        return Example("", text, None, text, origin)

    def alike(row: Mapping[str, Any], origin: str) -> Example:
        one, other = (_value(row, name, origin) for name in PAIR)
        return Example("", other, None, one, origin, pair=(one, other))

    readers: tuple[tuple[set[str], Callable[[Mapping[str, Any], str], Example]], ...] = (
        ({"prompt", "completion"}, completion),
        ({*names, "label"}, labelled),
        ({*names, "score"}, graded),
        ({"text"}, plain),
    )
    for needed, read in (({*PAIR}, alike),) if pairs else readers:
        if needed <= first.keys():
            return read
    wanted = (
        "text1 and text2"
        if pairs
        else "prompt and completion, text (or text1 and text2) and label or score, or text"
    )
    raise InputError(
        f"{path} has the fields {', '.join(map(str, first))}: rows need {wanted}",
        f"{path}의 필드: {', '.join(map(str, first))}. 필요한 필드: {wanted}",
    )


def _value(row: Mapping[str, Any], name: str, origin: str) -> str:
    found = row.get(name, "")
    if isinstance(found, list | dict):
        raise InputError(
            f"{origin}: {name} is not a text: write one string", f"{origin}: {name} 값을 글로 쓰세요"
        )
    return "" if found is None else str(found)


def _grade(row: Mapping[str, Any], origin: str) -> float:
    shown = _value(row, "score", origin)
    try:
        grade = float(shown)
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        raise InputError(
            f"{origin}: score is {shown[:40]!r}, must be a number",
            f"{origin}: score 값 {shown[:40]!r}: 숫자를 쓰세요",
        )
    return grade


def _clean(rows: Sequence[Example], skip_bad: bool, skipped: Counter[str], split: str) -> list[Example]:
    """Without empty and duplicate rows; InputError for them unless they may be skipped."""
    good: list[Example] = []
    empty: list[Example] = []
    doubled: list[Example] = []
    seen: set[bytes] = set()
    for row in rows:
        # One prompt may have several completions; a text has one label.
        key = row.digest() + (row.answer.encode() if row.label is None and row.grade is None else b"")
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
    train: list[Example], held_out: Sequence[Example], skip_bad: bool, skipped: Counter[str]
) -> list[Example]:
    """The rows whose text is not held out; InputError for the others unless they may be skipped."""
    digests = {example.digest() for example in held_out}
    shared = [example for example in train if example.digest() in digests]
    if shared and not skip_bad:
        raise InputError(
            f"{len(shared):,} training texts are held out for dev or test as well ({_places(shared)}): leave "
            "them out with --skip-bad, or insist with --allow-overlap",
            f"학습 글 {len(shared):,}개가 검증이나 시험에도 있습니다 ({_places(shared)}). "
            "--skip-bad로 빼거나, 그래도 쓰려면 --allow-overlap을 지정하세요",
        )
    skipped["also in dev or test"] += len(shared)
    return [example for example in train if example.digest() not in digests]


def _with_words(wording: Wording, train: Sequence[Example], where: str) -> Wording:
    """The wording with a word for each label: its value, where none was given. No labels: no words."""
    values = sorted({example.answer for example in train if example.label == -1})
    if not values and all(example.label is None for example in train):
        if wording.words:
            raise InputError(
                f"{where} has no labels: leave --labels out",
                f"{where}에 레이블이 없습니다. --labels를 빼세요",
            )
        return wording
    if wording.words or not values:
        return wording
    return Wording(wording.template, {value: f" {value.strip()}" for value in values})


def _labelled(rows: Sequence[Example], wording: Wording) -> list[Example]:
    """Rows with the words of their labels as answers; InputError for a value without word."""
    numbers = {value: number for number, value in enumerate(wording.words)}
    found = []
    for row in rows:
        if row.label != -1:
            found.append(row)
            continue
        if row.answer not in numbers:
            raise InputError(
                f"{row.origin}: label {row.answer[:40]!r} is unknown, must be one of {', '.join(numbers)}",
                f"{row.origin}: 알 수 없는 레이블 {row.answer[:40]!r} (가능: {', '.join(numbers)})",
            )
        found.append(replace(row, answer=wording.words[row.answer], label=numbers[row.answer]))
    return found


def lowest(rows: list[Example], count: int) -> list[Example]:
    """The rows of the `count` lowest hashes, in their order: as good as random, the same for every order."""
    if count >= len(rows):
        return rows
    border = sorted(row.digest() for row in rows)[count - 1]
    return [row for row in rows if row.digest() <= border]


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


def _require_two(train: Sequence[Example], where: str) -> None:
    labels = {example.label for example in train}
    if len(labels) == 1 and None not in labels and not train[0].choices:
        only = train[0].answer.strip()
        raise InputError(
            f"{where} has one class only, {only!r}: a classifier needs two",
            f"{where}: 클래스가 {only!r} 하나뿐입니다. 두 개 이상 필요합니다",
        )
    if not train:
        raise InputError(
            f"{where}: every row went into the dev split: give more rows",
            f"{where}: 모든 행이 검증에 쓰였습니다. 행을 더 넣으세요",
        )


def _places(rows: Sequence[Example]) -> str:
    shown = ", ".join(row.origin for row in rows[:SHOWN])
    return shown + (", ..." if len(rows) > SHOWN else "")
