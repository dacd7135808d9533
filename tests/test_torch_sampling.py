"""Tokens chosen on a torch device are those of sampling.py, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt import sampling, torch_sampling
from kogpt.sampling import Changes, Draw, Wanted, choose, sample

N_VOCAB = 300

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu])] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same_bits(found: torch.Tensor, wanted: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(found.cpu().numpy().view(np.int64), wanted.view(np.int64))


# The functions


def test_log(device: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random(10_000), rng.random(1000) * 40, 2.0 ** np.arange(-53, 6), [2**-0.5, 1.0]])
    x = np.concatenate([x, np.nextafter(x, 0), np.nextafter(x, 99)])
    same_bits(torch_sampling.log(torch.from_numpy(x).to(device)), sampling.log(x))


def test_exp(device: str) -> None:
    """Down to where the result is no longer a normal number, and to 0."""
    rng = np.random.default_rng(0)
    x = -np.concatenate([rng.random(10_000) * 20, 700 + rng.random(10_000) * 50, np.arange(760), [0, np.inf]])
    same_bits(torch_sampling.exp(torch.from_numpy(x).to(device)), sampling.exp(x))


def test_gumbel(device: str) -> None:
    keys = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]
    signed = torch.tensor([[torch_sampling._signed(key)] for key in keys], device=device)
    found = torch_sampling.gumbel(signed, torch.arange(100_000, device=device))
    for key, row in zip(keys, found, strict=True):
        same_bits(row, sampling.gumbel(key, np.arange(100_000)))


# Draws


LOGITS: dict[str, Callable[[np.random.Generator, int], NDArray[Any]]] = {
    "random": lambda rng, n: rng.standard_normal((n, N_VOCAB)) * 3,
    "flat": lambda rng, n: rng.standard_normal((n, N_VOCAB)) * 1e-3,
    "steep": lambda rng, n: rng.standard_normal((n, N_VOCAB)) * 300,
    "ties": lambda rng, n: rng.integers(-2, 3, (n, N_VOCAB)),
    "all equal": lambda rng, n: np.zeros((n, N_VOCAB)),
    "extremes": lambda rng, n: rng.choice([-3e38, -1e4, 0.0, 1.0, 3e38], (n, N_VOCAB)),
    "not finite": lambda rng, n: rng.choice(
        [np.nan, np.inf, -np.inf, 1.0], (n, N_VOCAB), p=[0, 0.002, 0.002, 0.996]
    ),
}


@st.composite
def any_draw(draw: st.DrawFn, n_outputs: int) -> Draw:
    some = draw(st.lists(st.integers(0, N_VOCAB - 11), max_size=5, unique=True))
    numbers = st.lists(st.floats(-5, 5), min_size=len(some), max_size=len(some)).map(np.array)
    factors = st.lists(st.sampled_from([1.0, 0.5, 1.3]), min_size=len(some), max_size=len(some)).map(np.array)
    change = Changes(np.array(some, np.int64), draw(numbers), draw(factors), draw(numbers))
    words = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 2**32, 10, np.uint32)
    return Draw(
        key=draw(st.integers(0, 2**64 - 1)),
        temperature=draw(st.sampled_from([0.0, 1e-300, 0.01, 0.7, 0.8, 1.0, 5.0, 100.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 7, 50, N_VOCAB - 1, N_VOCAB, 10**6, 2**63, 2**70])),
        top_p=draw(st.sampled_from([0.0, 1e-9, 0.3, 0.5, 0.9, 0.95, 1 - 2**-53, 1.0, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-320, 0.05, 0.5, 1.0])),
        n_vocab=draw(st.sampled_from([None, N_VOCAB, N_VOCAB - 10])),
        logprobs=draw(st.sampled_from([None, 0, 1, 5])),
        changes=draw(st.sampled_from([None, change if some else None])),
        allowed=draw(st.sampled_from([None, words, words[:3]])),
        output=draw(st.integers(-n_outputs, n_outputs - 1)),
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_sampling(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 4))
    with np.errstate(over="ignore"):
        logits = LOGITS[data.draw(st.sampled_from(sorted(LOGITS)))](rng, n).astype(np.float32)
    draws = data.draw(st.lists(any_draw(n), min_size=1, max_size=8))
    (chosen,) = torch_sampling.choose_all(torch.from_numpy(logits), [n], [Wanted(draws)])
    for found, draw in zip(chosen.tokens, draws, strict=True):
        wanted = sample(logits[draw.output], draw)
        assert (found and found.token) == (wanted and wanted.token)
        if found and wanted:
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-9, nan_ok=True)
            values = [value for _, value in wanted.top_logprobs]
            assert [value for _, value in found.top_logprobs] == pytest.approx(values, abs=1e-9)


def test_every_setting_over_the_vocabulary_of_the_6b(device: str) -> None:
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((6, 64512)) * 3).astype(np.float32)
    logits[3:] = logits[3:].astype(np.float16)  # ties by the thousand
    settings_: list[dict[str, Any]] = [
        {},
        {"top_k": 40},
        {"top_p": 0.95},
        {"min_p": 0.05},
        {"top_k": 1000, "top_p": 0.9},
    ]
    draws = [
        Draw(key=int(rng.integers(0, 2**63)), temperature=t, n_vocab=64000, output=i, **some)
        for i in range(6)
        for some in settings_
        for t in (0.0, 0.8, 1.5)
    ]
    (chosen,) = torch_sampling.choose_all(torch.from_numpy(logits).to(device), [6], [Wanted(draws)])
    for found, draw in zip(chosen.tokens, draws, strict=True):
        alone = sample(logits[draw.output], draw)
        assert found and alone and found == alone._replace(logprob=found.logprob)


@pytest.mark.parametrize("values", [1, 2**24])
def test_wishes_of_several_chunks(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets, likeliest tokens and rows that are not finite, in pieces of any size."""
    monkeypatch.setattr(torch_sampling, "MAX_VALUES", values)
    rng = np.random.default_rng(7)
    logits = rng.standard_normal((9, N_VOCAB)).astype(np.float32)
    logits[4, 17] = np.nan
    counts = [3, 0, 6]
    wanted = [
        Wanted([Draw(key=3, temperature=1.0)], np.array([0, 2, -1]), np.array([5, 6, 7]), 2),
        Wanted(),
        Wanted(
            [Draw(key=4, temperature=1.0, output=1), Draw(key=9, output=2)], np.arange(6), np.arange(6) * 3
        ),
    ]
    answers = torch_sampling.choose_all(torch.from_numpy(logits), counts, wanted)
    assert answers[2].tokens[0] is None and np.isnan(answers[2].logprobs[1])
    for answer, own, want in zip(answers, np.split(logits, [3, 3]), wanted, strict=True):
        twin = choose(own, want)
        assert [t and t.token for t in answer.tokens] == [t and t.token for t in twin.tokens]
        np.testing.assert_allclose(answer.logprobs, twin.logprobs, rtol=0, atol=1e-9)
        finite = ~np.isnan(twin.logprobs)
        np.testing.assert_array_equal(answer.likeliest[finite], twin.likeliest[finite])
        assert [[i for i, _ in row] for row in answer.top] == [[i for i, _ in row] for row in twin.top]


class Copied(TorchDispatchMode):
    """Remembers how many values each copy took to another device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (kwargs or {}).get("device") is not None and isinstance(args[0], torch.Tensor):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_no_logits_reach_the_host() -> None:
    logits = torch.randn(4, N_VOCAB, device="cuda")
    draws = [Draw(key=i, temperature=1.0, top_p=0.9, top_k=7, logprobs=3, output=i) for i in range(4)]
    with Copied() as copied:
        torch_sampling.choose_all(logits, [4], [Wanted(draws)])
    assert max(copied.sizes) < N_VOCAB
