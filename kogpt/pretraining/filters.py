"""Which documents are worth training on: a table of small rules, each of which may be left out.

A rule says whether a text in NFC is to be removed; the first one in the table that does is charged with it.
Thresholds follow Gopher (arXiv 2112.11446, appendix A1.1) where it has the rule, and are wide: a rule should
remove what is no text, not what is dull.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from kogpt.errors import InputError

MIN_CHARACTERS = 20
MIN_HANGUL = 0.2  # of the letters
MAX_REPLACEMENTS = 0.001  # U+FFFD among all characters: text that somebody decoded wrongly
MIN_WORD_CHARACTERS = 0.5  # letters and digits among what is not white space
MAX_MEAN_WORD = 40  # characters; spaced Korean has 3 to 4, links and base64 have hundreds
MAX_RUN = 100  # one character over and over
MAX_REPEATED_LINES = 0.3  # Gopher, table A1: share of lines that came before in the document
MAX_COMPRESSION = 10  # zlib, level 1; Korean prose reaches 2 to 4
MIN_COMPRESSED_BYTES = 1000  # shorter texts are not judged by compression

HANGUL = re.compile(r"[가-힣ㄱ-ㆎ\u1100-\u11ff]+")
LETTERS = re.compile(r"[^\W\d_]+")
WORD_CHARACTERS = re.compile(r"[^\W_]+")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
LONG_RUN = re.compile(rf"(\S)\1{{{MAX_RUN},}}")


def too_short(text: str) -> bool:
    """Too few characters to learn from."""
    return len(text.strip()) < MIN_CHARACTERS


def control_characters(text: str) -> bool:
    """Binary data or terminal output."""
    return CONTROL.search(text) is not None


def broken_characters(text: str) -> bool:
    """Replacement characters left by a wrong decoding."""
    return text.count("\ufffd") > MAX_REPLACEMENTS * len(text)


def little_hangul(text: str) -> bool:
    """Another language, or no language."""
    return _count(HANGUL, text) < MIN_HANGUL * max(_count(LETTERS, text), 1)


def mostly_symbols(text: str) -> bool:
    """Tables, rulers, drawings."""
    solid = len("".join(text.split()))
    return _count(WORD_CHARACTERS, text) < MIN_WORD_CHARACTERS * solid


def long_run(text: str) -> bool:
    """One character again and again."""
    return LONG_RUN.search(text) is not None


def long_words(text: str) -> bool:
    """Encoded data and lists of links."""
    words = text.split()
    return sum(map(len, words)) > MAX_MEAN_WORD * len(words)


def repeated_lines(text: str) -> bool:
    """Menus and footers: lines that say the same."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return len(lines) - len(set(lines)) > MAX_REPEATED_LINES * len(lines)


def repetitive(text: str) -> bool:
    """Text that compresses as no prose does."""
    raw = text.encode()
    return len(raw) >= MIN_COMPRESSED_BYTES and len(raw) > MAX_COMPRESSION * len(zlib.compress(raw, 1))


Rule = Callable[[str], bool]

# Cheap ones first: the first rule that removes a document gets the count.
RULES: dict[str, Rule] = {
    "too-short": too_short,
    "control-characters": control_characters,
    "broken-characters": broken_characters,
    "little-hangul": little_hangul,
    "mostly-symbols": mostly_symbols,
    "long-run": long_run,
    "long-words": long_words,
    "repeated-lines": repeated_lines,
    "repetitive": repetitive,
}


def rules_without(left_out: Iterable[str]) -> dict[str, Rule]:
    """The table less some rules; "all" leaves out every one. InputError for a name that is none."""
    names = set(left_out)
    if "all" in names:
        return {}
    if unknown := sorted(names - RULES.keys()):
        raise InputError(
            f"no filter {', '.join(unknown)}; there are {', '.join(RULES)}, and all",
            f"없는 필터입니다: {', '.join(unknown)}. 있는 필터: {', '.join(RULES)}, all",
        )
    return {name: rule for name, rule in RULES.items() if name not in names}


def removed_by(text: str, rules: Mapping[str, Rule]) -> str | None:
    """The name of the first rule that removes the text, if any."""
    return next((name for name, rule in rules.items() if rule(text)), None)


def _count(pattern: re.Pattern[str], text: str) -> int:
    """Characters in all matches."""
    return sum(map(len, pattern.findall(text)))


def tally(names: Iterable[str]) -> dict[str, int]:
    """How many documents each rule removed, in the order of the table."""
    counts = Counter(names)
    return {name: counts[name] for name in RULES if counts[name]}
