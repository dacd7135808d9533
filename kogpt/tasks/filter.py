"""Covers or cuts off profanity and personal data in text, whole or while it streams.

A stream shows what `TextFilter.apply` shows of the whole text, piece by piece: an end that could still become
a part of something is held back. That is the last word, a number with the words after it, or the beginning of
an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kogpt.errors import InputError
from kogpt.tasks.folding import fold
from kogpt.tasks.personal import (
    ALOUD,
    AT,
    CITIES,
    LABEL_REACH,
    LONE_ROAD,
    LONGEST,
    REGION,
    ROAD,
    STREET,
    find_personal,
    plain_copies,
    without_invisible,
)
from kogpt.tasks.profanity import Judgement, find_profanity, is_beginning
from kogpt.tasks.spans import Span, without_overlaps

Mode = Literal["off", "mask", "block"]
MODES: tuple[Mode, ...] = ("off", "mask", "block")
COVER = "*"
HELD_WORD = 64  # characters of a word without end that are held back at most
BEFORE = 2 * LONGEST  # characters before the held end that are looked at again
UNSEEN = 16 * BEFORE  # characters, invisible ones included, within which BEFORE visible ones are sought
CLOSED = 4  # characters after a number that end it
LONG_NUMBER = 6  # digits of a number that a label behind it can make personal data
SPACED_WORD = 24  # characters of a swear or a harmless word with white space between its letters

NUMBER = re.compile(r"\d(?:[ ()\-./·,]{0,3}\d| ?[가-힣A-Za-z] ?\d)*")
# Ends of a text that may become an item.
HOUSE_BEGUN = r"\d[0-9번지동하층호차, \-]{0,36}"
OPEN = (
    re.compile(rf"[\d{ALOUD}](?:[ \-.]?[\d{ALOUD}])*[ \-.]?$"),
    re.compile(
        rf"[A-Za-z0-9][A-Za-z0-9._%+\-]{{0,63}}(?: |{AT}[A-Za-z0-9.\-]*| ?[(\[](?:at?)?| 골(?:뱅이?)?)$"
    ),
    re.compile(rf"(?:{REGION} [가-힣]{{0,9}}|{CITIES}(?:[가-힣0-9.·]{{0,24}}|{STREET}(?:{HOUSE_BEGUN})?))$"),
    re.compile(rf"{ROAD}(?:{HOUSE_BEGUN})?$|{LONE_ROAD}.{{0,{LABEL_REACH + 1}}}$"),
)
WORD = re.compile(r"\S+$")
JOINED = re.compile(rf"(?:{CITIES}(?:{STREET})?|{REGION} |\S+)$")  # words that lead to a number
WORD_START = re.compile(r"(?<!\S)\S")


@dataclass(frozen=True, slots=True)
class TextFilter:
    """What is done about profanity and personal data.

    mask: each of their letters and digits becomes a star. block: the text ends before the first of them.
    """

    mode: Mode = "mask"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(
                f"there is no filter {self.mode!r}: choose from {', '.join(MODES)}",
                f"{self.mode!r} 필터는 없습니다 (가능: {', '.join(MODES)})",
            )

    def spans(self, text: str) -> list[Span]:
        """Profanity and personal data in a text, in its order."""
        return find_spans(text)

    def apply(self, text: str) -> tuple[str, bool]:
        """The text as it is shown, and whether it was cut off."""
        stream = self.stream()
        shown, cut = stream.push(text)
        rest, cut_later = ("", False) if cut else stream.flush()
        return shown + rest, cut or cut_later

    def stream(self) -> FilteredStream:
        """A filter of one text that arrives in pieces."""
        return FilteredStream(self.mode)


@dataclass(frozen=True, slots=True)
class Screened:
    """A text as it is shown, what was found where in the text as it was, and what it is as a whole."""

    text: str
    found: Sequence[Span]
    judgement: Judgement

    def record(self) -> dict[str, Any]:
        """As JSON takes it; the names are stable."""
        found = [{"start": span.start, "end": span.end, "kind": span.kind} for span in self.found]
        return {"text": self.text, "found": found, **asdict(self.judgement)}


def screen(text: str, judgement: Judgement, mode: Mode = "mask") -> Screened:
    """A whole text through the filter. judgement: profanity.judge of it, or `judge_all` by a model too."""
    screened = TextFilter(mode)
    return Screened(screened.apply(text)[0], screened.spans(text), judgement)


def find_spans(text: str) -> list[Span]:
    """Profanity and personal data in a text, in its order; no item runs over a line break."""
    found: list[Span] = []
    start = 0
    for line in text.split("\n"):
        both = without_overlaps([*find_personal(line), *find_profanity(line)])
        found += (Span(span.start + start, span.end + start, span.kind) for span in both)
        start += len(line) + 1
    return found


def covered(text: str, spans: Sequence[Span]) -> str:
    """The text with the letters and digits of the spans as stars; white space and signs stay."""
    parts, at = [], 0
    for span in spans:
        item = text[span.start : span.end]
        parts += [text[at : span.start], "".join(COVER if c.isalnum() else c for c in item)]
        at = span.end
    return "".join([*parts, text[at:]])


@dataclass(slots=True)
class FilteredStream:
    """One text while it arrives."""

    mode: Mode
    _line: str = field(default="", init=False)  # the end of the last line that may have to be looked at again
    _shown: int = field(default=0, init=False)  # how much of it is shown

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; what can be shown now, and whether the text ends here."""
        if self.mode == "off":
            return text, False
        *whole, last = text.split("\n")
        shown: list[str] = []
        for line in whole:
            self._line += line
            piece, cut = self._show(len(self._line))
            shown.append(piece)
            if cut:
                return "".join(shown), True
            shown.append("\n")
            self._line, self._shown = "", 0
        self._line += last
        piece, cut = self._show(None)
        return "".join([*shown, piece]), cut

    def flush(self) -> tuple[str, bool]:
        """The text held back, once no more will come, and whether it is cut off."""
        piece, cut = self._show(len(self._line))
        self._line, self._shown = "", 0
        return piece, cut

    def _show(self, end: int | None) -> tuple[str, bool]:
        """What of the line is shown up to an end, or up to what may still change if None."""
        line, start, spans = self._line, self._shown, find_spans(self._line)
        end = max(held_from(line, spans), start) if end is None else end
        # An item whose beginning was shown is covered from there on.
        here = [
            Span(max(span.start - start, 0), span.end - start, span.kind)
            for span in spans
            if span.start < end and span.end > start
        ]
        if self.mode == "block" and here:
            return line[start : start + here[0].start], True
        self._shown = end
        self._forget(spans)
        return covered(line[start:end], here), False

    def _forget(self, spans: Sequence[Span]) -> None:
        """Let go of what was shown long ago: up to a white space, or anywhere in a run without one.

        Never a part of an item: the rest of it would be taken for the beginning of another.
        """
        if self._shown > 3 * BEFORE:
            at = self._line.rfind(" ", 0, _seen_before(self._line, self._shown, BEFORE))
            if at <= 0 and self._shown > UNSEEN:
                at = _seen_before(self._line, self._shown, 2 * BEFORE)
            at = min((span.start for span in spans if span.start < at < span.end), default=at)
            if at > 0:
                self._line, self._shown = self._line[at:], self._shown - at


def held_from(line: str, spans: Sequence[Span]) -> int:
    """Where the end of a line begins that may still become a part of something."""
    end = len(line)
    first = _seen_before(line, end, BEFORE)
    tail = line[first:]
    held = min((first + start for start in _open_starts(tail)), default=end)
    for span in reversed(spans):
        if span.start < held < span.end or span.end >= end - 1 or _may_be_harmless(span, line):
            held = min(held, span.start)
    return held


def _seen_before(text: str, end: int, n_seen: int) -> int:
    """Where the last n characters that are seen before an end begin, or UNSEEN characters if they reach
    further."""
    first = max(0, end - UNSEEN)
    seen, places = without_invisible(text[first:end])
    return first + places[max(0, len(seen) - n_seen)]


def _open_starts(tail: str) -> Iterator[int]:
    """Starts of everything at the end of a text that may go on."""
    seen, places = without_invisible(tail)
    if word := WORD.search(seen):
        yield places[max(word.start(), len(seen) - HELD_WORD)]
    for plain in plain_copies(seen):
        yield from (places[start] for start in _open_items(plain))
    yield from _beginnings_of_words(tail)


def _open_items(plain: str) -> Iterator[int]:
    """Starts of personal data at the end of a plain copy that may go on."""
    end = len(plain)
    for pattern in OPEN:
        if match := pattern.search(plain, max(0, end - LONGEST)):
            yield match.start()
    for match in NUMBER.finditer(plain):
        n_digits, after = sum(map(str.isdecimal, match.group())), end - match.end()
        if after < CLOSED or (n_digits >= LONG_NUMBER and after <= LABEL_REACH + 1):
            before = JOINED.search(plain, max(0, match.start() - HELD_WORD), match.start())
            yield before.start() if before else match.start()


def _beginnings_of_words(tail: str) -> Iterator[int]:
    """Starts of words whose letters up to the end are the beginning of a swear word."""
    start = max(0, len(tail) - SPACED_WORD)
    for match in WORD_START.finditer(tail, start):
        if is_beginning(fold(tail[match.start() :])):
            yield match.start()


def _may_be_harmless(span: Span, line: str) -> bool:
    """Whether a harmless word may go on from a swear word to the end of a line and further: 새끼를 낳았다."""
    if span.kind != "profanity" or len(line) - span.start > SPACED_WORD:
        return False
    return any(is_beginning(fold(line[start:])) for start in range(span.start, span.end))
