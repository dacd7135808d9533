"""Whether two classifiers differ on the same texts: McNemar's test, exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models' answers to the same N texts, counted."""

    n: int
    right_first: int
    right_second: int
    only_first: int  # texts that only the first model has right
    only_second: int

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test: how often equal models differ this much."""
        n, least = self.only_first + self.only_second, min(self.only_first, self.only_second)
        if n == 0:
            return 1.0
        logs = (
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
            for k in range(least + 1)
        )
        return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def compare(answers: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Comparison:
    """Count two models' answers against the right ones; all three are of one length."""
    pairs = [(a == x, a == y) for a, x, y in zip(answers, first, second, strict=True)]
    return Comparison(
        len(pairs),
        sum(x for x, _ in pairs),
        sum(y for _, y in pairs),
        pairs.count((True, False)),
        pairs.count((False, True)),
    )
