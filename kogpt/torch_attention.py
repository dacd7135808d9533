"""What a pass over prompts leaves to the torch runner: cache, attention and LoRA of each row's new positions.

All new positions of all rows lie end to end in one (1, N, E) batch. Attention and LoRA go by groups of
neighbouring rows that read equally many of them.
Shapes: N new positions of all rows, T those of one row, S cached positions, B rows of a group, H heads,
D head width, K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.model import ForwardPass, Linear
from kogpt.torch_cache import BLOCK, Paged, PagedCache, attend_paged, block_table, blocks_for
from kogpt.torch_lora import LoraStack
from kogpt.torch_pass import MAX_GATHERED
from kogpt.torch_transfer import to_device
from kogpt.torch_weights import multiply_all


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows that read equally many new positions."""

    size: int  # T
    packed: slice  # B * T places in the packed batch
    cached: Paged | None  # None: every row begins here and attends to its new positions only
    adapters: Tensor | None  # (B,) places in the LoraStack; None: no row has an adapter


class CachedPass(ForwardPass):
    """One pass over the layers of one device: cache, attention and LoRA of the new positions of each row."""

    def __init__(self, cache: PagedCache, loras: LoraStack, slots: Tensor, groups: Sequence[Group]) -> None:
        """slots: (N,) places in the cache of the new positions. groups: all of them, in the packed order."""
        self._cache = cache
        self._loras = loras
        self._slots = slots
        self._groups = groups

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v into the cache, then attend over all of it; (1, H, N, D) each -> (1, H, N, D)."""
        new = torch.cat((k, v)).transpose(1, 2)  # (2, N, H, D)
        self._cache.layers[layer].flatten(1, 2).index_copy_(1, self._slots, new)
        found = [self._attend_group(group, layer, (q, k, v)) for group in self._groups]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def project(self, linear: Linear, x: Tensor) -> Tensor:
        """linear(x), and what the adapter of each row adds; (1, N, K) -> (1, N, out)."""
        return self._adapt(linear, x, linear(x))

    def project_all(self, linears: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
        """As `project` by each."""
        parts = multiply_all(linears, x)
        return [self._adapt(linear, x, part) for linear, part in zip(linears, parts, strict=True)]

    def _adapt(self, linear: Linear, x: Tensor, y: Tensor) -> Tensor:
        for group in self._groups:
            if group.adapters is not None:
                own = x[0, group.packed].view(-1, group.size, x.shape[-1])  # (B, T, K)
                update = self._loras.update(linear, own, group.adapters)
                if update is not None:
                    y[0, group.packed] += update.flatten(0, 1)
        return y

    def _attend_group(self, group: Group, layer: int, new: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """New q, k and v, (1, H, N, D) each, of all rows -> (1, H, B * T, D)."""
        q, k, v = (
            x[0, :, group.packed]
            .view(x.shape[1], -1, group.size, x.shape[-1])
            .transpose(0, 1)  # (B, H, T, D)
            for x in new
        )
        if group.cached is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = attend_paged(q, self._cache.layers[layer], group.cached)
        return y.transpose(0, 1).flatten(1, 2)[None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the new positions of several rows lie, on one device."""

    positions: Tensor  # (N,) in their rows
    slots: Tensor  # (N,) in the cache
    groups: list[Group]

    @classmethod
    def of(
        cls, cache: PagedCache, loras: LoraStack, sizes: Sequence[tuple[int, int]], device: torch.device
    ) -> Places:
        """`sizes`: row and number of its new positions, in the order of the packed batch; both reserved."""
        rows, new = [cache.row(row) for row, _ in sizes], [size for _, size in sizes]
        every = [np.arange(row.length, row.length + size) for row, size in zip(rows, new, strict=True)]
        owners = np.repeat(np.arange(len(rows)), new)
        positions, owner = to_device(np.stack([np.concatenate(every), owners]), device)
        table = to_device(block_table(rows), device)
        slots = table[owner, positions // BLOCK] * BLOCK + positions % BLOCK
        ends = [row.length + size for row, size in zip(rows, new, strict=True)]
        groups, start = [], 0
        for some in split_rows(new, ends, MAX_GATHERED // cache.position_values):
            size, members = new[some.start], rows[some]
            packed = slice(start, start + size * len(members))
            cached = None
            if any(row.length for row in members):
                blocks = blocks_for(max(ends[some]))
                cached = Paged.of(table[some, :blocks], positions[packed].view(-1, size))
            adapters = loras.places([row.adapter for row in members], device)
            groups.append(Group(size, packed, cached, adapters))
            start = packed.stop
        return cls(positions, slots, groups)


def split_rows(sizes: Sequence[int], ends: Sequence[int], limit: int) -> Iterator[slice]:
    """Runs of neighbours with equally many new positions, each as long as B * S <= limit allows, or one row.

    ends: positions of each row after the pass; S is the highest of a run, in whole blocks.
    """
    first, highest = 0, 0
    for i, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        highest = max(highest, end)
        if i > first and (size != sizes[first] or (i + 1 - first) * BLOCK * blocks_for(highest) > limit):
            yield slice(first, i)
            first, highest = i, end
    yield slice(first, len(sizes))
