"""A text as a string of Hangul letters without what writers put between them, and where each stood.

"시1발", "시 발", "ㅅㅣㅂㅏㄹ", NFD and half-width letters all fold to the same letters. The filter looks for
words in the folded string and covers the places that their letters came from.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = (  # a final consonant as its letters, in the order of Unicode
    *(
        "",
        "ㄱ",
        "ㄲ",
        "ㄱㅅ",
        "ㄴ",
        "ㄴㅈ",
        "ㄴㅎ",
        "ㄷ",
        "ㄹ",
        "ㄹㄱ",
        "ㄹㅁ",
        "ㄹㅂ",
        "ㄹㅅ",
        "ㄹㅌ",
        "ㄹㅍ",
    ),
    *("ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ", "ㅎ"),
)
DOUBLES = {"ㄳ": "ㄱㅅ", "ㄵ": "ㄴㅈ", "ㄶ": "ㄴㅎ", "ㄺ": "ㄹㄱ", "ㄻ": "ㄹㅁ", "ㄼ": "ㄹㅂ", "ㄽ": "ㄹㅅ"}
DOUBLES |= {"ㄾ": "ㄹㅌ", "ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ", "ㅄ": "ㅂㅅ"}
# Letters that are taken for each other where a word is disguised (씨발, 씌발, 쉬발).
ALIKE = str.maketrans("ㄲㄸㅃㅆㅉㅐㅒㅖㅙㅚㅞㅑㅕㅛㅠㅢㅟ", "ㄱㄷㅂㅅㅈㅔㅔㅔㅔㅔㅔㅏㅓㅗㅜㅣㅣ")

OTHER = "#"  # stands for a letter that no word has
MAX_LETTERS = 4  # of one character
_PLANE = 0x10000  # characters of the basic plane; those above it are taken for symbols


@dataclass(frozen=True, slots=True)
class Folded:
    """N letters of a text, and where they come from."""

    letters: str  # (N,)
    places: NDArray[np.int64]  # (N,) of the character that each letter is a part of
    heads: NDArray[np.bool_]  # (N,) whether a letter is the first of its character

    def alike(self) -> str:
        """The letters with look-alikes made equal, (N,)."""
        return self.letters.translate(ALIKE)


def fold(text: str) -> Folded:
    """The letters of a text. A vowel that is only drawn out ("시이이발") is dropped."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    letters = _table()[np.minimum(codes, _PLANE)]  # (T, MAX_LETTERS)
    present = letters != 0
    characters, position = np.nonzero(present)
    flat, heads = letters[present], position == 0
    keep = ~_drawn_out(flat, heads)
    return Folded(flat[keep].astype("<u4").tobytes().decode("utf-32-le"), characters[keep], heads[keep])


def plain_letters(text: str) -> str:
    """The text with its syllables as letters, everything else as it is."""
    return "".join(
        _syllable(ord(character) - 0xAC00) if "가" <= character <= "힣" else character for character in text
    )


def letters_of(word: str) -> str:
    """The letters of a word of Hangul."""
    return fold(word).letters


def _drawn_out(flat: NDArray[np.uint32], heads: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) the letters of syllables that repeat the vowel before them: 이 of 시이발."""
    drop = np.zeros(len(flat), np.bool_)
    if len(flat) < 3:
        return drop
    again = heads[1:-1] & (flat[1:-1] == ord("ㅇ")) & ~heads[2:] & (flat[2:] == flat[:-2]) & ~heads[:-2]
    again &= np.append(heads[3:], True)  # no final consonant
    found = np.flatnonzero(again) + 1
    drop[found] = drop[found + 1] = True
    return drop


@cache
def _table() -> NDArray[np.uint32]:
    """(_PLANE + 1, MAX_LETTERS) codes of the letters of each character; zeros for what is dropped."""
    table = np.zeros((_PLANE + 1, MAX_LETTERS), np.uint32)
    table[0x3400:0xA000, 0] = ord(OTHER)  # Hanja
    for start, end in ((0, 0x3400), (0xA000, 0xD800), (0xF900, _PLANE)):
        for code in range(start, end):
            found = _syllable(code - 0xAC00) if 0 <= code - 0xAC00 < 11172 else _letters(chr(code))
            table[code, : len(found)] = [ord(letter) for letter in found]
    return table


def _syllable(index: int) -> str:
    """The letters of the syllable with this index from U+AC00."""
    return INITIALS[index // 588] + VOWELS[index // 28 % 21] + FINALS[index % 28]


def _letters(character: str) -> str:
    """The letters of a character that is no syllable; none of a symbol, a digit or white space."""
    if "ㄱ" <= character <= "ㅣ":
        return DOUBLES.get(character, character)
    normal = unicodedata.normalize("NFKC", character)[:1] or character
    code = ord(normal)
    if 0x1100 <= code < 0x1113:
        return INITIALS[code - 0x1100]
    if 0x1161 <= code < 0x1176:
        return VOWELS[code - 0x1161]
    if 0x11A8 <= code < 0x11C3:
        return FINALS[code - 0x11A7]
    if not unicodedata.category(character).startswith("L") or character == "\u3164":  # HANGUL FILLER
        return ""
    return normal.lower()[:1] if normal.isascii() else OTHER
