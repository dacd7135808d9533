"""Random shapes, texts and schedules through a given build of the kernels, beside the numpy runner.

python tests/fuzz_native.py LIBRARY ROUNDS       what scripts/sanitize runs; also of use without sanitizers
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from conftest import random_tensors
from runners import stored

from kogpt import native_runner
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.export.rounding import nearest
from kogpt.native_runner import FORMATS, NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk

ISAS = ("amx", "avx512", "avx2", "dotprod", "neon", "plain")


def random_config(rng: np.random.Generator) -> ModelConfig:
    n_heads, d_head = int(rng.integers(1, 5)), 2 * int(rng.integers(1, 40))
    return ModelConfig(
        n_layers=int(rng.integers(1, 4)),
        n_heads=n_heads,
        d_model=n_heads * d_head,
        d_ff=int(rng.integers(1, 400)),
        n_vocab=int(rng.integers(2, 200)),
        n_ctx=int(rng.integers(1, 700)),
        rotary_dim=2 * int(rng.integers(1, d_head // 2 + 1)),
        tied_head=bool(rng.integers(2)),
    )


def one_round(rng: np.random.Generator) -> None:
    """A float32 model read in random pieces by forked rows, then each other format read once."""
    config = random_config(rng)
    tensors = {name: stored(array) for name, array in random_tensors(config).items()}
    ids = rng.integers(0, config.n_vocab, config.n_ctx)
    numpy_runner = NumpyRunner(config, tensors)
    wanted = numpy_runner.forward([Chunk(numpy_runner.open(), ids, len(ids))])[0]
    runner = NativeRunner(config, tensors, "float32", threads=int(rng.integers(1, 4)))
    rows = [runner.open()]
    while runner.length(rows[-1]) < config.n_ctx:
        if rng.integers(3) == 0:
            rows.append(runner.fork(rows[-1], int(rng.integers(0, runner.length(rows[-1]) + 1))))
        start = runner.length(rows[-1])
        end = min(config.n_ctx, start + int(rng.integers(1, 200)))
        (found,) = runner.forward([Chunk(rows[-1], ids[start:end], end - start)])
        np.testing.assert_allclose(found, wanted[start:end], rtol=0, atol=2e-4)
        if len(rows) > 1 and rng.integers(2):
            runner.close(rows.pop(0))
    for dtype in FORMATS:
        other = NativeRunner(config, tensors, dtype, threads=2)
        (found,) = other.forward([Chunk(other.open(), ids, len(ids))])
        assert np.isfinite(found).all(), (config, dtype)
    nearest(tensors["transformer.wte.weight"], "int4").unpack()


def main(library: str, rounds: int) -> None:
    native_runner.LIBRARY = Path(library)
    for isa in ISAS:
        os.environ["KOGPT_ISA"] = isa
        try:
            native_runner.isa()
        except KoGPTError:
            print(f"{isa}: not on this processor")
            continue
        for seed in range(rounds):
            one_round(np.random.default_rng(seed))
        print(f"{isa}: {rounds} rounds", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
