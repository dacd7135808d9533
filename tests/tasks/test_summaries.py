"""Sentences, summaries and titles."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from kogpt import KoGPT, KoGPTError
from kogpt.tasks import summaries
from kogpt.tasks.sentences import split_sentences
from kogpt.tasks.summaries import Writer, make_title, summarize
from kogpt.tasks.terms import bm25, centrality, terms_of

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


def test_a_long_text_takes_no_table_of_its_sentences_and_terms() -> None:
    """A table of 2,500 sentences and their terms would take 100 MB and more."""
    chance = random.Random(2)
    text = " ".join(f"{chr(chance.randint(0xAC00, 0xD7A3))}{n}가 있다." for n in range(2_500))
    tracemalloc.start()
    try:
        assert len(summarize(text, 100_000)) == 2_500
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


def weigh(texts: list[str]) -> NDArray[np.float64]:
    """(N, T) TF-IDF as a table, rows of length 1."""
    lists = [terms_of(text) for text in texts]
    columns = {term: column for column, term in enumerate(dict.fromkeys(t for found in lists for t in found))}
    counts = np.zeros((len(texts), len(columns)))
    for row, found in enumerate(lists):
        for term in found:
            counts[row, columns[term]] += 1
    weights = np.log1p(counts) * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))) + 1)
    return np.asarray(weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12))


def test_centrality_is_the_cosine_to_the_mean_of_a_table() -> None:
    texts = [sentence.text for sentence in split_sentences(NEWS)] + ["...", "나무 나무"]
    weights = weigh(texts)
    centroid = weights.mean(axis=0)
    np.testing.assert_allclose(centrality(texts), weights @ centroid / np.linalg.norm(centroid), atol=1e-12)
    np.testing.assert_array_equal(centrality(["...", "!"]), [0, 0])


def test_bm25_is_its_formula_term_by_term() -> None:
    documents = [terms_of(sentence.text) for sentence in split_sentences(NEWS)] + [[]]
    asked = terms_of("한강 공원의 나무 한강")
    scores = np.zeros(len(documents))
    mean = np.mean([max(len(document), 1) for document in documents])
    for term in set(asked):
        holders = sum(term in document for document in documents)
        for i, document in enumerate(documents):
            often, length = document.count(term), max(len(document), 1)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            scores[i] += idf * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length / mean))
    np.testing.assert_allclose(bm25(asked, documents), scores, atol=1e-12)


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


@pytest.mark.parametrize("name", ["sentiment", "search"])
def test_an_adapter_that_labels_or_embeds_writes_no_summary(name: str) -> None:
    with (
        KoGPT.from_pretrained(device="cpu", adapter=name) as model,
        pytest.raises(KoGPTError, match="writes no text"),
    ):
        Writer(model)
