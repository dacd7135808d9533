"""The three steps of a layer, and quantised products, by the kernels of gpu_kernels.py and gpu_linear.py.

    places = steps.prepare(table, positions)        # once for a pass
    h, q = steps.qkv(x, layer)                      # ln_1; q, k, v; rotation; k and v into the cache
    attended, inner = steps.attention_fc_in(h, q, layer)
    x = steps.out(x, attended, inner, layer)        # x + out_proj + fc_out

Many rows take other steps: products by torch, and between them two kernels, which read and write the cache.

Launches only: nothing waits for the device or comes from the host, so a pass can be captured as a graph. On a
CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1): so they are tested without a card, beside
the same steps in plain torch. What an H200 measured is in gpu_choice.MEASURED.
Shapes: B rows that read one token each, W blocks of a table, H heads, D head width, R rotary width, E model
width, F MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from kogpt import gpu_kernels as kernels
from kogpt.config import ModelConfig
from kogpt.gpu_linear import linear_kernel, unpack_kernel
from kogpt.gpu_tiles import Tile, Tiles, form_of, row_tile
from kogpt.model import Linear
from kogpt.quantize import FORMATS
from kogpt.torch_cache import BLOCK
from kogpt.torch_linear import QuantizedLinear, plain_product
from kogpt.torch_pass import PLAIN, Layer, Steps, project_qkv

# Rows from which weights are unpacked once and multiplied by the library: a prompt's, not a step's.
LIBRARY_ROWS = 257
ALIGNED = 32  # inputs of a quantised matrix are a multiple of it: 16 bytes of codes, which a thread reads
UNPACKED = Tile(32, 128, 1, 4)
COLUMNS = 1024  # columns that one program of rotate_kernel turns


@dataclass(slots=True)
class Scratch:
    """Buffers through which the kernels of a pass share results."""

    sums: Tensor  # (parts, B, 2) float32 of x, for the next LayerNorm
    chunks: Tensor  # (B, H, chunks, D + 2) float32: partial results of attention
    done: Tensor  # (B, H) int32: how many of them are done, 0 between launches
    summed: bool = False  # whether `sums` are those of the current x


class GpuSteps:
    """The steps of a layer for one model shape on one card."""

    def __init__(self, config: ModelConfig, tiles: Tiles) -> None:
        self._config = config
        self._tiles = tiles

    def steps(self) -> Steps:
        """The steps for a runner's passes."""
        return Steps(self.prepare, self.qkv, self.attention_fc_in, self.out, by_length=True)

    def paged_steps(self) -> Steps:
        """The steps for passes of many rows: products by torch, attention through the block table."""
        return Steps(self.prepare, self.rotated_qkv, self.paged_attention, PLAIN.out, by_length=True)

    def prepare(self, table: Tensor, positions: Tensor) -> Scratch:
        """Scratch of a pass; table (B, W), positions (B,)."""
        assert fits(self._config, "float"), self._config
        config, n_rows = self._config, len(positions)
        chunks = triton.cdiv(table.shape[1] * BLOCK, kernels.CHUNK.value)
        # As many parts as the smallest tile of out_kernel makes: the tile is known when a layer is.
        sums = torch.empty((triton.cdiv(config.d_model, 16), n_rows, 2), device=table.device)
        found = torch.empty((n_rows, config.n_heads, chunks, config.d_head + 2), device=table.device)
        done = torch.zeros((n_rows, config.n_heads), dtype=torch.int32, device=table.device)
        return Scratch(sums, found, done)

    def qkv(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """LayerNorm, q, k, v, rotation; keys and values into the cache. (B, E) -> h (B, E), q (B, H, D)."""
        config, attn, norm = self._config, layer.block.attn, layer.block.ln_1
        e = config.d_model
        weights = [_weight(linear) for linear in (attn.q_proj, attn.k_proj, attn.v_proj)]
        form = _form(attn.q_proj)
        tile = self._tiles.of("qkv", _dtype(attn.q_proj), (3 * e, e))
        width = self._tiles.of("out", _dtype(attn.out_proj), (e, e + config.d_ff)).outputs
        if form == "float":
            if not layer.places.summed:
                self._sum(x, layer.places, width)
            h = torch.empty_like(x)
        else:  # many small programs, in each of which LayerNorm would cost as much as the product
            x = h = norm(x)
        q = x.new_empty((len(x), config.n_heads, config.d_head))
        rows = row_tile(len(x), form)
        _launch(
            kernels.qkv_kernel,
            (3 * triton.cdiv(e, tile.outputs), triton.cdiv(len(x), rows)),
            x,
            (layer.places.sums, norm.weight, norm.bias, norm.eps),
            tuple(weights),
            layer.rotation,
            q,
            h,
            layer.cache,
            layer.slots,
            len(x),
            layer.cache.stride(0),
            (e, config.d_head, config.rotary_dim),
            _shape(tile, rows),
            form,
            width,
            num_warps=tile.warps,
        )
        return h, q

    def attention_fc_in(self, h: Tensor, q: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Attention over the cached positions (B, E), beside fc_in and GELU (B, F)."""
        config, fc_in = self._config, layer.block.mlp.fc_in
        form = _form(fc_in)
        tile = self._tiles.of("attention_fc_in", _dtype(fc_in), (config.d_ff, config.d_model))
        rows = row_tile(len(h), form)
        attended, inner = torch.empty_like(h), h.new_empty((len(h), config.d_ff))
        chunks = layer.places.chunks.shape[2]
        products = triton.cdiv(config.d_ff, tile.outputs) * triton.cdiv(len(h), rows)
        _launch(
            kernels.attention_fc_in_kernel,
            (len(h) * config.n_heads * chunks + products,),
            h,
            q,
            layer.cache,
            layer.table,
            layer.positions,
            (layer.places.chunks, layer.places.done),
            _weight(fc_in),
            fc_in.bias,
            attended,
            inner,
            len(h),
            layer.cache.stride(0),
            (config.d_model, config.d_head, config.d_ff),
            _shape(tile, rows),
            form,
            layer.table.shape[1],
            num_warps=tile.warps,
        )
        return attended, inner

    def out(self, x: Tensor, attended: Tensor, inner: Tensor, layer: Layer) -> Tensor:
        """x + out_proj(attended) + fc_out(inner), (B, E); its sums for the next LayerNorm."""
        config, out_proj, fc_out = self._config, layer.block.attn.out_proj, layer.block.mlp.fc_out
        e, form = config.d_model, _form(out_proj)
        tile = self._tiles.of("out", _dtype(out_proj), (e, e + config.d_ff))
        rows = row_tile(len(x), form)
        y = torch.empty_like(x)
        _launch(
            kernels.out_kernel,
            (triton.cdiv(e, tile.outputs), triton.cdiv(len(x), rows)),
            x,
            attended,
            inner,
            (_weight(out_proj), _weight(fc_out)),
            fc_out.bias,
            y,
            layer.places.sums,
            len(x),
            (e, config.d_head, config.d_ff),
            _shape(tile, rows),
            form,
            num_warps=tile.warps,
        )
        layer.places.summed = True
        return y

    def rotated_qkv(self, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """As `qkv`, its products by torch."""
        config = self._config
        h = layer.block.ln_1(x)
        parts = project_qkv(h, layer)
        if len({part.stride(0) for part in parts}) > 1:  # parts of one product, some of them adapted
            parts = [part.contiguous() for part in parts]
        q = x.new_empty((len(x), config.n_heads, config.d_head))
        _launch(
            kernels.rotate_kernel,
            (3 * triton.cdiv(config.d_model, COLUMNS), len(x)),
            tuple(parts),
            layer.rotation,
            q,
            layer.cache,
            layer.slots,
            len(x),
            (parts[0].stride(0), layer.cache.stride(0)),
            (config.d_model, config.d_head, config.rotary_dim),
            COLUMNS,
            num_warps=4,
        )
        return h, q

    def paged_attention(self, h: Tensor, q: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """As `attention_fc_in`, one after the other."""
        config, attended = self._config, torch.empty_like(h)
        chunks = layer.places.chunks.shape[2]
        _launch(
            kernels.attention_kernel,
            (len(h) * config.n_heads * chunks,),
            q,
            layer.cache,
            layer.table,
            layer.positions,
            (layer.places.chunks, layer.places.done),
            attended,
            layer.cache.stride(0),
            (config.d_model, config.d_head),
            layer.table.shape[1],
            num_warps=4,
        )
        return attended, F.gelu(layer.project(layer.block.mlp.fc_in, h), approximate="tanh")

    def product(self, x: Tensor, linear: Linear) -> Tensor:
        """x W^T + bias; (B, K) -> (B, N). A Product of torch_linear.py, and for floats the same kernel."""
        (n, k), form = (linear.out_features, linear.in_features), _form(linear)
        if isinstance(linear, QuantizedLinear) and k % ALIGNED:
            return plain_product(x, linear)
        if isinstance(linear, QuantizedLinear) and len(x) >= LIBRARY_ROWS:
            return F.linear(x, unpacked(linear, x.dtype), linear.bias)
        tile, rows = self._tiles.of("linear", _dtype(linear), (n, k)), row_tile(len(x), form)
        x, y = x.contiguous(), x.new_empty((len(x), n))
        if len(x):
            _launch(
                linear_kernel,
                (triton.cdiv(n, tile.outputs) * triton.cdiv(len(x), rows),),
                x,
                _weight(linear),
                linear.bias,
                y,
                len(x),
                n,
                k,
                _shape(tile, rows),
                form,
                num_warps=tile.warps,
            )
        return y

    def _sum(self, x: Tensor, scratch: Scratch, width: int) -> None:
        rows = row_tile(len(x), "float")
        grid = triton.cdiv(x.shape[1], width), triton.cdiv(len(x), rows)
        _launch(kernels.sums_kernel, grid, x, scratch.sums, len(x), x.shape[1], (width, rows), num_warps=1)


def fits(config: ModelConfig, dtype: str) -> bool:
    """Whether the kernels can compute a shape with weights in `dtype`.

    A pair that is rotated must not straddle two heads, and a row of codes must be ALIGNED.
    """
    aligned = dtype not in FORMATS or config.d_model % ALIGNED == config.d_ff % ALIGNED == 0
    return config.d_head % 2 == 0 and aligned


def unpacked(linear: QuantizedLinear, dtype: torch.dtype) -> Tensor:
    """The weights as floats, (N, K); held for one product only."""
    n, k = linear.out_features, linear.in_features
    y = torch.empty((n, k), dtype=dtype, device=linear.weight.device)
    tile = UNPACKED
    grid = triton.cdiv(n, tile.outputs), triton.cdiv(k, tile.inputs)
    _launch(
        unpack_kernel, grid, _weight(linear), y, n, k, _shape(tile, 1), linear.format, num_warps=tile.warps
    )
    return y


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int) -> None:
    """Queue a kernel on the GPU of its tensors: Triton by itself takes torch's current one."""
    with torch.cuda.device_of(next(x for x in arguments if isinstance(x, Tensor))):
        kernel[grid](*arguments, num_warps=num_warps)


def _dtype(linear: Linear) -> str:
    """The dtype of a matrix's weights."""
    return linear.format if isinstance(linear, QuantizedLinear) else str(linear.weight.dtype)[len("torch.") :]


def _form(linear: Linear) -> str:
    return form_of(_dtype(linear))


def _weight(linear: Linear) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """codes, groups, scales and entries for the kernels; what a format lacks is never read."""
    w = linear.weight
    if not isinstance(linear, QuantizedLinear):
        return w, w, w, w
    return w, linear.groups, linear.scales, linear.entries


def _shape(tile: Tile, rows: int) -> tuple[Any, ...]:
    """TILE of the kernels."""
    return tile.outputs, rows, tile.inputs, tile.stages
