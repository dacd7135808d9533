"""int8 and int4: what a packed matrix stands for, and that calibration makes it better."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY, random_tensors
from numpy.typing import NDArray
from runners import stored

from kogpt import native_runner
from kogpt.checkpoint import Stored
from kogpt.native_runner import NativeRunner, Packed
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import calibrated, gptq, pack, second_moments, unpack
from kogpt.runner import Chunk

pytestmark = pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")

RNG = np.random.default_rng(0)


def normal(n: int, k: int) -> NDArray[np.float32]:
    return RNG.standard_normal((n, k)).astype(np.float32)


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (40, 200)])
def test_int8_is_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    found = unpack(pack(stored(weight), "int8"))
    assert found.shape == shape
    step = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(found - weight) <= 0.5001 * step).all()


@pytest.mark.parametrize("shape", [(16, 64), (17, 65), (40, 200)])
def test_int4_error_of_normal_weights(shape: tuple[int, int]) -> None:
    """0.0055 of the variance; sixteen even steps in groups of 32 leave 0.0067."""
    weight = normal(*shape)
    packed = pack(stored(weight), "int4")
    assert relative_error(unpack(packed), weight) < 0.0062
    tiles = -(-shape[0] // 16) * -(-shape[1] // 64)
    assert packed.tiles.nbytes == tiles * (512 + 32)  # 4.25 bits a weight


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_zeros_and_outliers(dtype: str) -> None:
    weight = np.zeros((32, 128), np.float32)
    assert (unpack(pack(stored(weight), dtype)) == 0).all()
    weight[3, 5] = 1000.0
    weight[4, :64] = 1e-30
    found = unpack(pack(stored(weight), dtype))
    assert found[3, 5] == pytest.approx(1000, rel=0.02) and np.isfinite(found).all()
    assert found[4, :64] == pytest.approx(weight[4, :64], rel=0.02)
    assert (found[5:] == 0).all()


@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16"])
def test_sources_of_every_dtype(source: str) -> None:
    tensor = stored(normal(16, 64), "float32")
    given = Stored(source, tensor.to(source))
    exact = stored(given.to("float32"))
    np.testing.assert_array_equal(unpack(pack(given, "int4")), unpack(pack(exact, "int4")))


def test_importance_moves_the_error() -> None:
    weight = normal(64, 256)
    importance = np.where(np.arange(256) % 2, 100.0, 1.0).astype(np.float32)
    even = np.square(unpack(pack(stored(weight), "int4")) - weight)
    weighted = np.square(unpack(pack(stored(weight), "int4", importance)) - weight)
    assert (weighted * importance).sum() < 0.97 * (even * importance).sum()


def test_gptq_lowers_the_error_of_outputs() -> None:
    """On inputs that hang together, as activations do; section 3 of the paper."""
    n, k = 48, 160
    x = RNG.standard_normal((2000, 24)) @ RNG.standard_normal((24, k)) + 0.3 * RNG.standard_normal((2000, k))
    weight = normal(n, k)
    nearest, calibrated_ = unpack(pack(stored(weight), "int4")), unpack(gptq(weight, x.T @ x))
    errors = [np.square(x @ (found - weight).T).sum() for found in (nearest, calibrated_)]
    assert errors[1] < 0.5 * errors[0]
    assert relative_error(calibrated_, weight) < 0.03


def test_second_moments_are_those_of_the_inputs() -> None:
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    ids = RNG.integers(0, TINY.n_vocab, 3 * TINY.n_ctx + 5)  # windows of n_ctx: the rest is left
    moments = second_moments(TINY, tensors, ids)
    runner = NumpyRunner(TINY, tensors)
    rows = [ids[i : i + TINY.n_ctx] for i in range(0, 3 * TINY.n_ctx, TINY.n_ctx)]
    hidden = np.concatenate([runner.hidden([Chunk(runner.open(), row, len(row))])[0] for row in rows])
    np.testing.assert_allclose(moments["lm_head.weight"], hidden.T @ hidden, rtol=1e-3, atol=0.5)
    matrices = {n for n, t in tensors.items() if t.array.ndim == 2 and "wte" not in n}
    assert set(moments) == matrices


def test_a_calibrated_model_runs() -> None:
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    ids = RNG.integers(0, TINY.n_vocab, 2 * TINY.n_ctx)
    packed = calibrated(TINY, tensors, ids)
    assert isinstance(packed["lm_head.weight"], Packed)
    wanted, better, plain = (
        runner.forward([Chunk(runner.open(), ids[: TINY.n_ctx], 100)])[0]
        for runner in (
            NumpyRunner(TINY, tensors),
            NativeRunner(TINY, packed, "int4"),
            NativeRunner(TINY, tensors, "int4"),
        )
    )
    assert relative_error(better, wanted) < relative_error(plain, wanted)
