"""The exception tree: one line, in the language of the locale."""

from __future__ import annotations

import re
import time
from itertools import product

import pytest

from kogpt import errors
from kogpt.errors import _CLOSING, CheckpointError, KoGPTError, MissingExtra, josa, prefers_korean

LOCALES = [
    ({}, False),
    ({"LANG": "ko_KR.UTF-8"}, True),
    ({"LANG": "en_US.UTF-8"}, False),
    ({"LANG": "en_US.UTF-8", "LC_ALL": "ko_KR.eucKR"}, True),
    ({"LANG": "ko_KR.UTF-8", "LC_MESSAGES": "C"}, False),
    ({"LANG": "ko_KR.UTF-8", "LC_ALL": ""}, True),  # POSIX: an empty variable is an unset one
]


@pytest.mark.parametrize(("environment", "korean"), LOCALES)
def test_messages_follow_the_locale(
    environment: dict[str, str], korean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert prefers_korean() is korean
    assert str(CheckpointError("broken", "손상됨")) == ("손상됨" if korean else "broken")


def test_every_error_is_a_value_error_of_ours() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    shown = re.findall(r"^      (\w+) ", str(errors.__doc__), re.MULTILINE)  # the tree of the docstring
    assert sorted(value.__name__ for value in classes) == sorted([*shown, "KoGPTError"])
    assert all(issubclass(value, KoGPTError) and issubclass(value, ValueError) for value in classes)


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtra("the server", "serve")
    assert "pip install 'kogpt[serve]'" in error.en and "pip install 'kogpt[serve]'" in error.ko


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("은/는", "모델은 폴더는 글은 값은 파이썬은"),
        ("이/가", "'모델'이 “폴더”가 파일(가)이 model.json이 int4가 float16이 --stop이 --top-k가 GPU가"),
        ("을/를", "0을 1을 2를 3을 4를 5를 6을 7을 8을 9를 10을 100을 1,000을 12,000을 105를 3%를 2.5를"),
        ("과/와", "L과 LLM과 A와 R과 URL과 JSON과 PDF와 CUDA와 file과 line과 text와 server와 token과"),
        ("으로/로", "서울로 부산으로 대구로 model로 8로 3으로 6으로 2로 file로 format으로 table로"),
        ("을/를", "100000000을 1000000000000를 30000000000000를"),
    ],
)
def test_a_particle_fits_the_last_sound(pair: str, words: str) -> None:
    first, second = pair.split("/")
    for written in words.split():
        word = written.removesuffix(first if written.endswith(first) else second)
        assert josa(word, pair) == written


@pytest.mark.parametrize("word", ["大", "", "“”", "é"])
def test_what_nobody_can_read_aloud_keeps_both_particles(word: str) -> None:
    assert josa(word, "이/가") == f"{word}이(가)"


def test_a_decomposed_syllable_is_one_syllable() -> None:
    assert josa("\u1100\u1161\u11a8", "은/는").endswith("은")  # 각


@pytest.mark.parametrize("unit", ["()", "(", ")", "(가)", "(-)", "((", "한", "1", "a", "1,", "%", " "])
def test_a_particle_of_any_word_is_found_at_once(unit: str) -> None:
    """Names of folders and labels come from users: none of them may take long."""
    for word in (unit * 20_000, unit * 20_000 + "a%", "가" + unit * 20_000, unit * 60 + "a-"):
        began = time.thread_time()
        josa(word, "은/는")
        assert time.thread_time() - began < 1, unit


def test_closing_signs_are_told_as_before_by_a_slow_twin() -> None:
    slow = re.compile(r"(?:\([^()]*\)|[^\w%])+$")
    for letters in product("(가)-%", repeat=6):
        word = "".join(letters)
        assert _CLOSING.sub("", word) == slow.sub("", word), word
