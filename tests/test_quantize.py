"""int8 and int4 as files hold them: what codes and scales stand for, without the native kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray

from kogpt import native_runner, quantize
from kogpt.checkpoint import Stored
from kogpt.errors import CheckpointError
from kogpt.quantize import CODEBOOK, Floats, Quantized, matrices, parts, read_statement, statement, table

RNG = np.random.default_rng(0)


def random_matrix(dtype: str, n: int, k: int) -> Quantized:
    shapes = [shape for _, shape in parts("x", dtype, (n, k)).values()]
    scales = RNG.random(n).astype(np.float32)
    if dtype == "int8":
        return Quantized(dtype, (n, k), RNG.integers(-127, 128, (n, k), np.int8), None, scales)
    codes, groups = (RNG.integers(0, 256, shape, np.uint8) for shape in (shapes[0][1:], shapes[1]))
    return Quantized(dtype, (n, k), codes, groups, scales)


def entry(group: int, code: int) -> int:
    """One entry of the int4 table, by the sentence in quantize.py's docstring."""
    value = round(CODEBOOK[code] * (group & 127) / 127)
    return -value if group >= 128 else value


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (2, 64), (5, 77)])
def test_every_weight_is_what_the_docstring_says(shape: tuple[int, int]) -> None:
    matrix = random_matrix("int4", *shape)
    assert matrix.groups is not None
    wanted = np.zeros(shape, np.float32)
    for n in range(shape[0]):
        for k in range(shape[1]):
            code = int(matrix.codes[n, k // 2]) >> 4 * (k % 2) & 15
            wanted[n, k] = np.float32(entry(int(matrix.groups[n, k // 32]), code)) * matrix.scales[n]
    np.testing.assert_array_equal(matrix.unpack(), wanted)
    whole = random_matrix("int8", *shape)
    np.testing.assert_array_equal(whole.unpack(), whole.codes * whole.scales[:, None])


def test_a_matrix_is_unpacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random_matrix("int4", 23, 40)
    wanted = matrix.unpack()
    monkeypatch.setattr(quantize, "ROWS_BYTES", 7 * 4 * 40)
    np.testing.assert_array_equal(matrix.unpack(), wanted)


@pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")
def test_the_table_is_that_of_the_kernels() -> None:
    kernels = native_runner.library()
    assert kernels is not None
    entries = np.frombuffer(ctypes.string_at(kernels.kogpt_int4_table(), 256 * 16), np.int8)
    np.testing.assert_array_equal(table().ravel(), entries)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_parts_of_a_file_and_back(dtype: str) -> None:
    matrix = random_matrix(dtype, 6, 45)
    found = matrix.parts("x")
    assert {name: (part.dtype, part.array.shape) for name, part in found.items()} == parts(
        "x", dtype, matrix.shape
    )
    np.testing.assert_array_equal(
        Quantized.of_parts("x", dtype, matrix.shape, found).unpack(), matrix.unpack()
    )


def test_floats_are_unpacked_when_they_are_asked_for() -> None:
    plain: dict[str, Stored | Quantized] = {
        name: Stored("float32", np.ones(shape, np.float32)) for name, shape in TINY.tensor_shapes().items()
    }
    matrix = random_matrix("int4", *matrices(TINY)["lm_head.weight"])
    floats = Floats(TINY, plain | {"lm_head.weight": matrix})
    assert list(floats) == list(TINY.tensor_shapes()) and "lm_head.weight" in floats
    values: NDArray[np.float32] = floats["lm_head.weight"].array
    np.testing.assert_array_equal(values, matrix.unpack())
    assert floats["lm_head.weight"].array is not values  # nothing is kept
    assert floats["lm_head.bias"] is plain["lm_head.bias"]


def test_a_statement_is_read_as_it_is_written() -> None:
    assert read_statement(None, TINY, "manifest") is None
    for dtype in ("int8", "int4"):
        assert read_statement(statement(TINY, dtype), TINY, "manifest") == dtype
        for key in statement(TINY, dtype):
            other = statement(TINY, dtype) | {key: "other"}
            with pytest.raises(CheckpointError, match="manifest states quantised weights"):
                read_statement(other, TINY, "manifest")
