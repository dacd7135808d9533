"""Floats to int4 with the help of a text: GPTQ (arXiv 2210.17323), layer by layer.

The inputs of a matrix that are not yet rounded take up the error of those that are, as the second moments of
the inputs tell; every layer reads what the rounded layers before it make of the text. In memory at a time are
one layer's floats, what its matrices read, and a few (K, K) matrices of moments: see needed_memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import InputError
from kogpt.memory import require_memory
from kogpt.numpy_runner import NumpyRunner, Row, rotary_table
from kogpt.quantize import EMBEDDING, GROUP, HEAD, Lazy, Quantized, matrices, table
from kogpt.rounding import kernels
from kogpt.runner import Array

DAMPING = 0.01  # share of the mean second moment, added to all: GPTQ, section 3.3
WINDOW = 512  # positions of the calibration text that are read together
MAX_WINDOWS = 64  # more did not lower the bits per byte of kogpt-mini

# Matrices of a block by what they read: the same moments serve all of a line.
READERS = (
    ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
    ("attn.out_proj",),
    ("mlp.fc_out",),
)


class Calibrated(Lazy[Stored | Quantized]):
    """A model's tensors with every matrix in int4 by GPTQ.

    A layer is rounded when its first matrix is asked for, and each matrix is given once, in the order of the
    layers: as checkpoint.save asks. ids: the text to calibrate on, of which windows are taken
    at even distances. InputError if it is shorter than a window.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored], ids: NDArray[np.int64]) -> None:
        self._config = config
        self._tensors = tensors
        self._matrices = matrices(config)
        super().__init__((*config.tensor_shapes(), *self._matrices))
        window = min(WINDOW, config.n_ctx)
        n_windows = min(len(ids) // window, MAX_WINDOWS)
        if not n_windows:
            raise InputError(
                f"the calibration text has {len(ids)} tokens, at least {window} are needed: use a longer one",
                f"보정용 글이 {len(ids)}토큰입니다. {window}토큰 이상이 필요하니 더 긴 글을 쓰세요",
            )
        needed = needed_memory(config, n_windows * window)
        require_memory(needed, "calibrating this model", "이 모델의 보정")
        embedding = tensors[EMBEDDING]
        starts = np.linspace(0, len(ids) - window, n_windows).astype(int)
        windows = [ids[start : start + window] for start in starts]
        self._x = [Stored(embedding.dtype, embedding.array[w]).to("float32") for w in windows]
        self._ready: dict[str, Quantized] = {}
        self._n_done = 0

    def __getitem__(self, name: str) -> Stored | Quantized:
        if name not in self._matrices:
            return self._tensors[name]
        while name not in self._ready:
            assert self._n_done <= self._config.n_layers, f"{name} was given already"
            self._round_next()
        return self._ready.pop(name)

    def _round_next(self) -> None:
        """Round the next layer, or after the last the head, and run the text through it."""
        layer, self._n_done = self._n_done, self._n_done + 1
        if layer == self._config.n_layers:
            reader = _Reader(self._config, self._floats(("transformer.ln_f.weight", "transformer.ln_f.bias")))
            moment = np.zeros((self._config.d_model, self._config.d_model))
            for x in self._x:
                _add_moment(moment, reader.norm(x))
            head = self._tensors[HEAD if HEAD in self._tensors else EMBEDDING]
            self._ready[HEAD] = gptq(head.to("float32"), inverse_factor(moment))
            return
        block = f"transformer.h.{layer}"
        weights = self._floats(
            [name for name in self._config.tensor_shapes() if name.startswith(f"{block}.")]
        )
        reader = _Reader(self._config, weights)
        for x in self._x:
            reader.read(x, layer)
        for names in READERS:
            factor = inverse_factor(reader.moments.pop(f"{block}.{names[0]}"))
            for short in names:
                name = f"{block}.{short}.weight"
                matrix = gptq(weights[name].array, factor)
                self._ready[name] = matrix
                weights[name] = Stored("float32", matrix.unpack())
        rounded = _Reader(self._config, weights)
        self._x = [rounded.read(x, layer) for x in self._x]

    def _floats(self, names: Iterator[str] | list[str] | tuple[str, ...]) -> dict[str, Stored]:
        return {name: Stored("float32", self._tensors[name].to("float32")) for name in names}


def needed_memory(config: ModelConfig, n_tokens: int) -> int:
    """Peak bytes of calibrating on `n_tokens`: reached when the widest moments are inverted.

    Two layers of floats (as stored, and rounded), the text as it enters and leaves one, and of the moments of
    the MLP's output, float64: themselves, LAPACK's copy and the result.
    """
    layer = sum(n * k for n, k in matrices(config).values()) // config.n_layers
    return 2 * 4 * layer + 2 * 4 * n_tokens * config.d_model + 3 * 8 * config.d_ff**2


def gptq(weight: NDArray[np.float32], factor: NDArray[np.float32]) -> Quantized:
    """Quantise a matrix (N, K) to int4, with small errors where its inputs are large.

    factor: what inverse_factor returns.
    """
    n, k = weight.shape
    width = len(factor)
    left = np.zeros((n, width), np.float32)  # weights still to be rounded, plus the errors so far
    left[:, :k] = weight
    unit = np.maximum(np.abs(left).max(1), np.finfo(np.float32).tiny) / 120  # as quantize_row4 in native/
    entries = table().astype(np.float32)
    codes = np.zeros((n, width), np.uint8)
    groups = np.zeros((n, width // GROUP), np.uint8)
    for start in range(0, width, GROUP):
        end = start + GROUP
        triangle = factor[start:end, start:end]
        groups[:, start // GROUP] = _search(left[:, start:end] / unit[:, None], np.diag(triangle) ** -2)
        values = entries[groups[:, start // GROUP]] * unit[:, None]  # (N, 16)
        errors = np.empty((n, GROUP), np.float32)
        for j in range(GROUP):
            column = left[:, start + j]
            code = np.abs(values - column[:, None]).argmin(1)
            codes[:, start + j] = code
            errors[:, j] = (column - values[np.arange(n), code]) / triangle[j, j]
            left[:, start + j + 1 : end] -= np.outer(errors[:, j], triangle[j, j + 1 :])
        left[:, end:] -= errors @ factor[start:end, end:]
    pairs = (codes[:, 0::2] | codes[:, 1::2] << 4)[:, : -(-k // 2)]
    return Quantized("int4", (n, k), np.ascontiguousarray(pairs), groups, unit)


def inverse_factor(moment: NDArray[np.float64]) -> NDArray[np.float32]:
    """Upper Cholesky factor of the inverse of the damped moments (K, K), padded by the identity to groups.

    `moment` is used up.
    """
    k = len(moment)
    padding = -k % GROUP
    damped = np.pad(moment, (0, padding)) if padding else moment
    diagonal = np.einsum("ii->i", damped)
    diagonal[:k] += DAMPING * max(float(diagonal[:k].mean()), 1e-12)
    diagonal[k:] = 1
    inverse = np.linalg.inv(damped)
    del moment, damped, diagonal  # GB where K is that of a large model
    return np.linalg.cholesky(inverse).T.astype(np.float32)


class _Reader(NumpyRunner):
    """The reference runner for one block; it keeps the second moments of each matrix's inputs."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Stored]) -> None:
        self.config = config
        self.dtype = "float32"
        self.moments: dict[str, NDArray[np.float64]] = {}
        self._tensors = dict(weights)

    def read(self, x: Array, layer: int) -> Array:
        """One window (T, E) through the block."""
        row = Row(self.config, self.dtype)
        row.reserve(len(x))
        rotation = rotary_table(np.arange(len(x), dtype=np.float64), self.config.rotary_dim, self.dtype)
        return self._block(x, layer, rotation, [(row, len(x))])

    def norm(self, x: Array) -> Array:
        """The input of the head, (T, E)."""
        return self._layer_norm(x, "transformer.ln_f")

    def _linear(self, x: Array, name: str) -> Array:
        if name.endswith(tuple(names[0] for names in READERS)):
            _add_moment(self.moments.setdefault(name, np.zeros((x.shape[-1],) * 2)), x)
        return super()._linear(x, name)


def _add_moment(moment: NDArray[np.float64], x: Array) -> None:
    """Add the sum of x x^T over (T, K) to (K, K)."""
    moment += x.T @ x


def _search(x: Array, importance: Array) -> NDArray[np.uint8]:
    """Group scale of each row of (N, 32) values in units of their output's scale."""
    values = np.ascontiguousarray(x, np.float32)
    weights = np.ascontiguousarray(importance, np.float32)
    groups = np.empty(len(x), np.uint8)
    kernels().kogpt_search(values.ctypes.data, len(x), weights.ctypes.data, groups.ctypes.data)
    return groups
