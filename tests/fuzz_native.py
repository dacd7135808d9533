"""Random shapes, texts and schedules through a given build of the kernels, beside the numpy runner.

python tests/fuzz_native.py LIBRARY ROUNDS       what scripts/sanitize runs; also of use without sanitizers
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from conftest import random_tensors
from numpy.typing import NDArray
from runners import stored

from kogpt import native_runner
from kogpt.adapter import Lora, LowRank
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.native_runner import CACHE_DTYPES, FORMATS, NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.rounding import nearest
from kogpt.runner import Array, Chunk
from kogpt.sampling import Draw, Wanted, choose

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
        cache_dtype = str(rng.choice(["auto", *CACHE_DTYPES]))
        other = NativeRunner(config, tensors, dtype, threads=2, cache_dtype=cache_dtype)
        (found,) = other.forward([Chunk(other.open(), ids, len(ids))])
        assert np.isfinite(found).all(), (config, dtype, cache_dtype)
        in_pieces(rng, other, ids, found)
        with_adapters(rng, other, ids)
    nearest(tensors["transformer.wte.weight"], "int4").unpack()


def in_pieces(rng: np.random.Generator, runner: NativeRunner, ids: NDArray[np.int64], wanted: Array) -> None:
    """Bit for bit the same when two rows that share a beginning read on by 1 to 70 positions at a time."""
    rows = [runner.open()]
    start = int(rng.integers(0, len(ids)))
    if start:
        (found,) = runner.forward([Chunk(rows[0], ids[:start], start)])
        np.testing.assert_array_equal(found, wanted[:start])
    rows.append(runner.fork(rows[0]))
    while any(runner.length(row) < len(ids) for row in rows):
        chunks = []
        for row in rows:
            at = runner.length(row)
            piece = ids[at : at + int(rng.integers(1, 71))]
            if len(piece):
                chunks.append(Chunk(row, piece, len(piece)))
        places = [runner.length(chunk.row) for chunk in chunks]
        for place, found in zip(places, runner.forward(chunks), strict=True):
            np.testing.assert_array_equal(found, wanted[place : place + len(found)])


def random_lora(rng: np.random.Generator, config: ModelConfig) -> Lora:
    """Small updates of any rank on some matrices."""
    updates = {}
    for name, shape in config.tensor_shapes().items():
        if ".h." in name and len(shape) == 2 and rng.integers(3):
            rank = int(rng.integers(0, 40))
            a, b = rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))
            factors = (a * 0.1 * shape[1] ** -0.5).astype(np.float32), b.astype(np.float32)
            updates[name.removesuffix(".weight")] = LowRank(*factors, float(rng.normal()))
    return Lora(updates)


def with_adapters(rng: np.random.Generator, runner: NativeRunner, ids: NDArray[np.int64]) -> None:
    """Rows with adapters, given keys and values, cut off here and there: `draw` agrees with `forward`."""
    config = runner.config
    handles = [None, *(runner.add_adapter(random_lora(rng, config)) for _ in range(3))]
    rows = [runner.open(handles[int(i)]) for i in rng.integers(0, 4, 5)]
    for _ in range(6):
        chunks, twins, wanted = [], [], []
        for row in rows:
            runner.truncate(row, int(rng.integers(0, runner.length(row) + 1)))
            given = int(rng.integers(0, min(40, config.n_ctx - runner.length(row)) + 1))
            shape = (config.n_layers, given, config.n_heads, config.d_head)
            runner.load_cache(row, *(rng.standard_normal(shape).astype(np.float32) for _ in range(2)))
            piece = ids[: int(rng.integers(0, min(70, config.n_ctx - runner.length(row)) + 1))]
            if not len(piece):
                continue
            n = int(rng.integers(0, len(piece) + 1))
            twins.append(Chunk(runner.fork(row), piece, n))
            chunks.append(Chunk(row, piece, n))
            wanted.append(random_wanted(rng, n, config.n_vocab))
        if not chunks:
            continue
        for found, logits, want in zip(
            runner.draw(chunks, wanted), runner.forward(twins), wanted, strict=True
        ):
            answer = choose(logits, want)
            assert [t and t.token for t in found.tokens] == [t and t.token for t in answer.tokens]
            np.testing.assert_allclose(found.logprobs, answer.logprobs, rtol=0, atol=1e-5)
            assert found.likeliest.tolist() == answer.likeliest.tolist()
        for twin in twins:
            runner.close(twin.row)
    for row in rows:
        runner.close(row)
    for handle in handles[1:]:
        assert handle is not None
        runner.drop_adapter(handle)


def random_wanted(rng: np.random.Generator, n_outputs: int, n_vocab: int) -> Wanted:
    """Draws with any filter, and targets, of a chunk with so many outputs."""
    if not n_outputs:
        return Wanted()
    draws = [
        Draw(
            key=int(rng.integers(0, 2**63)),
            temperature=float(rng.choice([0, 0.01, 0.8, 5])),
            top_k=int(rng.choice([0, 1, 7, 10**6])),
            top_p=float(rng.choice([0, 0.5, 0.95, 1])),
            min_p=float(rng.choice([0, 0.1])),
            n_vocab=int(rng.integers(1, n_vocab + 1)),
            logprobs=None if rng.integers(2) else int(rng.integers(0, 6)),
            allowed=None if rng.integers(2) else np.full(n_vocab // 32 + 1, 0x55555555, np.uint32),
            output=int(rng.integers(0, n_outputs)),
        )
        for _ in range(int(rng.integers(0, 4)))
    ]
    n_targets = int(rng.integers(0, 9))
    outputs, targets = rng.integers(0, n_outputs, n_targets), rng.integers(0, n_vocab, n_targets)
    return Wanted(draws, outputs, targets, int(rng.integers(0, 4)))


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
