"""What a user can get wrong, as exceptions.

    KoGPTError                the base: one clear line, in Korean or English by locale; exit code 2
      ConfigError             dimensions that are impossible or not a GPT-J
      CheckpointError         a model folder that is missing, damaged, foreign or hostile
      TokenizerError          a tokenizer file that is missing, damaged or does not fit the model
      SamplingError           a generation setting outside its range
      PromptError             a prompt that is empty, too long or not text
      InputError              an input file or stream that cannot be read as what it claims to be
      DiskError               a disk that is full, broken or read-only
      NotEnoughMemory         the model would not fit; raised before anything is allocated
      NotFinite               the model computed numbers that are not finite
      MissingExtra            a capability whose optional packages are not installed

Each message names the value, the limit and the remedy. Bugs of ours are `assert`s, never one of these.
"""

from __future__ import annotations

import os
import re
import unicodedata

# What a Korean reader hears at the end of a word that is not written in Hangul.
_ENDS_IN_CONSONANT = frozenset("0136780LMNR")  # 영 일 삼 육 칠 팔, 엘 엠 엔 알
_ENDS_IN_RIEUL = frozenset("178LR")  # 일 칠 팔, 엘 알
_POWERS_OF_TEN = re.compile(r"[1-9]\d*?(0+)")
_ENGLISH_CONSONANT = re.compile(r"(?:[lmn]e?|ng|[aeiou](?:ck|k|p|t)|pe)$")  # 모델 네임 토큰 / 톱 포맷 타입
_CLOSING = re.compile(r"(?:\([^()]*\)|\((?![^()]*\))|[^\w%(])++$")  # one way to match: it fails at once
_END = 400  # characters of a word that its last sound may hang on


def prefers_korean() -> bool:
    """Whether the environment's message locale is Korean (POSIX precedence)."""
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")
    locale = next((value for name in variables if (value := os.environ.get(name))), "")
    return locale.startswith("ko")


def localized(en: str, ko: str) -> str:
    """The one of two equivalent texts that suits the user's locale."""
    return ko if prefers_korean() else en


def columns(text: str) -> int:
    """Columns of a text on a terminal: a Hangul syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def clip(text: str, width: int) -> str:
    """The beginning of a text that fits so many columns of a terminal; "…" ends it where more followed."""
    if columns(text) <= width:
        return text
    while text and columns(text) >= width:
        text = text[:-1]
    return f"{text}…"[:width]


def pad(text: str, width: int, right: bool = False) -> str:
    """The text in so many columns of a terminal, at their left or right end."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def josa(word: object, pair: str) -> str:
    """`word` with the particle of `pair` that fits it: josa("모델", "이/가") is "모델이".

    pair: the form after a consonant, then the form after a vowel, as in "은/는" or "으로/로".
    Numbers and Latin letters count as a Korean reads them aloud; quotes, brackets and what is in trailing
    parentheses do not count. What cannot be read aloud keeps both: "大이(가)".
    """
    after_consonant, after_vowel = pair.split("/")
    coda = _coda(_CLOSING.sub("", unicodedata.normalize("NFC", str(word)[-_END:])))
    if coda is None:
        return f"{word}{after_consonant}({after_vowel})"
    with_vowel = coda == "" or (coda == "ㄹ" and after_consonant.startswith("으"))
    return f"{word}{after_vowel if with_vowel else after_consonant}"


def _coda(word: str) -> str | None:
    """Final consonant of a word as it is read aloud: "", "ㄹ", "other", or None where nobody can say."""
    last = word[-1:]
    if "가" <= last <= "힣":
        coda = (ord(last) - ord("가")) % 28
        return {0: "", 8: "ㄹ"}.get(coda, "other")
    if last == "%":
        return ""  # 퍼센트
    if not last.isascii() or not last.isalnum():
        return None
    digits = re.search(r"[\d,]*$", word)
    number = digits.group().replace(",", "") if digits else ""
    if zeros := _POWERS_OF_TEN.fullmatch(number):
        return "" if 12 <= len(zeros.group(1)) < 16 else "other"  # 십 백 천 만 억, but 조
    letters = re.search(r"[A-Za-z]*$", word)
    name = letters.group() if letters else ""
    if len(name) > 1 and not name.isupper():
        found = _ENGLISH_CONSONANT.search(name.lower())
        return "" if found is None else "ㄹ" if found.group() in ("l", "le") else "other"
    last = last.upper()
    return "ㄹ" if last in _ENDS_IN_RIEUL else "other" if last in _ENDS_IN_CONSONANT else ""


class KoGPTError(ValueError):
    """A mistake that the user can mend; `str()` gives the line in the user's language."""

    def __init__(self, en: str, ko: str) -> None:
        super().__init__(en, ko)
        self.en = en
        self.ko = ko

    def __str__(self) -> str:
        return localized(self.en, self.ko)


class ConfigError(KoGPTError):
    """Dimensions that are impossible, or a config that is not a GPT-J's."""


class CheckpointError(KoGPTError):
    """A model folder that is missing, damaged, foreign or hostile."""


class TokenizerError(KoGPTError):
    """A tokenizer file that is missing, damaged or does not fit the model."""


class SamplingError(KoGPTError):
    """A generation setting outside its range."""


class PromptError(KoGPTError):
    """A prompt that is empty, too long or not text."""


class InputError(KoGPTError):
    """An input file or stream that cannot be read as what it claims to be."""


class DiskError(KoGPTError):
    """A disk that is full, broken or read-only."""


class NotEnoughMemory(KoGPTError):
    """The model would not fit, or a step found no memory. Nothing of what was asked for remains."""


class NotFinite(KoGPTError):
    """The model computed numbers that are not finite: its weights are damaged, or a format overflowed."""


class MissingExtra(KoGPTError):
    """A capability whose optional packages are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed: pip install 'kogpt[{extra}]'",
            f"{what}: 필요한 패키지가 설치되어 있지 않습니다: pip install 'kogpt[{extra}]'",
        )
