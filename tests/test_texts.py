"""Bytes -> text and records: read rightly or refused, never replaced."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kogpt.errors import InputError
from kogpt.texts import (
    Format,
    Record,
    decode,
    decode_argument,
    decompress,
    detect_encoding,
    format_of,
    printable_path,
    read_bytes,
    read_records,
    read_text,
    text_lines,
    try_records,
)

SYLLABLES = [chr(code) for code in range(0xAC00, 0xD7A4)]
PROSE = "옛날 옛적에 한 나무꾼이 살았습니다. 값은 3,000원(VAT 포함)입니다 ㅋㅋ"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
def test_prose_is_read_in_every_encoding(encoding: str) -> None:
    assert decode(PROSE.encode(encoding), "x") == PROSE


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff")))
@example("첫째\r\n둘째")
@settings(deadline=None)  # beside a busy machine
def test_utf8_is_read_as_it_is_or_refused(text: str) -> None:
    """But for the ends of lines, which become "\\n"."""
    try:
        assert decode(text.encode(), "x") == text.replace("\r\n", "\n")
    except InputError as error:
        assert "CP949" in error.en  # short enough to be either
        assert sum(not character.isascii() for character in text) <= 3


@given(st.text(st.sampled_from(SYLLABLES), max_size=12))
@settings(deadline=None)  # beside a busy machine
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
    text = decode("\ufeff첫째\r\n\r\n셋\u2028째\x0b\n  \n다섯째".encode(), "x")
    assert list(text_lines(text)) == [(1, "첫째"), (3, "셋\u2028째\x0b"), (5, "다섯째")]


BAD_LINES = [
    "{",
    "[1]",
    '"text"',
    "[" * 100_000,
    '{"a": ' + "1" * 5000 + "}",
    '{"a": NaN}',
    '{"a": [1e999]}',
    '{"a": "봄\\ud83d"}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_jsonl_names_the_line_that_is_wrong(line: str) -> None:
    with pytest.raises(InputError, match=r"x line 2 is not"):
        list(read_records(f'{{"prompt": "가"}}\n{line}', "x", "jsonl"))


@pytest.mark.parametrize("line", BAD_LINES)
@pytest.mark.parametrize("format", ["jsonl", "json"])
def test_a_record_that_is_refused_does_not_lose_the_others(line: str, format: Format) -> None:
    first, second, third = try_records(f'{{"prompt": "가"}}\n{line}\n{{"prompt": "나"}}', "x", format)
    assert isinstance(second, InputError)
    assert first == Record(1, {"prompt": "가"})
    assert third == Record(3, {"prompt": "나"})


def test_a_value_of_a_list_that_is_refused_does_not_lose_the_others() -> None:
    first, second = try_records('[{"a": "봄\\ud83d"}, {"a": 1}]', "x", "json")
    assert isinstance(first, InputError) and isinstance(second, Record)


def test_a_record_of_a_list_is_named_by_its_number() -> None:
    """On which line it stands nobody knows, once the list is read."""
    text = '[\n\n{"a": 1},\n{"a": "봄\\ud83d"}, 7]'
    found = [*try_records(text, "x", "json")]
    assert [str(error) for error in found[1:]] == [
        "x record 2 is not JSON: half of a surrogate pair",
        "x record 3 is not a JSON object",
    ]
    [alone] = try_records("\n7", "x", "json")
    assert str(alone) == "x line 1 is not a JSON object"


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_utf_32_is_refused_by_its_name(encoding: str, tmp_path: Path) -> None:
    """The mark of UTF-32-LE begins as that of UTF-16, by which every other character became a NUL."""
    data = "\ufeff가나 다\n".encode(encoding)
    with pytest.raises(InputError, match="x is UTF-32, which is not read: convert it to UTF-8"):
        decode(data, "x")
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(data))
    for read in (read_text, lambda path: [*decompress(path)]):
        with pytest.raises(InputError, match=r"x.txt.gz is UTF-32, which is not read"):
            read(path)


def test_utf_16_of_one_character_is_read_from_pieces_of_one_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for text in ("가", ""):
        path.write_bytes(text.encode("utf-16"))
        assert read_text(path) == text


def test_a_lone_carriage_return_stays() -> None:
    assert decode(b"a\rb\r\nc", "x") == "a\rb\nc"


def test_files_that_cannot_be_read_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_bytes(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="directory"):
        read_bytes(str(tmp_path))


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert read_bytes("-") == b"abc"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".GZ", ".zst"])
def test_a_file_is_read_whatever_its_charset_compression_and_line_ends(
    tmp_path: Path, encoding: str, suffix: str
) -> None:
    text = "첫째 줄입니다\r\n둘째 줄은 이것입니다\n"
    packed: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
    }
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed[suffix.lower()](text.encode(encoding)))
    assert read_text(path) == "첫째 줄입니다\n둘째 줄은 이것입니다\n"


ROWS = [{"prompt": "가,\t나", "id": "7"}, {"prompt": '"다"', "id": "8"}]


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("jsonl", '{"prompt": "가,\\t나", "id": "7"}\n\n{"prompt": "\\"다\\"", "id": "8"}\n'),
        ("json", '[{"prompt": "가,\\t나", "id": "7"},\n {"prompt": "\\"다\\"", "id": "8"}]'),
        ("json", '{"prompt": "가,\\t나", "id": "7"}\n{"prompt": "\\"다\\"", "id": "8"}\n'),
        ("csv", 'prompt,id\n"가,\t나",7\n\n"""다""",8\n'),
        ("tsv", 'prompt\tid\n"가,\t나"\t7\n"""다"""\t8\n'),
    ],
)
def test_records_of_every_format(format: Format, text: str) -> None:
    assert [record.values for record in read_records(text, "x", format)] == ROWS


def test_one_json_object_on_many_lines_is_one_record() -> None:
    assert [r.values for r in read_records('{\n "a": 1,\n "b": 2\n}\n', "x", "json")] == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1\n", "line 2 .* 1 columns instead of 2"),
        ("a,a\n1,2\n", "line 1 .* every column once"),
        ('a\n"open\n', "is not a row"),
    ],
)
def test_a_table_names_the_line_that_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        list(read_records(text, "x", "csv"))


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("p.ndjson", "jsonl"),
        ("P.JSONL", "jsonl"),
        ("p.json", "json"),
        ("p.Json.GZ", "json"),
        ("p.tsv.zst", "tsv"),
        ("p.CSV", "csv"),
        ("p.txt", "text"),
        ("p", None),
        ("p.zst", None),
    ],
)
def test_the_format_is_in_the_name(name: str, format: Format | None) -> None:
    assert format_of(name) == format


def test_japanese_in_euc_is_no_korean() -> None:
    """Its kana read as single Hangul letters in CP949."""
    with pytest.raises(InputError, match="nor Korean in CP949"):
        decode("これはにほんごのぶんしょうです".encode("euc-jp"), "x")


def test_laughter_is_korean() -> None:
    text = "ㅋㅋㅋㅋㅋㅋㅋㅋ 재밌다 ㅠㅠ"
    assert decode(text.encode("cp949"), "x") == text


def test_a_few_damaged_lines_do_not_change_a_file() -> None:
    line = "한국어 문장이 여기 있습니다\n"
    assert detect_encoding(line.encode() * 20 + b"\xff\xff\n", "x") == "utf-8"
    assert detect_encoding(line.encode("cp949") * 20 + b"\xff\xff\n", "x") == "cp949"


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    path = Path(os.fsdecode("가.txt".encode("cp949")))
    assert printable_path(path).encode() == rb"\xb0\xa1.txt"
    assert printable_path(Path("한글.txt")) == "한글.txt"
