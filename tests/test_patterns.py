"""Patterns that split text: published ones are taken, and whatever is taken is fast on any text."""

from __future__ import annotations

import math
import re
import time

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from korean import SYLLABLES

from kogpt.patterns import MAX_PATTERN, is_linear, n_ways

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PUBLISHED = {
    "kogpt-mini": r" ?[\p{L}\p{M}]+| ?\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\r?\n|[^\S\r\n]+(?!\S)|\s+",
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "GPT-4": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "GPT-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
    "possessive": rf"[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|{SPACES}",
    "digits": r"\p{N}",
    "Korean": r"[\uac00-\ud7a3]+(?:은|는)?|\(\)+|[()*+]+",
}
SLOW = [
    *(r"(a+)+$", r"(?:a|aa)+\z", r"(.*)*b", r"(a)\1", r"(a{1,3}){2,}", r"a{1,2}+", r"(?x)(a)", r"((a)?)+"),
    *(
        r"(?<n>a)\g<n>",
        r"[a[b)+]c]",
        r"(?~ab)",
        r"a+*",
        r"(a+)?+",
        r"[[:alpha:]]",
        r"\s*\s*\s*x",
        r"(a?)?{9}",
    ),
    *(
        r"\p{L}*\p{L}*\d",
        r"\p{L}*\d",
        r"\p{L}+\d|\p{L}",
        r"(?:\p{L}*|a)(?:\p{L}*|b)\d",
        r"\p{L}+(?=\p{L}*\d)",
    ),
    *(
        r"(?!\p{L}*\d)\p{L}",
        r"(?=\p{L}+)\p{L}",
        r"(?:\p{L}*\d|)\p{L}",
        r"\p{L}*\d|\p{L}+?|\p{L}+",
        r"a(b",
        r"a)b",
    ),
    *(
        r"\p{L}?" * 40 + r"\d",
        r"(?:a|a)" * 30 + "b",
        r"\p{L}{1,9}" * 9 + r"\d",
        r"\p{L}{1000}\d",
        "|".join("a" * 400),
    ),
    *(r"[^\S&&x]+y|\s+", r"[^\S\n&&a]+b|\s+", r"[a&&b]", r"[\&&&a]", r"[^&&]"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_linear(name: str) -> None:
    assert is_linear(PUBLISHED[name])


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_a_text_can_make_slow_are_not(pattern: str) -> None:
    assert not is_linear(pattern)


def test_a_long_pattern_is_not_read() -> None:
    assert is_linear("a" * MAX_PATTERN) and not is_linear("a" * (MAX_PATTERN + 1))


ATOMS = st.sampled_from(["a", "b", r"\p{L}", r"\s", "[ab]", r"[^\S\n]", r"[^\S&&b]", r"[^\S&b]", "."])
QUANTIFIERS = st.sampled_from(["", "", "*", "+", "?", "*?", "++", "{1,3}", "{2,}"])
PIECES = st.tuples(ATOMS, QUANTIFIERS).map("".join)
SEQUENCES = st.lists(PIECES, min_size=1, max_size=4).map("".join)
GROUPS = st.tuples(st.sampled_from(["(?:", "(?=", "(?!", "(?i:"]), SEQUENCES, st.sampled_from([")", ")?"]))
ALTERNATIVES = st.lists(PIECES | GROUPS.map("".join), min_size=1, max_size=4).map("".join)
PATTERNS = st.lists(ALTERNATIVES, min_size=1, max_size=4).map("|".join)


def seconds(pattern: str, text: str) -> float:
    """CPU seconds to split a text. Adjacent matches become one piece, so matching takes most of the time."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "contiguous")
    started = time.process_time()
    split.pre_tokenize_str(text)
    return time.process_time() - started


@given(PATTERNS.filter(is_linear))
@settings(deadline=None, max_examples=100)
def test_whatever_is_linear_is_fast(pattern: str) -> None:
    """Runs of letters and of spaces, with and without an end; `\\p{L}*\\d` takes 1.5 s on the first."""
    try:
        tokenizers.Regex(pattern)
    except Exception:  # the library raises nothing more specific
        assume(False)
    for text in ("a" * 8000, "ab" * 4000, " " * 8000, "a" * 4000 + " " * 4000 + "1", " \n" * 4000):
        assert seconds(pattern, text) < 0.4, (pattern, text[:5])


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("run", [SYLLABLES * 9, " " * 100_000, "A" * 100_000, " \n" * 50_000, "1" * 100_000])
def test_published_patterns_split_long_runs_at_once(name: str, run: str) -> None:
    assert seconds(PUBLISHED[name], run) < 2


def test_the_clock_sees_a_slow_pattern() -> None:
    assert seconds(r"\p{L}*\p{L}*\d", "가" * 300) > 8 * seconds(r"\p{L}*\p{L}*\d", "가" * 75)


# ------------------------------------------------------------------------------------------ of short names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        *((r"h\.0\.attn", 1), (r"h\.(0|1)\.mlp", 2), (r"h\.\d+\.mlp", 48), (".*", 48), (".*.*", 48**2)),
        *((".?" * 20 + "Z", 2**20), ("(a|a)?" * 9, 3**9), ("a{0,4}b{2,3}", 10), ("a|b*", 49)),
        *((r"(a)\1", math.inf), ("(a*)*", math.inf), ("a" * 1001, math.inf), ("(?=.*a)b", 48)),
    ],
)
def test_ways_are_counted(pattern: str, expected: float) -> None:
    assert n_ways(pattern, 48) == expected


NAMED = st.sampled_from(["a", ".", "[ab]", r"\w", r"\."])
OPTIONAL = st.sampled_from(["", "", "*", "+", "?", "*?", "{0,3}", "{2,}"])
PARTS = st.lists(st.tuples(NAMED, OPTIONAL).map("".join), min_size=1, max_size=8).map("".join)
OF_NAMES = st.lists(PARTS | PARTS.map("({})?".format), min_size=1, max_size=4).map("|".join)


@given(st.lists(OF_NAMES, min_size=1, max_size=3).map("".join))
@settings(deadline=None, max_examples=300)
def test_few_ways_take_little_time(pattern: str) -> None:
    """By Python's matcher, as peft.py uses it; `.?` twenty times takes 30 ms, and 24 times half a second."""
    assume(n_ways(pattern, 48) <= 1 << 14)
    found = re.compile(rf"(?:.*\.)?(?:{pattern})")
    for name in ("a" * 47 + "!", "aab." * 11 + "aab!"):
        started = time.thread_time()
        found.fullmatch(name)
        assert time.thread_time() - started < 0.1, pattern
