"""Draw shots by seed, fit them to the context, and encode questions and choices as token ids.

Nothing here runs a model. All items of a run share the text before the question (instruction and shots), so
its ids are computed once. A check makes sure that the ids of an item continue them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from heapq import nsmallest

import numpy as np

from kogpt.datasets import Example
from kogpt.errors import KoGPTError, PromptError
from kogpt.evaluation.task import Prompt, Task
from kogpt.request import Ids
from kogpt.tokenizer import Tokenizer

ANCHOR = 32  # characters before a question that are encoded with it
SPOT_CHECKS = 8  # items of a run whose whole text, shots included, is encoded and compared
CONTENT_FREE = ("N/A", "[MASK]", "")  # arXiv 2102.09690, section 4


@dataclass(frozen=True, slots=True)
class Item:
    """One question as ids; it follows the prefix."""

    context: Ids  # (T,), T >= 1
    choices: tuple[Ids, ...]  # each (C,), C >= 1
    lengths: tuple[int, ...]  # characters of each choice, without its leading space

    @property
    def n_positions(self) -> int:
        """Positions after the prefix that the longest choice takes. Its last token is predicted, not read."""
        return len(self.context) + max(map(len, self.choices)) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens that a model has to read: the question once, and each choice without its last token."""
        return len(self.context) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True, slots=True)
class EncodedTask:
    """The items of a task with one prompt and one draw of shots, as ids."""

    prompt: Prompt
    shots: tuple[Example, ...]
    prefix_text: str
    prefix: Ids  # (P,), may be empty
    items: tuple[Item, ...]
    content_free: tuple[Item, ...]  # the question without content, for calibration; may be empty
    n_cut: int  # items whose beginning was cut off to fit the context
    n_moved: int  # items with a token that spans the border of question and label

    @property
    def n_tokens(self) -> int:
        """The fewest tokens that a model has to read: the prefix and each question once."""
        return len(self.prefix) + sum(item.n_tokens for item in (*self.items, *self.content_free))


def split_pool(task: Task, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(scored, pool) of a task without a file for shots: the pool is a fixed tenth of the rows."""
    apart = [int(_order(task.name, 0, example)[:8], 16) % 10 == 0 for example in examples]
    scored = [example for example, out in zip(examples, apart, strict=True) if not out]
    return scored, [example for example, out in zip(examples, apart, strict=True) if out]


def draw(
    task: Task, pool: Sequence[Example], scored: Sequence[Example], count: int, seed: int
) -> list[Example]:
    """The first `count` examples of an order that depends on the seed alone.

    An example with the same texts as a scored item is never drawn. KoGPTError if the pool has too few.
    """
    taken = {_content(task, example) for example in scored}
    free = [example for example in pool if _content(task, example) not in taken]
    if count > len(free):
        raise KoGPTError(
            f"{count} shots of {task.name}: its pool has {len(free)} examples; ask for fewer",
            f"{task.name} 과제의 예시 {count}개: 예시로 쓸 수 있는 것은 {len(free)}개입니다. 수를 줄이세요",
        )
    return nsmallest(count, free, key=lambda example: _order(task.name, seed, example))


def sample(task: Task, examples: Sequence[Example], limit: int | None) -> list[Example]:
    """A fixed random subset of at most `limit` items, in the order of the file."""
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen = nsmallest(limit, range(len(examples)), key=lambda index: _order(task.name, -1, examples[index]))
    return [examples[index] for index in sorted(chosen)]


def encode_task(
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    shots: Sequence[Example],
    tokenizer: Tokenizer,
    n_ctx: int,
) -> EncodedTask:
    """Encode the items of a task after the first shots, as many as leave the longest item room in `n_ctx`.

    Raises KoGPTError for an item that this tokenizer cannot ask with this prompt.
    """
    questions = _Questions(prompt, shots, tokenizer)
    encoded = [questions.item(example) for example in (*examples, *content_free(task, prompt, examples))]
    longest = max(item.n_positions for item, _ in encoded)
    fitted = _fit(prompt, shots, tokenizer, n_ctx - longest)
    if shots and not fitted:  # no shot fits: encode the questions again without shots
        return encode_task(task, prompt, examples, [], tokenizer, n_ctx)
    questions = _Questions(prompt, fitted, tokenizer)
    prefix = np.array(tokenizer.encode_prompt(questions.head), dtype=np.int64)
    _spot_check(questions, prefix, [item for item, _ in encoded], examples)
    items = [cut(item, n_ctx - len(prefix)) for item, _ in encoded]
    n = len(examples)
    return EncodedTask(
        prompt=prompt,
        shots=tuple(fitted),
        prefix_text=questions.head + questions.gap,
        prefix=prefix,
        items=tuple(items[:n]),
        content_free=tuple(items[n:]),
        n_cut=sum(item is not old for item, (old, _) in zip(items, encoded, strict=True)),
        n_moved=sum(moved for _, moved in encoded[:n]),
    )


def content_free(task: Task, prompt: Prompt, examples: Sequence[Example]) -> list[Example]:
    """Examples without content, for calibration; none where items have choices of their own."""
    if not prompt.fixed or not examples:
        return []
    fields = examples[0].fields
    return [
        Example(f"content-free {word!r}", {**fields, **dict.fromkeys(task.content, word)}, 0, 0.0)
        for word in CONTENT_FREE
    ]


def cut(item: Item, room: int) -> Item:
    """The item without the beginning that does not fit `room` positions. KoGPTError for a long choice."""
    if (excess := item.n_positions - room) <= 0:
        return item
    if excess >= len(item.context):
        raise KoGPTError(
            f"a choice of {max(map(len, item.choices))} tokens does not fit the model's context",
            f"선택지 하나가 {max(map(len, item.choices))} 토큰으로 모델의 문맥 길이를 넘습니다",
        )
    return Item(item.context[excess:], item.choices, item.lengths)


class _Questions:
    """Encodes the items of one run after the text that they share."""

    def __init__(self, prompt: Prompt, shots: Sequence[Example], tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.tokenizer = tokenizer
        solved = "".join(prompt.render(shot) + prompt.separator for shot in shots)
        text = prompt.instruction + solved
        # White space before a question is encoded with it: alone it could merge into one token.
        self.head = text.rstrip()
        self.gap = text[len(self.head) :]
        self.anchor = self.head[-ANCHOR:]
        self.anchor_ids = tokenizer.encode(self.anchor)

    def item(self, example: Example) -> tuple[Item, bool]:
        """The item's ids, and whether a token spans the border of its question and a label."""
        question = self.gap + self.prompt.ask(example)
        options = self.prompt.options(example)
        try:
            context, choices = self.tokenizer.encode_choices(question, options, self.anchor)
        except PromptError as error:
            raise _unaskable(self.prompt, example, error) from error
        item = Item(
            np.array(context, dtype=np.int64),
            tuple(np.array(ids, dtype=np.int64) for ids in choices),
            tuple(len(option.strip()) for option in options),
        )
        asked = self.tokenizer.encode(self.anchor + question)
        whole = [*self.anchor_ids, *context]
        return item, whole[len(whole) - len(asked) :] != asked


def _fit(prompt: Prompt, shots: Sequence[Example], tokenizer: Tokenizer, room: int) -> list[Example]:
    """As many of the first shots as take at most `room` tokens."""
    low, high = 0, len(shots)
    while low < high:
        middle = (low + high + 1) // 2
        head = _Questions(prompt, shots[:middle], tokenizer).head
        if len(tokenizer.encode_prompt(head)) <= room:
            low = middle
        else:
            high = middle - 1
    return list(shots[:low])


def _spot_check(
    questions: _Questions, prefix: Ids, items: Sequence[Item], examples: Sequence[Example]
) -> None:
    """Encode some items whole, shots included: the ids must be those of the prefix and of the item."""
    if not len(prefix):
        return
    for example, item in list(zip(examples, items, strict=False))[:SPOT_CHECKS]:
        option = questions.prompt.options(example)[0]
        text = questions.head + questions.gap + questions.prompt.ask(example) + option
        if questions.tokenizer.encode_prompt(text) != [*prefix, *item.context, *item.choices[0]]:
            raise _boundary(questions.prompt, questions.anchor)


def _content(task: Task, example: Example) -> tuple[str, ...]:
    return tuple(example.fields.get(name, "") for name in task.content)


def _order(task: str, seed: int, example: Example) -> str:
    return sha256(f"{task}\t{seed}\t{example.id}".encode()).hexdigest()


def _unaskable(prompt: Prompt, example: Example, error: PromptError) -> KoGPTError:
    return KoGPTError(
        f"prompt {prompt.name}, item {example.id}: {error.en}; or choose another --prompt",
        f"프롬프트 {prompt.name}, 항목 {example.id}: {error.ko}. 다른 --prompt를 골라도 됩니다",
    )


def _boundary(prompt: Prompt, anchor: str) -> KoGPTError:
    return KoGPTError(
        f"prompt {prompt.name}: with this tokenizer no token begins right after {anchor!r}: choose another"
        " --prompt",
        f"프롬프트 {prompt.name}: 이 토크나이저에서는 {anchor!r} 바로 뒤에서 시작하는 토큰이 없습니다."
        " 다른 --prompt를 고르세요",
    )
