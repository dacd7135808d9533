"""What is asked of an engine, and what it answers: values without behaviour.

Shapes: T inputs, E model width, K scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kogpt.sampling import Guide, SampledToken, Sampling

Ids = NDArray[np.int64]
TopTokens = tuple[tuple[int, float], ...]  # (token, log-probability), best first

# stop: a stop id or a stop string. length: the limit. done: a request that writes nothing is answered.
# cancelled: its caller did not want the rest. filtered: a screen cut it off. failed: `error` says why.
FinishReason = Literal["stop", "length", "done", "cancelled", "filtered", "failed"]


class Grammar(Protocol):
    """What answers have to match, compiled (grammar.py)."""

    def begin(self) -> Guide:
        """A guide for one more answer."""


class Writing(NamedTuple):
    """Tokens to write after the inputs: sampling.n samples, each of at most `limit` tokens."""

    sampling: Sampling
    limit: int
    stop_ids: frozenset[int] = frozenset()
    grammar: Grammar | None = None  # there if sampling.grammar is


@dataclass(frozen=True, slots=True)
class Tuned:
    """What an adapter puts before and beside every text of a model: handles for Request."""

    prefix: int | None = None
    adapter: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One text to read, and what is wanted of it. Several things may be wanted of one reading.

    prefix: a handle that an earlier request with `keep` was answered with; the text continues it.
    adapter: a handle of Runner.add_adapter; None is the plain model. A prefix belongs to one adapter.
    writing: tokens to write after the text. choices: texts whose tokens are scored, each of them right after
    the inputs. n_scored: how many of the last inputs are scored. n_top: likeliest tokens to name with
    each score. pooled: the mean of the last hidden states; last_only: the state of the last input instead.
    keep: the text becomes a prefix.
    reusable: whether the text may begin with an earlier one and serve later ones (the prefix cache);
    namespace: it shares with texts of the same namespace only.
    """

    inputs: NDArray[Any]  # (T,) ids, or (T, E) float32 embeddings; T >= 1
    _: KW_ONLY
    prefix: int | None = None
    adapter: int | None = None
    writing: Writing | None = None
    choices: Sequence[Ids] = ()
    n_scored: int = 0  # < T: a token is scored by the output before it
    n_top: int = 0
    pooled: bool = False
    last_only: bool = False
    keep: bool = False
    reusable: bool = True
    namespace: str = ""

    @property
    def n_samples(self) -> int:
        """How many last events the request has."""
        return self.writing.sampling.n if self.writing else 1

    @property
    def reads_last(self) -> bool:
        """Whether the last input is read; where it is only scored, it need not be."""
        return bool(self.writing or self.choices or self.pooled or self.keep) or not self.n_scored

    @property
    def longest(self) -> int:
        """How many positions the longest of its rows takes, without its prefix."""
        written = self.writing.limit if self.writing else max(map(len, self.choices), default=1) - 1
        return len(self.inputs) - (not self.reads_last) + written


class Scores(NamedTuple):
    """The model's opinion of given tokens."""

    logprobs: NDArray[np.float64]  # (K,) nats
    likeliest: Ids  # (K,) the token that the model thinks likeliest in place of each
    top: tuple[TopTokens, ...]  # (K,) the likeliest tokens in place of each; empty without n_top

    def part(self, start: int, end: int) -> Scores:
        """Those of some of the tokens."""
        return Scores(self.logprobs[start:end], self.likeliest[start:end], self.top[start:end])


class Event(NamedTuple):
    """News of a request: a token of one sample, what its reading gave, or its end.

    `finish` is set on the last event of each sample, and of a request that writes nothing. With "stop",
    `token` is the stop id; with "failed" it is None. What the reading gave comes in one event before the
    tokens.
    """

    request: int
    sample: int = 0
    token: SampledToken | None = None
    finish: FinishReason | None = None
    scores: Scores | None = None  # of the last n_scored inputs
    choices: tuple[Scores, ...] = ()
    pooled: NDArray[np.float32] | None = None  # (E,)
    prefix: int | None = None  # handle of the text that was to be kept
    n_cached: int = 0  # inputs that an earlier text saved from being read again
    error: BaseException | None = None
