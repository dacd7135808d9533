"""Labels of texts by their likelihood: one prompt, one question for each text, one score for each label.

The instruction and the examples are read once and kept as a prefix. A question costs its own tokens only, and
a label of one token costs none. Contextual calibration divides by what the model says of a text without
content (Zhao et al. 2021, arXiv 2102.09690, section 4).
Shapes: C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import PromptError
from kogpt.request import Request
from kogpt.session import Session, require_text, too_long

PLACE = "{text}"  # in a template
WITHOUT_CONTENT = ("N/A", "…", "없음")
BATCH = 256  # texts that are asked about at once
BORDER = 64  # characters of a prompt that decide how what follows it is tokenised
MAX_LABELS = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wording:
    """How a text is asked about: instruction, then the examples, then the text in the template, then a label.

    words: what stands after the template, one for each label. examples: (text, index of its label).
    """

    labels: tuple[str, ...]
    template: str = "{text}="
    words: tuple[str, ...] = ()  # the labels themselves where there are none
    instruction: str = ""
    examples: tuple[tuple[str, int], ...] = ()
    separator: str = "\n"
    calibrated: bool = True

    def __post_init__(self) -> None:
        labels, n = self.labels, len(self.labels)
        for label in labels:
            if not isinstance(label, str):
                raise PromptError(
                    f"a label is a text (str), not {type(label).__name__}: give words, as in 긍정,부정",
                    f"레이블은 문자열(str)이어야 합니다 (받은 형식: {type(label).__name__}, 예: 긍정,부정)",
                )
        if not 2 <= n <= MAX_LABELS or not all(label.strip() for label in labels):
            raise PromptError(
                f"there are {n} labels, some may be empty: give 2 to {MAX_LABELS} labels, as in 긍정,부정",
                f"레이블 {n}개 (빈 것이 있을 수 있음): 2개에서 {MAX_LABELS}개까지 주세요 (예: 긍정,부정)",
            )
        if len(set(labels)) < n or len(set(self.answers)) < n:
            raise PromptError(
                f"two labels are the same among {', '.join(labels)[:200]}: give each its own word",
                f"같은 레이블이 둘 있습니다: {', '.join(labels)[:200]}. 서로 다른 낱말을 쓰세요",
            )
        if PLACE not in self.template:
            raise PromptError(
                f"the template {self.template!r} does not say where the text goes: write {PLACE} into it",
                f"템플릿 {self.template!r}에 글이 들어갈 자리가 없습니다. {PLACE}를 넣으세요",
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts whose likelihoods are compared: the answer words, or the labels themselves."""
        return self.words or self.labels

    def classification(self, text: str, row: Floats, cut: bool = False) -> Classification:
        """The answer for a text from (C,) probabilities."""
        probabilities = dict(zip(self.labels, map(float, row), strict=True))
        return Classification(text, self.labels[int(row.argmax())], probabilities, cut)

    def ask(self, text: str) -> str:
        """The question about a text."""
        return self.template.replace(PLACE, text)

    def shared(self) -> str:
        """The prefix of every question: the instruction and the examples."""
        shots = (self.ask(text) + self.answers[label] for text, label in self.examples)
        parts = [part for part in (self.instruction, *shots) if part]
        return "".join(part + self.separator for part in parts)


@dataclass(frozen=True, slots=True)
class Classification:
    """The likeliest label of a text and how likely each is."""

    text: str
    label: str
    probabilities: dict[str, float] = field(compare=False)
    cut: bool = False  # whether the model read the beginning of the text only


@dataclass(frozen=True, slots=True)
class Classifier:
    """Labels texts with one session. prefix and adapter: handles, as in a Request."""

    session: Session
    wording: Wording
    prefix: int | None = None
    adapter: int | None = None

    def classify(self, texts: Iterable[str]) -> Iterator[Classification]:
        """The classification of each text, in order; a text that is too long is cut at its end.

        Raises PromptError for a text that is empty or no text, and for examples that fill the context.
        """
        with self._kept() as kept:
            free: Floats | None = None
            waiting = iter(texts)
            while batch := list(islice(waiting, BATCH)):
                if free is None and self.wording.calibrated:
                    free = self._likelihoods(kept.questions(WITHOUT_CONTENT))
                questions = kept.questions(batch)
                found = self._likelihoods(questions)
                found = shares(found) if free is None else calibrated(found, free)
                for text, question, row in zip(batch, questions, found, strict=True):
                    yield self.wording.classification(text, row, question.cut)

    def request(self, text: str) -> Request:
        """The request of `classify` for one text; the wording has no part that all texts share."""
        assert not self.wording.shared()
        [question] = _Prompt(self, self.prefix, "").questions([text])
        return question.request

    def _likelihoods(self, questions: Sequence[_Question]) -> Floats:
        """(questions, C) log-likelihoods of the labels."""
        events = self.session.ask([question.request for question in questions])
        return np.array([[s.logprobs.sum() for s in event.choices] for event in events])

    @contextmanager
    def _kept(self) -> Iterator[_Prompt]:
        """The shared part of the prompt, read; freed afterwards."""
        shared = self.wording.shared()
        if not shared:
            yield _Prompt(self, self.prefix, "")
            return
        ids = self.session.prompt_ids(shared, self.session.engine.length(self.prefix) + 1)
        request = Request(ids, prefix=self.prefix, adapter=self.adapter, keep=True)
        [event] = self.session.ask([request])
        assert event.prefix is not None
        try:
            yield _Prompt(self, event.prefix, shared[-BORDER:])
        finally:
            self.session.release(event.prefix)


def shares(likelihoods: Floats) -> Floats:
    """(texts, C) log-likelihoods -> probabilities: each row adds up to 1."""
    powers = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def calibrated(likelihoods: Floats, free: Floats) -> Floats:
    """(texts, C) log-likelihoods -> probabilities, divided by those of texts without content, `free`.

    In logarithms throughout: a label of hundreds of tokens is less likely than float64 can say otherwise.
    """
    others = _log_shares(free)
    most = others.max(axis=0)
    bias = most + np.log(np.exp(others - most).mean(axis=0))
    return shares(_log_shares(likelihoods) - bias)


def _log_shares(likelihoods: Floats) -> Floats:
    shifted = likelihoods - likelihoods.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True)
class _Question:
    request: Request
    cut: bool


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The part of the prompt that is read, and what it ends with."""

    classifier: Classifier
    handle: int | None
    ending: str

    def questions(self, texts: Sequence[str]) -> list[_Question]:
        """The request for the scores of the labels of each text."""
        for text in texts:
            require_text(text)
            if not text.strip():
                raise PromptError(
                    "a text is empty: there is nothing to classify", "글이 비어 있어 분류할 것이 없습니다"
                )
        return [self._fitting(text, *ids) for text, ids in zip(texts, self._ids(texts), strict=True)]

    def _fitting(self, text: str, context: list[int], choices: list[list[int]]) -> _Question:
        """The request for a text of these ids, cut at its end until it fits."""
        engine = self.classifier.session.engine
        room = engine.runner.config.n_ctx - engine.length(self.handle) - max(map(len, choices)) + 1
        cut = False
        while len(context) > room:
            if len(text) < 2:
                raise too_long(len(context), room)
            text = text[: min(len(text) - 1, len(text) * max(room, 1) // len(context))]
            [(context, choices)] = self._ids([text])
            cut = True
        return _Question(
            Request(
                np.array(context, np.int64),
                prefix=self.handle,
                adapter=self.classifier.adapter,
                choices=[np.array(choice, np.int64) for choice in choices],
                reusable=False,
            ),
            cut,
        )

    def _ids(self, texts: Sequence[str]) -> list[tuple[list[int], list[list[int]]]]:
        wording = self.classifier.wording
        questions = [(wording.ask(text), wording.answers) for text in texts]
        return self.classifier.session.tokenizer.encode_choices_batch(questions, self.ending)
