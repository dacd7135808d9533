"""Examples -> token ids with a border, and the batches of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.tokenizer import Tokenizer
from kogpt.training.loop import Batch
from kogpt.training.loss import IGNORED
from kogpt.tuning.data import Example

Ids = NDArray[np.int64]

POOL = 32  # batches that are sorted by length together: little padding, and still a random order


@dataclass(frozen=True, slots=True)
class Row:
    """An example as the model reads it."""

    ids: Ids  # (N,)
    first: int  # index of the first id that is learnt
    choices: tuple[tuple[int, ...], ...]  # ids of each label after the context; empty without labels
    label: int | None
    origin: str

    @property
    def context(self) -> Ids:
        """What is read before the answer."""
        return self.ids[: self.first]


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, labels: Sequence[str], longest: int, truncate: bool
) -> list[Row]:
    """Rows of at most `longest` ids; InputError that counts the longer ones, unless they may be cut.

    A prompt loses its beginning, a plain text its end. Every answer ends with [EOS], which is learnt too.
    """
    rows = [_encode(example, tokenizer, labels) for example in examples]
    long = [row for row in rows if len(row.ids) > longest]
    if long and not truncate:
        widest = max(len(row.ids) for row in long)
        raise InputError(
            f"{len(long):,} rows are longer than {longest:,} tokens (the longest has {widest:,}, the first "
            f"is {long[0].origin}): shorten them, or cut them with --truncate",
            f"{len(long):,}개 행이 {longest:,}토큰보다 깁니다 (가장 긴 것은 {widest:,}, "
            f"처음은 {long[0].origin}). 줄이거나 --truncate로 자르세요",
        )
    return [_cut(row, longest) for row in rows]


def _encode(example: Example, tokenizer: Tokenizer, labels: Sequence[str]) -> Row:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not example.prompt:
        ids = [*tokenizer.document_start, *tokenizer.encode(example.answer), *end]
        return Row(np.array(ids), len(tokenizer.document_start), (), None, example.origin)
    answers = labels if example.label is not None else [example.answer]
    context, choices = tokenizer.encode_choices(example.prompt, answers)
    answer = choices[example.label or 0]
    kept = tuple(map(tuple, choices)) if example.label is not None else ()
    return Row(np.array([*context, *answer, *end]), len(context), kept, example.label, example.origin)


def _cut(row: Row, longest: int) -> Row:
    extra = len(row.ids) - longest
    if extra <= 0:
        return row
    if row.first <= 1:
        return Row(row.ids[:longest], row.first, row.choices, row.label, row.origin)
    if extra >= row.first:
        raise InputError(
            f"{row.origin}: the answer alone is longer than {longest:,} tokens: shorten it",
            f"{row.origin}: 답만으로 {longest:,}토큰보다 깁니다. 줄이세요",
        )
    return Row(row.ids[extra:], row.first - extra, row.choices, row.label, row.origin)


def padded(rows: Sequence[Row]) -> tuple[Ids, Ids]:
    """Inputs and targets (B, T), padded on the right, where causal attention never looks."""
    width = max(len(row.ids) for row in rows) - 1
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        n = len(row.ids) - 1
        inputs[number, :n] = row.ids[:-1]
        targets[number, row.first - 1 : n] = row.ids[row.first :]
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
