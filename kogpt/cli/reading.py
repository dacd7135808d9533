"""Bytes of a file, a pipe or an argument -> text: UTF-8, UTF-16 with a byte order mark, CP949.

What cannot be told apart, or is none of them, is refused; nothing is ever replaced or dropped.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kogpt.errors import InputError

ENCODINGS = ("auto", "utf-8", "utf-16", "cp949")

# Korean prose in CP949 is Hangul with a few Hanja and signs; another legacy encoding read as CP949 is not.
MIN_HANGUL_SHARE = 0.8

# 345 syllables of CP949 are also valid UTF-8 (for other letters). In text with more of them than this and
# nothing else, chance is ruled out.
MAX_DOUBTFUL = 3

HANGUL = re.compile("[가-힣ㄱ-ㆎ]")
BESIDE_LATIN = re.compile(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]")  # as in "café", never as in "가격"


def decode(data: bytes, source: str, encoding: str = "auto") -> str:
    """The text of `data`, without a byte order mark; InputError, which names `source`, if there is none."""
    if data.startswith(codecs.BOM_UTF8) and encoding in ("auto", "utf-8"):
        return _strict(data, source, "utf-8-sig")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and encoding in ("auto", "utf-16"):
        return _strict(data, source, "utf-16")
    if encoding != "auto":
        return _strict(data, source, encoding)
    if b"\0" in data:
        raise InputError(
            f"{source} holds NUL bytes: a binary file, or UTF-16 without a byte order mark"
            " (--encoding utf-16)",
            f"{source}: NUL 바이트가 있습니다. 텍스트가 아니거나 BOM 없는 UTF-16입니다 (--encoding utf-16)",
        )
    return _guess(data, source)


def read_bytes(path: str) -> bytes:
    """A file, or standard input if the path is `-`."""
    if path == "-" and sys.stdin is None:
        raise InputError("standard input is closed", "표준 입력이 닫혀 있습니다")
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", f"읽을 수 없습니다: {path} ({error.strerror})"
        ) from error


def decode_argument(text: str, source: str) -> str:
    """An argument or a typed line as the user meant it, whatever the locale made of its bytes."""
    if not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    # Python keeps bytes that it cannot read as lone surrogates (PEP 383).
    return decode(text.encode("utf-8", "surrogateescape"), source)


def text_lines(data: bytes, source: str, encoding: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not blank."""
    for number, line in enumerate(decode(data, source, encoding).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def jsonl_prompts(data: bytes, source: str, encoding: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, "prompt", the user's own other keys) of every object of a JSON Lines file."""
    for number, line in text_lines(data, source, encoding):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{source} line {number} is not JSON: {error}",
                f"{source} {number}행은 JSON이 아닙니다: {error}",
            ) from error
        prompt = document.get("prompt") if isinstance(document, dict) else None
        if not isinstance(prompt, str):
            raise InputError(
                f'{source} line {number} is not an object with a text "prompt"',
                f'{source} {number}행: "prompt" 문자열이 있는 객체가 아닙니다',
            )
        yield number, prompt, {key: value for key, value in document.items() if key != "prompt"}


def _guess(data: bytes, source: str) -> str:
    """UTF-8, or Korean in CP949, whichever the bytes can only be."""
    korean = _korean_in_cp949(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if korean is not None:
            return korean
        where, where_ko = _place(error)
        raise InputError(
            f"{source} is neither UTF-8 ({where}) nor Korean in CP949: convert it to UTF-8, or name its"
            " --encoding",
            f"{source}: UTF-8도 아니고({where_ko}) CP949로 쓴 한국어도 아닙니다."
            " UTF-8로 바꾸거나 --encoding을 지정해 주십시오",
        ) from error
    n_foreign = sum(not character.isascii() for character in text)
    doubtful = 0 < n_foreign <= MAX_DOUBTFUL and not HANGUL.search(text) and not BESIDE_LATIN.search(data)
    if korean is not None and doubtful:
        utf8, cp949 = (repr(reading.strip("\r\n")[:20]) for reading in (text, korean))
        raise InputError(
            f"{source} may be UTF-8 ({utf8}) or CP949 ({cp949}): say which with --encoding",
            f"{source}: UTF-8({utf8})일 수도 CP949({cp949})일 수도 있습니다. --encoding으로 정해 주십시오",
        )
    return text


def _korean_in_cp949(data: bytes) -> str | None:
    """The text read as CP949 if that makes Korean, else None."""
    try:
        text = data.decode("cp949")
    except UnicodeDecodeError:
        return None
    foreign = [character for character in text if not character.isascii()]
    n_hangul = sum(HANGUL.match(character) is not None for character in foreign)
    return text if foreign and n_hangul >= MIN_HANGUL_SHARE * len(foreign) else None


def _strict(data: bytes, source: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(error, source) from error


def _undecodable(error: UnicodeDecodeError, source: str) -> InputError:
    where, where_ko = _place(error)
    return InputError(
        f"{source} is not {error.encoding} at {where}: convert it to UTF-8, or name its --encoding",
        f"{source}: {where_ko}가 {error.encoding} 문자가 아닙니다."
        " UTF-8로 바꾸거나 --encoding을 지정해 주십시오",
    )


def _place(error: UnicodeDecodeError) -> tuple[str, str]:
    """Which byte could not be read, in English and Korean."""
    line = error.object.count(b"\n", 0, error.start) + 1
    shown = f"0x{error.object[error.start]:02x}"
    byte = error.start + 1
    return f"byte {byte} (line {line}), {shown}", f"{byte}번째 바이트({line}행, {shown})"
