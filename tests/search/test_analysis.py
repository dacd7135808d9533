"""Terms of a query: what it is about stays, what only asks goes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from kogpt.search.analysis import GRAM, analyse_word, query_terms
from kogpt.search.index import Document, Index, Passage

ABOUT = (
    *("휴가", "물가", "작가", "국가", "주가", "평가", "증가", "군가"),
    *("단가", "민가", "상한가", "하한가", "한가", "인가", "미인가", "설립인가"),
    *("상인가", "은가", "요가", "나가", "을가", "누가복음", "누가는", "왜구"),
    *("왜곡", "왜란", "왜관", "왜성", "왜인", "왜국", "왜에", "왜의"),
    *("왜와", "왜를", "왜가리", "무어", "무어인", "무언극", "어린이", "구매"),
    *("몰디브", "얼음", "언어", "어업", "누나", "누룩"),
)
ASKING = (
    *("왜", "왜요", "왜인가", "왜인가요", "왜인지", "왜일까", "왜죠", "누가"),
    *("누구", "누구의", "누구를", "누구인가요", "누구였나", "누구였는가", "누구로부터", "누군가요"),
    *("누굴", "무엇", "무엇을", "무엇이라고", "무엇인가", "무엇입니까", "무엇일까요", "무엇이었나"),
    *("무엇으로만", "뭐", "뭐가", "뭐라고", "뭘", "뭔가", "무언가", "언제"),
    *("언제까지인가", "언제부터", "언제였는가", "언젠가요", "어디", "어디서", "어디에서", "어디로"),
    *("어디까지인가요", "어디있나요", "어디일까요", "어딘가", "어딜", "얼마", "얼마나", "얼마만에"),
    *("얼마인가", "어떻게", "어떤", "어떤가", "어떠한", "어떠한가", "어느", "어느것"),
    *("어느것이", "무슨", "몇", "몇몇", "몇인가"),
)
# Words written together are as they are apart: 어느 나라, 몇 년도.
JOINED = {
    "어느나라를": "나라를",
    "어느것": "",
    "어떤사건을": "사건을",
    "무슨상을": "상을",
    "몇년도에": "년도에",
    "몇년": "년",
    "언제발매": "발매",
    "언제나온": "나온",
    "어디고속도로": "고속도로",
}
# The ending of a question, and the query without it.
ENDINGS = {
    "이순신은 왕인가?": "이순신은 왕",
    "이순신은 언제 왕이 되었는가": "이순신은 왕이 되",
    "누가 유명한가요?": "유명",
    "무엇을 발견했는가?": "발견",
    "어디에 살고 있는가?": "살고",
    "휴가?": "휴가",
    "물가는 어떤 평가": "물가는 평가",
    "무엇이 상한가?": "상한가",
    "경복궁은 언제 설립인가": "경복궁은 설립",
    "대안학교 미인가": "대안학교 미인가",
}


def terms(text: str) -> list[str]:
    return [term for word in text.split() for term in dict.fromkeys((word, *analyse_word(word)))]


@pytest.mark.parametrize("word", ABOUT)
def test_a_word_that_looks_like_asking_stays(word: str) -> None:
    assert query_terms(word) == terms(word)
    assert query_terms(f"{word} 서울") == terms(f"{word} 서울")
    assert query_terms(f"서울 {word}") == terms(f"서울 {word}")


@pytest.mark.parametrize("word", ASKING)
def test_a_word_that_only_asks_goes(word: str) -> None:
    assert query_terms(f"서울은 {word}?") == terms("서울은")
    assert query_terms(f"{word}, 서울은") == terms("서울은")
    assert query_terms(unicodedata.normalize("NFD", f"서울은 “{word}”")) == terms("서울은")
    assert query_terms(word) == terms(word)  # nothing else is asked about


@pytest.mark.parametrize(("word", "rest"), JOINED.items())
def test_a_noun_joined_to_an_interrogative_stays(word: str, rest: str) -> None:
    assert query_terms(f"서울 {word} 도시") == terms(f"서울 {rest} 도시")


@pytest.mark.parametrize(("query", "kept"), ENDINGS.items())
def test_the_ending_of_a_question_goes(query: str, kept: str) -> None:
    assert query_terms(query) == terms(kept)


def test_a_query_of_one_noun_finds_it(tmp_path: Path) -> None:
    texts = ("휴가를 다녀왔다.", "물이 깨끗하다.", "소비자 물가가 올랐다.", "왜구가 침입했다.", "적의 침입")
    Index.add(tmp_path, (Document(text, b"", [Passage(text, 1)]) for text in texts))
    with Index.open(tmp_path) as index:
        for query, best in (("휴가", 0), ("물가", 2), ("소비자 물가", 2), ("왜구 침입", 3), ("왜구?", 3)):
            assert index.query(query)[0].passage == texts[best], query
    assert GRAM + "왜구" in query_terms("왜구 침입")
