"""Text -> terms: the stem of every word, and the character 2-grams within it.

Korean writes particles and verb endings on the word: 서울에서, 서울은. The stem is the word without the
longest of `endings.txt` that it ends in; runs/endings.py wrote that list from a morphological analysis of
Wikipedia. An analysis of every passage takes 20 times as long and finds no more beside the 2-grams, which
also match compounds and stems that were cut wrongly (notes/log.md has the measurement).
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import blake2b
from pathlib import Path

from kogpt.texts import nfkc

VERSION = 1  # of the rules; `version` adds the endings
ENDINGS = Path(__file__).with_name("endings.txt")
GRAM = "#"  # first character of a 2-gram; no word contains it

_WORD = re.compile(r"[가-힣]+|[a-z]+|[0-9]+|[㐀-鿿ぁ-ゖァ-ヺ]+|[^\W_]")
# Interrogatives occur in no passage, and so would weigh more than what is asked about. 왜 and 누가
# also begin nouns (왜구, 누가복음), so they count only as whole words; no noun begins with one of the others.
_INTERROGATIVE = re.compile(
    r"(?:왜(?:인가|인지|일까|죠)?요?|누가|무언가요?)$"
    r"|무엇|뭐|뭘|뭔|뭣|누구|누군|누굴|언제|언젠|어디|어딘|어딜|얼마|어떻|어떠"
    r"|(?:어느|어떤|무슨)(?:것|거)?|몇+"
)
# What may follow an interrogative beside the endings of `endings.txt`.
_FOLLOWING = re.compile(
    r"(?:부터|까지|서|만에?)?"
    r"(?:(?:이었|였|있|했)(?:나|는가|는지|던가)|인가|인지|일까|일지|입니까|습니까|나|게|죠|한가?|가)?(?:요|를|의)?"
)
# Endings of a question. 인가, 은가, 된가 and 한가 need a syllable before them; 상한가 and 하한가 are nouns.
_ASKING = re.compile(r"(?:(?:였|했|있|었)?는|던|(?<=[가-힣])(?:인|은|된|(?<![상하])한))가요?$")


def normalize(text: str) -> str:
    """A text as it is indexed: compatibility forms made plain, lower case. Not for people to read."""
    return nfkc(text).lower()


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
    text = normalize(text)
    found = find_words(text)
    kept = [_content(word) for word in found]
    if kept and (kept != found or "?" in text):  # else it is no question, and 인가 may be a noun
        kept[-1] = _ASKING.sub("", kept[-1])
    kept = [word for word in kept if word] or found
    return [term for word in kept for term in _analyse_asked(word)]


def _analyse_asked(word: str) -> list[str]:
    """The terms of a word of a query, itself among them: 물가 may be 물 and 가, or a stem."""
    terms = analyse_word(word)
    return terms if word == terms[0] else [word, *terms]


def _content(word: str) -> str:
    """A word of a query without its interrogative, and without endings that only follow one."""
    asked = _INTERROGATIVE.match(word)
    if asked is None:
        return word
    rest = word[asked.end() :]
    return "" if rest in _endings()[0] or _FOLLOWING.fullmatch(rest) else rest


@cache
def version() -> str:
    """What an index must have been made with."""
    return f"{VERSION}-{blake2b(ENDINGS.read_bytes(), digest_size=4).hexdigest()}"


@cache
def _endings() -> tuple[frozenset[str], int]:
    """The endings, and the length of the longest."""
    endings = frozenset(ENDINGS.read_text(encoding="utf-8").split())
    return endings, max(map(len, endings))
