"""Normal forms: those of the standard library, in linear time, whatever the marks."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import MODULES

from kogpt import texts
from kogpt.texts import RUN, nfc, nfkc

FORMS: dict[Literal["NFC", "NFKC"], Callable[[str], str]] = {"NFC": nfc, "NFKC": nfkc}
CHARACTERS = [*map(chr, range(sys.maxunicode + 1))]
MARKS = [character for character in CHARACTERS if unicodedata.combining(character)]
# Marks of many classes, what decomposes into marks, what composes, and what ends a run.
PARTS = st.sampled_from(
    [
        *"\u0301\u0316\u0327\u0345\u05b0\u3099\u0344\u0f71\u0f72\u0f73\u0f75\u0f81\uff9e\uff9f",
        *"aeẹế각가ᄀ\u1161\u11a8가…─ \n.1",
    ]
)
RUNS = st.lists(st.tuples(PARTS | st.sampled_from(MARKS), st.integers(1, 40)), max_size=60).map(
    lambda runs: "".join(character * n for character, n in runs)
)
SHUFFLED = st.text(st.sampled_from(MARKS) | PARTS, min_size=RUN, max_size=8 * RUN)


@given(RUNS | SHUFFLED | st.text())
@settings(deadline=None, max_examples=1000)
def test_forms_are_those_of_the_standard_library(text: str) -> None:
    for form, normalize in FORMS.items():
        assert normalize(text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("length", range(RUN - 1, RUN + 9))
def test_a_run_is_found_wherever_it_begins(length: int) -> None:
    marks = ("\u0301\u0316" * length)[:length]
    for n_before in range(2 * texts.STEP):
        text = "가" * n_before + marks + "가"
        assert nfc(text) == unicodedata.normalize("NFC", text)
        assert bool(texts._SAMPLES["NFC"].search(text[:: texts.STEP])) or length < RUN


@pytest.mark.parametrize("form", FORMS)
def test_what_is_taken_for_no_mark_begins_with_none(form: Literal["NFC", "NFKC"]) -> None:
    """Of every character: only so do the runs that are sorted first hold all long runs of marks."""
    mark = re.compile(texts._MARKS[form])
    for character in CHARACTERS:
        parts = unicodedata.normalize(texts._DECOMPOSED[form], character)
        n_marks = sum(unicodedata.combining(part) > 0 for part in parts)
        assert n_marks <= 3
        if not mark.fullmatch(character):
            assert not unicodedata.combining(character) and not unicodedata.combining(parts[0]), character


def seconds(do: Callable[[str], object], text: str) -> float:
    """Of this thread's processor time, whoever else is busy."""
    began = time.thread_time()
    do(text)
    return time.thread_time() - began


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "unit",
    [
        *("\u0301\u0316", "\u0316\u0301", "\u0345\u0344\u0316", "\u0f73\u0f71"),
        *("\uff9e\u0316", "e\u0301\u0316"),
        *("…", "ᄀ\u1161\u0301\u0316", "a" + "\u0301\u0316" * (RUN // 2), "".join(MARKS)),
    ],
)
def test_no_run_of_marks_takes_long(form: Literal["NFC", "NFKC"], unit: str) -> None:
    """One class after the other, or in turn: by insertion 60,000 marks take 2 to 4 s."""
    text = "a" + (unit * 60_000)[:60_000]
    blocks = "a" + "".join(character * (60_000 // len(unit)) for character in unit)
    for run in (text, blocks):
        assert seconds(FORMS[form], run) < 1


def test_the_clock_sees_an_insertion_sort() -> None:
    text = "\u0301" * 8000 + "\u0316" * 8000
    assert seconds(lambda run: unicodedata.normalize("NFC", run), text) > 8 * seconds(nfc, text)


def test_no_other_module_normalises_a_text() -> None:
    """But for single characters, and for a word of an error message."""
    allowed = {"texts", "errors", "tasks.folding", "tasks.personal"}
    call = re.compile(r"unicodedata\.normalize|unicodedata import .*normalize")
    found = {name for name, path in MODULES.items() if call.search(path.read_text(encoding="utf-8"))}
    assert {name.removeprefix("kogpt.") for name in found} <= allowed
