"""Duplicates: the estimate against exact Jaccard, the search by bands against all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kogpt.errors import InputError
from kogpt.pretraining import dedup
from kogpt.pretraining.dedup import fingerprints, shingle_hashes

WORDS = [f"{a}{b}{c}" for a in "가나다라마바사" for b in "거너더러" for c in "는을이고"]


def sentence(rng: random.Random, n_words: int) -> list[str]:
    return rng.choices(WORDS, k=n_words)


def jaccard(a: str, b: str) -> float:
    first, second = set(shingle_hashes(a).tolist()), set(shingle_hashes(b).tolist())
    return len(first & second) / len(first | second)


def corpus(seed: int = 0) -> list[str]:
    """300 texts of which a third are earlier ones with some words changed."""
    rng = random.Random(seed)
    texts: list[str] = []
    for i in range(300):
        words = (
            texts[rng.randrange(i)].split(" ") if i and i % 3 == 0 else sentence(rng, rng.randint(40, 120))
        )
        for _ in range(rng.randint(0, 6) if i % 3 == 0 else 0):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def search(texts: list[str], threshold: float) -> np.ndarray:
    prints = fingerprints(texts, near=True)
    removed = np.zeros(len(texts), dtype=bool)
    for keys in dedup.band_keys(prints.signatures, dedup.rows_per_band(threshold)):
        dedup.mark_near(keys, prints.signatures, removed, threshold)
    return removed


def test_shingles_ignore_spacing_punctuation_and_case() -> None:
    a, b = "나는 학교에 간다. Hello World!", "나는학교에  간다 hello-world"
    assert set(shingle_hashes(a).tolist()) == set(shingle_hashes(b).tolist())
    assert len(set(shingle_hashes(a).tolist())) == len("나는학교에간다helloworld") - 4


def test_different_shingles_have_different_hashes() -> None:
    rng = random.Random(1)
    text = "".join(chr(rng.randrange(0xAC00, 0xD7A4)) for _ in range(200_000))
    exact = {text[i : i + 5] for i in range(len(text) - 4)}
    assert len(set(shingle_hashes(text).tolist())) == len(exact)


@pytest.mark.parametrize("text", ["", "!", "가", "가나다라", "...!?"])
def test_short_texts_have_one_shingle(text: str) -> None:
    assert len(shingle_hashes(text)) == 1
    assert fingerprints([text], near=True).signatures.shape == (1, dedup.SIGNATURE)


def test_signatures_estimate_similarity() -> None:
    texts = corpus()
    signatures = fingerprints(texts, near=True).signatures
    rng = random.Random(2)
    pairs = [(i, rng.randrange(len(texts))) for i in range(len(texts))]
    pairs += [(i, j) for i in range(0, 300, 3) for j in range(i) if jaccard(texts[i], texts[j]) > 0.3]
    errors = [(signatures[i] == signatures[j]).mean() - jaccard(texts[i], texts[j]) for i, j in pairs]
    assert abs(float(np.mean(errors))) < 0.01
    assert float(np.max(np.abs(errors))) < 0.15  # four standard deviations


def test_a_signature_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus()[:50]
    together = fingerprints(texts, near=True)
    monkeypatch.setattr(dedup, "SHINGLES_AT_ONCE", 500)
    alone = [fingerprints([text], near=True) for text in texts]
    grouped = fingerprints(texts, near=True)
    assert np.array_equal(together.signatures, np.concatenate([one.signatures for one in alone]))
    assert np.array_equal(together.signatures, grouped.signatures)
    assert np.array_equal(together.exact, np.concatenate([one.exact for one in alone]))


def test_search_finds_what_comparing_all_pairs_finds() -> None:
    """No two that stay are clearly above the threshold, and nothing goes without an earlier text near it."""
    texts = corpus()
    removed = search(texts, 0.8)
    sets = [frozenset(shingle_hashes(text).tolist()) for text in texts]
    similarity = np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])
    earlier = np.tril(similarity, -1)
    assert removed.sum() > 20
    assert earlier[~removed][:, ~removed].max() < 0.92
    assert earlier[removed].max(1).min() > 0.68


def test_the_first_of_each_group_stays() -> None:
    text = " ".join(sentence(random.Random(3), 200))
    removed = search(["다른 글입니다 아주 다른 글", text, f"{text} 끝", f"처음 {text}", text], 0.8)
    assert removed.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("at_once", [1 << 24, 100, 7])
def test_sorting_part_by_part_changes_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    texts = corpus()
    expected = search(texts, 0.7)
    exact = fingerprints(texts + texts[:20], near=False).exact
    monkeypatch.setattr(dedup, "KEYS_AT_ONCE", at_once)
    assert np.array_equal(search(texts, 0.7), expected)
    removed = np.zeros(len(exact), dtype=bool)
    assert dedup.mark_exact(exact, removed) == removed.sum() >= 20
    assert removed[-20:].all() and not removed[:3].any()


def test_exact_means_all_128_bits() -> None:
    keys = np.array([[1, 1], [1, 2], [1, 1], [2, 1]], dtype=np.uint64)
    removed = np.zeros(4, dtype=bool)
    assert dedup.mark_exact(keys, removed) == 1
    assert removed.tolist() == [False, False, True, False]


def test_signatures_are_those_of_earlier_runs() -> None:
    """A change of the library's algorithm must be noticed: parts of a run could not be mixed."""
    signature = fingerprints(["동해물과 백두산이 마르고 닳도록"], near=True).signatures[0, :4]
    assert (dedup.algorithm(), signature.tolist()) == GOLDEN


GOLDEN = ("rensa R-MinHash 2, 5 characters, 128 slots", [3314508002, 3397371049, 3296236184, 3362117439])


@pytest.mark.parametrize("threshold", [0.0, -0.5, 0.05, 1.01, float("nan")])
def test_thresholds_out_of_reach_are_refused(threshold: float) -> None:
    with pytest.raises(InputError, match=r"from 0\.2 to 1"):
        dedup.rows_per_band(threshold)


def test_detection_at_every_threshold() -> None:
    for threshold in np.linspace(0.2, 1, 81):
        rows = dedup.rows_per_band(float(threshold))
        assert dedup.SIGNATURE % rows == 0
        assert 1 - (1 - threshold**rows) ** (dedup.SIGNATURE // rows) >= dedup.DETECTION
