"""Whether a regular expression from a file splits any text in linear time, by its syntax alone.

The `tokenizers` library matches with Oniguruma, which backtracks: `\\p{L}*\\p{L}*\\d` takes cubic time on
letters without a digit, `(a+)+$` exponential time. A tokenizer.json may come from anybody, so a pattern is
accepted only if no text can make it slow. Patterns of published byte-level tokenizers (GPT-2, GPT-4, GPT-4o,
Llama 3, DeepSeek) are accepted.

The rule: a pattern is a list of alternatives, tried in turn at every position of the text. An alternative is
cheap if nothing that can fail follows an unbounded repeat. It is costly if such a repeat is followed by an
item that can fail: then a whole run of characters is read, in vain, from one position. A costly alternative
is allowed only if the next one reads on over the same run, so that no later position begins inside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_PATTERN = 1000  # characters
MAX_COUNT = 16  # in {n,m}
MAX_CHOICES = 256  # alternatives and optional items, multiplied where they follow each other

_ESCAPE = r"\\[pP]\{\^?\w+\}|\\[sSdDwWrntNhH]|\\u[0-9A-Fa-f]{4}|\\[^\w\s]"
_TOKEN = re.compile(
    rf"(?P<atom>{_ESCAPE}|\[\^?(?:(?!&&)(?:{_ESCAPE}|[^\[\]\\]))+\]|[^\\\[\]()|*+?{{}}])"
    r"(?P<quantifier>(?:[*+?][?+]?|\{\d+(?:,\d*)?\})?)(?![*+?{])"
    r"|(?P<open>\((?:\?(?:i?:|<?[!=]))?)"
    r"|(?P<close>\)\??)(?![*+?{])"
    r"|(?P<bar>\|)"
)


@dataclass(frozen=True, slots=True)
class _Item:
    """One atom with its quantifier, or one group.

    For a run of n characters, an item can match in about choices * n**ways ways, and it reads n**cost
    characters before it fails.
    """

    can_fail: bool
    ways: int = 0
    choices: int = 1
    cost: int = 0
    run: str = ""  # the atom that is repeated without bound
    greedy: bool = True


_Sequence = list[_Item]


def is_linear(pattern: str) -> bool:
    """Whether splitting a text by this pattern takes time in proportion to the text's length.

    False also for syntax that is not known here: quantifiers after groups other than `?`, back references,
    recursion, named and atomic groups, POSIX classes, intersections of classes (`&&`).
    """
    alternatives = _parsed(pattern) if len(pattern) <= MAX_PATTERN else None
    if alternatives is None:
        return False
    groups = [_group(sequence) for sequence in alternatives]
    if sum(group.choices for group in groups) > MAX_CHOICES:
        return False
    pairs = pairwise([*zip(alternatives, groups, strict=True), ([], _Item(can_fail=True))])
    return all(
        group.cost == 0 or (group.cost == 1 and _reads_on(following, _run_in_vain(sequence)))
        for (sequence, group), (following, _) in pairs
    )


def n_ways(pattern: str, length: int) -> float:
    """In how many ways, at most, a pattern tries to match a text of `length` characters from its beginning.

    Infinity for syntax that is not known here.
    """
    alternatives = _parsed(pattern) if len(pattern) <= MAX_PATTERN else None
    if alternatives is None:
        return math.inf
    groups = [_group(sequence) for sequence in alternatives]
    n: int = sum(group.choices * length ** max(group.ways, group.cost) for group in groups)
    return n


def _parsed(pattern: str) -> list[_Sequence] | None:
    """The alternatives of a pattern; None for syntax that is not known."""
    levels: list[tuple[str, list[_Sequence]]] = [("", [[]])]  # how each open group began, its alternatives
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            return None
        at = token.end()
        if token["open"]:
            levels.append((token["open"], [[]]))
        elif token["bar"]:
            levels[-1][1].append([])
        else:
            if token["close"] and len(levels) == 1:
                return None
            item = _closed(*levels.pop(), token["close"]) if token["close"] else _repeated(token)
            if item is None:
                return None
            levels[-1][1][-1].append(item)
    return levels[0][1] if len(levels) == 1 else None


def _repeated(token: re.Match[str]) -> _Item | None:
    """An atom with its quantifier; None where it counts too far."""
    quantifier = token["quantifier"]
    if not quantifier:
        return _Item(can_fail=True)
    if quantifier[0] in "*+":
        return _Item(quantifier[0] == "+", ways=1, run=token["atom"], greedy=not quantifier.endswith("?"))
    low, high = {"?": ("0", "1")}.get(quantifier[0]) or _counts(quantifier)
    if max(int(low), int(high or low)) > MAX_COUNT:
        return None
    if not high:
        return _Item(low != "0", ways=1, run=token["atom"])
    return _Item(int(low) > 0, choices=max(1, int(high) - int(low) + 1))


def _counts(quantifier: str) -> tuple[str, str]:
    """The two bounds of {n}, {n,} or {n,m}; the second is empty where there is none."""
    low, comma, high = quantifier[1:-1].partition(",")
    return low, high if comma else low


def _closed(opening: str, alternatives: Sequence[_Sequence], closing: str) -> _Item:
    """A group as an item. A look-around reads ahead, and is forgotten once it has matched."""
    groups = [_group(sequence) for sequence in alternatives]
    ways = max(group.ways for group in groups)
    choices = sum(group.choices for group in groups)
    cost = max(group.cost for group in groups)
    can_fail = all(group.can_fail for group in groups) and not closing.endswith("?")
    if opening.endswith(("=", "!")):
        return _Item(not closing.endswith("?"), choices=choices, cost=max(ways, cost))
    return _Item(can_fail, ways, choices + closing.endswith("?"), cost)


def _group(sequence: _Sequence) -> _Item:
    """A sequence as one item: its ways multiply, and every failure tries the ways of all that precede it."""
    last = max((i for i, item in enumerate(sequence) if item.can_fail), default=-1)
    tried = sequence[: last + 1]
    costs = [sum(item.ways for item in tried[:i]) + item.cost for i, item in enumerate(tried)]
    return _Item(
        can_fail=last >= 0,
        ways=sum(item.ways for item in sequence),
        choices=math.prod(item.choices for item in sequence),
        cost=max([*costs, *(item.cost for item in sequence[last + 1 :])], default=0),
    )


def _run_in_vain(sequence: _Sequence) -> str:
    """The atom of a costly alternative whose run is read in vain; empty if a group hides it."""
    return next((item.run for item in sequence if item.ways or item.cost), "")


def _reads_on(sequence: _Sequence, atom: str) -> bool:
    """Whether an alternative begins, but for optional items, with a greedy repeat that contains the atom."""
    first = next((item for item in sequence if item.can_fail or item.ways), None)
    return bool(atom and first and first.greedy and first.run and _contains(first.run, atom))


def _contains(atom: str, other: str) -> bool:
    """Whether every character that `other` matches is surely matched by `atom`."""
    return atom == other or (atom == r"\s" and other.startswith(r"[^\S"))
