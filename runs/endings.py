"""Write kogpt/search/endings.txt: the particles and verb endings that search cuts off words.

Kiwi (pip install kiwipiepy) analyses the words of Korean Wikipedia, each by itself. A syllable sequence is an
ending if it is one in at least MIN_SHARE of the words that end in it, and in at least MIN_WORDS.

    python runs/endings.py CORPUS/train_kowiki_00.jsonl.zst
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from kogpt.search.analysis import ENDINGS
from kogpt.texts import read_text, text_lines

N_WORDS = 150_000  # different words that are analysed
MIN_WORDS, MIN_SHARE = 5, 0.3
MAX_SYLLABLES = 5
HANGUL = re.compile("[가-힣]{2,}")
# Tags of the Sejong set: particles (J), endings (E), copulas, and suffixes and auxiliaries of verbs.
OTHERS = {"VCP", "VCN", "XSV", "XSA", "VX"}


def read_words(path: Path) -> list[str]:
    """The first N_WORDS different words of Hangul alone."""
    found: dict[str, None] = {}
    for _, line in text_lines(read_text(path)):
        found.update(dict.fromkeys(filter(HANGUL.fullmatch, json.loads(line)["text"].split())))
        if len(found) >= N_WORDS:
            break
    return list(found)[:N_WORDS]


def ending_of(word: str, morphemes: Iterable[tuple[str, str]]) -> str | None:
    """The part of a word from its first particle or ending on; None where its stem is contracted with it."""
    start = 0
    for form, tag in morphemes:
        if tag[0] in "JE" or tag in OTHERS:
            return word[start:]
        if not word.startswith(form, start):
            return None
        start += len(form)
    return ""


def analyse(words: list[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each word with its morphemes as (form, tag)."""
    from kiwipiepy import Kiwi

    for word, tokens in zip(words, Kiwi().tokenize(words), strict=True):
        yield word, [(token.form, token.tag) for token in tokens]


def find_endings(analysed: Iterable[tuple[str, list[tuple[str, str]]]]) -> list[str]:
    """The endings, the most frequent first."""
    seen: Counter[str] = Counter()
    meant: Counter[str] = Counter()
    for word, morphemes in analysed:
        if (ending := ending_of(word, morphemes)) is None:
            continue
        seen.update(word[-n:] for n in range(1, min(MAX_SYLLABLES, len(word) - 1) + 1))
        if len(ending) < len(word):
            meant[ending] += 1
    return [e for e, n in meant.most_common() if e and n >= MIN_WORDS and n >= MIN_SHARE * seen[e] > 0]


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    endings = find_endings(analyse(read_words(parser.parse_args().corpus)))
    ENDINGS.write_text("\n".join(endings) + "\n", encoding="utf-8")
    print(f"{len(endings)} endings -> {ENDINGS}")


if __name__ == "__main__":
    main()
