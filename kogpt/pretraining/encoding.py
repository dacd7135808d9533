"""Whether the bytes of a Korean text file are UTF-8 or CP949: read rightly or refused, never replaced.

UTF-8 read as CP949 and the reverse usually fail, but not always: 345 of the 11,172 syllables have a CP949
form that is also UTF-8, and short runs of UTF-8 happen to be CP949. So a file is judged by many lines, and
one that could be either is refused with both readings.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Literal

from kogpt.errors import InputError

Encoding = Literal["utf-8", "cp949"]
ENCODINGS: tuple[Encoding, ...] = ("utf-8", "cp949")

# A Korean syllable in CP949 is UTF-8 by chance in about one of 30 cases: so many different ones, never.
SURE_CHARACTERS = 8
CLEAR_MAJORITY = 0.9  # of the lines that only one encoding can read; a few odd ones do not change a file
# Chinese and Japanese codes also decode as CP949, into rare syllables and Hanja. Of Korean syllables, 28 to
# 43 % are among these 24, by kind of text (encyclopedia, law, reviews, manuals, dialogue, novels).
MIN_HANGUL = 0.5  # of the characters beyond ASCII
COMMON_SYLLABLES = frozenset("이다는에하의을지가한로고서아니어요기사그를은제도")
MIN_COMMON = 0.05  # of 16 syllables or more

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def detect_encoding(sample: bytes, path: Path) -> Encoding:
    """The encoding of a file by `sample`, whole lines of it with at least one byte beyond ASCII.

    InputError if it is neither, or so short that it could be either.
    """
    if sample.startswith(UTF16_MARKS):
        raise _refusal(path, "it is UTF-16: save it as UTF-8", "UTF-16 파일입니다. UTF-8로 저장해 주세요")
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8"
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    readable = [{code for code in ENCODINGS if decodes(line, code)} for line in lines]
    only = {code: readable.count({code}) for code in ENCODINGS}
    best = max(ENCODINGS, key=lambda code: only[code])
    if only[best] > readable.count(set()) and only[best] >= CLEAR_MAJORITY * sum(only.values()):
        return best if best == "utf-8" else _plausible_cp949(lines, path)
    if all(codes == set(ENCODINGS) for codes in readable):
        return _either(b" ".join(lines), path)
    raise _refusal(
        path,
        f"neither UTF-8 nor CP949: {only['utf-8']} lines are only UTF-8, {only['cp949']} only CP949, "
        f"{readable.count(set())} neither; convert it, or give --encoding",
        f"UTF-8도 CP949도 아닙니다(UTF-8 {only['utf-8']}줄, CP949 {only['cp949']}줄, 둘 다 아님 "
        f"{readable.count(set())}줄). 변환하거나 --encoding을 지정해 주세요",
    )


def decodes(line: bytes, encoding: Encoding) -> bool:
    """Whether the bytes are text in that encoding, strictly."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def looks_korean(text: str) -> bool:
    """Whether what lies beyond ASCII is mostly Hangul, with Korean's common syllables among it."""
    beyond = [character for character in text if not character.isascii()]
    syllables = [character for character in beyond if "가" <= character <= "힣"]
    common = sum(syllable in COMMON_SYLLABLES for syllable in syllables)
    if len(syllables) >= 16 and common < MIN_COMMON * len(syllables):
        return False
    return len(syllables) >= MIN_HANGUL * len(beyond)


def _plausible_cp949(lines: list[bytes], path: Path) -> Encoding:
    readable = b"\n".join(line for line in lines if decodes(line, "cp949"))
    reading = readable.decode("cp949")
    if looks_korean(reading):
        return "cp949"
    raise _refusal(
        path,
        f"not UTF-8, and as CP949 it reads “{_extract(reading)}”, which is not Korean; give --encoding cp949 "
        "if it is right",
        f"UTF-8이 아니며, CP949로 읽으면 “{_extract(reading)}”(으)로 한국어가 아닙니다. "
        "맞다면 --encoding cp949를 지정해 주세요",
    )


def _either(text: bytes, path: Path) -> Encoding:
    """UTF-8 if that many different characters cannot be chance, otherwise a refusal with both readings."""
    utf8, cp949 = text.decode("utf-8"), text.decode("cp949")
    if len({character for character in utf8 if not character.isascii()}) >= SURE_CHARACTERS:
        return "utf-8"
    raise _refusal(
        path,
        f"too short to tell: “{_extract(utf8)}” in UTF-8, “{_extract(cp949)}” in CP949; "
        "give --encoding utf-8 or --encoding cp949",
        f"너무 짧아 구별할 수 없습니다: UTF-8로는 “{_extract(utf8)}”, CP949로는 “{_extract(cp949)}”. "
        "--encoding utf-8 또는 --encoding cp949를 지정해 주세요",
    )


def _extract(text: str) -> str:
    """Up to 30 characters around the first one beyond ASCII, on one line, the invisible ones escaped."""
    first = next((i for i, character in enumerate(text) if not character.isascii()), 0)
    extract = text[max(first - 10, 0) : first + 20]
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in extract)


def _refusal(path: Path, en: str, ko: str) -> InputError:
    return InputError(f"{path}: {en}", f"{path}: {ko}")
