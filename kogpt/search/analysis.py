"""Text -> terms: the stem of every word, and the character 2-grams within it.

Korean writes particles and verb endings on the word: 서울에서, 서울은. The stem is the word without the
longest of `endings.txt` that it ends in; runs/endings.py wrote that list from a morphological analysis of
Wikipedia. An analysis of every passage takes 20 times as long and finds no more beside the 2-grams, which
also match compounds and stems that were cut wrongly (notes/log.md has the measurement).
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from hashlib import blake2b
from pathlib import Path

VERSION = 1  # of the rules; `version` adds the endings
ENDINGS = Path(__file__).with_name("endings.txt")
GRAM = "#"  # first character of a 2-gram; no word contains it

_WORD = re.compile(r"[가-힣]+|[a-z]+|[0-9]+|[㐀-鿿ぁ-ゖァ-ヺ]+|[^\W_]")
# What a question asks with occurs in no passage, and so would weigh more than what it asks about.
_INTERROGATIVE = re.compile(r"(?:무엇|누구|언제|어디|몇|어느|어떤|얼마|왜|어떻게|무슨|뭐)")
_ASKING = re.compile(r"(?:은|는|인|던|을|나|된|한|였는|했는|있는|었는)?가요?$")


def normalize(text: str) -> str:
    """A text as it is indexed: compatibility forms made plain, lower case. Not for people to read."""
    return unicodedata.normalize("NFKC", text).lower()


find_words = _WORD.findall  # of a normalised text


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of Hangul, Latin letters, digits, or Chinese characters."""
    return find_words(normalize(text))


def is_hangul(word: str) -> bool:
    """Whether a word of `words` is one of Hangul syllables."""
    return "가" <= word[0] <= "힣"


def stem(word: str) -> str:
    """A word without the longest ending that leaves a syllable or more."""
    n = len(word)
    if n > 1 and is_hangul(word):
        endings, longest = _endings()
        for start in range(1 if n <= longest else n - longest, n):
            if word[start:] in endings:
                return word[:start]
    return word


def grams(word: str) -> list[str]:
    """The character 2-grams of a Hangul word, itself if it is one syllable; none of other letters."""
    if not is_hangul(word):
        return []
    return [GRAM + word[i : i + 2] for i in range(max(len(word) - 1, 1))]


def analyse_word(word: str) -> list[str]:
    """The terms of a word: its stem, then its grams."""
    return [stem(word), *grams(word)]


def query_terms(text: str) -> list[str]:
    """The terms of a query, without the words and endings that only make it a question."""
    asked = _ASKING.sub("", text.strip().rstrip("?？.! "))
    kept = " ".join(word for word in asked.split() if not _INTERROGATIVE.match(word))
    found = words(kept) or words(text)
    return [term for word in found for term in analyse_word(word)]


@cache
def version() -> str:
    """What an index must have been made with."""
    return f"{VERSION}-{blake2b(ENDINGS.read_bytes(), digest_size=4).hexdigest()}"


@cache
def _endings() -> tuple[frozenset[str], int]:
    """The endings, and the length of the longest."""
    endings = frozenset(ENDINGS.read_text(encoding="utf-8").split())
    return endings, max(map(len, endings))
