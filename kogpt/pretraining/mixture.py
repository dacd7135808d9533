"""Which windows of which sources make up a step: a pure function of the seed and the step's number.

So the data position of a run is its step, and a resumed run sees what the unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import ConfigError
from kogpt.pretraining.shards import Shards


class Mixture:
    """Random windows of several folders of shards, each drawn with its own weight."""

    def __init__(self, weights: Mapping[Path, float], seed: int) -> None:
        if not weights or any(weight <= 0 for weight in weights.values()):
            raise ConfigError(
                f"the mixture needs at least one source, with weights above 0: {dict(weights)}",
                f"말뭉치는 하나 이상이고 가중치는 0보다 커야 합니다: {dict(weights)}",
            )
        self.sources = [Shards(folder) for folder in weights]
        if len({source.index.tokenizer_sha256 for source in self.sources}) > 1:
            raise ConfigError(
                "the sources were packed with different tokenizers: pack them again with one",
                "말뭉치마다 토크나이저가 다릅니다. 같은 토크나이저로 다시 묶으세요",
            )
        total = sum(weights.values())
        self.weights = [weight / total for weight in weights.values()]
        self.seed = seed

    def batch(self, step: int, rows: int, length: int) -> NDArray[np.int64]:
        """(rows, length) token ids for step number `step`."""
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(len(self.sources), size=rows, p=self.weights)
        places = rng.random(rows)
        return np.stack([_window(self.sources[s], p, length) for s, p in zip(chosen, places, strict=True)])


def _window(source: Shards, place: float, length: int) -> NDArray[np.int64]:
    """The window that starts at share `place` of the source; a source shorter than it is repeated."""
    if len(source) < length:
        return np.resize(source.window(0, len(source)), length)
    return source.window(int(place * (len(source) - length + 1)), length)
