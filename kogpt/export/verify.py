"""Whether an exported folder computes what the model does: logits of a sample, from both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kogpt.checkpoint import Checkpoint
from kogpt.placement import Placement, load_runner
from kogpt.request import Ids
from kogpt.runner import Array, Chunk

N_TOKENS = 64  # of the sample


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the logits of a sample are apart."""

    largest: float  # difference of two logits
    deviation: float  # standard deviation of the model's own logits
    n_equal: int  # positions at which both choose the same token
    n_tokens: int

    def lines(self) -> tuple[str, str]:
        """What a user reads, in English and Korean."""
        share = f"{self.n_equal} / {self.n_tokens}"
        apart = f"{self.largest:.2g}"
        return (
            f"read again: logits differ by at most {apart} (standard deviation {self.deviation:.2g});"
            f" equal first choices: {share}",
            f"다시 읽은 결과: 로짓의 최대 차이 {apart} (로짓의 표준편차 {self.deviation:.2g}), "
            f"1순위 토큰 일치 {share}",
        )


def compare(stored: Checkpoint, exported: Checkpoint) -> Comparison:
    """Run a fixed sample of ids through both on the CPU: the model in float32, the folder as it will be run.

    A quantised model is unpacked: in its own format it would round activations, which no exported float does.
    """
    n = min(N_TOKENS, stored.config.n_ctx)
    ids = np.random.default_rng(0).integers(0, stored.config.n_vocab, n)
    own = _logits(stored, ids, "float32")
    other = _logits(exported, ids, "auto" if exported.quantization else "float32")
    equal = own.argmax(axis=1) == other.argmax(axis=1)
    return Comparison(float(np.abs(own - other).max()), float(own.std()), int(equal.sum()), n)


def _logits(stored: Checkpoint, ids: Ids, dtype: str) -> Array:
    """(T, V) logits."""
    runner = load_runner(stored, Placement("cpu", dtype))
    row = runner.open()
    try:
        return runner.forward([Chunk(row, ids, len(ids))])[0]
    finally:
        runner.close(row)
