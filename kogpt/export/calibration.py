"""Floats to int4 with the help of a text, layer by layer: gptq.py rounds each matrix.

Each matrix is rounded for the inputs that the matrices before it, rounded already, make of the text. In
memory at a time are one layer's floats, the text on its way through it, and a few (K, K) matrices of moments:
see needed_memory.

Shapes: T positions of a window, E model width, F MLP width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import InputError
from kogpt.export.gptq import Inputs, gptq
from kogpt.memory import require_memory
from kogpt.numpy_runner import NumpyRunner, attend, gelu, rotary_table, rotate
from kogpt.quantize import EMBEDDING, HEAD, Lazy, Quantized, matrices
from kogpt.runner import Array

WINDOW = 512  # positions of the calibration text that are read together
MAX_WINDOWS = 64  # more did not lower the bits per byte of kogpt-mini

ATTENTION = ("attn.q_proj", "attn.k_proj", "attn.v_proj")


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
        self._x = [Stored(embedding.dtype, embedding.array[w]).to("float32") for w in windows]  # (T, E) each
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
        """Round the next layer, or after the last the head."""
        layer, self._n_done = self._n_done, self._n_done + 1
        if layer < self._config.n_layers:
            self._round_layer(f"transformer.h.{layer}")
            return
        end = _Block(self._config, "transformer", self._floats("transformer.ln_f."))
        head = self._tensors[HEAD if HEAD in self._tensors else EMBEDDING].to("float32")
        inputs = _inputs(self._config.d_model, (end.norm(x, "ln_f") for x in self._x))
        self._ready[HEAD] = gptq(head, inputs)

    def _round_layer(self, name: str) -> None:
        """Round the matrices of a layer, each for what those before it make of the text."""
        block = _Block(self._config, name, self._floats(f"{name}."))

        def fit(shorts: Iterable[str], inputs: Inputs) -> None:
            for short in shorts:
                matrix = self._ready[f"{name}.{short}.weight"] = gptq(block.weight(short), inputs)
                block.replace(short, matrix.unpack())

        normal = [block.norm(x, "ln_1") for x in self._x]
        fit((*ATTENTION, "mlp.fc_in"), _inputs(self._config.d_model, normal))
        attended = [block.attended(h) for h in normal]
        fit(["attn.out_proj"], _inputs(self._config.d_model, attended))
        # The widest of all, (T, F): made twice rather than kept.
        fit(["mlp.fc_out"], _inputs(self._config.d_ff, map(block.inner, normal)))
        for x, h, a in zip(self._x, normal, attended, strict=True):
            x += block.project(a, "attn.out_proj")
            x += block.project(block.inner(h), "mlp.fc_out")

    def _floats(self, prefix: str) -> dict[str, Stored]:
        names = [name for name in self._config.tensor_shapes() if name.startswith(prefix)]
        return {name: Stored("float32", self._tensors[name].to("float32")) for name in names}


def needed_memory(config: ModelConfig, n_tokens: int) -> int:
    """Peak bytes of calibrating on `n_tokens`: reached when the widest moments are inverted.

    A layer of floats, the text as it enters it, after its norm and as attention gives it, and the moments of
    the MLP's inner values, float64: themselves, in order, LAPACK's copy, the result.
    """
    layer = sum(n * k for n, k in matrices(config).values()) // config.n_layers
    return 4 * layer + 3 * 4 * n_tokens * config.d_model + 4 * 8 * config.d_ff**2


def _inputs(width: int, windows: Iterable[Array]) -> Inputs:
    """The second moments of (T, K) inputs over all windows."""
    moment = np.zeros((width, width))
    for x in windows:
        moment += x.T @ x
    return Inputs(moment)


class _Block(NumpyRunner):
    """The reference runner's arithmetic for one block, in pieces."""

    def __init__(self, config: ModelConfig, name: str, weights: dict[str, Stored]) -> None:
        self.config = config
        self.dtype = "float32"
        self._tensors = weights
        self._name = name

    def weight(self, short: str) -> Array:
        """The matrix `short` of this block."""
        return self._tensors[f"{self._name}.{short}.weight"].array

    def replace(self, short: str, values: Array) -> None:
        """Put other values in its place."""
        self._tensors[f"{self._name}.{short}.weight"] = Stored("float32", values)

    def norm(self, x: Array, short: str) -> Array:
        """A LayerNorm of a window (T, E)."""
        return self._layer_norm(x, f"{self._name}.{short}")

    def project(self, x: Array, short: str) -> Array:
        """x (T, K) times the matrix `short`, plus its bias: (T, N)."""
        return self._linear(x, f"{self._name}.{short}")

    def attended(self, h: Array) -> Array:
        """Inputs of the output projection, (T, E): attention over one window."""
        q, k, v = (self.project(h, name).reshape(len(h), -1, self.config.d_head) for name in ATTENTION)
        rotation = rotary_table(np.arange(len(h), dtype=np.float64), self.config.rotary_dim, self.dtype)
        return attend(rotate(q, rotation), rotate(k, rotation).swapaxes(0, 1), v.swapaxes(0, 1))

    def inner(self, h: Array) -> Array:
        """Inputs of the second matrix of the MLP, (T, F)."""
        return gelu(self.project(h, "mlp.fc_in"))
