"""A place in a text that the filter found, and texts with such places covered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start to end, without end, and what they are: a kind of personal.KINDS, or "profanity"."""

    start: int
    end: int
    kind: str


def without_overlaps(spans: Iterable[Span]) -> list[Span]:
    """The spans in the order of the text; where some overlap, one of the first kind over all of them."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if found and span.start < found[-1].end:
            last = found.pop()
            span = Span(last.start, max(last.end, span.end), last.kind)
        found.append(span)
    return found
