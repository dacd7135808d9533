"""What only the native runner promises; that its logits are right is in test_runners.py.

Each instruction set of this machine runs in a process of its own: KOGPT_ISA is read when a model is made.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, plain, random_tensors
from numpy.typing import NDArray
from reference import changes
from runners import stored

from kogpt import checkpoint, memory, native_runner
from kogpt.adapter import Lora, LowRank
from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.memory import usable_cpus
from kogpt.native_layout import WANTED, Question, address
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import Quantized
from kogpt.rounding import nearest
from kogpt.runner import Array, Chunk, Runner
from kogpt.sampling import Draw, SampledToken, Sampling, Wanted, candidates, exp, gumbel, sample

pytestmark = pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")

ISAS = ("amx", "avx512", "avx2", "dotprod", "neon", "plain")
DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")
TENSORS = {name: stored(array) for name, array in random_tensors(TINY).items()}
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, TINY.n_vocab, n) for n in (40, 1, 17, 2, 33)]

# Widths on both sides of every tile and panel: 16 outputs, 32 or 64 inputs, heads that are no whole register.
SHAPES = {
    "odd": ModelConfig(n_layers=2, n_heads=3, d_model=39, d_ff=65, n_vocab=17, n_ctx=70, rotary_dim=12),
    "whole tiles": ModelConfig(
        n_layers=2, n_heads=2, d_model=128, d_ff=192, n_vocab=96, n_ctx=70, rotary_dim=32
    ),
    "one of all": ModelConfig(n_layers=1, n_heads=1, d_model=2, d_ff=1, n_vocab=2, n_ctx=70, rotary_dim=2),
}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setenv("KOGPT_ISA", name)
    try:
        assert native_runner.isa() == name
    except KoGPTError:
        pytest.skip(f"this processor has no {name}")
    return name


def read_all(runner: Runner, texts: list[NDArray[np.int64]]) -> list[Array]:
    """Logits of every position of each text, all texts in one batch."""
    return runner.forward([Chunk(runner.open(), ids, len(ids)) for ids in texts])


def rounded_weights(config: ModelConfig, tensors: dict[str, Stored], dtype: str) -> dict[str, Stored]:
    """The tensors with every projection as the runner rounds it, in float32."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.array.ndim == 1 or "wte" in name:
            continue
        if dtype in ("int8", "int4"):
            result[name] = stored(nearest(tensor, dtype).unpack())
        else:
            result[name] = stored(Stored(dtype, tensor.to(dtype)).to("float32"))
    return result


# float32 sums; a bfloat16 cache elsewhere; bfloat16 activations besides; in whole steps, an activation on the
# edge of a step falls to either side
TOLERANCE = {"float32": 1e-4, "float16": 0.04, "bfloat16": 0.12, "int8": 0.08, "int4": 0.08}


def reference(config: ModelConfig, tensors: dict[str, Stored], dtype: str) -> NumpyRunner:
    """What the native runner should come to, in float32."""
    runner = QuantizedInputs if dtype in ("int8", "int4") else NumpyRunner
    return runner(config, rounded_weights(config, tensors, dtype))


class QuantizedInputs(NumpyRunner):
    """Reads the inputs of every projection as native/ does for int8 and int4 weights (Acts in layout.h)."""

    def _linear(self, x: Array, name: str) -> Array:
        return super()._linear(quantized(x), name)


def quantized(x: Array) -> Array:
    """(N, K) in whole steps of a scale of each row, which what is far larger than the rest does not raise."""
    blocks = np.pad(np.abs(x), ((0, 0), (0, -x.shape[1] % 64))).reshape(len(x), -1, 64).max(-1)
    largest = blocks.max(-1)
    bulk = 4 * np.sort(blocks, -1)[:, blocks.shape[1] // 2]
    scale = np.maximum(np.minimum(largest, bulk), largest / 255)[:, None] / 127
    steps: Array = (np.round(x / np.where(scale > 0, scale, 1)) * scale).astype(np.float32)
    return steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equal_to_numpy_on_the_rounded_weights(isa: str, dtype: str, shape: ModelConfig) -> None:
    tensors = {name: stored(array) for name, array in random_tensors(shape).items()}
    texts = [np.arange(n) % shape.n_vocab for n in (35, 1, 16, 18)]
    wanted = read_all(reference(shape, tensors, dtype), texts)
    found = read_all(NativeRunner(shape, tensors, dtype, threads=2), texts)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype])


class OnePlane(NumpyRunner):
    """What a scale that fits the largest input of a token would come to."""

    def _linear(self, x: Array, name: str) -> Array:
        step = np.abs(x).max(-1, keepdims=True) / 127
        return super()._linear(np.round(x / step) * step, name)


def test_outliers_do_not_cost_the_other_inputs_their_precision(isa: str) -> None:
    """Three features x 60, their weights / 60: the same function, with outliers as large models have them."""
    config = ModelConfig(n_layers=2, n_heads=4, d_model=640, d_ff=640, n_vocab=64, n_ctx=64, rotary_dim=32)
    arrays = dict(random_tensors(config))
    gain = np.ones(config.d_model, np.float32)
    gain[[5, 200, 201]] = 60
    for name in arrays:
        if "ln_1" in name:
            arrays[name] = arrays[name] * gain
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc_in.weight")):
            arrays[name] = arrays[name] / gain
    tensors = {name: stored(array) for name, array in arrays.items()}
    rounded = rounded_weights(config, tensors, "int8")
    texts = [np.arange(48)]
    (wanted,), (one_plane,) = (read_all(kind(config, rounded), texts) for kind in (NumpyRunner, OnePlane))
    (found,) = read_all(NativeRunner(config, tensors, "int8"), texts)
    errors = [float(np.square(logits - wanted).mean()) for logits in (found, one_plane)]
    assert errors[0] < 0.1 * errors[1], errors


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_neighbours(isa: str, dtype: str) -> None:
    """Bit for bit: alone token by token, in chunks, and beside others."""
    runner = NativeRunner(TINY, TENSORS, dtype, threads=2)
    together = read_all(runner, TEXTS)
    for ids, wanted in zip(TEXTS, together, strict=True):
        for size in (1, 7, 33):
            row = runner.open()
            pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
            found = np.concatenate([runner.forward([Chunk(row, p, len(p))])[0] for p in pieces])
            runner.close(row)
            np.testing.assert_array_equal(found, wanted)


def lora_and_merged(
    config: ModelConfig, tensors: dict[str, Stored], seed: int
) -> tuple[Lora, dict[str, Stored]]:
    """A LoRA of another rank on every matrix, without one here and there, and the weights with it."""
    rng = np.random.default_rng(seed)
    updates, merged = {}, dict(tensors)
    for name, tensor in tensors.items():
        if ".h." not in name or tensor.array.ndim == 1 or rng.random() < 0.2:
            continue
        (n, k), rank = tensor.array.shape, int(rng.integers(0, 21))
        a = rng.standard_normal((rank, k)).astype(np.float32) * np.float32(k**-0.5)
        b = rng.standard_normal((n, rank)).astype(np.float32)
        scale = 0.3 / max(rank, 1) ** 0.5
        updates[name.removesuffix(".weight")] = LowRank(a, b, scale)
        merged[name] = stored(tensor.array + np.float32(scale) * (b @ a))
    return Lora(updates), merged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_adapters_of_any_ranks_are_merged_weights(isa: str, dtype: str, shape: ModelConfig) -> None:
    """Two rows of each of two adapters and two of none, in one batch; then bit for bit each alone."""
    tensors = {name: stored(array) for name, array in random_tensors(shape).items()}
    runner = NativeRunner(shape, tensors, dtype, threads=2)
    models: list[tuple[int | None, dict[str, Stored]]] = [(None, tensors)]
    for seed in (1, 2):
        lora, merged = lora_and_merged(shape, tensors, seed)
        models.append((runner.add_adapter(lora), merged))
    order, lengths = (1, 0, 2, 1, 2, 0), (35, 1, 16, 18, 2, 33)
    texts = [np.arange(n) % shape.n_vocab for n in lengths]
    rows = [runner.open(models[i][0]) for i in order]
    found = runner.forward([Chunk(row, ids, len(ids)) for row, ids in zip(rows, texts, strict=True)])
    for i, ids, logits in zip(order, texts, found, strict=True):
        (wanted,) = read_all(NumpyRunner(shape, models[i][1]), [ids])
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=2 * TOLERANCE[dtype])
        for size in (1, 7):
            row = runner.open(models[i][0])
            pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
            alone = np.concatenate([runner.forward([Chunk(row, p, len(p))])[0] for p in pieces])
            np.testing.assert_array_equal(alone, logits)


def test_an_adapter_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = NativeRunner(TINY, TENSORS, "float32")
    lora, _ = lora_and_merged(TINY, TENSORS, 1)
    with monkeypatch.context() as short:
        short.setattr(memory, "available_memory", lambda: 10_000)
        with pytest.raises(NotEnoughMemory, match="this adapter needs"):
            runner.add_adapter(lora)
    assert runner.add_adapter(lora) == 0


CACHES = {"float32": 0.0, "bfloat16": 0.04, "int8": 0.06}  # and how far logits may be from those of float32
LONG = ModelConfig(n_layers=2, n_heads=3, d_model=120, d_ff=64, n_vocab=64, n_ctx=400, rotary_dim=8)


@pytest.mark.parametrize("cache_dtype", CACHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_over_many_tiles(isa: str, dtype: str, cache_dtype: str) -> None:
    """Bit for bit, over contexts of several tiles of attention and chunks of several of its jobs."""
    tensors = {name: stored(array) for name, array in random_tensors(LONG).items()}
    runner = NativeRunner(LONG, tensors, dtype, threads=2, cache_dtype=cache_dtype)
    texts = [np.arange(n) * step % 64 for n, step in ((270, 7), (130, 5), (200, 11))]
    together = read_all(runner, texts)
    wanted = read_all(reference(LONG, tensors, dtype), texts)
    tolerance = max(TOLERANCE[dtype], CACHES[cache_dtype])
    for one, other in zip(together, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
    for size in (1, 5, 129):
        rows = [runner.open() for _ in texts]
        for start in range(0, len(texts[0]), size):
            chunks = [
                Chunk(row, piece, len(piece))
                for row, ids in zip(rows, texts, strict=True)
                if len(piece := ids[start : start + size])
            ]
            for chunk, found in zip(chunks, runner.forward(chunks), strict=True):
                want = together[rows.index(chunk.row)][start : start + size]
                np.testing.assert_array_equal(found, want)
        for row in rows:
            runner.close(row)


@pytest.mark.parametrize("cache_dtype", CACHES)
def test_rows_that_share_a_prefix(isa: str, cache_dtype: str) -> None:
    """Read together, their common blocks once: bit for bit what each is alone."""
    tensors = {name: stored(array) for name, array in random_tensors(LONG).items()}
    runner = NativeRunner(LONG, tensors, "int8", threads=2, cache_dtype=cache_dtype)
    prefix = np.arange(270) * 5 % 64
    parent = runner.open()
    runner.forward([Chunk(parent, prefix, 0)])
    lengths, tails = (270, 140, 256, 20, 269), (np.arange(n) * 3 % 64 for n in (9, 30, 1, 40, 12))
    texts = [np.concatenate([prefix[:n], tail]) for n, tail in zip(lengths, tails, strict=True)]
    rows = [runner.fork(parent, n) for n in lengths]
    runner.close(parent)
    found = runner.forward(
        [Chunk(r, t[n:], len(t) - n) for r, t, n in zip(rows, texts, lengths, strict=True)]
    )
    for text, n, logits in zip(texts, lengths, found, strict=True):
        (wanted,) = runner.forward([Chunk(runner.open(), text, len(text) - n)])
        np.testing.assert_array_equal(logits, wanted)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so_and_in_its_row(isa: str, dtype: str, broken: float) -> None:
    """The engine looks at the logits: they must not be made finite by a conversion to integers on the way."""
    runner = NativeRunner(TINY, TENSORS, dtype, threads=2)
    healthy = read_all(runner, TEXTS)
    embeddings = RNG.normal(size=(3, TINY.d_model)).astype(np.float32)
    embeddings[1, 5] = broken
    chunks = [Chunk(runner.open(), ids, len(ids)) for ids in TEXTS]
    (logits, *others) = runner.forward([Chunk(runner.open(), embeddings, 2), *chunks])
    assert not np.isfinite(logits).any()
    for one, other in zip(others, healthy, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_score_that_is_no_number_reaches_the_logits(isa: str, broken: float) -> None:
    """The exponential of a score that is no number is none. A key of infinity gives scores of either sign."""
    rows = []
    for runner in (NumpyRunner(TINY, TENSORS), NativeRunner(TINY, TENSORS, "float32", threads=1)):
        row = runner.open()
        keys = np.zeros((TINY.n_layers, 1, TINY.n_heads, TINY.d_head), np.float32)
        keys[0, 0, 0, 3] = broken
        runner.load_cache(row, keys, np.zeros_like(keys))
        with np.errstate(invalid="ignore"):
            (logits,) = runner.forward([Chunk(row, TEXTS[0], len(TEXTS[0]))])
        rows.append(np.isfinite(logits).all(1))
    np.testing.assert_array_equal(rows[1], rows[0])
    assert not rows[0].all()


def test_wide_layers_sum_in_32_bits(isa: str) -> None:
    """Equal inputs and weights: the most that a sum of codes comes to; rounding adds half a code for each."""
    config = replace(TINY, n_layers=1, n_heads=1, d_model=4, d_ff=264_512, n_vocab=8, n_ctx=10, rotary_dim=2)
    tensors = dict(random_tensors(config))
    mlp = "transformer.h.0.mlp."
    tensors[f"{mlp}fc_in.weight"] = np.zeros((config.d_ff, 4), np.float32)
    tensors[f"{mlp}fc_in.bias"] = np.full(config.d_ff, 3, np.float32)
    tensors[f"{mlp}fc_out.weight"] = np.full((4, config.d_ff), 1e-5, np.float32)
    tensors[f"{mlp}fc_out.weight"][1] *= -1
    weights = {name: stored(array) for name, array in tensors.items()}
    ids = np.arange(3)
    exact, native = NumpyRunner(config, weights), NativeRunner(config, weights, "int8", threads=1)
    (wanted,) = exact.hidden([Chunk(exact.open(), ids, 3)])
    (found,) = native.hidden([Chunk(native.open(), ids, 3)])
    np.testing.assert_allclose(found, wanted, atol=0.05)


def test_a_library_that_this_system_cannot_load_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkout shared with another system has its library: numpy computes there."""
    foreign = tmp_path / "_native.so"
    foreign.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    monkeypatch.setattr(native_runner, "LIBRARY", foreign)
    assert native_runner.library.__wrapped__() is None


def test_more_processors_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_runner, "MAX_THREADS", 2)
    monkeypatch.setattr(memory, "usable_cpus", lambda: 3)
    assert NativeRunner(TINY, TENSORS).threads == 2


# Choosing tokens


def native_sample(logits: Array, draw: Draw) -> SampledToken | None:
    """sampling.sample in C++."""
    chunk = Chunk(0, np.zeros(1, np.int64), 1)
    question = Question([chunk], [Wanted([draw])], len(logits))
    kernels = native_runner.library()
    assert kernels is not None
    draws, _, _, _, answers, likeliest = WANTED.unpack(question.packed)
    logits = np.ascontiguousarray(logits, np.float32)
    assert kernels.kogpt_sample(address(logits), len(logits), draws, answers, likeliest) == 0
    (found,) = question.answers()[0].tokens
    return found


def some_logits(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """(n,) float32 of many kinds."""
    normal = rng.standard_normal(n).astype(np.float32)
    return {
        "normal": normal,
        "wide": 8 * normal,
        "flat": 1e-3 * normal,
        "ties": np.round(normal),
        "all equal": np.full(n, 3.25, np.float32),
        "two zeros": np.where(rng.random(n) < 0.5, -0.0, 0.0).astype(np.float32),
        "extremes": rng.choice(np.array([3e38, -3e38, 0, 1e30], np.float32), n),
        "denormals": (1e-45 * rng.integers(0, 9, n)).astype(np.float32),
        "one peak": np.where(np.arange(n) == n // 2, 40, normal).astype(np.float32),
    }


@pytest.mark.parametrize("n", [1, 7, 40, 1500, 64_512])
def test_tokens_are_those_of_sampling_bit_for_bit(isa: str, n: int) -> None:
    """Every filter at every temperature: the same sums in the same order, so the same set at every border."""
    rng = np.random.default_rng(n)
    words = rng.integers(1, 2**32, (n + 31) // 32, np.uint32) | np.uint32(1)
    for name, logits in some_logits(rng, n).items():
        for _ in range(12 if n > 10_000 else 60):
            written = {int(i): int(rng.integers(1, 4)) for i in rng.integers(0, n, 3)}
            s = Sampling(
                repetition_penalty=float(rng.choice([1, 1.3, 0.01])),
                frequency_penalty=0.3,
                logit_bias={int(rng.integers(n)): float(rng.choice([1, -1e6, 1e6]))},
            )
            draw = Draw(
                key=int(rng.integers(0, 2**64, dtype=np.uint64)),
                temperature=float(rng.choice([0, 1e-45, 0.01, 0.8, 1, 5, 100])),
                top_k=int(rng.choice([0, 0, 1, 5, 50, 2000, n, 10**9])),
                top_p=float(rng.choice([1, 1, 0, 0.3, 0.5, 0.95, 0.999, 1 - 2**-53])),
                min_p=float(rng.choice([0, 0, 1e-320, 0.01, 0.5, 1])),
                n_vocab=None if rng.random() < 0.5 else int(rng.integers(1, n + 1)),
                logprobs=None if rng.random() < 0.5 else int(rng.integers(0, 9)),
                allowed=None if rng.random() < 0.7 else words,
            )
            draw = draw._replace(changes=changes(s, np.array([0]), written, draw.n_vocab or n))
            if rng.random() < 0.5:
                draw = draw._replace(changes=None)
            found, wanted = native_sample(logits, draw), sample(logits, draw)
            assert found is not None and wanted is not None
            assert found.token == wanted.token, (name, draw)
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5, nan_ok=True)
            values, others = ([value for _, value in t.top_logprobs] for t in (found, wanted))
            np.testing.assert_allclose(values, others, rtol=1e-12, atol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_no_token_from_logits_that_are_not_finite(isa: str, broken: float) -> None:
    for place in (0, 15, 16, 36):
        logits = np.arange(37, dtype=np.float32)
        logits[place] = broken
        for draw in (Draw(1), Draw(1, 1.0), Draw(1, 1.0, top_p=0.5)):
            assert native_sample(logits, draw) is None
            assert (native_sample(logits, draw._replace(n_vocab=36)) is None) == (place < 36)


@pytest.mark.parametrize("key", [0, 1, 0xC0FFEE, 2**64 - 1])
def test_noise_is_that_of_sampling_to_the_last_bit(key: int) -> None:
    kernels = native_runner.library()
    assert kernels is not None
    found = np.empty(200_000)
    kernels.kogpt_gumbel(key, len(found), address(found))
    assert found.tobytes() == gumbel(key, np.arange(len(found))).tobytes()


BORDER = np.log(np.arange(1, 4001, dtype=np.float32))  # logits


@cache
def key_that_chooses(token: int) -> int:
    """A key whose noise makes this token of BORDER win against all others."""
    ids, scaled = candidates(BORDER, Draw(0, 1.0))
    return next(key for key in count() if ids[(scaled + gumbel(key, ids)).argmax()] == token)


@pytest.mark.parametrize("size", [1, 2, 100, 1777])
def test_a_nucleus_that_rounding_decides(isa: str, size: int) -> None:
    """top_p on the sum that numpy reaches by adding in order, and on its neighbours."""
    shares = exp(candidates(BORDER, Draw(0, 1.0))[1])
    shares /= np.cumsum(shares)[-1]
    border = float(np.cumsum(shares[::-1])[size - 1])
    inside, outside = 4000 - size, 3999 - size  # the last token of the set, and the one after it
    for token in (inside, outside):
        for top_p in (np.nextafter(border, 0), border, np.nextafter(border, 1), border - 1e-9, border + 1e-9):
            draw = Draw(key_that_chooses(token), 1.0, top_p=float(top_p))
            found, wanted = native_sample(BORDER, draw), sample(BORDER, draw)
            assert found is not None and wanted is not None and found.token == wanted.token
            assert (wanted.token == token) == (token == inside or top_p > border)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    wanted = read_all(NativeRunner(TINY, TENSORS, "bfloat16", threads=2), TEXTS)
    found = read_all(NativeRunner(TINY, TENSORS, "bfloat16", threads=threads), TEXTS)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def run_python(code: str, *flags: str) -> str:
    """What a process of its own prints, with `runner` made and `texts` read once; it must end well."""
    start = """
import os, sys
import numpy as np
from test_native import TENSORS, TEXTS, TINY, read_all
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.native_runner import NativeRunner
runner = NativeRunner(TINY, TENSORS, "int8", threads=3)
wanted = read_all(runner, TEXTS)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            *flags,
            "-c",
            start + code,
        ],  # CPython warns of fork() beside threads
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_computes_and_ends() -> None:
    """It has none of its parent's threads: it must neither wait for them nor join them."""
    found = run_python("""
child = os.fork()
for one, other in zip(read_all(runner, TEXTS), wanted, strict=True):
    np.testing.assert_array_equal(one, other)
if child:
    print("ended with", os.waitpid(child, 0)[1])
""")
    assert found == "ended with 0\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
def test_threads_that_the_system_refuses_are_an_error_not_an_abort() -> None:
    found = run_python("""
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    NativeRunner(TINY, TENSORS, "int8", threads=200)
except KoGPTError as error:
    print(error.en)
for one, other in zip(read_all(runner, TEXTS), wanted, strict=True):
    np.testing.assert_array_equal(one, other)
""")
    assert "200 threads" in found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
def test_memory_that_ends_within_a_step_is_an_error_not_garbage() -> None:
    """Under `python -O` too; and the runner goes on after it."""
    found = run_python(
        """
import resource
from dataclasses import replace
from dataclasses import replace
from functools import cache
from itertools import count
from kogpt.runner import Chunk
wide = replace(TINY, d_ff=65536)
from kogpt.checkpoint import Stored
tensors = dict(TENSORS)
for name, shape in wide.tensor_shapes().items():
    if tensors[name].array.shape != shape:
        tensors[name] = Stored("float32", np.zeros(shape, np.float32))
runner = NativeRunner(wide, tensors, "int8", threads=1)
row = runner.open()
runner.forward([Chunk(row, np.arange(2), 1)])
limits = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), limits[1]))
import kogpt.memory
kogpt.memory.available_memory = lambda: None  # whoever takes the memory after it was looked at
try:
    runner.forward([Chunk(row, np.arange(90), 1)])
except KoGPTError as error:
    print(error.en)
resource.setrlimit(resource.RLIMIT_AS, limits)
logits = runner.forward([Chunk(row, np.arange(90), 1)])[0]
np.testing.assert_array_equal(logits, read_all(runner, [np.r_[0, 1, 0:90]])[0][-1:])
""",
        "-O",
    )
    assert "no more memory" in found and "ulimit" in found


# The end of a model


STREAMS = """
import gc, sys
from kogpt import KoGPT, Sampling
model = KoGPT.from_pretrained(device="cpu")
stream = model.stream("옛날", Sampling(seed=1))
next(stream)
"""
ENDS = {
    "program": "",
    "break": "for piece in stream: break",
    "exit": "sys.exit(0)",
    "results": "stream.close(); unread = model.results(['옛날', '책'], Sampling(n=2)); next(unread)",
    "model first": "del model",
    "stream first": "del stream",
    "cycle": """
model.itself, model.left_open = model, stream
del model, stream
gc.collect()
print("goes on", file=sys.stderr)
""",
    "thread": """
import threading
stream.close()
threading.Thread(target=lambda: list(model.stream("오늘", Sampling(max_tokens=500))), daemon=True).start()
""",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_no_end_of_a_program_touches_a_freed_model(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", STREAMS + end],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", "goes on\n")


def test_a_freed_model_is_never_called() -> None:
    """Every method of the seam, as a generator might call it that outlives its runner."""
    runner = NativeRunner(TINY, TENSORS, "int8", threads=1)
    row, adapter = runner.open(), runner.add_adapter(Lora({}))
    given = np.zeros((TINY.n_layers, 1, TINY.n_heads, TINY.d_head), np.float32)
    chunks = [Chunk(row, np.arange(2))]
    calls: dict[str, Callable[[], object]] = {
        "open": runner.open,
        "fork": lambda: runner.fork(row),
        "length": lambda: runner.length(row),
        "truncate": lambda: runner.truncate(row, 0),
        "room": runner.room,
        "forward": lambda: runner.forward(chunks),
        "hidden": lambda: runner.hidden(chunks),
        "draw": lambda: runner.draw(chunks, [Wanted([Draw(0)])]),
        "load_cache": lambda: runner.load_cache(row, given, given),
        "add_adapter": lambda: runner.add_adapter(Lora({})),
        "drop_adapter": lambda: runner.drop_adapter(adapter),
    }
    public = {
        name for name in vars(NativeRunner) if not name.startswith("_") and callable(getattr(runner, name))
    }
    assert public == calls.keys() | {"answer_after", "close", "weight_bytes"}
    runner._model.free(runner._library)
    for call in calls.values():
        with pytest.raises(ctypes.ArgumentError, match="was freed"):
            call()
    runner.close(row)


def test_a_model_is_freed_with_its_runner() -> None:
    runner = NativeRunner(TINY, TENSORS, "int8", threads=1)
    model = runner._model
    assert not model.freed
    del runner
    gc.collect()
    assert model.freed


@pytest.mark.parametrize("threads", [0, -1, 2**32 + 1])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: int) -> None:
    with pytest.raises(KoGPTError, match="from 1 to 1024"):
        NativeRunner(TINY, TENSORS, "int8", threads=threads)


def test_no_more_threads_than_the_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert usable_cpus() == 64
    for text, n in (("max 100000", 64), ("250000 100000", 3), ("10000 100000", 1), ("9900000 100000", 64)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cpus() == n


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
def test_a_long_context_costs_nothing_until_it_is_read() -> None:
    """What a config promises is no reason to fill the memory with tables."""
    run_python("""
import resource
from dataclasses import replace
from dataclasses import replace
from functools import cache
from itertools import count
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
endless = NativeRunner(replace(TINY, n_ctx=2**24), TENSORS, "int8", threads=1)
for one, other in zip(read_all(endless, TEXTS), wanted, strict=True):
    np.testing.assert_array_equal(one, other)
""")


def test_more_positions_than_one_pass_takes() -> None:
    config = ModelConfig(n_layers=2, n_heads=2, d_model=64, d_ff=64, n_vocab=64, n_ctx=1400, rotary_dim=32)
    tensors = {name: stored(array) for name, array in random_tensors(config).items()}
    texts = [np.arange(n) % 64 for n in (700, 3, 600)]
    found = NativeRunner(config, tensors, "float32")
    chunks = [Chunk(found.open(), ids, n) for ids, n in zip(texts, (600, 2, 1), strict=True)]
    wanted = read_all(NumpyRunner(config, tensors), texts)
    for logits, want, chunk in zip(found.forward(chunks), wanted, chunks, strict=True):
        np.testing.assert_allclose(logits, want[len(want) - chunk.n_outputs :], rtol=0, atol=1e-4)


def test_fork_shares_whole_blocks() -> None:
    """A fork needs one block (of the last, unfinished positions), whatever the length of the prefix."""
    runner = NativeRunner(TINY, TENSORS, "bfloat16")
    parent = runner.open()
    runner.forward([Chunk(parent, np.arange(100), 0)])
    bytes_of = runner._library.kogpt_cache_bytes
    child = runner.fork(parent)
    block = bytes_of(runner._model, runner.open(), 1)
    assert bytes_of(runner._model, child, 1) == block
    assert bytes_of(runner._model, runner.fork(parent, 96), 32) == block
    runner.close(child)
    assert bytes_of(runner._model, parent, 1) == 0  # its last block is its own again


def test_int8_takes_half_the_memory_of_bfloat16() -> None:
    config = ModelConfig(n_layers=2, n_heads=2, d_model=128, d_ff=64, n_vocab=32, n_ctx=64, rotary_dim=32)
    tensors = {name: stored(array) for name, array in random_tensors(config).items()}
    needed = {}
    for cache_dtype in CACHES:
        runner = NativeRunner(config, tensors, "int8", cache_dtype=cache_dtype)
        assert runner.cache_dtype == cache_dtype
        needed[cache_dtype] = runner._library.kogpt_cache_bytes(runner._model, runner.open(), 64)
    assert needed["bfloat16"] == 2 * 2 * 64 * 128 * 2
    assert needed["float32"] == 2 * needed["bfloat16"]
    assert needed["int8"] == needed["bfloat16"] // 2 + 2 * 2 * 2 * 64 * 4  # scales


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_block_takes_the_memory_that_it_asks_for() -> None:
    """Not whole huge pages: a little more than one would be two."""
    found = run_python("""
import resource
from conftest import random_tensors
from kogpt.config import ModelConfig
from kogpt.runner import Chunk
from runners import stored
config = ModelConfig(n_layers=460, n_heads=2, d_model=64, d_ff=1, n_vocab=8, n_ctx=32, rotary_dim=2)
tensors = {name: stored(array) for name, array in random_tensors(config).items()}
runner = NativeRunner(config, tensors, "float32", threads=1, cache_dtype="int8")
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
rows = [runner.open() for _ in range(21)]
runner.forward([Chunk(rows[0], np.arange(1), 0)])
needed, before = runner._library.kogpt_cache_bytes(runner._model, rows[1], 1), resident()
runner.forward([Chunk(row, np.arange(1), 0) for row in rows[1:]])
print(needed, (resident() - before) / 20)
""")
    needed, taken = map(float, found.split())
    assert 2**21 < needed < 1.1 * 2**21 and taken < 1.2 * needed


def test_weights_stay_on_the_pages_of_the_file(tmp_path: Path) -> None:
    """Whole tiles in the runner's dtype are not copied; what has to be converted is."""
    config = ModelConfig(n_layers=1, n_heads=2, d_model=64, d_ff=128, n_vocab=32, n_ctx=32, rotary_dim=32)
    checkpoint.save(tmp_path, config, random_tensors(config), dtype="bfloat16")
    tensors = plain(checkpoint.load(tmp_path).tensors)
    matrices = sum(tensor.array.ndim == 2 for tensor in tensors.values())
    assert len(NativeRunner(config, tensors, "bfloat16")._borrowed) == matrices
    assert len(NativeRunner(config, tensors, "int8")._borrowed) == 1  # the embedding
    logits = [read_all(NativeRunner(config, tensors, "bfloat16"), [np.arange(5)])[0] for _ in range(2)]
    np.testing.assert_array_equal(logits[0], logits[1])  # dropped pages are read again


def test_large_matrices_move_to_huge_pages(tmp_path: Path) -> None:
    """From 2 MiB on they are copied, and read the same."""
    config = ModelConfig(n_layers=1, n_heads=4, d_model=512, d_ff=2048, n_vocab=32, n_ctx=32, rotary_dim=32)
    checkpoint.save(tmp_path, config, random_tensors(config), dtype="bfloat16")
    tensors = plain(checkpoint.load(tmp_path).tensors)
    runner = NativeRunner(config, tensors, "bfloat16")
    assert len(runner._borrowed) == sum(t.array.ndim == 2 for t in tensors.values()) - 2  # fc_in, fc_out
    wanted = read_all(NumpyRunner(config, tensors), [np.arange(9)])[0]
    np.testing.assert_allclose(read_all(runner, [np.arange(9)])[0], wanted, rtol=0, atol=0.12)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_codes_of_a_file_and_rounding_at_load_are_the_same(config: ModelConfig, dtype: str) -> None:
    tensors = {name: stored(array) for name, array in random_tensors(config).items()}
    codes: dict[str, Stored | Quantized] = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.array.ndim == 2 and "wte" not in name:
            codes[name] = nearest(tensor, dtype)
    texts = [RNG.integers(0, config.n_vocab, n) for n in (1, 9)]
    found = read_all(NativeRunner(config, codes, dtype), texts)
    for one, other in zip(found, read_all(NativeRunner(config, tensors, dtype), texts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KoGPTError, match=r"bfloat16, int8, int4"):
        NativeRunner(TINY, TENSORS, "float8")
    with pytest.raises(KoGPTError, match="auto, float32, bfloat16, int8"):
        NativeRunner(TINY, TENSORS, "int8", cache_dtype="int4")
    monkeypatch.setenv("KOGPT_ISA", "sse9")
    with pytest.raises(KoGPTError, match="sse9"):
        NativeRunner(TINY, TENSORS, "float32")
    for dtype in ("int8", "int4"):
        with pytest.raises(KoGPTError, match="sse9"):
            nearest(stored(np.ones((2, 64), np.float32)), dtype)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("aarch64-linux-gnu-g++", "qemu-aarch64"))), reason="no cross compiler, no qemu"
)
def test_arm_kernels_are_equal_to_the_plain_ones() -> None:
    """Cross-compiled and run under qemu, with dot products of int8 and without."""
    script = Path(__file__).parents[1] / "scripts" / "arm"
    done = subprocess.run(
        [script], capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: equal to plain" in done.stdout and "dotprod: equal to plain" in done.stdout


def test_native_is_not_left_out_by_accident() -> None:
    """CI builds the kernels: their absence there must not look like a pass."""
    assert native_runner.available() or "CI" not in os.environ
