"""Examples -> token ids with a border, and the batches of every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError, josa
from kogpt.tokenizer import Tokenizer
from kogpt.training.loop import Batch
from kogpt.training.loss import IGNORED
from kogpt.tuning.data import Example

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

POOL = 32  # batches that are sorted by length together: little padding, and still a random order


@dataclass(frozen=True, slots=True)
class Row:
    """An example as the model reads it."""

    ids: Ids  # (N,)
    first: int  # index of the first id that is learnt
    choices: tuple[tuple[int, ...], ...]  # ids of each label after the context; empty without labels
    label: int | None
    origin: str
    item: int  # number of the example; the two orders of a pair share it
    head: bool = False  # the head answers after the last id; no id is learnt
    grade: float | None = None
    partner: Ids | None = None  # the text that means the same

    @property
    def context(self) -> Ids:
        """What is read before the answer."""
        return self.ids[: self.first]

    @property
    def longest(self) -> int:
        """Ids of the longer text of a pair, or of the row."""
        return max(len(self.ids), 0 if self.partner is None else len(self.partner))


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How examples become rows."""

    labels: tuple[str, ...]
    longest: int  # ids of a row
    truncate: bool = False
    head: bool = False


def encode(examples: Sequence[Example], tokenizer: Tokenizer, form: Form) -> list[Row]:
    """Rows of at most `longest` ids; InputError that counts the longer ones, unless they may be cut.

    A prompt loses its beginning, a plain text its end. Every answer ends with [EOS], which is learnt too. A
    graded pair gives a row for each order of its texts.
    """
    rows = _rows(examples, tokenizer, form)
    longest = form.longest
    _require_apart(rows, form)
    long = [row for row in rows if row.longest > longest]
    if long and not form.truncate:
        widest = max(row.longest for row in long)
        raise InputError(
            f"{len(long):,} rows are longer than {longest:,} tokens (the longest has {widest:,}, the first "
            f"is {long[0].origin}): shorten them, or cut them with --truncate",
            f"{len(long):,}개 행이 {longest:,}토큰보다 깁니다 (가장 긴 것은 {widest:,}, "
            f"처음은 {long[0].origin}). 줄이거나 --truncate로 자르세요",
        )
    return [_cut(row, longest) for row in rows]


def _require_apart(rows: Sequence[Row], form: Form) -> None:
    """InputError for a label whose ids begin those of another: it would always be the likelier one."""
    choices = next((row.choices for row in rows if row.choices and form.labels), ())
    for one, first in enumerate(choices):
        for other, second in enumerate(choices):
            if one != other and second[: len(first)] == first:
                begun, longer = form.labels[one].strip(), form.labels[other].strip()
                raise InputError(
                    f"the word {begun!r} begins {longer!r}, which could never win: use --head, or give words "
                    "with --labels of which none begins another",
                    f"{josa(repr(longer), '은/는')} {josa(repr(begun), '으로/로')} 시작해서 답이 될 수 "
                    "없습니다. --head를 쓰거나, 서로의 앞부분이 아닌 낱말을 --labels로 지정하세요",
                )


def _rows(examples: Sequence[Example], tokenizer: Tokenizer, form: Form) -> list[Row]:
    asked = [_question(example, form) for example in examples]
    split = iter(tokenizer.encode_choices_batch([question for question in asked if question is not None]))
    rows = []
    for number, (example, question) in enumerate(zip(examples, asked, strict=True)):
        if question is not None:
            rows.append(_answered(example, number, next(split), tokenizer))
        elif example.pair is not None:
            one, other = (np.array(tokenizer.encode_prompt(text)) for text in example.pair)
            rows.append(Row(one, len(one), (), None, example.origin, number, partner=other))
        elif form.head:
            rows += _headed(example, number, tokenizer)
        else:
            start, end = tokenizer.document_start, _end(tokenizer)
            ids = np.array([*start, *tokenizer.encode(example.answer), *end])
            rows.append(Row(ids, len(start), (), None, example.origin, number))
    return rows


def _question(example: Example, form: Form) -> tuple[str, Sequence[str]] | None:
    """The prompt and the words that may answer it; None where no words do, or there is no prompt."""
    if example.pair is not None or form.head or not example.prompt:
        return None
    return example.prompt, [example.answer] if example.label is None else (example.choices or form.labels)


def _headed(example: Example, number: int, tokenizer: Tokenizer) -> Iterator[Row]:
    """A row for the prompt, and one for the other order of its texts."""
    for prompt in (example.prompt, example.swapped):
        if prompt is not None:
            ids = np.array(tokenizer.encode_prompt(prompt))
            grade = example.grade
            yield Row(ids, len(ids), (), example.label, example.origin, number, head=True, grade=grade)


def _answered(
    example: Example, number: int, split: tuple[list[int], list[list[int]]], tokenizer: Tokenizer
) -> Row:
    context, choices = split
    answer = choices[example.label or 0]
    kept = tuple(map(tuple, choices)) if example.label is not None else ()
    ids = [*context, *answer, *_end(tokenizer)]
    return Row(np.array(ids), len(context), kept, example.label, example.origin, number)


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _cut(row: Row, longest: int) -> Row:
    if row.partner is not None:
        return replace(row, ids=row.ids[:longest], first=0, partner=row.partner[:longest])
    extra = len(row.ids) - longest
    if extra <= 0:
        return row
    if row.first <= 1:
        return replace(row, ids=row.ids[:longest])
    if extra >= row.first:
        raise InputError(
            f"{row.origin}: the answer alone is longer than {longest:,} tokens: shorten it",
            f"{row.origin}: 답만으로 {longest:,}토큰보다 깁니다. 줄이세요",
        )
    return replace(row, ids=row.ids[extra:], first=row.first - extra)


def padded(rows: Sequence[Row]) -> tuple[Ids, Ids | Floats]:
    """Inputs and targets (B, T), padded on the right, where causal attention never looks.

    Targets are the ids that follow; for a head its label or grade at the last id of each row; for pairs,
    which give two rows each, the number of the pair at the last id.
    """
    if rows[0].partner is not None:
        texts = [text for row in rows for text in (row.ids, row.partner) if text is not None]
        return at_the_end(texts, np.repeat(np.arange(len(rows)), 2))
    if rows[0].head:
        graded = rows[0].grade is not None
        wanted = [row.grade if graded else row.label for row in rows]
        return at_the_end([row.ids for row in rows], np.array(wanted, "f4" if graded else "i8"))
    width = max(len(row.ids) for row in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        n = len(row.ids) - 1
        inputs[number, :n] = row.ids[:-1]
        targets[number, row.first - 1 : n] = row.ids[row.first :]
    return inputs, targets


def at_the_end(texts: Sequence[Ids], answers: NDArray[Any]) -> tuple[Ids, Ids | Floats]:
    """Inputs and targets (B, T): texts padded on the right, and one answer at the last id of each."""
    shape = len(texts), max(map(len, texts))
    inputs = np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, np.nan if answers.dtype.kind == "f" else IGNORED, dtype=answers.dtype)
    for number, (ids, answer) in enumerate(zip(texts, answers, strict=True)):
        inputs[number, : len(ids)] = ids
        targets[number, len(ids) - 1] = answer
    return inputs, targets


class Batches:
    """The batch of each step: a new order in every epoch, which depends on seed and epoch only."""

    def __init__(self, rows: Sequence[Row], size: int, seed: int) -> None:
        self.rows = rows
        self.size = min(size, len(rows))
        self.seed = seed
        self.per_epoch = -(-len(rows) // self.size)
        self._epoch, self._order = -1, np.zeros((0, 0), dtype=np.int64)

    def __call__(self, step: int) -> Batch:
        rows = self.rows_of(step)
        return Batch(*padded(rows), tuple(row.origin for row in rows))

    def rows_of(self, step: int) -> list[Row]:
        """The rows of a step; the last batch of an epoch is filled with rows of its beginning."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return [self.rows[index] for index in self._order[number]]

    def _shuffle(self, epoch: int) -> Ids:
        """Row numbers of each batch, (batches, size)."""
        random = np.random.default_rng((self.seed, epoch))
        order = np.resize(random.permutation(len(self.rows)), self.per_epoch * self.size)
        lengths = np.array([len(row.ids) for row in self.rows])
        pools = np.array_split(order, range(POOL * self.size, len(order), POOL * self.size))
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        found: Ids = order.reshape(self.per_epoch, self.size)[random.permutation(self.per_epoch)]
        return found
