"""Settings are checked when they are made; the distribution is the documented one; rows draw alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kogpt.errors import SamplingError
from kogpt.sampling import Sampler, Sampling, candidates, log_softmax, penalized

NO_PROMPT = np.array([], dtype=np.int64)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": 1.01},
        {"top_p": -0.01},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": math.nan},
        {"seed": -1},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"max_length": -3},
        {"n": 0},
        {"n": 10**9},
        {"logprobs": -1},
        {"stop": ("",)},
        {"stop": (1,)},
        {"stop": 3},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {"1": 0.0}},
        {"logit_bias": [1]},
    ],
)
def test_nonsense_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(SamplingError, match=next(iter(bad))):
        Sampling(**bad)


@pytest.mark.parametrize(
    ("bad", "en", "ko"),
    [
        ({"temperature": -1}, "must be a number of at least 0", "(조건: 0 이상의 수)"),
        ({"top_p": 1.01}, "must be a number from 0 to 1", "(조건: 0 이상 1 이하의 수)"),
        ({"max_tokens": 0}, "must be a whole number of at least 1", "(조건: 1 이상의 정수)"),
        ({"n": 0}, "must be a whole number from 1 to 1024", "(조건: 1 이상 1024 이하의 정수)"),
    ],
)
def test_the_rule_is_told_in_both_languages(bad: dict[str, Any], en: str, ko: str) -> None:
    with pytest.raises(SamplingError) as caught:
        Sampling(**bad)
    assert caught.value.en.endswith(en) and caught.value.ko.endswith(ko)


def test_top_p_of_0_keeps_the_likeliest_token_alone() -> None:
    scores = np.array([1.0, 3.0, 3.0, 2.0])
    ids, probabilities = candidates(scores, Sampling(top_p=0, temperature=5))
    assert (ids.tolist(), probabilities.tolist()) == ([1], [1.0])


def test_a_stop_string_may_be_given_alone_and_is_composed() -> None:
    assert Sampling(stop="\u1100\u1161").stop == ("가",)


def test_new_tokens_obeys_every_limit() -> None:
    assert Sampling().new_tokens(10, 2048) == 128
    assert Sampling(max_tokens=5).new_tokens(10, 2048) == 5
    assert Sampling(max_length=64).new_tokens(10, 2048) == 54
    assert Sampling(max_length=64, max_tokens=5).new_tokens(10, 2048) == 5
    assert Sampling(max_tokens=500).new_tokens(2000, 2048) == 48
    assert Sampling(max_length=8).new_tokens(10, 2048) == -2


def slow_distribution(scores: np.ndarray, s: Sampling) -> dict[int, float]:
    """Temperature, top-k, top-p and min-p, one token at a time, as their papers put it."""
    scaled = {i: (float(x) - float(scores.max())) / s.temperature for i, x in enumerate(scores)}
    best = sorted(scaled, key=lambda i: (-scaled[i], i))
    best = best[: s.top_k or len(best)]
    total = sum(math.exp(scaled[i]) for i in best)
    p = {i: math.exp(scaled[i]) / total for i in best}
    if s.top_p < 1:
        mass, nucleus = 0.0, []
        for i in best:
            nucleus.append(i)
            mass += p[i]
            if mass >= s.top_p:
                break
        p = {i: p[i] for i in nucleus}
    p = {i: q for i, q in p.items() if q >= s.min_p * max(p.values())}
    return {i: q / sum(p.values()) for i, q in p.items()}


@given(
    order=st.permutations(range(40)),
    spread=st.floats(0.01, 1),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 50),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_candidates_are_the_papers_distribution(
    order: list[int], spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = np.array(order, np.float32) * spread  # no ties: which of two equals is kept is not promised
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, probabilities = candidates(scores, s)
    expected = slow_distribution(scores, s)
    # Sums in another order may put one token on the other side of the top-p border: it then weighs nothing.
    found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    for token in expected.keys() | found.keys():
        assert found.get(token, 0.0) == pytest.approx(expected.get(token, 0.0), abs=1e-6)
    assert sum(found.values()) == pytest.approx(1)
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-12, 1e-3, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    _, probabilities = candidates(np.array([1.0, 3.0, 2.0], np.float32), Sampling(temperature=temperature))
    assert np.isfinite(probabilities).all() and probabilities.sum() == pytest.approx(1)


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = np.array([0.0, 5.0, 4.9], np.float32)
    writer = Sampler(Sampling(temperature=0, seed=1), NO_PROMPT)
    assert [writer.draw(logits).token for _ in range(20)] == [1] * 20


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    writer = Sampler(Sampling(temperature=1, seed=3), NO_PROMPT)
    counts = np.bincount([writer.draw(logits).token for _ in range(4000)], minlength=3) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_seed_fixes_each_sample_by_itself() -> None:
    logits = np.zeros(1000, np.float32)

    def tokens(sample: int) -> list[int]:
        writer = Sampler(Sampling(temperature=1, seed=7), NO_PROMPT, sample)
        return [writer.draw(logits).token for _ in range(8)]

    assert tokens(0) == tokens(0) and tokens(0) != tokens(1)


def test_penalties_and_bias() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    s = Sampling(
        repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 4, 99: 1}
    )
    scores = penalized(logits, s, np.array([1]), {0: 3})
    # Token 0 was written three times, token 1 stood in the prompt, token 3 has a bias.
    assert scores == pytest.approx([2.0 / 2 - 0.25 - 1.5, -2.0 * 2, 1.0, 4.5])
    assert penalized(logits, Sampling(), np.array([1]), {0: 3}) is logits


def test_a_writer_counts_what_it_writes() -> None:
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    writer = Sampler(Sampling(temperature=0, frequency_penalty=0.15), NO_PROMPT)
    assert [writer.draw(logits).token for _ in range(6)] == [0, 1, 0, 2, 1, 0]


def test_logprobs_are_the_models_own() -> None:
    logits = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    drawn = Sampler(Sampling(temperature=0, logit_bias={0: 100}, logprobs=2), NO_PROMPT).draw(logits)
    own = logits - np.log(np.exp(logits).sum())
    assert drawn.token == 0 and drawn.logprob == pytest.approx(own[0])
    assert [token for token, _ in drawn.top_logprobs] == [3, 2]
    assert [value for _, value in drawn.top_logprobs] == pytest.approx([own[3], own[2]])
    assert Sampler(Sampling(logprobs=0, seed=1), NO_PROMPT).draw(logits).top_logprobs == ()


def test_log_softmax_sums_to_one_for_huge_logits() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4]])
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)
