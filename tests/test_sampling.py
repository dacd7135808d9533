"""Settings are checked when they are made; the distribution is the documented one; rows draw alone."""

from __future__ import annotations

import copy
import math
import pickle
import time
import tracemalloc
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import changes

from kogpt.errors import SamplingError
from kogpt.sampling import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Draw,
    Sampler,
    Sampling,
    Wanted,
    candidates,
    changed,
    choose,
    exp,
    gumbel,
    log,
    log_softmax,
    random_bits,
    sample,
)

NO_PROMPT = np.array([], dtype=np.int64)
GOLDEN_NOISE = [
    "0x1.73639037fd13cp+0",
    "0x1.473c90c3e6feep+1",
    "0x1.7f5dba303097dp+0",
    "0x1.233c0a4c5cae1p+1",
]


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
        ({"temperature": -1}, "must be a number from 0 to 100", "(조건: 0 이상 100 이하의 수)"),
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
    ids, scaled = candidates(np.array([1.0, 3.0, 3.0, 2.0]), Draw(0, temperature=5, top_p=0))
    assert (ids.tolist(), scaled.tolist()) == ([1], [0.0])


@pytest.mark.parametrize(
    "huge",
    [
        {"temperature": 10**400},
        {"seed": 10**5000},
        {"stop": ["."] * (MAX_STOPS + 1)},
        {"stop": ["가" * (MAX_STOP_LENGTH + 1)]},
        {"logit_bias": dict.fromkeys(range(MAX_BIASES + 1), 1.0)},
        {"logit_bias": {300: 1.7e308}},
        {"logit_bias": {2**64: 1.0}},
    ],
)
def test_what_is_too_large_is_refused_by_name(huge: dict[str, Any]) -> None:
    with pytest.raises(SamplingError, match=next(iter(huge))):
        Sampling(**huge)


def test_a_million_stop_strings_are_refused_at_once() -> None:
    started = time.process_time()
    with pytest.raises(SamplingError, match="1000000 texts"):
        Sampling(stop=[str(i) for i in range(10**6)])
    assert time.process_time() - started < 2


def test_habits_of_numpy_and_of_lists_are_taken() -> None:
    habits: dict[str, Any] = {"seed": np.int64(5), "temperature": np.float32(0.5), "stop": ["."]}
    s = Sampling(**habits | {"logit_bias": {np.int64(3): 1}})
    assert (s.seed, type(s.seed), s.temperature, s.stop) == (5, int, 0.5, (".",))
    for same in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), Sampling(**asdict(s))):
        assert same == s


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
    ids, scaled = candidates(scores, Draw(0, temperature, top_k, top_p, min_p))
    expected = slow_distribution(scores, s)
    weights = np.exp(scaled)
    # Sums in another order may put one token on the other side of the top-p border: it then weighs nothing.
    found = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    for token in expected.keys() | found.keys():
        assert found.get(token, 0.0) == pytest.approx(expected.get(token, 0.0), abs=1e-6)
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-12, 1e-3, 100])
def test_extreme_temperatures_choose_a_token(temperature: float) -> None:
    found = sample(np.array([1.0, 3.0, 2.0], np.float32), Draw(5, temperature))
    assert found is not None and (found.token == 1 or temperature == 100)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert write(np.array([0.0, 5.0, 4.9], np.float32), Sampling(temperature=0, seed=1), 20) == [1] * 20


def write(logits: np.ndarray, sampling: Sampling, n: int, index: int = 0) -> list[int]:
    """n tokens, each from the same logits."""
    sampler = Sampler(sampling, NO_PROMPT, index)
    tokens = []
    for _ in range(n):
        found = sample(logits, sampler.draw())
        assert found is not None
        sampler.accept(found.token)
        tokens.append(found.token)
    return tokens


def test_choices_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    counts = np.bincount(write(logits, Sampling(temperature=1, seed=3), 4000), minlength=3) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_noise_is_the_standard_gumbel_distribution() -> None:
    """Kolmogorov-Smirnov, over tokens of one key and over keys of one token."""
    keys = [random_bits(random_bits(7, 0), position) for position in range(4000)]
    over_keys = np.array([gumbel(key, np.array([123]))[0] for key in keys])
    for noise in (gumbel(1, np.arange(100_000)), over_keys):
        cdf = np.exp(-np.exp(-np.sort(noise)))
        n = len(noise)
        assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 2 / math.sqrt(n)
    assert abs(np.corrcoef(over_keys[:-1], over_keys[1:])[0, 1]) < 0.05


def test_random_bits_are_those_of_the_published_generator() -> None:
    """The first outputs of SplitMix64 started at 1234567, as its reference implementation gives them."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [random_bits(1234567, i) for i in range(4)] == wanted


@given(key=st.integers(0, 2**64 - 1), ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
def test_noise_is_a_function_of_key_and_token_alone(key: int, ids: list[int]) -> None:
    together = gumbel(key, np.array(ids))
    assert [float(gumbel(key, np.array([i]))[0]) for i in ids] == together.tolist()
    for i, noise in zip(ids, together, strict=True):
        u = ((random_bits(key, i) >> 12) + 0.5) / 2**52
        assert noise == pytest.approx(-math.log(-math.log(u)), rel=1e-9, abs=1e-11)


def test_noise_has_the_same_bits_on_every_machine() -> None:
    found = [value.hex() for value in gumbel(0xC0FFEE, np.array([0, 1, 64511, 2**31 - 1])).tolist()]
    assert found == GOLDEN_NOISE


@given(st.floats(5e-324, 1e308))
def test_log_is_the_logarithm(x: float) -> None:
    assert log(np.array([x]))[0] == pytest.approx(math.log(x), rel=1e-12, abs=1e-300)


@given(st.floats(-800, 0))
def test_exp_is_the_exponential(x: float) -> None:
    assert exp(np.array([x]))[0] == pytest.approx(math.exp(x), rel=1e-13, abs=5e-324)


def test_a_seed_fixes_each_sample_by_itself() -> None:
    logits = np.zeros(1000, np.float32)
    first, again, other = (write(logits, Sampling(temperature=1, seed=7), 8, index) for index in (0, 0, 1))
    assert first == again != other
    unseeded = [write(logits, Sampling(temperature=1), 8) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def changed_by(logits: np.ndarray, sampling: Sampling, written: dict[int, int]) -> np.ndarray:
    return changed(logits, Draw(0, changes=changes(sampling, np.array([1]), written, len(logits))))


def test_penalties_and_bias() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    s = Sampling(
        repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 4, 99: 1}
    )
    # Token 0 was written three times, token 1 stood in the prompt, token 3 has a bias.
    assert changed_by(logits, s, {0: 3}) == pytest.approx([2.0 / 2 - 0.25 - 1.5, -2.0 * 2, 1.0, 4.5])
    assert changed_by(logits, Sampling(), {0: 3}) is logits


def test_the_largest_bias_and_penalty_stay_finite() -> None:
    s = Sampling(logit_bias={0: MAX_BIAS, 1: -MAX_BIAS}, repetition_penalty=0.01, temperature=1e-30)
    logits = np.array([3e38, -3e38, 0.0], np.float32)
    found = sample(logits, Draw(1, s.temperature, changes=changes(s, np.array([0, 1]), {}, 3)))
    assert found is not None and found.token == 0


def test_a_sampler_counts_what_it_accepts() -> None:
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    assert write(logits, Sampling(temperature=0, frequency_penalty=0.15), 6) == [0, 1, 0, 2, 1, 0]


@given(
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([(0.0, 0.0), (0.4, 0.0), (0.0, 0.3)]),
    st.dictionaries(st.integers(0, 12), st.floats(-3, 3), max_size=3),
    st.lists(st.integers(0, 12), max_size=5),
    st.lists(st.integers(0, 9), max_size=90),
)
def test_a_sampler_keeps_what_counting_anew_gives(
    repetition: float,
    penalties: tuple[float, float],
    bias: dict[int, float],
    prompt: list[int],
    written: list[int],
) -> None:
    presence, frequency = penalties
    s = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    sampler = Sampler(s, np.array(prompt, np.int64), n_vocab=10)
    for token in written:
        sampler.accept(token)
    found, wanted = sampler.draw().changes, changes(s, np.array(prompt, np.int64), Counter(written), 10)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        order = found.ids.argsort()
        for got, expected in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got[order], expected)


def test_a_mask_leaves_only_what_it_allows() -> None:
    allowed = np.array([0b1010, 1], np.uint32)
    for key in range(50):
        found = sample(np.arange(40, dtype=np.float32) / 40, Draw(key, 1.0, allowed=allowed))
        assert found is not None and found.token in (1, 3, 32)
    best = sample(np.arange(40, dtype=np.float32), Draw(0, allowed=allowed))
    assert best is not None and best.token == 32


def test_logits_that_are_not_finite_choose_nothing() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        assert sample(np.array([0.0, bad, 1.0]), Draw(0)) is None
        assert sample(np.array([0.0, 1.0, bad]), Draw(0, n_vocab=2)) is not None


def test_logprobs_are_the_models_own() -> None:
    logits = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    sampler = Sampler(Sampling(temperature=0, logit_bias={0: 100}, logprobs=2), NO_PROMPT, n_vocab=4)
    found = sample(logits, sampler.draw())
    own = logits - np.log(np.exp(logits).sum())
    assert found is not None and found.token == 0 and found.logprob == pytest.approx(own[0])
    assert [token for token, _ in found.top_logprobs] == [3, 2]
    assert [value for _, value in found.top_logprobs] == pytest.approx([own[3], own[2]])


def test_targets_are_scored_at_their_outputs() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0], [np.nan, 0.0, 0.0]], np.float32)
    wanted = Wanted((Draw(0),), np.array([0, 1, 0, 2]), np.array([1, 0, 2, 0]), n_top=1)
    found = choose(logits, wanted)
    own = log_softmax(logits.astype(np.float64))
    assert found.tokens == [None]
    assert found.logprobs[:3].tolist() == pytest.approx([own[0, 1], own[1, 0], own[0, 2]])
    assert np.isnan(found.logprobs[3]) and found.likeliest[:3].tolist() == [2, 0, 2]
    assert [row[0][0] for row in found.top[:3]] == [2, 0, 2]


def test_log_softmax_sums_to_one_for_huge_logits() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4]])
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)


def test_many_targets_of_one_output_take_the_memory_of_one() -> None:
    """10,000 choices after one context: their first tokens are scored by the same logits."""
    logits = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)
    outputs, targets = np.arange(10_000) % 2, np.arange(10_000) % 4096
    tracemalloc.start()
    found = choose(logits, Wanted(outputs=outputs, targets=targets, n_top=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    np.testing.assert_allclose(found.logprobs, log_softmax(logits.astype(np.float64))[outputs, targets])
    assert (found.likeliest == logits.argmax(-1)[outputs]).all() and len(found.top) == 10_000
