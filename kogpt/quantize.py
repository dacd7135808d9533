"""int8 and int4 weights: tensors -> packed tensors, and back. The arithmetic is native/'s.

int8    one scale for each output; 8 bits a weight
int4    groups of 32 inputs, each with a scale of eight bits, over one of 16 values of a fixed codebook
        (native/codebook.h), and one scale for each output; 4.25 bits a weight

Rounding to nearest with searched group scales needs no data. `calibrated` does better from a text: GPTQ
(arXiv 2210.17323), which makes the inputs not yet rounded take up the error of those that are, as the second
moments of the inputs tell.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.native_runner import FORMATS, Packed, library, usable_cpus
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Array, Chunk

PANEL, DEPTH, GROUP, CODES = 16, 64, 32, 16  # native/layout.h
DAMPING = 0.01  # of the mean second moment, added to all: GPTQ, section 3.3
WINDOW = 512  # positions of the calibration text that are read together


def pack(tensor: Stored, dtype: str, importance: NDArray[np.float32] | None = None) -> Packed:
    """A matrix (N, K) rounded to nearest; importance (K,): how much an error on each input weighs (int4)."""
    assert dtype in ("int8", "int4") and tensor.array.ndim == 2, (dtype, tensor.array.shape)
    n, k = tensor.array.shape
    source = tensor if tensor.dtype in FORMATS else Stored("float32", tensor.to("float32"))
    array = np.require(source.array, requirements=("C", "A"))
    tiles, scales = _empty(dtype, n, k)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if weights is None else weights.ctypes.data
    arguments = (usable_cpus(), FORMATS[dtype], FORMATS[source.dtype], array.ctypes.data, n, k, pointer)
    _kernels().kogpt_quantize(*arguments, tiles.ctypes.data, scales.ctypes.data)
    return Packed(dtype, (n, k), tiles, scales)


def unpack(packed: Packed) -> NDArray[np.float32]:
    """The values that the kernels multiply with, (N, K)."""
    n, k = packed.shape
    rows, width = _padded(n, k)
    integers = np.empty((rows, width), np.int8)
    arguments = (FORMATS[packed.dtype], packed.tiles.ctypes.data, rows // PANEL, width)
    _kernels().kogpt_unpack(*arguments, integers.ctypes.data)
    values: NDArray[np.float32] = (integers * packed.scales[:, None])[:n, :k]
    return values


def calibrated(
    config: ModelConfig, tensors: Mapping[str, Stored], ids: NDArray[np.int64]
) -> dict[str, Stored | Packed]:
    """All tensors, the projections in int4 by GPTQ; `ids`: the text to calibrate on, some 10,000 tokens."""
    moments = second_moments(config, tensors, ids)
    packed: dict[str, Stored | Packed] = dict(tensors)
    for name, moment in moments.items():
        packed[name] = gptq(tensors[name].to("float32"), moment)
    return packed


def second_moments(
    config: ModelConfig, tensors: Mapping[str, Stored], ids: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Name of each projection -> (K, K), the sum of x x^T over its inputs while the text is read.

    The head of a model that ties it to its embedding is left out: that matrix stays as it is.
    """
    observer = _Observer(config, tensors)
    window = min(WINDOW, config.n_ctx)
    for start in range(0, len(ids) - window + 1, window):
        row = observer.open()
        observer.forward([Chunk(row, ids[start : start + window], window)])
        observer.close(row)
    return {f"{name}.weight": moment for name, moment in observer.moments.items()}


def gptq(weight: NDArray[np.float32], moment: NDArray[np.float64]) -> Packed:
    """One matrix (N, K) in int4, its error made small where its inputs (second moments (K, K)) are large."""
    n, k = weight.shape
    rows, width = _padded(n, k)
    left = np.zeros((rows, width), np.float32)  # what is still to be rounded, with the errors so far
    left[:n, :k] = weight
    unit = np.maximum(np.abs(left).max(1), np.finfo(np.float32).tiny) / 120  # as quantize_row4 in native/
    factor = _inverse_factor(moment, width)
    codes = np.zeros((rows, width), np.uint8)
    groups = np.zeros((rows, width // GROUP), np.uint8)
    for start in range(0, width, GROUP):
        end = start + GROUP
        triangle = factor[start:end, start:end]
        groups[:, start // GROUP] = _search(left[:, start:end] / unit[:, None], np.diag(triangle) ** -2)
        values = _table()[groups[:, start // GROUP]] * unit[:, None]  # (rows, 16)
        errors = np.empty((rows, GROUP), np.float32)
        for j in range(GROUP):
            column = left[:, start + j]
            code = np.abs(values - column[:, None]).argmin(1)
            codes[:, start + j] = code
            errors[:, j] = (column - values[np.arange(rows), code]) / triangle[j, j]
            left[:, start + j + 1 : end] -= np.outer(errors[:, j], triangle[j, j + 1 :])
        left[:, end:] -= errors @ factor[start:end, end:]
    tiles, scales = _empty("int4", n, k)
    scales[:] = unit
    arguments = (codes.ctypes.data, groups.ctypes.data, rows // PANEL, width)
    _kernels().kogpt_pack(*arguments, tiles.ctypes.data)
    return Packed("int4", (n, k), tiles, scales)


class _Observer(NumpyRunner):
    """The reference runner, which remembers the second moments of what its projections read."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored]) -> None:
        super().__init__(config, tensors)
        self.moments: dict[str, NDArray[np.float64]] = {}

    def _linear(self, x: Array, name: str) -> Array:
        if not (self.config.tied_head and name == "lm_head"):
            self.moments[name] = self.moments.get(name, 0.0) + (x.T @ x).astype(np.float64)
        return super()._linear(x, name)


def _inverse_factor(moment: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """Upper Cholesky factor of the inverse of the damped moments, padded by the identity to `width`."""
    damped = np.eye(width)
    k = len(moment)
    damped[:k, :k] = moment + DAMPING * max(float(np.diag(moment).mean()), 1e-12) * np.eye(k)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def _search(x: Array, importance: Array) -> NDArray[np.uint8]:
    """Group scale of each row of (N, 32) values in units of their output's scale."""
    values = np.ascontiguousarray(x, np.float32)
    weights = np.ascontiguousarray(importance, np.float32)
    groups = np.empty(len(x), np.uint8)
    _kernels().kogpt_search(values.ctypes.data, len(x), weights.ctypes.data, groups.ctypes.data)
    return groups


def _table() -> NDArray[np.float32]:
    """(256, 16): the integer of each group scale and code."""
    address = _kernels().kogpt_int4_table()
    entries = np.frombuffer(ctypes.string_at(address, 256 * CODES), np.int8)
    return entries.reshape(256, CODES).astype(np.float32)


def _padded(n: int, k: int) -> tuple[int, int]:
    return -(-n // PANEL) * PANEL, -(-k // DEPTH) * DEPTH


def _empty(dtype: str, n: int, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    size = _kernels().kogpt_packed_bytes(FORMATS[dtype], n, k)
    return np.zeros(size, np.uint8), np.zeros(_padded(n, k)[0], np.float32)


def _kernels() -> ctypes.CDLL:
    kernels = library()
    assert kernels is not None, "kogpt._native was not built"
    return kernels
