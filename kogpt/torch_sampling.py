"""sampling.py on torch devices: the same tokens from the same logits, for many rows at once.

Only ids, and log-probabilities that were asked for, leave the device. Every operation on the way to a token
is the exactly rounded one of sampling.py, in the same order. Eager torch runs a kernel for each operation and
fuses nothing; a Triton version must not fuse a product and a sum into one rounding either.
On CUDA, torch adds the weights of top-p in another order than sampling.py: a token whose cumulative share is
within about 1e-15 of top_p may fall on the other side there.
Shapes: M outputs, R draws, V vocabulary, C changed logits of all draws, K targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kogpt.sampling import GOLDEN, LOG2_HIGH, LOG2_LOW, Chosen, Draw, SampledToken, Wanted
from kogpt.torch_transfer import to_device

MAX_VALUES = 2**24  # logits handled at a time: every float64 intermediate of them takes 128 MB

Top = tuple[tuple[int, float], ...]  # likeliest tokens and their log-probabilities, best first


def choose_all(logits: Tensor, counts: Sequence[int], wanted: Sequence[Wanted]) -> list[Chosen]:
    """sampling.choose for several chunks; logits: (M, V), `counts` of each chunk end to end."""
    ends = np.cumsum(counts)
    outputs = [np.arange(end - n, end) for end, n in zip(ends, counts, strict=True)]
    draws = [draw for want in wanted for draw in want.draws]
    rows = [own[draw.output] for own, want in zip(outputs, wanted, strict=True) for draw in want.draws]
    tokens = iter(sample_all(logits, rows, draws))
    answers = []
    for own, want in zip(outputs, wanted, strict=True):
        found = [next(tokens) for _ in want.draws]
        if want.targets is None or want.outputs is None:
            answers.append(Chosen(found, np.empty(0), np.empty(0, np.int64)))
        else:
            answers.append(_scored(logits, own[want.outputs], want, found))
    return answers


def sample_all(logits: Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[SampledToken | None]:
    """sampling.sample for R draws; rows: (R,) of the (M, V) logits."""
    step = max(1, MAX_VALUES // logits.shape[-1])
    tokens: list[SampledToken | None] = []
    for start in range(0, len(draws), step):
        some = slice(start, start + step)
        own = logits[to_device(np.array(rows[some], np.int64), logits.device)]
        tokens += _sample(own.double(), draws[some])
    return tokens


class Settings(NamedTuple):
    """How each of R rows is drawn, on the device: (R, 1), int64 and float64."""

    key: Tensor  # the bits of Draw.key
    top_k: Tensor
    limit: Tensor  # tokens from here on are never chosen
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor


class DrawKind(NamedTuple):
    """Operations that at least one row needs; the others are left out of the pass."""

    random: bool  # a temperature above 0
    filtered: bool  # and top-k, top-p or min-p

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Self:
        """The kind of these draws together."""
        random = [draw for draw in draws if draw.temperature > 0]
        return cls(bool(random), any(d.top_k > 0 or d.top_p < 1.0 or d.min_p > 0.0 for d in random))


def settings_columns(draws: Sequence[Draw], n_logits: int) -> dict[str, NDArray[Any]]:
    """The fields of Settings, (R,) each, on the host."""
    ints = [
        (_signed(d.key), min(d.top_k, n_logits), min(d.n_vocab or n_logits, n_logits)) for d in draws
    ]  # top_k has no bound of its own
    floats = [(d.temperature, d.top_p, d.min_p) for d in draws]
    columns = (*np.array(ints, np.int64).T, *np.array(floats, np.float64).T)
    return dict(zip(Settings._fields, columns, strict=True))


def draw_ids(
    logits: Tensor, settings: Settings, kind: DrawKind, change: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """A token for each row of (R, V) float64 logits, (R,); -1 where a logit that counts is not finite.

    change: bias, penalties and masks, (R, V) -> (R, V). Nothing else here comes from the host: the operations
    are the same for any settings of a kind, so a captured graph may hold them.
    """
    beyond = torch.arange(logits.shape[-1], device=logits.device) >= settings.limit
    finite = (logits.isfinite() | beyond).all(-1)
    scores = logits.masked_fill(beyond, -math.inf)
    if change is not None:
        scores = change(scores)
    ids = scores.argmax(-1)
    if kind.random:
        ids = torch.where(settings.temperature[:, 0] > 0, _sample_randomly(scores, settings, kind), ids)
    return torch.where(finite, ids, -1)


def log(x: Tensor) -> Tensor:
    """sampling.log, bit for bit."""
    m, e = torch.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = torch.where(low, m + m, m), e - low.int()
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = torch.full_like(z, 1 / 15)
    for n in (13, 11, 9, 7, 5, 3, 1):
        series = series * z + 1 / n
    return (s + s) * series + e.double() * math.log(2)


def exp(x: Tensor) -> Tensor:
    """sampling.exp, bit for bit."""
    x = x.clamp(min=-746.0)
    k = torch.round(x * (1 / math.log(2)))
    r = (x - k * LOG2_HIGH) - k * LOG2_LOW
    series = torch.full_like(r, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        series = series * r + 1 / math.factorial(n)
    half = (k / 2).floor()  # 2^k may be below the smallest number; two normal powers round the product once
    return series * _power_of_two(half) * _power_of_two(k - half)


def gumbel(keys: Tensor, ids: Tensor) -> Tensor:
    """sampling.gumbel, bit for bit: (R, 1) int64 with the bits of the keys, (V,) ids -> (R, V)."""
    z = keys + (ids + 1) * _signed(GOLDEN)  # int64 wraps as uint64 does
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    u = (_shifted(z, 12).double() + 0.5) * 2.0**-52
    return -log(-log(u))


def _sample(logits: Tensor, draws: Sequence[Draw]) -> list[SampledToken | None]:
    """(R, V) float64 logits -> a token for each draw; None where a logit that counts is not finite."""
    n_logits = logits.shape[-1]
    columns = settings_columns(draws, n_logits)
    limits: list[int] = columns["limit"].tolist()
    settings = Settings(*(to_device(column[:, None], logits.device) for column in columns.values()))

    def change(scores: Tensor) -> Tensor:
        return _masked(_changed(scores, draws), draws, limits)

    found = draw_ids(logits, settings, DrawKind.of(draws), change)
    beyond = torch.arange(n_logits, device=logits.device) >= settings.limit
    logprobs, tops = _opinions(logits.masked_fill(beyond, -math.inf), found.clamp(min=0), draws, limits)
    return [
        SampledToken(token, logprob, top) if token >= 0 else None
        for token, logprob, top in zip(found.tolist(), logprobs, tops, strict=True)
    ]


def _changed(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """(R, V) logits after bias and penalties."""
    parts = [
        np.stack([np.full(len(c.ids), i), c.ids, c.bias, c.factor, c.minus])
        for i, draw in enumerate(draws)
        if (c := draw.changes) is not None
    ]
    if not parts:
        return logits
    # (5, C) in one copy to the device; float64 holds rows and ids exactly.
    packed = to_device(np.concatenate(parts, axis=1), logits.device)
    rows, ids, (bias, factor, minus) = packed[0].long(), packed[1].long(), packed[2:]
    values = logits[rows, ids] + bias
    scores = logits.clone()
    scores[rows, ids] = torch.where(values > 0, values / factor, values * factor) - minus
    return scores


def _masked(scores: Tensor, draws: Sequence[Draw], limits: Sequence[int]) -> Tensor:
    """(R, V) scores; -inf for tokens that a draw does not allow."""
    rows = [i for i, draw in enumerate(draws) if draw.allowed is not None]
    if not rows:
        return scores
    words = np.stack([_words(draws[i], limits[i], scores.shape[-1]) for i in rows])
    ids = torch.arange(scores.shape[-1], device=scores.device)
    bits = to_device(words, scores.device)[:, ids // 32] >> ids % 32 & 1  # (R', V)
    places = to_device(np.array(rows), scores.device)
    masked = scores.clone()
    masked[places] = scores[places].masked_fill(bits == 0, -math.inf)
    return masked


def _words(draw: Draw, limit: int, n_logits: int) -> NDArray[np.int64]:
    """The mask of a draw in as many words of 32 bits as n_logits take."""
    assert draw.allowed is not None
    bits = np.unpackbits(draw.allowed.view(np.uint8), bitorder="little", count=limit)
    assert bits.any(), "a mask allows at least one token"
    words = np.zeros(-(-n_logits // 32), np.int64)
    own = draw.allowed[: len(words)]
    words[: len(own)] = own
    return words


def _sample_randomly(scores: Tensor, settings: Settings, kind: DrawKind) -> Tensor:
    """(R, V) scores -> (R,) ids; any id where the temperature is 0."""
    temperature = torch.where(settings.temperature > 0, settings.temperature, 1.0)
    scaled = (scores - scores.amax(-1, keepdim=True)) / temperature
    kept = scaled > -math.inf
    if kind.filtered:
        kept = _top_k(scaled, kept, settings.top_k)
        weights = torch.where(kept, exp(scaled), 0.0)
        kept = torch.where(settings.top_p < 1.0, _nucleus(weights, kept, settings.top_p), kept)
        kept = kept & (weights >= settings.min_p)
    noise = gumbel(settings.key, torch.arange(scores.shape[-1], device=scores.device))
    return torch.where(kept, scaled + noise, -math.inf).argmax(-1)


def _top_k(scaled: Tensor, kept: Tensor, sizes: Tensor) -> Tensor:
    """The kept tokens of each row, (R, V), less all but the `size` likeliest; of equals the first stay."""
    n = scaled.shape[-1]
    size = torch.where((sizes > 0) & (sizes < n), sizes, n)
    last = scaled.sort(dim=-1, descending=True).values.gather(1, size - 1)  # the score of place `size`
    above, equal = scaled > last, (scaled == last) & kept
    return above | (equal & (equal.cumsum(-1) <= size - above.sum(-1, keepdim=True)))


def _nucleus(weights: Tensor, kept: Tensor, top_p: Tensor) -> Tensor:
    """sampling._nucleus of each row, (R, V)."""
    shares = weights / weights.cumsum(-1)[:, -1:]
    least = (1.0 - top_p) / kept.sum(-1, keepdim=True)
    possible = kept & (shares >= torch.minimum(least, shares.amax(-1, keepdim=True)))
    best, order = shares.masked_fill(~possible, 0.0).sort(dim=-1, descending=True, stable=True)
    places = torch.arange(weights.shape[-1], device=weights.device)
    inside = places < possible.sum(-1, keepdim=True)
    below = inside & (best.cumsum(-1) < top_p)
    chosen = inside & (places <= below.sum(-1, keepdim=True))
    return torch.zeros_like(kept).scatter_(1, order, chosen)


def _opinions(
    logits: Tensor, ids: Tensor, draws: Sequence[Draw], limits: Sequence[int]
) -> tuple[list[float], list[Top]]:
    """Log-probability of each token, and the likeliest; NaN and none for draws that do not ask."""
    logprobs = [math.nan] * len(draws)
    tops: list[Top] = [()] * len(draws)
    asked = [i for i, draw in enumerate(draws) if draw.logprobs is not None]
    if asked:
        places = to_device(np.array(asked), logits.device)
        own = torch.log_softmax(logits[places], -1)
        found = own.gather(1, ids[places][:, None])[:, 0].tolist()
        likeliest = _likeliest(own, [min(draws[i].logprobs or 0, limits[i]) for i in asked])
        for i, logprob, top in zip(asked, found, likeliest, strict=True):
            logprobs[i], tops[i] = logprob, top
    return logprobs, tops


def _scored(
    logits: Tensor, rows: NDArray[np.int64], want: Wanted, tokens: list[SampledToken | None]
) -> Chosen:
    """The answer of one chunk with targets; rows: (K,) of the (M, V) logits."""
    assert want.targets is not None
    step = max(1, MAX_VALUES // logits.shape[-1])
    logprobs, likeliest = np.empty(len(rows)), np.empty(len(rows), np.int64)
    top: list[Top] = []
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        own = logits[to_device(rows[some], logits.device)]
        targets = to_device(want.targets[some], logits.device)
        finite = own.isfinite().all(-1, keepdim=True)
        all_logprobs = torch.log_softmax(torch.where(finite, own, 0).double(), -1)
        found = torch.where(finite, all_logprobs.gather(1, targets[:, None]), math.nan)
        logprobs[some], likeliest[some] = found[:, 0].cpu().numpy(), own.argmax(-1).cpu().numpy()
        if want.n_top:
            top += _likeliest(all_logprobs, [want.n_top] * len(own))
    return Chosen(tokens, logprobs, likeliest, tuple(top))


def _likeliest(logprobs: Tensor, sizes: Sequence[int]) -> list[Top]:
    """The `size` highest of each row of (R, V) log-probabilities, best first."""
    values, ids = logprobs.topk(min(max(sizes), logprobs.shape[-1]))
    rows = zip(ids.tolist(), values.tolist(), sizes, strict=True)
    return [tuple(zip(row_ids[:n], row_values[:n], strict=True)) for row_ids, row_values, n in rows]


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exactly, for float64 whole numbers from -1022 to 1023."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of int64 numbers moved right, zeros moved in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    """The int64 with the bits of a uint64."""
    return bits - 2**64 if bits >= 2**63 else bits
