"""McNemar's test against the sum that defines it."""

from __future__ import annotations

from math import comb

import pytest

from kogpt.comparison import Comparison, compare


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (1, 9), (20, 5), (0, 12)])
def test_exact_p(b: int, c: int) -> None:
    n = b + c
    tail = sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert Comparison(n, b, c, b, c).p == pytest.approx(min(1, 2 * tail))


def test_counts() -> None:
    found = compare(["가", "가", "나", "나"], ["가", "나", "나", "가"], ["가", "가", "가", "가"])
    assert (found.right_first, found.right_second, found.only_first, found.only_second) == (2, 2, 1, 1)
