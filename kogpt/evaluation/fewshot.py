"""Shots drawn by seed and fitted to the context; questions as token ids, the border to the label exact.

Nothing here runs a model. The text before a question (instruction and shots) is the same for all items of a
run, so its ids are computed once; that every item's ids go on from them exactly is checked, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from heapq import nsmallest

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import KoGPTError
from kogpt.evaluation.task import Example, Prompt, Task
from kogpt.request import Ids

Encode = Callable[[str], list[int]]

ANCHOR = 32  # characters before a question that its encoding is checked with
SPOT_CHECKS = 8  # items per run whose whole text, shots and all, is encoded and compared
CONTENT_FREE = ("N/A", "[MASK]", "")  # arXiv 2102.09690, section 4


@dataclass(frozen=True, slots=True)
class Item:
    """One question as ids, to be read after the prefix."""

    context: Ids  # (T,), T >= 1
    choices: tuple[Ids, ...]  # each (C,), C >= 1
    lengths: tuple[int, ...]  # characters of each choice, without its leading space

    @property
    def n_positions(self) -> int:
        """Positions that its longest choice takes after the prefix; the last token is only predicted."""
        return len(self.context) + max(map(len, self.choices)) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens that must be run: the question once, every choice but its last token."""
        return len(self.context) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one pass over a task asks of a model."""

    prefix_text: str
    prefix: Ids  # (P,), may be empty
    items: tuple[Item, ...]
    content_free: tuple[Item, ...]  # the same question about nothing, for calibration; may be empty
    shots: tuple[Example, ...]
    n_cut: int  # items whose beginning was cut off to fit the context
    n_moved: int  # items whose label could not begin where the question ends (merged tokens)

    @property
    def n_tokens(self) -> int:
        """The fewest tokens that have to be run: the prefix and each question once."""
        return len(self.prefix) + sum(item.n_tokens for item in (*self.items, *self.content_free))


def split_pool(task: Task, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(scored, pool) where a task has no other rows for its shots: a fixed tenth is set apart."""
    apart = [int(_order(task.name, 0, example)[:8], 16) % 10 == 0 for example in examples]
    scored = [example for example, out in zip(examples, apart, strict=True) if not out]
    return scored, [example for example, out in zip(examples, apart, strict=True) if out]


def draw(
    task: Task, pool: Sequence[Example], scored: Sequence[Example], count: int, seed: int
) -> list[Example]:
    """`count` examples in an order that only the seed decides; fewer shots are the first of more.

    An example with the texts of an item that is scored is never drawn. KoGPTError if the pool has too few.
    """
    taken = {_content(task, example) for example in scored}
    free = [example for example in pool if _content(task, example) not in taken]
    if count > len(free):
        raise KoGPTError(
            f"{count} shots of {task.name}: its pool has {len(free)} examples; ask for fewer",
            f"{task.name} 과제의 예시 {count}개: 예시로 쓸 수 있는 것은 {len(free)}개입니다. 수를 줄이십시오",
        )
    return nsmallest(count, free, key=lambda example: _order(task.name, seed, example))


def sample(task: Task, examples: Sequence[Example], limit: int | None) -> list[Example]:
    """A fixed random subset of at most `limit` items, in the order of the file."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = nsmallest(limit, range(len(examples)), key=lambda index: _order(task.name, -1, examples[index]))
    return [examples[index] for index in sorted(chosen)]


def prepare(
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    shots: Sequence[Example],
    encoder: tuple[Encode, int, int],
) -> Run:
    """Encode a run; as many of the shots, from the first, as leave room for the longest item.

    encoder: (text -> ids, id that stands in for an empty question, positions of the context).
    """
    encode, empty_id, n_ctx = encoder
    questions = _Questions(prompt, shots, encode, empty_id)
    encoded = [questions.item(example) for example in (*examples, *content_free(task, prompt, examples))]
    longest = max(item.n_positions for item, _ in encoded)
    fitted = _fit(prompt, shots, encode, n_ctx - longest)
    if shots and not fitted:  # nothing stands before the questions: they begin otherwise
        return prepare(task, prompt, examples, [], encoder)
    questions = _Questions(prompt, fitted, encode, empty_id)
    prefix = np.array(encode(questions.head), dtype=np.int64)
    _spot_check(questions, prefix, [item for item, _ in encoded], examples)
    items = [cut(item, n_ctx - len(prefix)) for item, _ in encoded]
    n = len(examples)
    return Run(
        prefix_text=questions.head + questions.gap,
        prefix=prefix,
        items=tuple(items[:n]),
        content_free=tuple(items[n:]),
        shots=tuple(fitted),
        n_cut=sum(item is not old for item, (old, _) in zip(items, encoded, strict=True)),
        n_moved=sum(moved for _, moved in encoded[:n]),
    )


def content_free(task: Task, prompt: Prompt, examples: Sequence[Example]) -> list[Example]:
    """Examples that say nothing, where the choices are the same for every item."""
    if not prompt.fixed or not examples:
        return []
    fields = examples[0].fields
    return [
        Example(f"content-free {word!r}", {**fields, **dict.fromkeys(task.content, word)}, 0, 0.0)
        for word in CONTENT_FREE
    ]


def cut(item: Item, room: int) -> Item:
    """The item without as much of its beginning as does not fit `room` positions."""
    if (excess := item.n_positions - room) <= 0:
        return item
    if excess >= len(item.context):
        raise KoGPTError(
            f"a choice of {max(map(len, item.choices))} tokens does not fit the model's context",
            f"선택지 하나가 {max(map(len, item.choices))} 토큰으로 모델의 문맥 길이를 넘습니다",
        )
    return Item(item.context[excess:], item.choices, item.lengths)


def n_shared(sequences: Sequence[Sequence[int] | NDArray[np.int64]]) -> int:
    """Length of the longest beginning that all the sequences have in common."""
    shortest = min(map(len, sequences))
    for position in range(shortest):
        if len({int(sequence[position]) for sequence in sequences}) > 1:
            return position
    return shortest


class _Questions:
    """How the items of one run are encoded: what stands before them, and where it ends."""

    def __init__(self, prompt: Prompt, shots: Sequence[Example], encode: Encode, empty_id: int) -> None:
        self.prompt = prompt
        self.encode = encode
        self.empty_id = empty_id
        solved = "".join(prompt.render(shot) + prompt.separator for shot in shots)
        text = prompt.instruction + solved
        # White space before a question is encoded with it: alone it could merge into one token.
        self.head = text.rstrip()
        self.gap = text[len(self.head) :]
        self.anchor = self.head[-ANCHOR:]
        self.anchor_ids = encode(self.anchor) if self.anchor else []

    def item(self, example: Example) -> tuple[Item, bool]:
        """The item's ids, and whether its label begins before the question's last token ends."""
        question = self.anchor + self.gap + self.prompt.ask(example)
        options = self.prompt.options(example)
        asked = self.encode(question) if question else []
        solved = [self.encode(question + option) for option in options]
        n = n_shared([asked, *solved])  # a token that spans the border belongs to the label
        begin = len(self.anchor_ids)
        if begin and (n <= begin or asked[:begin] != self.anchor_ids):
            raise _boundary(self.prompt, self.anchor)
        context = asked[begin:n] or [self.empty_id]
        assert all(len(ids) > n for ids in solved), (question, options)
        item = Item(
            np.array(context, dtype=np.int64),
            tuple(np.array(ids[n:], dtype=np.int64) for ids in solved),
            tuple(len(option.strip()) for option in options),
        )
        return item, n < len(asked)


def _fit(prompt: Prompt, shots: Sequence[Example], encode: Encode, room: int) -> list[Example]:
    """The longest beginning of the shots whose text takes at most `room` tokens."""
    low, high = 0, len(shots)
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(_Questions(prompt, shots[:middle], encode, 0).head)) <= room:
            low = middle
        else:
            high = middle - 1
    return list(shots[:low])


def _spot_check(
    questions: _Questions, prefix: Ids, items: Sequence[Item], examples: Sequence[Example]
) -> None:
    """Encode some items whole, shots and all: the ids must be those of the prefix and of the item."""
    if not len(prefix):
        return
    for example, item in list(zip(examples, items, strict=False))[:SPOT_CHECKS]:
        option = questions.prompt.options(example)[0]
        text = questions.head + questions.gap + questions.prompt.ask(example) + option
        if questions.encode(text) != [*prefix, *item.context, *item.choices[0]]:
            raise _boundary(questions.prompt, questions.anchor)


def _content(task: Task, example: Example) -> tuple[str, ...]:
    return tuple(example.fields.get(name, "") for name in task.content)


def _order(task: str, seed: int, example: Example) -> str:
    return sha256(f"{task}\t{seed}\t{example.id}".encode()).hexdigest()


def _boundary(prompt: Prompt, anchor: str) -> KoGPTError:
    return KoGPTError(
        f"with this tokenizer the text after {anchor!r} does not begin at a token: take another prompt"
        f" than {prompt.name}",
        f"이 토크나이저에서는 {anchor!r} 다음 글이 토큰 경계에서 시작하지 않습니다:"
        f" {prompt.name} 말고 다른 프롬프트를 쓰십시오",
    )
