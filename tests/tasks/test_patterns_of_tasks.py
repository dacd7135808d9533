"""Every regular expression that a text of a request or of a file meets takes linear time."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import kogpt.search
import kogpt.server
import kogpt.tasks
from kogpt import grammar, patterns
from kogpt.tasks import personal
from kogpt.tasks.answers import Source, find_evidence
from kogpt.tasks.filter import JOINED, OPEN, WORD, TextFilter
from kogpt.tasks.sentences import split_sentences
from kogpt.tasks.summaries import make_title, summarize

UNITS = (
    *(".", " ", "1", '"', ")", "(", "[", "{", "\n", "…", "가", "공", "@", "-", "\\", "a"),
    *("()", "1 ", "1.", '"\\', "공 ", "a.", "가로 ", "1-", "[\\", ". ", "。”"),
)
BOUNDED = (*OPEN, WORD, JOINED)  # of FilteredStream, which shows them the last characters of a line alone
SECONDS = 1.0  # a linear one takes some hundredths


def runs(n: int) -> Iterator[str]:
    """Texts of one thing over and over; after some a letter, so that a match to the end fails."""
    for unit in UNITS:
        run = (unit * n)[:n]
        yield from (run, run + "가")


def modules() -> Iterator[ModuleType]:
    for package in (kogpt.tasks, kogpt.server, kogpt.search):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)
    yield from (patterns, grammar)


def found_in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str) and value not in BOUNDED:
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from found_in(part)


def all_patterns() -> list[re.Pattern[str]]:
    values = [value for module in modules() for value in vars(module).values()]
    rules = [rule.pattern for rule in personal.RULES]
    return list(dict.fromkeys(pattern for value in [*values, *rules] for pattern in found_in(value)))


def seconds(do: Callable[..., object], *given: object) -> float:
    """Processor time of this thread, without collections of what other tests hold."""
    gc.disable()
    began = time.thread_time()
    do(*given)
    spent = time.thread_time() - began
    gc.enable()
    return spent


@pytest.mark.parametrize("pattern", all_patterns(), ids=lambda pattern: pattern.pattern[:30])
def test_no_run_takes_a_pattern_long(pattern: re.Pattern[str]) -> None:
    for text in runs(20_000):
        spent = seconds(pattern.sub, "", text)
        assert spent < SECONDS, (text[:4], spent)


@pytest.mark.parametrize("unit", [*UNITS, "강남시 ", "가로 1", "서울 1가 ", "공1 ", "a@", "①", "\u200b"])
def test_no_run_takes_a_stream_long(unit: str) -> None:
    """The patterns that are shown the last characters of a line alone, piece by piece."""
    stream = TextFilter("mask").stream()
    text = (unit * 4000)[:4000]
    spent = seconds(lambda: [stream.push(text[start : start + 100]) for start in range(0, len(text), 100)])
    assert spent < SECONDS, spent


def test_sentences_of_the_longest_text_come_at_once() -> None:
    for n in (20_000, 200_000):
        for text in runs(n):
            spent = seconds(split_sentences, text)
            assert spent < SECONDS, (n, text[:4], spent)
        dots = "." * n
        assert seconds(summarize, dots) + seconds(make_title, dots) < SECONDS
        assert seconds(find_evidence, "무엇?", [Source(dots)]) < SECONDS


def test_an_end_needs_white_space_and_no_number_before_it() -> None:
    for text, wanted in (
        ("하나. 둘.. 셋", ["하나.", "둘..", "셋"]),
        ('하나." 둘', ['하나."', "둘"]),
        ("3. 하나", ["3. 하나"]),
        ("3.. 하나", ["3..", "하나"]),
        ("J. 하나", ["J. 하나"]),
        ("1.5 하나...) 둘", ["1.5 하나...)", "둘"]),
    ):
        assert [sentence.text for sentence in split_sentences(text)] == wanted
