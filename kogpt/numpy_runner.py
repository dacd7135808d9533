"""GPT-J in numpy: the readable reference, and the runner of machines that have nothing faster.

The new positions of all rows lie end to end in one (N, E) array, so rows of unequal length need no padding.
Only attention and LoRA look at one row at a time. Weights keep their published names.
Shapes: N new positions of all rows, T those of one row, S positions that a row has read, P given positions,
L layers, H heads, D head width, R rotary width, E model width, F MLP width, V vocabulary, M outputs wanted.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import ClassVar

import numpy as np

from kogpt.adapter import Lora, LowRank, require_lora_fits
from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.memory import available_memory, require_memory
from kogpt.runner import (
    CPU_PREFILL_TOKENS,
    Array,
    Chunk,
    cache_room,
    check_chunks,
    choose_all,
    output_places,
    require_dtype,
    split_outputs,
)
from kogpt.sampling import Chosen, Wanted
from kogpt.weights import WIDTHS

Rotation = tuple[Array, Array]  # cos and sin of every rotated angle, (N, 1, R/2) each

BLOCK = 2**18  # values of a weight converted at a time: 1 MB of float32 stays in a core's cache


class NumpyRunner:
    """A Runner in float32 or float64; see runner.py for what its methods promise.

    `tensors` holds every name of `config.tensor_shapes()`, in any dtype. Where memory allows, they are
    converted once; else a block at a time at every use. NotEnoughMemory if they do not fit, KoGPTError for an
    unknown `dtype`.
    """

    name = "numpy"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    prefill_tokens = CPU_PREFILL_TOKENS

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored], dtype: str = "float32") -> None:
        require_dtype(dtype, self.dtypes, self.name)
        self.config = config
        self.dtype = dtype
        self._tensors = _load(config, tensors, dtype)
        if config.tied_head:
            self._tensors["lm_head.weight"] = self._tensors["transformer.wte.weight"]
        self._rows: dict[int, Row] = {}
        self._adapters: dict[int, Mapping[str, LowRank]] = {}

    @classmethod
    def weight_bytes(cls, config: ModelConfig, dtype: str) -> int:
        return config.n_parameters * np.dtype(dtype).itemsize

    def add_adapter(self, lora: Lora) -> int:
        require_lora_fits(lora, self.config)
        handle = _first_free(self._adapters)
        self._adapters[handle] = {
            name: LowRank(update.a.astype(self.dtype), update.b.astype(self.dtype), float(update.scale))
            for name, update in lora.updates.items()
        }
        return handle

    def drop_adapter(self, adapter: int) -> None:
        assert adapter in self._adapters, adapter
        assert all(row.adapter != adapter for row in self._rows.values()), adapter
        del self._adapters[adapter]

    def open(self, adapter: int | None = None) -> int:
        assert adapter is None or adapter in self._adapters, adapter
        handle = _first_free(self._rows)
        self._rows[handle] = Row(self.config, self.dtype, adapter)
        return handle

    def fork(self, row: int, length: int | None = None) -> int:
        parent = self._row(row)
        length = parent.length if length is None else length
        assert 0 <= length <= parent.length, (length, parent.length)
        handle = self.open(parent.adapter)
        self._rows[handle].copy_from(parent, length)
        return handle

    def close(self, row: int) -> None:
        assert row in self._rows, row
        del self._rows[row]

    def length(self, row: int) -> int:
        return self._row(row).length

    def truncate(self, row: int, length: int) -> None:
        assert 0 <= length <= self.length(row), (length, self.length(row))
        self._rows[row].length = length

    def load_cache(self, row: int, keys: Array, values: Array) -> None:
        self._row(row).extend(keys, values)

    def room(self) -> int | None:
        return cache_room(
            2 * self.config.n_layers * self.config.d_model * np.dtype(self.dtype).itemsize, available_memory()
        )

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        return choose_all(self.forward(chunks), wanted)

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        hidden = self._trunk(chunks)
        if not len(hidden):
            return split_outputs(np.empty((0, self.config.n_vocab), self.dtype), chunks)
        return split_outputs(self._linear(hidden, "lm_head"), chunks)

    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        return split_outputs(self._trunk(chunks), chunks)

    def _row(self, handle: int) -> Row:
        assert handle in self._rows, handle
        return self._rows[handle]

    def _trunk(self, chunks: Sequence[Chunk]) -> Array:
        """Read the chunks; (M, E), the wanted outputs of all of them end to end."""
        check_chunks(self, chunks)
        rows = [self._rows[chunk.row] for chunk in chunks]
        for row, chunk in zip(rows, chunks, strict=True):
            row.reserve(row.length + len(chunk.inputs))
        sizes = [len(chunk.inputs) for chunk in chunks]
        starts = np.repeat([row.length for row in rows], sizes)
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        rotation = rotary_table(starts + within, self.config.rotary_dim, self.dtype)
        x = np.concatenate([self._embed(chunk.inputs) for chunk in chunks])
        for layer in range(self.config.n_layers):
            x = self._block(x, layer, rotation, list(zip(rows, sizes, strict=True)))
        for row, size in zip(rows, sizes, strict=True):
            row.length += size  # last: what an interrupted pass wrote does not count
        return self._layer_norm(x[output_places(chunks)], "transformer.ln_f")

    def _embed(self, inputs: Array) -> Array:
        """(T,) ids or (T, E) embeddings -> (T, E)."""
        if inputs.ndim == 2:
            return inputs.astype(self.dtype)
        wte = self._tensors["transformer.wte.weight"]
        embeddings: Array = replace(wte, array=wte.array[inputs]).to(self.dtype)
        return embeddings

    def _block(self, x: Array, layer: int, rotation: Rotation, rows: list[tuple[Row, int]]) -> Array:
        """One layer: attention and MLP side by side on one LayerNorm; (N, E) -> (N, E)."""
        block = f"transformer.h.{layer}"
        h = self._layer_norm(x, f"{block}.ln_1")
        q, k, v = (
            self._project(h, f"{block}.attn.{projection}", rows).reshape(len(x), -1, self.config.d_head)
            for projection in ("q_proj", "k_proj", "v_proj")
        )  # (N, H, D) each
        q, k = rotate(q, rotation), rotate(k, rotation)
        attended = np.empty_like(x)
        start = 0
        for row, size in rows:
            new = slice(start, start + size)
            keys, values = row.write(layer, k[new], v[new])
            attended[new] = attend(q[new], keys, values)
            start += size
        attention = self._project(attended, f"{block}.attn.out_proj", rows)
        inner = gelu(self._project(h, f"{block}.mlp.fc_in", rows))
        return x + attention + self._project(inner, f"{block}.mlp.fc_out", rows)

    def _project(self, x: Array, name: str, rows: list[tuple[Row, int]]) -> Array:
        """`_linear`, and to each row's part the update of the row's adapter; (N, in) -> (N, out).

        y = W x + scale * B A x (LoRA, arXiv 2106.09685, equation 3).
        """
        y = self._linear(x, name)
        start = 0
        for row, size in rows:
            new = slice(start, start + size)
            if row.adapter is not None and (update := self._adapters[row.adapter].get(name)):
                y[new] += update.scale * (x[new] @ update.a.T @ update.b.T)
            start += size
        return y

    def _layer_norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        normal: Array = centred / np.sqrt(variance + self.config.layer_norm_epsilon)
        return normal * self._vector(f"{name}.weight") + self._vector(f"{name}.bias")

    def _linear(self, x: Array, name: str) -> Array:
        """x @ weight.T + bias; (N, in) -> (N, out)."""
        weight = self._tensors[f"{name}.weight"]
        if weight.dtype == self.dtype:
            y: Array = x @ weight.array.T
        else:
            step = max(1, BLOCK // x.shape[-1])
            blocks = (weight.array[i : i + step] for i in range(0, len(weight.array), step))
            y = np.concatenate([x @ replace(weight, array=b).to(self.dtype).T for b in blocks], axis=-1)
        return y + self._vector(f"{name}.bias") if f"{name}.bias" in self._tensors else y

    def _vector(self, name: str) -> Array:
        vector: Array = self._tensors[name].to(self.dtype)
        return vector


class Row:
    """Keys and values that one row has read, with room to grow; no two rows share memory."""

    def __init__(self, config: ModelConfig, dtype: str, adapter: int | None = None) -> None:
        self.length = 0
        self.adapter = adapter
        self._n_ctx = config.n_ctx
        # (L, 2, H, room, D): keys are [:, 0], values [:, 1]
        self._cache = np.empty((config.n_layers, 2, config.n_heads, 0, config.d_head), dtype)

    def reserve(self, length: int) -> None:
        """Make room for `length` positions, at least doubling so that growth costs O(1) a position."""
        room = self._cache.shape[3]
        if length <= room:
            return
        shape = list(self._cache.shape)
        shape[3] = min(max(length, 2 * room, 32), self._n_ctx)
        n_bytes = int(np.prod(shape)) * self._cache.itemsize
        require_memory(n_bytes, f"the cache of a text of {length} tokens", f"{length}토큰 글의 캐시")
        grown = np.empty(shape, self._cache.dtype)
        grown[:, :, :, : self.length] = self._cache[:, :, :, : self.length]
        self._cache = grown

    def write(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Put (T, H, D) after what was read; all keys and values so far, (H, S, D) each."""
        end = self.length + len(k)
        keys, values = self._cache[layer, :, :, :end]
        keys[:, self.length :], values[:, self.length :] = k.swapaxes(0, 1), v.swapaxes(0, 1)
        return keys, values

    def extend(self, keys: Array, values: Array) -> None:
        """Put given keys and values, (L, P, H, D) each, after what was read."""
        n_layers, _, n_heads, _, d_head = self._cache.shape
        n_new = keys.shape[1]
        assert keys.shape == values.shape == (n_layers, n_new, n_heads, d_head), (keys.shape, values.shape)
        assert self.length + n_new <= self._n_ctx, (self.length, n_new)
        self.reserve(self.length + n_new)
        for layer in range(n_layers):
            self.write(layer, keys[layer], values[layer])
        self.length += n_new

    def copy_from(self, parent: Row, length: int) -> None:
        """Become a row that has read the first `length` positions of `parent`."""
        self.reserve(length)
        self._cache[:, :, :, :length] = parent._cache[:, :, :, :length]
        self.length = length


def _first_free(handles: Container[int]) -> int:
    return next(i for i in count() if i not in handles)


def rotary_table(positions: Array, rotary_dim: int, dtype: str) -> Rotation:
    """Angles position / 10000^(2j/R) for j < R/2, in float64 until cos and sin; RoFormer, equation 15."""
    pairs = np.arange(0, rotary_dim, 2, dtype=np.float64)
    angles = positions[:, None, None] * 10000.0 ** (-pairs / rotary_dim)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rotate(x: Array, rotation: Rotation) -> Array:
    """Turn each pair (2j, 2j+1) of the first R dimensions by its angle; (N, H, D) -> same."""
    cos, sin = rotation
    rotary_dim = 2 * cos.shape[-1]
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    turned = x.copy()
    turned[..., 0:rotary_dim:2] = even * cos - odd * sin
    turned[..., 1:rotary_dim:2] = odd * cos + even * sin
    return turned


def attend(q: Array, keys: Array, values: Array) -> Array:
    """Causal attention of the last T of S positions; (T, H, D) and two (H, S, D) -> (T, H * D)."""
    n_new, n_all = len(q), keys.shape[1]
    scores = q.swapaxes(0, 1) @ keys.swapaxes(1, 2) / math.sqrt(q.shape[-1])  # (H, T, S)
    if n_new > 1:
        scores += np.triu(np.full((n_new, n_all), -np.inf, q.dtype), k=n_all - n_new + 1)
    scores -= scores.max(-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(-1, keepdims=True)
    y: Array = weights @ values  # (H, T, D)
    return y.swapaxes(0, 1).reshape(n_new, -1)


def gelu(x: Array) -> Array:
    """The tanh approximation of GELU; arXiv 1606.08415, section 2."""
    cubic: Array = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return x * (0.5 + 0.5 * np.tanh(cubic))


def _load(config: ModelConfig, tensors: Mapping[str, Stored], dtype: str) -> dict[str, Stored]:
    """All tensors: in `dtype` if that takes at most half of the free memory, else as they are stored."""
    stored = tensors["transformer.wte.weight"].dtype  # the largest tensor; others seldom have another
    require_memory(config.n_parameters * WIDTHS[stored], "this model", "이 모델")
    free = available_memory()
    if dtype != stored and free is not None and config.n_parameters * WIDTHS[dtype] > free / 2:
        return dict(tensors)
    return {name: Stored(dtype, tensor.to(dtype)) for name, tensor in tensors.items()}
