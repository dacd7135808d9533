"""Filters: what each rule removes and what it must leave alone."""

from __future__ import annotations

import random

import pytest

from kogpt.errors import InputError
from kogpt.pretraining import filters
from kogpt.pretraining.filters import RULES, removed_by, rules_without

KEPT = [
    "나라의 말이 중국과 달라 문자와 서로 통하지 아니하므로, 이런 까닭으로 어리석은 백성이 말하려 해도.",
    "재밌어요 ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋ ㅠㅠㅠㅠ 또 보고 싶은 영화!!!!!! 강추합니다♥♥♥",
    "띄어쓰기를하나도하지않은긴문장도한국어로는흔히볼수있는글입니다",
    "제1조(목적) 이 법은 「민법」 제3조제1항에 따라 다음 각 호의 사항을 정함을 목적으로 한다.",
    "pip install kogpt 명령으로 설치하고 python -m kogpt 명령으로 실행합니다.",
    "질문: 오늘 날씨 어때?\n답변: 맑아요.\n질문: 내일은?\n답변: 비가 와요.\n질문: 모레는?\n답변: 흐려요.",
    "韓國의 歷史는 길다. 檀君이 朝鮮을 세운 것은 기원전 2333년이라 한다.",
]
unspaced = "".join(chr(code) for code in random.Random(0).choices(range(0xAC00, 0xD7A4), k=300))
REMOVED = {
    "too-short": "짧은 글입니다.",
    "control-characters": "한국어 문장이지만 \x1b[31m 단말기의 출력이 섞여 있습니다.",
    "broken-characters": "한국어 문장이지만 \ufffd\ufffd\ufffd 잘못 읽은 글자가 있습니다.",
    "little-hangul": "This page is in English, but for one 한국어 word in the middle of it.",
    "mostly-symbols": "제목 +------+------+------+------+------+------+ 끝 |||||||||||||||||||||||",
    "long-words": f"다음은 부호화한 자료입니다 {unspaced}",
    "long-run": "너무 재미있어요 " + "ㅋ" * 200 + " 정말 재미있어요",
    "repeated-lines": "\n".join(
        ["홈 소개 공지사항 문의 로그인"] * 4 + ["본문은 한 줄뿐입니다. 나머지는 차림표입니다."]
    ),
    "repetitive": " ".join(f"{i % 7}번 상품을 지금 바로 구매하세요" for i in range(400)),
}


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_text_is_kept(text: str) -> None:
    assert removed_by(text, RULES) is None


def test_every_rule_has_a_case() -> None:
    assert REMOVED.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_each_rule_removes_its_case(name: str) -> None:
    assert RULES[name](REMOVED[name])
    assert removed_by(REMOVED[name], RULES) == name
    assert removed_by(REMOVED[name], rules_without([name])) != name


def test_prose_is_far_from_repetitive() -> None:
    prose = "\n".join(KEPT)
    assert len((prose * 3).encode()) > filters.MIN_COMPRESSED_BYTES
    assert not filters.repetitive(prose * 3)
    assert filters.repetitive(KEPT[0] * 100)


@pytest.mark.parametrize("text", ["", " \n ", "!", "...", "1234567890" * 3])
def test_degenerate_texts_do_not_break_a_rule(text: str) -> None:
    for rule in RULES.values():
        assert rule(text) in (True, False)


def test_rules_by_name() -> None:
    assert rules_without([]) == RULES
    assert rules_without(["all"]) == {}
    assert list(rules_without(["too-short"])) == list(RULES)[1:]
    with pytest.raises(InputError, match="no filter nonsense; there are too-short, "):
        rules_without(["nonsense", "too-short"])


def test_tally_is_in_the_order_of_the_table() -> None:
    assert list(filters.tally(["repetitive", "too-short", "repetitive"]).items()) == [
        ("too-short", 1),
        ("repetitive", 2),
    ]
