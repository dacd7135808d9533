"""Sentences, summaries and titles."""

from __future__ import annotations

import pytest

from kogpt import KoGPT, KoGPTError
from kogpt.tasks import summaries
from kogpt.tasks.sentences import split_sentences
from kogpt.tasks.summaries import Writer, make_title, summarize

NEWS = (
    "서울시는 내년부터 한강 공원에 나무 십만 그루를 심는다고 밝혔다. 나무는 은행나무와 소나무다. "
    "시민 대표는 이 소식을 반겼다. 날씨는 맑았다! 한강 공원의 나무는 그늘을 만들고 공기를 맑게 한다. "
    "서울시는 나무를 심을 시민을 봄에 모집한다(3. 1. 부터). 점심은 국수였다."
)


def test_sentences_are_the_text() -> None:
    sentences = split_sentences(NEWS + "\n\n둘째 문단\n끝")
    for sentence in sentences:
        assert (NEWS + "\n\n둘째 문단\n끝")[sentence.start :].startswith(sentence.text)
    assert [s.text for s in sentences][-2:] == ["둘째 문단", "끝"]
    assert len(sentences) == 9 and "(3. 1. 부터)" in sentences[5].text
    assert split_sentences(" \n ") == []
    assert [len(s.text) for s in split_sentences("가" * 2500)] == [1000, 1000, 500]


def test_the_summary_keeps_what_the_text_is_about() -> None:
    chosen = [sentence.text for sentence in summarize(NEWS, 3)]
    assert chosen == [s.text for s in split_sentences(NEWS) if s.text in chosen]  # in the order of the text
    assert all("나무" in text for text in chosen)
    assert [s.text for s in summarize("하나.", 5)] == ["하나."]


def test_a_long_text_is_summarised_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_SENTENCES", 20)
    text = " ".join(f"{NEWS} 문단 {n}이 끝났다." for n in range(20))
    assert len(summarize(text, 4)) == 4


def test_a_title_is_made_of_words_of_the_first_sentence() -> None:
    title = make_title(NEWS)
    words = NEWS.split(". ")[0].split()
    assert title and all(word in words for word in title.split())
    assert len(title) <= summaries.TITLE_CHARACTERS
    assert make_title("가") == "가"


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_nothing_to_summarise(text: str) -> None:
    with pytest.raises(KoGPTError, match="empty"):
        summarize(text)
    with pytest.raises(KoGPTError, match="empty"):
        make_title(text)


def test_the_model_reads_a_long_text_in_parts(model: KoGPT) -> None:
    writer = Writer(model, "{text}\n한줄 요약:")
    parts = writer._parts(NEWS)
    limit = model.config.n_ctx
    assert len(parts) > 1
    assert all(len(model.tokenizer.encode(part)) < limit - 64 for part in parts)
    assert isinstance(writer.write(NEWS), str) and isinstance(writer.title(NEWS), str)
