"""Named tasks: which data sets are learnt from, which are held out, and how an example is asked.

Files and readers are those of kogpt/datasets.py, which evaluation uses too; prompts are short, for a tuned
model needs no instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kogpt import datasets
from kogpt.data_files import Row, Source
from kogpt.datasets import Example

NUMBERED = "text1", "text2"  # names of two texts in a template


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a set, in any of its forms, and its reader."""

    sources: tuple[Source, ...]
    read: Callable[[Row], Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task. Its template names an example's fields; {text}, or {text1} and {text2}, are its `texts`."""

    train: tuple[Part, ...]
    test: tuple[Part, ...]
    template: str
    texts: tuple[str, ...] = ()  # fields that are the example's one text, or its two
    answers: tuple[str, ...] = ()  # word of each label, or template of each choice of an item's own
    graded: bool = False  # a number from 0 to 5 is learnt, with both orders of the two texts

    @property
    def own_choices(self) -> bool:
        """Whether every item has choices of its own instead of labels."""
        return any("{" in answer for answer in self.answers)

    def fields(self, example: Example) -> dict[str, str]:
        """What a template may name."""
        names = ("text",) if len(self.texts) == 1 else NUMBERED
        named = {name: example.fields[field] for name, field in zip(names, self.texts, strict=False)}
        return {**example.fields, **named}


SENTENCES = "sentence1", "sentence2"
PAIR = "문장 1: {text1}\n문장 2: {text2}\n점수:"
KMHAS = Part(datasets.KMHAS_TRAIN, datasets.read_kmhas), Part(datasets.KMHAS_TEST, datasets.read_kmhas)
CURSE = Part(datasets.CURSE_TRAIN, datasets.read_curse), Part(datasets.CURSE_TEST, datasets.read_curse)


def _swearing(*parts: tuple[Part, Part]) -> Task:
    """Whether a comment swears; parts: train and test of each set."""
    return Task(
        train=tuple(train for train, _ in parts),
        test=tuple(test for _, test in parts),
        template="{text}\n판정:",
        texts=("text",),
        answers=(" 없음", " 욕설"),
    )


TASKS: Mapping[str, Task] = {
    "nsmc": Task(
        train=(Part(datasets.NSMC_TRAIN, datasets.read_nsmc),),
        test=(Part(datasets.NSMC_TEST, datasets.read_nsmc),),
        template="{text}\n감정:",
        texts=("document",),
        answers=(" 부정", " 긍정"),
    ),
    "ynat": Task(
        train=(Part(datasets.YNAT_SHOTS, datasets.read_ynat),),
        test=(Part(datasets.YNAT_DEV, datasets.read_ynat),),
        template="{text}\n분야:",
        texts=("title",),
        answers=(" 과학", " 경제", " 사회", " 생활", " 세계", " 스포츠", " 정치"),
    ),
    # KLUE-STS has no training file at hand: KorSTS's grades have the same scale.
    "klue-sts": Task(
        train=(Part(datasets.KORSTS_TRAIN, datasets.read_korsts),),
        test=(Part(datasets.KLUE_STS_DEV, datasets.read_klue_sts),),
        template=PAIR,
        texts=SENTENCES,
        graded=True,
    ),
    "korsts": Task(
        train=(Part(datasets.KORSTS_TRAIN, datasets.read_korsts),),
        test=(Part(datasets.KORSTS_TEST, datasets.read_korsts),),
        template=PAIR,
        texts=SENTENCES,
        graded=True,
    ),
    "kobest-boolq": Task(
        train=(Part(datasets.kobest("BoolQ", "train"), datasets.read_boolq),),
        test=(Part(datasets.kobest("BoolQ", "test"), datasets.read_boolq),),
        template="{paragraph}\n질문: {question}\n답변:",
        answers=(" 아니오", " 예"),
    ),
    "kobest-copa": Task(
        train=(Part(datasets.kobest("COPA", "train"), datasets.read_copa),),
        test=(Part(datasets.kobest("COPA", "test"), datasets.read_copa),),
        template="{premise} {connector}",
        answers=(" {choice1}", " {choice2}"),
    ),
    "kobest-hellaswag": Task(
        train=(Part(datasets.kobest("HellaSwag", "train"), datasets.read_hellaswag),),
        test=(Part(datasets.kobest("HellaSwag", "test"), datasets.read_hellaswag),),
        template="{context}",
        answers=(" {choice1}", " {choice2}", " {choice3}", " {choice4}"),
    ),
    "kobest-sentineg": Task(
        train=(Part(datasets.kobest("SentiNeg", "train"), datasets.read_sentineg),),
        test=(Part(datasets.kobest("SentiNeg", "test"), datasets.read_sentineg),),
        template="{text}\n감정:",
        texts=("sentence",),
        answers=(" 부정", " 긍정"),
    ),
    "kobest-wic": Task(
        train=(Part(datasets.kobest("WiC", "train"), datasets.read_wic),),
        test=(Part(datasets.kobest("WiC", "test"), datasets.read_wic),),
        template="문장 1: {context1}\n문장 2: {context2}\n'{word}'의 뜻이 같은가?",
        answers=(" 아니오", " 예"),
    ),
    "intent": Task(
        train=(Part(datasets.INTENT_TRAIN, datasets.read_intent),),
        test=(Part(datasets.INTENT_TEST, datasets.read_intent),),
        template="{text}\n의도:",
        texts=("text",),
        answers=(" 조각", " 서술", " 질문", " 명령", " 반문", " 반어 명령", " 억양에 따라 다름"),
    ),
    "k-mhas": _swearing(KMHAS),
    "curse": _swearing(CURSE),
    # The two sets mean slightly different things by it (see their readers); each is measured alone as well.
    "profanity": _swearing(KMHAS, CURSE),
}
