"""Bytes -> text: read rightly or refused, never replaced."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogpt.cli.reading import decode, decode_argument, jsonl_prompts, read_bytes, text_lines
from kogpt.errors import InputError

SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
PROSE = "옛날 옛적에 한 나무꾼이 살았습니다. 값은 3,000원(VAT 포함)입니다 ㅋㅋ"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
def test_prose_is_read_in_every_encoding(encoding: str) -> None:
    assert decode(PROSE.encode(encoding), "x") == PROSE


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")))
def test_utf8_is_read_as_it_is_or_refused(text: str) -> None:
    try:
        assert decode(text.encode(), "x") == text
    except InputError as error:
        assert "CP949" in error.en  # short enough to be either
        assert sum(not character.isascii() for character in text) <= 3


@given(st.text(st.sampled_from(SYLLABLES)))
def test_korean_in_cp949_is_read(text: str) -> None:
    text += " 한국어"  # syllables that are no UTF-8 in CP949, as nearly all are
    assert decode(text.encode("cp949"), "x") == text


def test_syllables_that_are_also_utf8_are_refused_alone_and_both_readings_shown() -> None:
    """reliability.md K4 counts 345 of them."""
    refused = []
    for syllable in SYLLABLES:
        try:
            assert decode(syllable.encode("cp949"), "x") == syllable
        except InputError as error:
            refused.append(syllable)
            assert repr(syllable) in error.en and repr(syllable.encode("cp949").decode()) in error.en
    assert len(refused) == 345
    assert all(decode(syllable.encode("cp949"), "x", "cp949") == syllable for syllable in refused)


@pytest.mark.parametrize("text", ["가", "café", "Zürich", "naïve", "가격 £5", "日本", "한"])
def test_short_utf8_is_not_taken_for_cp949(text: str) -> None:
    assert decode(text.encode(), "x") == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xfa", "neither UTF-8 (byte 1 (line 1), 0xff) nor Korean in CP949"),
        ("첫째 줄\n둘째".encode() + b"\xea\xb0", "line 2"),  # cut inside a syllable
        ("naïve café Zürich".encode("latin-1"), "neither UTF-8"),
        ("这是一个关于中国历史和文化的网页，欢迎您的到来".encode("gbk"), "nor Korean in CP949"),
        (PROSE.encode("utf-16-le"), "NUL"),
        (b"\x7fELF\0\0", "NUL"),
        (b"\xef\xbb\xbf\xff", "utf-8"),
        (b"\xff\xfe\x00", "utf-16"),
    ],
)
def test_other_bytes_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match="x") as caught:
        decode(data, "x")
    assert reason in caught.value.en


def test_a_named_encoding_is_taken_at_its_word() -> None:
    hanja = "大韓民國 憲法 第一條"  # too little Hangul to be guessed
    with pytest.raises(InputError):
        decode(hanja.encode("cp949"), "x")
    assert decode(hanja.encode("cp949"), "x", "cp949") == hanja
    assert decode("가".encode("utf-16-le"), "x", "utf-16") == "가"
    with pytest.raises(InputError, match="cp949"):
        decode(b"\xff", "x", "cp949")


def test_an_argument_is_recovered_from_what_the_locale_made_of_it() -> None:
    assert decode_argument("한국어", "x") == "한국어"
    assert decode_argument("한국어".encode().decode("ascii", "surrogateescape"), "x") == "한국어"
    assert decode_argument("한국어 값".encode("cp949").decode("utf-8", "surrogateescape"), "x") == "한국어 값"
    with pytest.raises(InputError, match="PROMPT is neither UTF-8"):
        decode_argument(b"\xff\xff".decode("utf-8", "surrogateescape"), "PROMPT")


def test_lines_keep_their_numbers_and_only_line_feeds_end_them() -> None:
    data = "\ufeff첫째\r\n\r\n셋\u2028째\x0b\n  \n다섯째".encode()
    assert list(text_lines(data, "x", "auto")) == [(1, "첫째"), (3, "셋\u2028째\x0b"), (5, "다섯째")]


def test_jsonl_takes_prompts_and_keeps_other_keys() -> None:
    data = '{"prompt": "가\\n나", "id": 7}\n\n{"prompt": ""}\n'.encode()
    assert list(jsonl_prompts(data, "x", "auto")) == [(1, "가\n나", {"id": 7}), (3, "", {})]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"text"', "{}", '{"prompt": 3}', "[" * 100_000, '{"prompt": ' + "1" * 5000 + "}"]
)
def test_jsonl_names_the_line_that_is_wrong(line: str) -> None:
    with pytest.raises(InputError, match=r"x line 2 is not"):
        list(jsonl_prompts(f'{{"prompt": "가"}}\n{line}'.encode(), "x", "auto"))


def test_files_that_cannot_be_read_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_bytes(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="directory"):
        read_bytes(str(tmp_path))


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert read_bytes("-") == b"abc"
