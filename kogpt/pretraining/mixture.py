"""The windows of text that make up a step: a pure function of the seed and the step's number.

So the position in the data is the step, and a resumed run reads the windows of the unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import ConfigError
from kogpt.pretraining.epochs import Epochs
from kogpt.pretraining.shards import Shards
from kogpt.training.loop import Batch

ORDERS = ("random", "epochs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of shards."""

    shards: str
    weight: float = 1.0  # its share of the windows, against the other sources' weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The size of a step from `first_step` on: `rows` windows of `length` tokens."""

    length: int
    rows: int
    first_step: int = 0


class Mixture:
    """Windows of several sources by the sources' weights.

    order: "random" draws with replacement; "epochs" reads each window of a source once an epoch, see
    kogpt/pretraining/epochs.py. ConfigError for an unknown order, and for sources and stages that do not fit.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        stages: Sequence[Stage],
        seed: int,
        root: Path,
        order: str = "random",
    ) -> None:
        _require(sources, stages)
        require_order(order)
        self.names = list(sources)
        self.shards = [Shards(root / source.shards) for source in sources.values()]
        if len({shards.index.tokenizer_sha256 for shards in self.shards}) > 1:
            raise ConfigError(
                "the sources were packed with different tokenizers: pack them again with one",
                "말뭉치마다 토크나이저가 다릅니다. 같은 토크나이저로 다시 묶으세요",
            )
        self.tokenizer_sha256 = self.shards[0].index.tokenizer_sha256
        total = sum(source.weight for source in sources.values())
        self.weights = [source.weight / total for source in sources.values()]
        self.stages = sorted(stages, key=lambda stage: stage.first_step)
        self.seed = seed
        self._epochs = Epochs(self.shards, self.weights, seed) if order == "epochs" else None

    def verify(self, rank: int, count: int) -> None:
        """Read this process's share of the shards; InputError for one that differs from its index."""
        for shards in self.shards[rank::count]:
            shards.verify()

    def stage(self, step: int) -> Stage:
        """The stage that step number `step` belongs to."""
        return stage_at(self.stages, step)

    def batch(self, step: int) -> Batch:
        """The windows of step number `step`, counted from 0."""
        return self._random(step) if self._epochs is None else self._in_epochs(step, self._epochs)

    def _in_epochs(self, step: int, epochs: Epochs) -> Batch:
        stage = self.stage(step)
        change, first = rows_before(self.stages, step)
        rows = np.empty((stage.rows, stage.length + 1), dtype=np.int64)
        origins = []
        windows = epochs.windows(range(first, first + stage.rows), stage.length, change)
        for row, (source, pieces) in zip(rows, windows, strict=True):
            filled = 0
            for start, length in pieces:
                row[filled : filled + length] = self.shards[source].window(start, length)
                filled += length
            origins.append(f"{self.names[source]} at {pieces[0][0]}")
        return Batch(rows[:, :-1], rows[:, 1:], tuple(origins))

    def _random(self, step: int) -> Batch:
        stage = self.stage(step)
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(len(self.shards), size=stage.rows, p=self.weights)
        starts = [
            int(place * max(1, len(self.shards[source]) - stage.length))
            for source, place in zip(chosen, rng.random(stage.rows), strict=True)
        ]
        rows = np.stack(
            [
                _window(self.shards[s], start, stage.length + 1)
                for s, start in zip(chosen, starts, strict=True)
            ]
        )
        origins = tuple(f"{self.names[s]} at {start}" for s, start in zip(chosen, starts, strict=True))
        return Batch(rows[:, :-1], rows[:, 1:], origins)


def rows_before(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """How often the length changed up to `step`, and the rows read since then.

    stages: sorted by their first step.
    """
    change = rows = 0
    for number, stage in enumerate(stages):
        if stage.first_step > step:
            break
        if number and stage.length != stages[number - 1].length:
            change, rows = change + 1, 0
        end = stages[number + 1].first_step if number + 1 < len(stages) else step
        rows += stage.rows * (min(end, step) - stage.first_step)
    return change, rows


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that step number `step` belongs to; stages: sorted by their first step."""
    return [stage for stage in stages if stage.first_step <= step][-1]


def require_order(order: str) -> None:
    """ConfigError for a name that is not in ORDERS."""
    if order not in ORDERS:
        raise ConfigError(
            f"order {order!r} is unknown: choose one of {', '.join(ORDERS)}",
            f"알 수 없는 순서입니다: {order!r}. {', '.join(ORDERS)} 중에서 고르세요",
        )


def _window(shards: Shards, start: int, length: int) -> NDArray[np.int64]:
    """(length,) tokens from `start` on; a shorter source is repeated."""
    if len(shards) < length:
        return np.resize(shards.window(0, len(shards)), length)
    return shards.window(start, length)


def _require(sources: Mapping[str, Source], stages: Sequence[Stage]) -> None:
    if not sources or not all(0 < source.weight < math.inf for source in sources.values()):
        raise ConfigError(
            "a run needs at least one source, and every weight a number above 0",
            "말뭉치를 하나 이상 적고 가중치는 모두 0보다 큰 수로 쓰세요",
        )
    starts = sorted(stage.first_step for stage in stages)
    if starts[:1] != [0] or len(set(starts)) < len(starts):
        raise ConfigError(
            f"the stages start at steps {starts}: one must start at 0, and no two at the same step",
            f"구간의 first_step 값이 {starts}입니다. 하나는 0으로, 나머지는 서로 다르게 쓰세요",
        )
    for stage in stages:
        if stage.length < 2 or stage.rows < 1:
            raise ConfigError(
                f"a stage of length {stage.length}, rows {stage.rows}: at least 2 and 1 are needed",
                f"구간의 length {stage.length}, rows {stage.rows}: 각각 2와 1 이상으로 쓰세요",
            )
