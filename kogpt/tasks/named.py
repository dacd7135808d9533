"""Classifications that come with KoGPT: a tuned adapter of kogpt-mini where it is there, else a prompt.

The examples are ours. Labels of `intent` are those of 3i4K (Cho et al. 2018, arXiv 1811.04231), those of
`sentiment` NSMC's, that of `profanity` K-MHaS's (Lee et al. 2022, arXiv 2208.10684).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kogpt.classification import Classification, Wording
from kogpt.hub import adapter_names, find_adapter
from kogpt.tasks.profanity import has_adapter, joined

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

NAMED: Mapping[str, Wording] = {
    "sentiment": Wording(
        labels=("부정", "긍정"),
        template="{text}=",
        instruction="글을 긍정 또는 부정으로 분류합니다.",
        examples=(
            ("기대했는데 많이 아쉬웠습니다", 0),
            ("친절하고 음식도 맛있어서 또 가고 싶어요", 1),
            ("시간이 아까웠다", 0),
            ("배우들 연기가 훌륭하고 감동적이다", 1),
        ),
    ),
    "intent": Wording(
        labels=("서술", "질문", "명령"),
        template="{text}=",
        instruction="말하는 사람이 하려는 일을 서술, 질문, 명령으로 분류합니다.",
        examples=(
            ("오늘은 하루 종일 집에 있었어", 0),
            ("회의가 몇 시에 시작하지", 1),
            ("창문 좀 열어 줘", 2),
            ("어제 본 책 제목이 뭐였더라", 1),
            ("나는 커피를 좋아해", 0),
            ("내일 아침 일곱 시에 깨워 줘", 2),
        ),
    ),
    "profanity": Wording(
        labels=("깨끗함", "욕설"),
        template="{text}=",
        instruction="글에 욕설이 있는지 분류합니다.",
        examples=(
            ("오늘 날씨가 참 좋네요", 0),
            ("야 이 나쁜 놈아 꺼져", 1),
            ("잘 보고 갑니다", 0),
            ("멍청한 놈들", 1),
        ),
    ),
}


def adapter_folder(name: str) -> Path | None:
    """The folder of the adapter of this name that is shipped for kogpt-mini, where there is one."""
    return find_adapter(name) if name in adapter_names() else None


@dataclass(frozen=True, slots=True)
class Labeller:
    """A model, and how it labels texts. joins: its answers are joined with words and n-grams of profanity."""

    model: KoGPT
    wording: Wording | None  # None: the head of the model's adapter answers
    joins: bool = False

    @classmethod
    def by_adapter(cls, model: KoGPT) -> Self:
        """As the model's adapter, one of those that ship, was tuned."""
        return cls(model, None if model.has_head else model.wording(), has_adapter(model))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels."""
        if self.wording is not None:
            return self.wording.labels
        return tuple(word.strip() for word in self.model.origin.labels)

    def label(self, texts: Sequence[str]) -> list[Classification]:
        """The classification of each text. Raises PromptError as KoGPT.classify."""
        found = self.model.classify(list(texts), self.wording)
        return [joined(each) for each in found] if self.joins else found
