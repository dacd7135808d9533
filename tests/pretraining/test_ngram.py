"""Kneser-Ney by sorted arrays equals the formulas of the paper written with dictionaries."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from kogpt.errors import ConfigError, InputError
from kogpt.pretraining.ngram import KneserNey, discounts

TEXT = "가나다 가나 나다가 가가 나나나 다. 가나다라 마바사 아자차 가나다 카타파하 나비 나리 나방 가방 가지"


def documents(n: int = 40) -> list[str]:
    draw = random.Random(7)
    return [TEXT[a : a + draw.randrange(1, 40)] for a in (draw.randrange(len(TEXT)) for _ in range(n))]


class Slow:
    """Chen & Goodman 1999, section 3, one formula a function."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.counts: list[dict[bytes, int]] = [defaultdict(int) for _ in range(order + 1)]
        for text in texts:
            data = bytes(order - 1) + text.encode()
            for end in range(order, len(data) + 1):
                self.counts[order][data[end - order : end]] += 1
        for width in range(order - 1, 0, -1):
            for gram in self.counts[width + 1]:
                self.counts[width][gram[1:]] += 1  # one for each different byte before it
        self.discount = cache(self.discount)  # type: ignore[method-assign]

    def discount(self, width: int, count: int) -> float:
        values = list(self.counts[width].values())
        n = [values.count(i) for i in range(5)]
        estimates = [0.5, 1.0, 1.5]
        if 0 not in n[1:]:
            y = n[1] / (n[1] + 2 * n[2])
            found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
            estimates = estimates if min(found) < 0 else found
        return [0.0, *estimates][min(count, 3)]

    def probability(self, context: bytes, byte: int) -> float:
        """p(byte | context), by recursion to the empty context and the uniform distribution."""
        width = len(context) + 1
        shorter = self.probability(context[1:], byte) if context else 1 / 256
        following = [count for gram, count in self.counts[width].items() if gram[:-1] == context]
        if not following:
            return shorter
        count = self.counts[width].get(context + bytes([byte]), 0)
        n1, n2 = following.count(1), following.count(2)
        n3 = len(following) - n1 - n2
        rest = sum(n * self.discount(width, i) for i, n in ((1, n1), (2, n2), (3, n3)))
        return (count - self.discount(width, count) + rest * shorter) / sum(following)


@pytest.mark.parametrize("order", [1, 2, 3, 6, 8])
def test_equals_the_formulas(order: int) -> None:
    slow, fast = Slow(documents(), order), KneserNey.train(documents(), order)
    for text in ("가나다 나비", "가", "qrs가나", "없는 말 사슴"):
        data = bytes(order - 1) + text.encode()
        expected = [
            slow.probability(data[i : i + order - 1], data[i + order - 1]) for i in range(len(text.encode()))
        ]
        np.testing.assert_allclose(fast.probabilities(text.encode()), expected, rtol=1e-12)


def test_discounts_are_estimated_where_counts_of_counts_allow() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 12, 8, 5])
    y = 40 / (40 + 2 * 20)
    expected = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 12 / 20, 3 - 4 * y * 8 / 12]
    np.testing.assert_allclose(discounts(counts), expected)
    np.testing.assert_array_equal(discounts(counts[counts != 2]), [0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(discounts(np.repeat([1, 2, 3, 4], [4, 4, 4, 40])), [0, 0.5, 1, 1.5])
    estimated = [Slow(documents(), 6).discount(width, 1) != 0.5 for width in range(1, 7)]
    assert any(estimated) and not all(estimated)  # so the comparison above has both


@pytest.mark.parametrize("context", ["", "가나", "나비 ", "가\x01", "없는 말", "\x7f" * 9])
def test_probabilities_of_all_bytes_sum_to_one(context: str) -> None:
    model = KneserNey.train(documents(), 6)
    texts = (context.encode() + bytes([byte]) for byte in range(256))
    assert sum(model.probabilities(text)[-1] for text in texts) == pytest.approx(1, abs=1e-12)


def test_chunks_change_nothing() -> None:
    whole, pieces = KneserNey.train(documents(), 4), KneserNey.train(documents(), 4, chunk_bytes=50)
    assert whole.sizes == pieces.sizes
    text = documents()[3].encode()
    np.testing.assert_array_equal(whole.probabilities(text), pieces.probabilities(text))


def test_bits_per_byte_of_a_text_that_was_learnt_are_fewer() -> None:
    model = KneserNey.train(documents(), 6)
    assert model.bits_per_byte([TEXT]) < 1 < 6 < model.bits_per_byte(["unrelated words"])
    assert model.bits_per_byte([TEXT, ""]) == pytest.approx(
        -np.log2(model.probabilities(TEXT.encode())).mean()
    )


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="order is 9"):
        KneserNey.train(documents(), 9)
    with pytest.raises(InputError):
        KneserNey.train([""])
