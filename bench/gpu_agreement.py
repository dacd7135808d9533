"""How near a GPU's logits are to the numpy runner's, for a small model with random weights.

Both read the same texts, those that the numpy runner writes greedily in float32 from the same weights, so one
token that differs changes nothing after it. Random weights give near ties: the likeliest token has to be the
same only where the margin of the best two logits is larger than the rounding of 16 bits explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bench.gpu_weights import random_weights
from kogpt.cli import speed
from kogpt.config import ModelConfig
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import FORMATS, Floats
from kogpt.runner import Array, Chunk, Runner

# Error of a logit, in standard deviations of the logits. On a CPU the worst of gpu.SMALL was 0.0048 in
# float16, 0.0033 in int8 and 0.0037 in int4 (activations in float16), and 0.039 in bfloat16.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 0.16}
TOLERANCE_16 = 0.02


class Agreement(NamedTuple):
    """Over all steps of all rows."""

    error: float  # the largest of a logit, in standard deviations of the logits
    ids: float  # share of equal greedy ids among those whose margin exceeds twice the tolerance
    clear: float  # share of ids that have such a margin
    every: float  # share of equal greedy ids among all


def agreement(runner: Runner, config: ModelConfig, n_rows: int, n_steps: int) -> Agreement:
    """Compare a runner, which has the random weights of `config`, with the numpy runner."""
    tensors = random_weights(config, runner.dtype)
    floats = Floats(config, tensors) if runner.dtype in FORMATS else speed.random_tensors(config, "int8")
    tolerance = TOLERANCE.get(runner.dtype, TOLERANCE_16)
    errors, equal, clear = [], [], []
    for found, wanted in _steps(runner, NumpyRunner(config, floats, "float32"), n_rows, n_steps):
        deviation = wanted.std()
        errors.append(float(abs(found - wanted).max() / deviation))
        equal.append(found.argmax(-1) == wanted.argmax(-1))
        second, first = np.partition(wanted, -2, axis=-1)[:, -2:].T
        clear.append(first - second > 2 * tolerance * deviation)
    same, sure = np.concatenate(equal), np.concatenate(clear)
    ids = float(same[sure].mean()) if sure.any() else 1.0
    return Agreement(max(errors), ids, float(sure.mean()), float(same.mean()))


def _steps(runner: Runner, teacher: Runner, n_rows: int, n_steps: int) -> Iterator[tuple[Array, Array]]:
    """Logits (B, V) of both after each prompt, and after each token that the teacher writes."""
    config, longest = teacher.config, teacher.config.n_ctx - n_steps
    chunks = []
    for i in range(n_rows):
        assert runner.open() == teacher.open() == i
        ids = np.random.default_rng(i).integers(0, config.n_vocab, min(9 + 13 * i, longest))
        chunks.append(Chunk(i, ids))
    for _ in range(n_steps):
        found, wanted = (np.concatenate(some.forward(chunks)) for some in (runner, teacher))
        yield found, wanted
        chunks = [Chunk(i, np.array([token])) for i, token in enumerate(wanted.argmax(-1))]
    for i in range(n_rows):
        runner.close(i)
        teacher.close(i)
