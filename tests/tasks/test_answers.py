"""Questions to texts: evidence, then the model's answer."""

from __future__ import annotations

import pytest

from kogpt import KoGPT, KoGPTError
from kogpt.tasks.answers import MAX_CHARACTERS, Source, answer, around, find_evidence

PASSAGES = [
    Source("임진왜란은 1592년에 일어났다. 그때 조선의 왕은 선조였다. 이순신은 바다에서 싸웠다.", "역사"),
    Source("한강은 서울을 지난다. 강의 길이는 494 킬로미터다.", "지리"),
]


@pytest.mark.parametrize(
    ("question", "sentence", "source"),
    [
        ("임진왜란 때 조선의 왕은?", "그때 조선의 왕은 선조였다.", "역사"),
        ("한강의 길이는 얼마인가?", "강의 길이는 494 킬로미터다.", "지리"),
        ("이순신은 어디에서 싸웠나요?", "이순신은 바다에서 싸웠다.", "역사"),
    ],
)
def test_the_sentence_that_answers_comes_first(question: str, sentence: str, source: str) -> None:
    first = find_evidence(question, PASSAGES)[0]
    assert (first.sentence, first.source) == (sentence, source)
    assert sentence in around(first)


def test_there_is_always_evidence() -> None:
    [only] = find_evidence("전혀 다른 물음", PASSAGES)
    assert only.score == 0


@pytest.mark.parametrize(("question", "text"), [(" ", "글이다."), ("무엇?", "  ")])
def test_nothing_asked_or_nothing_to_read(question: str, text: str) -> None:
    with pytest.raises(KoGPTError, match="empty"):
        find_evidence(question, [Source(text)])


def test_the_model_reads_some_of_a_long_passage(model: KoGPT) -> None:
    evidence = find_evidence("왕은?", [Source("가나다라 " * 190 + "왕은 선조다. " + "마바사 " * 300)])
    assert len(around(evidence[0])) <= MAX_CHARACTERS
    assert isinstance(answer(model, "왕은?", find_evidence("왕은?", PASSAGES)), str)
