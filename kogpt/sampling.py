"""The next token of a row: settings as a value, and pure functions from logits to a token.

A choice is a function of the logits, the settings, the seed, the number of the sample and the position in the
answer, and of nothing else: the highest of score / temperature + Gumbel noise among the allowed tokens
(Gumbel-max trick; Maddison et al. 2014, arXiv 1411.0030, section 2). The noise comes from a counter, not from
a generator with a state, so a text does not depend on batch, neighbours, device or runner. Every operation on
the way to it is exactly rounded, so numpy, C++ and torch give the same bits on every processor.
Shapes: V vocabulary, N outputs, K targets, C changed logits.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import SamplingError
from kogpt.texts import nfc

Array = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

DEFAULT_NEW_TOKENS = 128  # when neither max_tokens nor max_length is given
MAX_STOPS = 64  # stop strings of a request
MAX_STOP_LENGTH = 1024  # characters of a stop string
MAX_BIASES = 4096  # tokens with a logit bias
MAX_BIAS = 1e6  # absolute value of a logit bias
MAX_GRAMMAR = 64 << 10  # characters of a regular expression, of a schema, and of all choices together
GRAMMARS = ("regex", "choice", "json_schema", "hangul")  # of these a generation has one at most

GOLDEN = 0x9E3779B97F4A7C15  # increment of SplitMix64
MASK64 = 2**64 - 1
LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # the first 33 bits of log 2: its multiples are exact
LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")  # the rest


def _setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of one generation; SamplingError on nonsense, here and not later.

    Applied in this order: logit_bias, repetition penalty (arXiv 1909.05858, section 4.1; prompt and new
    tokens), presence and frequency penalties (new tokens), temperature, top-k, top-p (arXiv 1904.09751),
    min-p (arXiv 2407.01082).
    """

    temperature: float = _setting(0.8, "0 picks the likeliest token; higher is more varied", 0, 100)
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
    seed: int | None = _setting(
        None, "the same seed gives the same text on the same kind of processor", 0, 2**63 - 1
    )
    stop: Sequence[str] = field(default=(), metadata={"help": "text that ends the answer; not shown"})
    max_tokens: int | None = _setting(
        None, f"new tokens at most ({DEFAULT_NEW_TOKENS} if no length is given)", 1
    )
    max_length: int | None = _setting(None, "tokens of prompt and answer together at most", 1)
    regex: str | None = field(
        default=None, metadata={"help": "write text that matches this regular expression as a whole"}
    )
    choice: Sequence[str] | None = field(default=None, metadata={"help": "write one of these texts"})
    json_schema: str | Mapping[str, Any] | None = field(
        default=None, metadata={"help": "write JSON that fits this JSON Schema"}
    )
    hangul: bool = field(
        default=False, metadata={"help": "write Hangul, digits, punctuation and spaces only"}
    )
    n: int = _setting(1, "answers per prompt", 1, 1024)
    logprobs: int | None = _setting(None, "report this many likeliest tokens with each token", 0, 1024)

    def __post_init__(self) -> None:
        for setting in fields(self):
            if "low" in setting.metadata:
                value = getattr(self, setting.name)
                checked = _checked_number(setting.name, value, setting.metadata, setting.default)
                object.__setattr__(self, setting.name, checked)
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "choice", _checked_choice(self.choice))
        object.__setattr__(self, "json_schema", _checked_schema(self.json_schema))
        _check_grammars(self)

    @property
    def grammar(self) -> str | None:
        """The one of `GRAMMARS` that is set."""
        return next((name for name in GRAMMARS if getattr(self, name) not in (None, False)), None)

    def new_tokens(self, prompt_tokens: int, n_ctx: int) -> int:
        """How many tokens may follow a prompt of this length; 0 or less means that none fits."""
        limits = [n_ctx - prompt_tokens]
        if self.max_length is not None:
            limits.append(self.max_length - prompt_tokens)
        if self.max_tokens is not None or self.max_length is None:
            limits.append(self.max_tokens or DEFAULT_NEW_TOKENS)
        return min(limits)


class SampledToken(NamedTuple):
    """One chosen token and the model's own opinion of it (before bias, penalties and temperature)."""

    token: int
    logprob: float  # nats; NaN if Sampling.logprobs is None
    top_logprobs: tuple[tuple[int, float], ...]  # the likeliest tokens, best first; as many as asked for


class Changes(NamedTuple):
    """What bias and penalties make of some logits: z -> penalty(z + bias) - minus.

    The repetition penalty divides a positive logit by `factor` and multiplies a negative one with it.
    """

    ids: Ids  # (C,) distinct, each below n_vocab of the draw
    bias: NDArray[np.float64]  # (C,)
    factor: NDArray[np.float64]  # (C,) 1: none
    minus: NDArray[np.float64]  # (C,)


class Draw(NamedTuple):
    """How one token is chosen from one output: all that matters besides the logits."""

    key: int  # uint64, random_bits(random_bits(seed, sample), position)
    temperature: float = 0.0  # 0: the likeliest, the first of several
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    n_vocab: int | None = None  # tokens from here on are never chosen; None: none of them
    logprobs: int | None = None
    changes: Changes | None = None
    allowed: NDArray[np.uint32] | None = None  # bit t % 32 of word t // 32: token t may be chosen; None: all
    output: int = -1  # index of the output among those of the chunk
    following: int | None = None  # key of the sample's next draw, if nothing else of that will differ


class Guide(Protocol):
    """One answer that follows a grammar (grammar.py)."""

    allowed: NDArray[np.uint32]  # the tokens that may come next, as Draw.allowed

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""


class Wanted(NamedTuple):
    """What is wanted of the outputs of one chunk: tokens to choose, and log-probabilities of given tokens."""

    draws: Sequence[Draw] = ()
    outputs: Ids | None = None  # (K,) index of an output, and
    targets: Ids | None = None  # (K,) the token whose log-probability is wanted there
    n_top: int = 0  # likeliest tokens to name at each target


class Chosen(NamedTuple):
    """The answer to a Wanted."""

    tokens: list[SampledToken | None]  # one for each draw; None where the logits were not finite
    logprobs: NDArray[np.float64]  # (K,) nats; NaN where the logits were not finite
    likeliest: Ids  # (K,) the token with the highest logit, the first of several
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # (K, n_top) (token, log-probability), best first


class Sampler:
    """What choosing the tokens of one sample has to remember: their number and how often each was written."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Ids,
        sample: int = 0,
        n_vocab: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        """prompt: the ids that the repetition penalty counts as seen. Without a seed one is drawn."""
        self.sampling = sampling
        self._guide = guide
        seed = int.from_bytes(os.urandom(8)) >> 1 if sampling.seed is None else sampling.seed
        self._key = random_bits(seed, sample)
        self._n_vocab = n_vocab
        self._changes = _ChangedTokens(sampling, prompt, n_vocab)
        self._position = 0

    def draw(self) -> Draw:
        """How the next token is to be chosen."""
        s = self.sampling
        penalized = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0)
        steady = self._guide is None and not penalized
        return Draw(
            self._key_at(self._position),
            s.temperature,
            s.top_k,
            s.top_p,
            s.min_p,
            self._n_vocab,
            s.logprobs,
            self._changes.now(),
            None if self._guide is None else self._guide.allowed,
            following=self._key_at(self._position + 1) if steady else None,
        )

    def _key_at(self, position: int) -> int:
        """Key of the noise of a position; 0 where none is drawn."""
        return random_bits(self._key, position) if self.sampling.temperature else 0

    def accept(self, token: int) -> None:
        """Remember the token that was chosen. SamplingError where its grammar becomes too complex."""
        self._changes.accept(token)
        self._position += 1
        if self._guide is not None:
            self._guide.accept(token)


class _ChangedTokens:
    """The Changes of one sample, kept up to date: building them anew costs more than a small step."""

    def __init__(self, sampling: Sampling, prompt: Ids, n_vocab: int | None) -> None:
        """prompt: the ids that the repetition penalty counts as seen."""
        s = self._sampling = sampling
        self._penalized = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0)
        # Sets, because numpy's own unique loads numpy.ma: 17 ms of the first answer.
        seen = set(prompt.tolist()) if s.repetition_penalty != 1.0 else set()
        known = sorted(seen.union(s.logit_bias))
        ids = np.array([i for i in known if n_vocab is None or i < n_vocab], np.int64)
        self._arrays = Changes(ids, np.zeros(len(ids)), np.ones(len(ids)), np.zeros(len(ids)))
        self._n = len(ids)
        self._arrays.factor[[i in seen for i in ids.tolist()]] = s.repetition_penalty
        self._arrays.bias[:] = [s.logit_bias.get(token, 0.0) for token in ids.tolist()]
        self._places = {token: place for place, token in enumerate(ids.tolist())} if self._penalized else {}
        self._counts: Counter[int] = Counter()

    def now(self) -> Changes | None:
        """Bias and penalties of the next token; None where there are none. Valid until `accept`."""
        n = self._n
        if not n:
            return None
        ids, bias, factor, minus = self._arrays
        return Changes(ids[:n], bias[:n], factor[:n], minus[:n])

    def accept(self, token: int) -> None:
        """Count a token that was written."""
        if not self._penalized:
            return
        s = self._sampling
        place = self._places.setdefault(token, self._n)
        if place == len(self._arrays.ids):
            ids, bias, factor, minus = self._arrays
            size = 2 * place + 64
            self._arrays = Changes(
                np.resize(ids, size), np.resize(bias, size), np.resize(factor, size), np.resize(minus, size)
            )
        ids, bias, factor, minus = self._arrays
        if place == self._n:
            self._n += 1
            ids[place], bias[place] = token, 0.0
        self._counts[token] += 1
        factor[place] = s.repetition_penalty
        minus[place] = s.presence_penalty + self._counts[token] * s.frequency_penalty


def choose(logits: Array, wanted: Wanted) -> Chosen:
    """Answer a Wanted from the (N, V) logits of its chunk: the reference for every faster way."""
    tokens = [sample(logits[draw.output], draw) for draw in wanted.draws]
    if wanted.targets is None or wanted.outputs is None:
        return Chosen(tokens, np.empty(0), np.empty(0, np.int64))
    outputs, which = np.unique(wanted.outputs, return_inverse=True)  # many targets may share one
    rows = logits[outputs]
    finite = np.array([np.isfinite(row).all() for row in rows], np.bool_)
    logprobs = log_softmax(np.where(finite[:, None], rows, 0).astype(np.float64))
    found = np.where(finite[which], logprobs[which, wanted.targets], np.nan)
    tops = [_likeliest(row, wanted.n_top) for row in logprobs] if wanted.n_top else []
    likeliest = rows.argmax(axis=-1).astype(np.int64)[which]
    return Chosen(tokens, found, likeliest, tuple(tops[i] for i in which) if tops else ())


def sample(logits: Array, draw: Draw) -> SampledToken | None:
    """Choose one token from (V,) logits; None where a logit that counts is not finite."""
    logits = logits[: draw.n_vocab]
    if not np.isfinite(logits).all():
        return None
    scores = changed(logits, draw)
    if draw.temperature == 0.0:
        token = int(scores.argmax())
    else:
        ids, scaled = candidates(scores, draw)
        token = int(ids[(scaled + gumbel(draw.key, ids)).argmax()])
    if draw.logprobs is None:
        return SampledToken(token, math.nan, ())
    logprobs = log_softmax(logits.astype(np.float64))
    return SampledToken(token, float(logprobs[token]), _likeliest(logprobs, draw.logprobs))


def changed(logits: Array, draw: Draw) -> Array:
    """(V,) logits after bias, penalties and mask, in float64; the array itself where there are none."""
    if draw.changes is None and draw.allowed is None:
        return logits
    scores = logits.astype(np.float64)
    if draw.changes is not None:
        c = draw.changes
        values = scores[c.ids] + c.bias
        scores[c.ids] = np.where(values > 0, values / c.factor, values * c.factor) - c.minus
    if draw.allowed is not None:
        bits = np.unpackbits(draw.allowed.view(np.uint8), bitorder="little", count=len(scores))
        assert bits.any(), "a mask allows at least one token"
        scores[bits == 0] = -np.inf
    return scores


def candidates(scores: Array, draw: Draw) -> tuple[Ids, NDArray[np.float64]]:
    """Ids that may be chosen, in rising order, and their scaled scores (highest 0), from (V,) scores.

    temperature must be above 0.
    """
    shifted = scores.astype(np.float64) - float(scores.max())
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
        scaled = shifted / draw.temperature
    ids = np.flatnonzero(scaled > -np.inf)
    if 0 < draw.top_k < len(ids):
        ids = np.sort(ids[np.argsort(-scaled[ids], kind="stable")[: draw.top_k]])
    if draw.top_p < 1.0:
        ids = _nucleus(ids, exp(scaled[ids]), draw.top_p)
    if draw.min_p > 0.0:
        ids = ids[exp(scaled[ids]) >= draw.min_p]
    return ids, scaled[ids]


def random_bits(state: int, counter: int) -> int:
    """Output `counter` of SplitMix64 started at `state` (Steele et al. 2014, figure 14): a uint64."""
    z = (state + (counter + 1) * GOLDEN) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def gumbel(key: int, ids: Ids) -> NDArray[np.float64]:
    """Standard Gumbel noise of each token: -log(-log(u)), u in (0, 1) made of 52 random_bits(key, id)."""
    z = np.uint64(key) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    u = ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -log(-log(u))


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm by exactly rounded operations alone: libraries differ in the last bits.

    log(2^e m) = e log 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...), s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)):
    relative error below 1e-12. Sums and products are not to be fused.
    """
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, m + m, m), e - low
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = np.full_like(z, 1 / 15)
    for n in (13, 11, 9, 7, 5, 3, 1):
        series = series * z + 1 / n
    return (s + s) * series + e * math.log(2)


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x for x <= 0 by exactly rounded operations alone, as `log`; relative error below 1e-13.

    e^x = 2^k e^r, k = round(x / log 2), e^r by its Taylor series to r^13 / 13!, |r| <= log(2) / 2.
    """
    x = np.maximum(x, -746.0)  # e^-746 is 0 in float64
    k = np.rint(x * (1 / math.log(2)))
    r = (x - k * LOG2_HIGH) - k * LOG2_LOW
    series = np.full_like(r, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        series = series * r + 1 / math.factorial(n)
    return np.ldexp(series, k.astype(np.int32))


def log_softmax(logits: Array) -> Array:
    """(..., V) logits -> (..., V) natural log-probabilities, in the dtype of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalized: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def _nucleus(ids: Ids, weights: NDArray[np.float64], top_p: float) -> Ids:
    """The smallest set of likeliest tokens whose share of the weights reaches top_p; at least one token."""
    shares = weights / np.cumsum(weights)[-1]  # one after the other: other orders differ in the last bits
    # Tokens below (1 - top_p) / V together weigh less than 1 - top_p: never in the set, not worth sorting.
    possible = np.flatnonzero(shares >= min((1.0 - top_p) / len(ids), shares.max()))
    order = possible[np.argsort(-shares[possible], kind="stable")]
    size = int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1
    return np.sort(ids[order[:size]])


def _likeliest(logprobs: Array, wanted: int) -> tuple[tuple[int, float], ...]:
    """The `wanted` highest of (V,) log-probabilities, best first."""
    wanted = min(wanted, len(logprobs))
    best = np.argpartition(-logprobs, max(wanted - 1, 0))[:wanted]
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return tuple((int(i), float(logprobs[i])) for i in best)


def _checked_number(name: str, value: object, limits: Mapping[str, Any], default: object) -> float | None:
    """The value as a plain int or float (numpy's are taken too); SamplingError where it breaks its limits."""
    if value is None and default is None:
        return None
    whole = isinstance(default, int) or default is None
    low, high = limits["low"], limits["high"]
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral if whole else Real)
        or not low <= value <= high
        or value == math.inf
    ):
        kind, kind_ko = ("a whole number", "정수") if whole else ("a number", "수")
        upper, upper_ko = ("", "") if high == math.inf else (f" to {high}", f" {high} 이하의")
        raise SamplingError(
            f"{name} is {_shown(value)}, must be {kind} {'from' if upper else 'of at least'} {low}{upper}",
            f"{name} 값 {_shown(value)} (조건: {low} 이상{upper_ko or '의'} {kind_ko})",
        )
    return int(value) if isinstance(value, Integral) else float(value)


def _checked_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, (tuple, list)) else None
    if strings is None or not all(isinstance(s, str) and s for s in strings):
        raise SamplingError(
            f"stop is {_shown(stop)}, must be texts of at least one character",
            f"stop 값 {_shown(stop)} (조건: 한 글자 이상의 문자열)",
        )
    if len(strings) > MAX_STOPS:
        raise SamplingError(
            f"stop has {len(strings)} texts, must be at most {MAX_STOPS}",
            f"stop 문자열 {len(strings)}개 (조건: {MAX_STOPS}개 이하)",
        )
    if (longest := max(map(len, strings), default=0)) > MAX_STOP_LENGTH:
        raise SamplingError(
            f"stop has a text of {longest} characters, must be at most {MAX_STOP_LENGTH}",
            f"stop 문자열 길이 {longest}자 (조건: {MAX_STOP_LENGTH}자 이하)",
        )
    return tuple(nfc(s) for s in strings)


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise SamplingError(
            f"logit_bias is {_shown(bias)}, must map token ids to numbers",
            f"logit_bias 값 {_shown(bias)} (조건: 토큰 번호와 숫자의 짝)",
        )
    if len(bias) > MAX_BIASES:
        raise SamplingError(
            f"logit_bias has {len(bias)} entries, must be at most {MAX_BIASES}",
            f"logit_bias 항목 {len(bias)}개 (조건: {MAX_BIASES}개 이하)",
        )
    for token, value in bias.items():
        known = isinstance(token, Integral) and not isinstance(token, bool) and 0 <= int(token) < 2**31
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (known and number and abs(value) <= MAX_BIAS):
            entry = f"{_shown(token)}: {_shown(value)}"
            raise SamplingError(
                f"logit_bias has {entry}, must be a token id of at least 0"
                f" and a number from {-MAX_BIAS:g} to {MAX_BIAS:g}",
                f"logit_bias 항목 {entry} (조건: 토큰 번호, {-MAX_BIAS:g} 이상 {MAX_BIAS:g} 이하의 수)",
            )
    return {int(token): float(value) for token, value in bias.items()}


def _checked_choice(choice: object) -> tuple[str, ...] | None:
    if choice is None:
        return None
    texts = tuple(choice) if isinstance(choice, (tuple, list)) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise SamplingError(
            f"choice is {_shown(choice)}, must be one text or more of at least one character: give some,"
            " or leave choice out",
            f"choice 값 {_shown(choice)} (조건: 한 글자 이상의 문자열 하나 이상)."
            " 글을 넣거나 choice를 빼세요",
        )
    _check_length("choice", sum(map(len, texts)))
    return texts


def _checked_schema(schema: object) -> str | None:
    """A JSON Schema as JSON."""
    if schema is None:
        return None
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        found, text = None, ""
    if not isinstance(found, Mapping):
        raise SamplingError(
            f"json_schema is {_shown(schema)}, must be a JSON object",
            f"json_schema 값 {_shown(schema)} (조건: JSON 객체)",
        )
    _check_length("json_schema", len(text))
    return text


def _check_grammars(sampling: Sampling) -> None:
    """SamplingError for values of the wrong kind, and for more than one grammar."""
    if not (sampling.regex is None or isinstance(sampling.regex, str)):
        shown = _shown(sampling.regex)
        raise SamplingError(f"regex is {shown}, must be a text", f"regex 값 {shown} (조건: 문자열)")
    if not isinstance(sampling.hangul, bool):
        shown = _shown(sampling.hangul)
        raise SamplingError(f"hangul is {shown}, must be true or false", f"hangul 값 {shown} (조건: 참/거짓)")
    _check_length("regex", len(sampling.regex or ""))
    given = [name for name in GRAMMARS if getattr(sampling, name) not in (None, False)]
    if len(given) > 1:
        raise SamplingError(
            f"{given[1]} is given beside {given[0]}: an answer follows one of {', '.join(GRAMMARS)}",
            f"{given[0]}, {given[1]}: {', '.join(GRAMMARS)} 가운데 하나만 쓸 수 있습니다",
        )


def _check_length(name: str, n_characters: int) -> None:
    if n_characters > MAX_GRAMMAR:
        raise SamplingError(
            f"{name} has {n_characters:,} characters, must be at most {MAX_GRAMMAR:,}",
            f"{name} 길이 {n_characters:,}자 (조건: {MAX_GRAMMAR:,}자 이하)",
        )


def _shown(value: object) -> str:
    """The beginning of a value; Python refuses to print whole numbers of more than 4,300 digits."""
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    return repr(value)[:60]
