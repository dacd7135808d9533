"""Rounding to nearest: how far from the weights."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY, random_tensors
from numpy.typing import NDArray
from runners import stored

from kogpt import native_runner, rounding
from kogpt.checkpoint import Stored
from kogpt.errors import KoGPTError
from kogpt.quantize import Quantized
from kogpt.rounding import Rounded, nearest

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
