"""How the next token is chosen: settings as a value, and pure functions from logits to a token.

Knows one row at a time and draws from the generator it is given, so a row's text depends on its own
seed and on nothing that its neighbours do.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import SamplingError
from kogpt.runner import Array

DEFAULT_NEW_TOKENS = 128  # when neither max_tokens nor max_length is given


def _setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of one generation; SamplingError on nonsense, here and not later.

    Applied in this order: logit_bias, repetition penalty (arXiv 1909.05858, section 4.1; prompt and new
    tokens), presence and frequency penalties (new tokens), temperature, top-k, top-p (arXiv 1904.09751),
    min-p (arXiv 2407.01082).
    """

    temperature: float = _setting(0.8, "0 picks the likeliest token; higher is more varied", 0)
    top_p: float = _setting(1.0, "keep the likeliest tokens up to this total probability; 0 keeps one", 0, 1)
    top_k: int = _setting(0, "keep this many likeliest tokens; 0 keeps all", 0)
    min_p: float = _setting(0.0, "drop tokens below this share of the likeliest one's probability", 0, 1)
    repetition_penalty: float = _setting(
        1.0, "above 1 makes tokens already in the text less likely", 0.01, 100
    )
    presence_penalty: float = _setting(
        0.0, "subtracted once from logits of tokens already written", -100, 100
    )
    frequency_penalty: float = _setting(0.0, "subtracted for every time a token was written", -100, 100)
    logit_bias: Mapping[int, float] = field(
        default_factory=dict, metadata={"help": "add VALUE to the logit of token ID"}
    )
    seed: int | None = _setting(None, "the same seed gives the same text", 0, 2**63 - 1)
    stop: tuple[str, ...] = field(default=(), metadata={"help": "text that ends the answer; not shown"})
    max_tokens: int | None = _setting(
        None, f"new tokens at most ({DEFAULT_NEW_TOKENS} if no length is given)", 1
    )
    max_length: int | None = _setting(None, "tokens of prompt and answer together at most", 1)
    n: int = _setting(1, "answers per prompt", 1, 1024)
    logprobs: int | None = _setting(None, "report this many likeliest tokens with each token", 0, 1024)

    def __post_init__(self) -> None:
        for setting in fields(self):
            if "low" in setting.metadata:
                _require_number(setting.name, getattr(self, setting.name), setting.metadata, setting.default)
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def new_tokens(self, prompt_tokens: int, n_ctx: int) -> int:
        """How many tokens may follow a prompt of this length; 0 or less means that none fits."""
        limits = [n_ctx - prompt_tokens]
        if self.max_length is not None:
            limits.append(self.max_length - prompt_tokens)
        if self.max_tokens is not None or self.max_length is None:
            limits.append(self.max_tokens or DEFAULT_NEW_TOKENS)
        return min(limits)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One chosen token and the model's own opinion of it (before bias, penalties and temperature)."""

    token: int
    logprob: float  # nats
    top_logprobs: tuple[tuple[int, float], ...]  # the likeliest tokens, best first; as many as asked for


class Sampler:
    """What choosing a row's tokens needs to remember: its generator and the tokens so far."""

    def __init__(self, sampling: Sampling, prompt: NDArray[np.int64], sample: int = 0) -> None:
        self.sampling = sampling
        seed = None if sampling.seed is None else [sampling.seed, sample]
        self._rng = np.random.default_rng(seed)
        self._prompt = np.unique(prompt) if sampling.repetition_penalty != 1.0 else prompt[:0]
        self._written: Counter[int] = Counter()

    def draw(self, logits: Array) -> SampledToken:
        """Choose the next token from (V,) finite logits and remember it."""
        scores = penalized(logits, self.sampling, self._prompt, self._written)
        if self.sampling.temperature == 0.0:
            token = int(scores.argmax())
        else:
            ids, probabilities = candidates(scores, self.sampling)
            token = int(ids[_inverse_cdf(probabilities, self._rng.random())])
        self._written[token] += 1
        return _with_logprobs(logits, token, self.sampling.logprobs)


def penalized(
    logits: Array, sampling: Sampling, prompt: NDArray[np.int64], written: Mapping[int, int]
) -> Array:
    """(V,) logits after bias and penalties; the array itself where there are none."""
    s = sampling
    if not s.logit_bias and (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) == (1, 0, 0):
        return logits
    scores = logits.astype(np.float64)
    for token, bias in s.logit_bias.items():
        if token < len(scores):
            scores[token] += bias
    ids = np.fromiter(written, dtype=np.int64, count=len(written))
    counts = np.fromiter(written.values(), dtype=np.int64, count=len(written))
    if s.repetition_penalty != 1.0:
        seen = np.union1d(prompt, ids)
        seen = seen[seen < len(scores)]
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    scores[ids] -= s.presence_penalty + s.frequency_penalty * counts
    return scores


def candidates(scores: Array, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that may be drawn, in rising order, and their probabilities (sum 1), from (V,) scores.

    temperature must be above 0.
    """
    shifted = scores.astype(np.float64) - float(scores.max())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        scaled = shifted / sampling.temperature
    ids = np.arange(len(scaled))
    if 0 < sampling.top_k < len(scaled):
        ids = np.sort(np.argpartition(-scaled, sampling.top_k - 1)[: sampling.top_k])
    weights = np.exp(scaled[ids])
    probabilities = weights / weights.sum()
    if sampling.top_p < 1.0:
        ids, probabilities = _nucleus(ids, probabilities, sampling.top_p)
    if sampling.min_p > 0.0:
        kept = probabilities >= sampling.min_p * probabilities.max()
        ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def log_softmax(logits: Array) -> Array:
    """(..., V) logits -> (..., V) natural log-probabilities, in the dtype of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalized: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def _nucleus(
    ids: NDArray[np.int64], probabilities: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The smallest set of likeliest tokens whose probabilities reach top_p; at least one token."""
    # Tokens below (1 - top_p) / V together weigh less than 1 - top_p: never in the set, not worth sorting.
    possible = np.flatnonzero(probabilities >= min((1.0 - top_p) / len(ids), probabilities.max()))
    order = possible[np.argsort(-probabilities[possible], kind="stable")]
    reached = np.cumsum(probabilities[order])
    size = int(np.searchsorted(reached, top_p)) + 1
    kept = np.sort(order[:size])
    return ids[kept], probabilities[kept]


def _inverse_cdf(probabilities: NDArray[np.float64], u: float) -> int:
    cumulative = np.cumsum(probabilities)
    return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))


def _with_logprobs(logits: Array, token: int, wanted: int | None) -> SampledToken:
    if wanted is None:
        return SampledToken(token, math.nan, ())
    logprobs = log_softmax(logits.astype(np.float64))
    wanted = min(wanted, len(logprobs))
    best = np.argpartition(-logprobs, max(wanted - 1, 0))[:wanted]
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return SampledToken(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def _require_number(name: str, value: object, limits: Mapping[str, Any], default: object) -> None:
    if value is None and default is None:
        return
    whole = isinstance(default, int) or default is None
    kinds = (int,) if whole else (int, float)
    low, high = limits["low"], limits["high"]
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not low <= value <= high
        or value == math.inf
    ):
        kind, kind_ko = ("a whole number", "정수") if whole else ("a number", "수")
        upper, upper_ko = ("", "") if high == math.inf else (f" to {high}", f" {high} 이하의")
        raise SamplingError(
            f"{name} is {_shown(value)}, must be {kind} {'from' if upper else 'of at least'} {low}{upper}",
            f"{name} 값 {_shown(value)} (조건: {low} 이상{upper_ko or '의'} {kind_ko})",
        )


def _checked_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, (tuple, list)) else None
    if strings is None or not all(isinstance(s, str) and s for s in strings):
        raise SamplingError(
            f"stop is {_shown(stop)}, must be texts of at least one character",
            f"stop 값 {_shown(stop)} (조건: 한 글자 이상의 문자열)",
        )
    return tuple(unicodedata.normalize("NFC", s) for s in strings)


def _checked_bias(bias: object) -> Mapping[int, float]:
    if not isinstance(bias, Mapping):
        raise SamplingError(
            f"logit_bias is {_shown(bias)}, must map token ids to numbers",
            f"logit_bias 값 {_shown(bias)} (조건: 토큰 번호와 숫자의 짝)",
        )
    for token, value in bias.items():
        known = type(token) is int and token >= 0
        finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (known and finite):
            entry = f"{_shown(token)}: {_shown(value)}"
            raise SamplingError(
                f"logit_bias has {entry}, must be a token id of at least 0 and a finite number",
                f"logit_bias 항목 {entry} (조건: 0 이상의 토큰 번호와 유한한 숫자)",
            )
    return MappingProxyType(dict(bias))


def _shown(value: object) -> str:
    return repr(value)[:60]
