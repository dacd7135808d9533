"""Rounding to nearest, and with a calibration text: how far from the weights, and from the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY, random_tensors
from numpy.typing import NDArray
from runners import stored

from kogpt import native_runner, rounding
from kogpt.checkpoint import Stored
from kogpt.errors import InputError, KoGPTError
from kogpt.export import calibration
from kogpt.export.calibration import Calibrated, gptq, inverse_factor
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import Quantized
from kogpt.rounding import Rounded, nearest
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
    found = nearest(stored(weight), "int8").unpack()
    assert found.shape == shape
    step = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(found - weight) <= 0.5001 * step).all()


@pytest.mark.parametrize("shape", [(64, 64), (65, 65), (40, 1100)])
def test_int4_error_of_normal_weights(shape: tuple[int, int]) -> None:
    """0.0054 of the variance; sixteen even steps in groups of 32 leave 0.0067."""
    weight = normal(*shape)
    packed = nearest(stored(weight), "int4")
    assert relative_error(packed.unpack(), weight) < 0.0058
    assert packed.nbytes == shape[0] * (-(-shape[1] // 2) + -(-shape[1] // 32) + 4)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_zeros_and_outliers(dtype: str) -> None:
    weight = np.zeros((32, 128), np.float32)
    assert (nearest(stored(weight), dtype).unpack() == 0).all()
    weight[3, 5] = 1000.0
    weight[4, :64] = 1e-30
    found = nearest(stored(weight), dtype).unpack()
    assert found[3, 5] == pytest.approx(1000, rel=0.02) and np.isfinite(found).all()
    assert found[4, :64] == pytest.approx(weight[4, :64], rel=0.02)
    assert (found[5:] == 0).all()


@pytest.mark.parametrize("source", ["float64", "float32", "float16", "bfloat16"])
def test_sources_of_every_dtype(source: str) -> None:
    tensor = stored(normal(16, 64), "float32")
    given = Stored(source, tensor.to(source))
    exact = stored(given.to("float32"))
    np.testing.assert_array_equal(nearest(given, "int4").unpack(), nearest(exact, "int4").unpack())


def test_importance_moves_the_error() -> None:
    weight = normal(64, 256)
    importance = np.where(np.arange(256) % 2, 100.0, 1.0).astype(np.float32)
    even = np.square(nearest(stored(weight), "int4").unpack() - weight)
    weighted = np.square(nearest(stored(weight), "int4", importance).unpack() - weight)
    assert (weighted * importance).sum() < 0.97 * (even * importance).sum()


def test_a_model_is_rounded_as_it_is_asked_for() -> None:
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    rounded = Rounded(TINY, tensors, "int8")
    assert list(rounded) == list(tensors) and len(rounded) == len(tensors)
    assert rounded["transformer.wte.weight"] is tensors["transformer.wte.weight"]
    assert isinstance(rounded["lm_head.weight"], Quantized)


def test_without_the_kernels_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "library", lambda: None)
    with pytest.raises(KoGPTError, match="install a C"):
        nearest(stored(normal(2, 2)), "int8")


# ----------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("k", [160, 75])
def test_gptq_lowers_the_error_of_outputs(k: int) -> None:
    """On inputs that hang together, as activations do; section 3 of the paper."""
    n = 48
    x = RNG.standard_normal((2000, 24)) @ RNG.standard_normal((24, k)) + 0.3 * RNG.standard_normal((2000, k))
    weight = normal(n, k)
    plain, better = nearest(stored(weight), "int4").unpack(), gptq(weight, inverse_factor(x.T @ x)).unpack()
    errors = [np.square(x @ (found - weight).T).sum() for found in (plain, better)]
    assert errors[1] < 0.5 * errors[0]
    assert relative_error(better, weight) < 0.03


def test_every_matrix_gets_the_moments_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding, those of the reference runner's own inputs: every window, every layer."""
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    seen: list[NDArray[np.float64]] = []
    monkeypatch.setattr(calibration, "inverse_factor", seen.append)
    monkeypatch.setattr(calibration, "gptq", lambda weight, factor: Exact(weight))
    ids = RNG.integers(0, TINY.n_vocab, 3 * TINY.n_ctx)
    all_of = Calibrated(TINY, tensors, ids)
    for name in all_of:
        assert all_of[name] is not None
    runner = NumpyRunner(TINY, tensors)
    rows = ids.reshape(3, TINY.n_ctx)
    hidden = np.concatenate([runner.hidden([Chunk(runner.open(), row, len(row))])[0] for row in rows])
    np.testing.assert_allclose(seen[-1], hidden.T @ hidden, rtol=1e-3, atol=0.5)
    assert [len(moment) for moment in seen] == [TINY.d_model, TINY.d_model, TINY.d_ff] * 3 + [TINY.d_model]


class Exact:
    """What stands in for a rounded matrix that lost nothing."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.unpack = lambda: weight


def test_a_calibrated_model_is_nearer_to_the_float_one() -> None:
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    ids = RNG.integers(0, TINY.n_vocab, 2 * TINY.n_ctx)
    lazy = Calibrated(TINY, tensors, ids)
    packed = {name: lazy[name] for name in lazy}
    wanted, better, plain = (
        runner.forward([Chunk(runner.open(), ids[: TINY.n_ctx], 100)])[0]
        for runner in (
            NumpyRunner(TINY, tensors),
            NativeRunner(TINY, packed, "int4"),
            NativeRunner(TINY, tensors, "int4"),
        )
    )
    assert relative_error(better, wanted) < relative_error(plain, wanted)


def test_a_text_too_short_to_calibrate_on_is_refused() -> None:
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    with pytest.raises(InputError, match=f"at least {TINY.n_ctx} are needed"):
        Calibrated(TINY, tensors, RNG.integers(0, TINY.n_vocab, TINY.n_ctx - 1))
