"""Korean text -> sentences, with the place of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A sentence ends with a full stop, a question or exclamation mark and what closes it, before white space; not
# after a number ("3. ") or a single Latin letter ("J. "), unless there are several marks. A run of marks is
# entered at its start alone and never given back: time is linear.
END = re.compile(
    r"(?<![.!?…。])(?:(?<![\s(]\d)(?<!^\d)(?<!\b[A-Za-z])|[.!?…。])[.!?…。]++[\"'”’)\]》」』]*+(?=\s)|\n+"
)
MAX_CHARACTERS = 1000  # a sentence without end is cut here


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence without white space around it, and where it begins in its text."""

    text: str
    start: int


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order; none is empty."""
    found: list[Sentence] = []
    start = 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        for at in range(start, end, MAX_CHARACTERS):
            piece = text[at : min(end, at + MAX_CHARACTERS)]
            if plain := piece.strip():
                found.append(Sentence(plain, at + len(piece) - len(piece.lstrip())))
        start = end
    return found
