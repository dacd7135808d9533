"""One decoding step of the torch runner as a pure function over buffers that stay where they are.

Every row reads one token. Tokens, positions, block tables and settings lie in one buffer for each number of
rows, and no shape, address or number of the pass comes from the host: what is recorded once (a CUDA graph)
may be replayed for any texts of as many rows. Rows that are not there read token 0 at position 31 of the null
block: only its last place is written, and the first one, which stands for positions that a row has not read,
stays zero.

A layer is three steps, after one `prepare` for the whole pass; `PLAIN` has them in plain torch, and kernels
replace them by another `Steps`:

    places = steps.prepare(table, positions)
    for each layer:
        h, q = steps.qkv(x, layer)                        # ln_1; q, k, v; rotation; k and v into the cache
        attended, inner = steps.attention_fc_in(h, q, layer)
        x = steps.out(x, attended, inner, layer)          # x + out_proj + fc_out

Shapes: B rows with those that are not there, W blocks of a table, S = 32 W positions, H heads, D head width,
R rotary width, E model width, F MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kogpt.model import GPTJ, Block, Linear, Rotation, rotary_table, rotate
from kogpt.torch_cache import BLOCK, Paged, PagedCache, attend_paged
from kogpt.torch_lora import LoraStack
from kogpt.torch_sampling import DrawKind, Settings, draw_ids
from kogpt.torch_weights import Stage, multiply_all

# Values of the keys that rows gather from the cache at a time: 128 MB in 16 bits, and as much for values.
MAX_GATHERED = 2**26

INTS = ("token", "position", "adapter", "key", "top_k", "limit")
FLOATS = ("temperature", "top_p", "min_p")
FIELDS = (*INTS, *FLOATS)  # of a row in Buffers.inputs, before its block table


Adapt = Callable[[Linear, Tensor, Tensor], Tensor]  # linear, x, linear(x) -> and what each row's adapter adds


@dataclass(frozen=True, slots=True)
class Layer:
    """Inputs of the steps of one layer, besides x."""

    block: Block  # weights; its projections may be quantised
    cache: Tensor  # (2, blocks, BLOCK, H, D): keys, then values
    rotation: Rotation  # (B, 1, R) each, in float32 at least
    slots: Tensor  # (B,) int64: the place of each row's new position in cache.flatten(1, 2)
    table: Tensor  # (B, W) int64: the blocks of each row
    positions: Tensor  # (B,) int64 of the new tokens; a row attends to as many cached positions and its own
    places: Any  # result of Steps.prepare
    adapt: Adapt

    def project(self, linear: Linear, x: Tensor) -> Tensor:
        """linear(x), and what each row's adapter adds."""
        return self.adapt(linear, x, linear(x))


class Steps(NamedTuple):
    """The steps of a layer. `by_length`: attention reads no further than a row is long.

    Where it is False, attention costs as much as the whole table, so tables are as wide as the longest row
    needs, in powers of two; each width is recorded by itself.
    """

    prepare: Callable[[Tensor, Tensor], Any]  # (B, W) table, (B,) positions
    qkv: Callable[[Tensor, Layer], tuple[Tensor, Tensor]]  # (B, E) -> (B, E), (B, H, D)
    attention_fc_in: Callable[[Tensor, Tensor, Layer], tuple[Tensor, Tensor]]  # -> (B, E), (B, F)
    out: Callable[[Tensor, Tensor, Tensor, Layer], Tensor]  # (B, E) x, (B, E), (B, F) -> (B, E)
    by_length: bool = False


class StepPlan(NamedTuple):
    """Which steps a pass takes: `few` up to so many rows, `many` above."""

    few: Steps
    rows: int
    many: Steps  # multiplies by Layer.project only, so it knows adapters

    def steps(self, n_rows: int, adapted: bool) -> Steps:
        """The steps of a pass of so many rows; adapted: whether one of them has an adapter."""
        return self.few if n_rows <= self.rows and not adapted else self.many


class Buffers:
    """Everything that a pass of B rows reads from the host and writes for it."""

    def __init__(self, n_rows: int, width: int, n_vocab: int, model: StaticModel) -> None:
        """width: W, the widest table."""
        first, last = model.stages[0].device, model.stages[-1].device
        self.n_rows = n_rows
        self.inputs = torch.zeros((len(FIELDS) + width) * n_rows, dtype=torch.int64, device=first)
        self.logits = torch.zeros((n_rows, n_vocab), dtype=model.dtype, device=last)
        self.ids = torch.zeros(n_rows, dtype=torch.int64, device=last)  # drawn; -1: not finite

    def field(self, name: str) -> Tensor:
        """(B,) int64 or float64."""
        start = FIELDS.index(name) * self.n_rows
        values = self.inputs[start : start + self.n_rows]
        return values.view(torch.float64) if name in FLOATS else values

    def table(self, width: int) -> Tensor:
        """(B, width) blocks."""
        start = len(FIELDS) * self.n_rows
        return self.inputs[start : start + width * self.n_rows].view(self.n_rows, width)

    def settings(self) -> Settings:
        """How each row's token is drawn, beside the logits."""
        return Settings(*(self.field(name)[:, None].to(self.ids.device) for name in Settings._fields))


def pack_inputs(fields: dict[str, NDArray[Any]], table: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    """The inputs of a pass as they lie in `Buffers.inputs`, filled up to `n_rows` rows.

    fields: (n,) of each of FIELDS that is not zero. table: (n, W).
    """
    n, width = table.shape
    packed = np.zeros((len(FIELDS) + width) * n_rows, np.int64)
    for i, name in enumerate(FIELDS):
        own = packed[i * n_rows : (i + 1) * n_rows]
        if name == "position":
            own[n:] = BLOCK - 1
        if name in fields:
            (own.view(np.float64) if name in FLOATS else own)[:n] = fields[name]
    packed[len(FIELDS) * n_rows :].reshape(n_rows, width)[:n] = table
    return packed


class StaticModel:
    """The weights, the cache and the adapters, and the pass over them; mostly on one device."""

    def __init__(
        self, model: GPTJ, cache: PagedCache, loras: LoraStack, stages: Sequence[Stage], plan: StepPlan
    ) -> None:
        self.model = model
        self.stages = stages
        self.plan = plan
        self.dtype = model.transformer.ln_f.weight.dtype
        self._cache = cache
        self._loras = loras
        precision = torch.promote_types(self.dtype, torch.float32)
        positions = torch.arange(model.config.n_ctx, device=stages[0].device)
        self._rotation = rotary_table(positions, model.config.rotary_dim, precision)  # (n_ctx, 1, R) each

    def steps(self, n_rows: int, adapted: bool) -> Steps:
        """The steps of a pass; adapted: whether a row has an adapter."""
        return self.plan.steps(n_rows, adapted)

    def addresses(self) -> tuple[int, int]:
        """Changes when tensors that a recorded pass reads are replaced."""
        return self._cache.generation, self._loras.generation

    def read(self, buffers: Buffers, previous: Tensor, width: int, adapted: bool) -> None:
        """Read the rows' tokens into the cache; buffers.logits.

        A token below 0 stands for the one at place -1 - token of `previous`, which the host need not know.
        """
        token, positions = buffers.field("token"), buffers.field("position")
        drawn = previous[(-1 - token).clamp(min=0)].clamp(min=0)
        x = self.model.embed(torch.where(token < 0, drawn, token)).to(self.dtype)  # (B, E)
        table, places = buffers.table(width), buffers.field("adapter")
        own, others = (part[positions.clamp(max=len(part) - 1)] for part in self._rotation)
        steps = self.steps(buffers.n_rows, adapted)
        for stage in self.stages:
            x, table, positions, places, own, others = (
                tensor.to(stage.device) for tensor in (x, table, positions, places, own, others)
            )
            adapt = self._adapted(places) if adapted else unadapted
            block = table.gather(1, (positions // BLOCK)[:, None])[:, 0]
            slots = block * BLOCK + positions % BLOCK
            prepared = steps.prepare(table, positions)
            for i in stage.layers:
                block_i: Any = self.model.transformer.h[i]
                layer = Layer(
                    block_i, self._cache.layers[i], (own, others), slots, table, positions, prepared, adapt
                )
                h, q = steps.qkv(x, layer)
                attended, inner = steps.attention_fc_in(h, q, layer)
                x = steps.out(x, attended, inner, layer)
        last = self.stages[-1].device
        buffers.logits.copy_(self.model.head(self.model.norm(x.to(last))))

    def draw(self, buffers: Buffers, kind: DrawKind) -> None:
        """Draw a token for each row from buffers.logits; buffers.ids."""
        buffers.ids.copy_(draw_ids(buffers.logits.double(), buffers.settings(), kind))

    def _adapted(self, places: Tensor) -> Adapt:
        def adapt(linear: Linear, x: Tensor, y: Tensor) -> Tensor:
            update = self._loras.update(linear, x[:, None], places)
            return y if update is None else y + update[:, 0]

        return adapt


def unadapted(linear: Linear, x: Tensor, y: Tensor) -> Tensor:
    """Layer.adapt where no row has an adapter."""
    return y


def project_qkv(h: Tensor, layer: Layer) -> Sequence[Tensor]:
    """q, k and v of (B, E), (B, E) each."""
    attn = layer.block.attn
    linears = (attn.q_proj, attn.k_proj, attn.v_proj)
    parts = multiply_all(linears, h)
    return [layer.adapt(linear, h, part) for linear, part in zip(linears, parts, strict=True)]


def qkv(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """LayerNorm, three products, rotation of q and k; k and v go into the cache. (B, E) -> h, (B, H, D) q."""
    h = layer.block.ln_1(x)
    d_head = layer.block.attn.d_head
    q, k, v = (part.view(len(x), -1, d_head) for part in project_qkv(h, layer))
    q, k = rotate(q, layer.rotation), rotate(k, layer.rotation)
    layer.cache.flatten(1, 2).index_copy_(1, layer.slots, torch.stack((k, v)))
    return h, q


def attention_fc_in(h: Tensor, q: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Attention over the rows' cached positions, (B, E), and the inner half of the MLP, (B, F)."""
    paged: Paged = layer.places
    step = max(1, MAX_GATHERED // (paged.slots.shape[1] * h.shape[1]))
    parts = [
        attend_paged(
            q[i : i + step, :, None], layer.cache, Paged(paged.slots[i : i + step], paged.mask[i : i + step])
        )
        for i in range(0, len(q), step)
    ]
    attended = parts[0] if len(parts) == 1 else torch.cat(parts)
    inner = F.gelu(layer.project(layer.block.mlp.fc_in, h), approximate="tanh")
    return attended.reshape(h.shape), inner


def out(x: Tensor, attended: Tensor, inner: Tensor, layer: Layer) -> Tensor:
    """x and what attention and MLP add to it; (B, E)."""
    block = layer.block
    return x + layer.project(block.attn.out_proj, attended) + layer.project(block.mlp.fc_out, inner)


def prepare(table: Tensor, positions: Tensor) -> Paged:
    """Slots of the cache that each row reads."""
    return Paged.of(table, positions[:, None])


PLAIN = Steps(prepare, qkv, attention_fc_in, out)
