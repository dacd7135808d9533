"""Keys and values of every row on torch devices, in blocks that rows share; native/cache.h does the same.

A layer's cache is one tensor of blocks of 32 positions. A row is a length and a block table: the numbers of
its blocks in the order of its text. Block 0 is the null block and belongs to nobody: its slot 0 holds zeros,
and rows that a static pass has too many write to its slot 31 (torch_pass.py).

An example with blocks of 4 positions. Row 0 has read "abcdef"; row 1 was forked after "abcd" and has read
"xyz":

    block     1        2        3         row 0: length 6, table [1, 2]
    holds  a b c d  e f . .  x y z .      row 1: length 7, table [1, 3]

Both rows hold block 1, so its count is 2. A slot is a place in the tensor, block * 4 + offset. Position 4 of
row 0 ("e") lies in block table[4 // 4] = 2 at offset 4 % 4 = 0: slot 8. One more token in each row is written
to slot 2 * 4 + 6 % 4 = 10 (row 0, position 6) and slot 3 * 4 + 7 % 4 = 15 (row 1, position 7). Then attention
reads

    row 0:  4  5  6  7   8  9 10  0       slot 0, in the null block, stands for positions not read
    row 1:  4  5  6  7  12 13 14 15

`truncate(1, 3)` gives block 3 back and leaves row 1 with table [1] and length 3. Its next token belongs into
block 1, which row 0 holds too: row 1 first copies block 1 into a free block (copy on write).

No operation on one row moves keys or values of another. Growing the pool does: graphs captured on its
addresses have to be captured again, so on a GPU it begins with room for one text of n_ctx tokens.
Shapes: L layers, P given positions, T new positions of a row, B rows, S gathered positions, H heads, D head
width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kogpt.config import ModelConfig
from kogpt.memory import USABLE_SHARE, available_memory, require_memory
from kogpt.runner import Array
from kogpt.torch_transfer import to_device

BLOCK = 32  # positions


@dataclass(slots=True)
class Row:
    """What one row has read: blocks[i] holds its positions from 32 i on."""

    adapter: int | None = None
    length: int = 0  # positions
    blocks: list[int] = field(default_factory=list)  # at least as many as `length` needs


class PagedCache:
    """The rows, the pool of blocks of every layer, and who holds which block."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
        """`devices`: one for each layer."""
        self.rows: dict[int, Row] = {}
        self.generation = 0  # changes when the pool grows: recorded passes hold the addresses of `layers`
        self.held_by_graphs: Callable[[], int] = int  # bytes free for recordings only: none without any
        # (2, blocks, BLOCK, H, D) for each layer: keys, then values.
        shape = (2, 1, BLOCK, config.n_heads, config.d_head)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for device in devices]
        self.position_values = config.d_model  # of the keys, or the values, of one position in one layer
        self._n_ctx = config.n_ctx
        self._least = (
            blocks_for(config.n_ctx) if devices[0].type == "cuda" else 1
        )  # blocks of the first growth
        self._holders = [1]  # rows that hold each block; nobody gives the null block back
        self._free: list[int] = []
        self._layers_on = Counter(devices)
        self._block_bytes = self.layers[0].nbytes  # in one layer

    def row(self, handle: int) -> Row:
        assert handle in self.rows, handle
        return self.rows[handle]

    def open(self, adapter: int | None = None) -> int:
        handle = next(i for i in count() if i not in self.rows)
        self.rows[handle] = Row(adapter)
        return handle

    def fork(self, row: int, length: int) -> int:
        """A new row of the first `length` positions; it shares their blocks."""
        parent = self.row(row)
        assert 0 <= length <= parent.length, (length, parent.length)
        child = self.open(parent.adapter)
        blocks = parent.blocks[: blocks_for(length)]
        for block in blocks:
            self._holders[block] += 1
        self.rows[child].length, self.rows[child].blocks = length, blocks
        return child

    def close(self, row: int) -> None:
        self._give_back(self.row(row).blocks)
        del self.rows[row]

    def truncate(self, row: int, length: int) -> None:
        """Forget the positions from `length` on; no key or value is touched."""
        kept = self.row(row)
        assert 0 <= length <= kept.length, (length, kept.length)
        kept.length = length
        self._give_back(kept.blocks[blocks_for(length) :])
        del kept.blocks[blocks_for(length) :]

    def room(self) -> int | None:
        """Positions that still fit, over all rows; None where a device does not say how much is free."""
        fitting = self._fitting_blocks()
        return None if fitting is None else BLOCK * (len(self._free) + fitting)

    def free_bytes(self, device: torch.device) -> int | None:
        """Bytes that can still be allocated on the device, beside what recordings keep for themselves."""
        n_bytes = free_bytes(device)
        return None if n_bytes is None else n_bytes - self.held_by_graphs()

    def has_free(self, sizes: Sequence[tuple[int, int]]) -> bool:
        """Whether `reserve` would find room without growing the pool."""
        return sum(self._missing(self.rows[row], size) for row, size in sizes) <= len(self._free)

    @torch.inference_mode()
    def reserve(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Make the next positions of rows writable, (row, T) each; `advance` counts them as read.

        NotEnoughMemory, and nothing has changed, if the pool cannot grow by what is missing.
        """
        rows = [(self.rows[row], size) for row, size in sizes]
        self._require_free(sum(self._missing(row, size) for row, size in rows))
        for row, size in rows:
            if self._shares_next(row):
                self._copy_last(row)
            while len(row.blocks) < blocks_for(row.length + size):
                row.blocks.append(self._take())

    def advance(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Count new positions as read. After a pass: what an interrupted one wrote does not count."""
        for row, size in sizes:
            self.rows[row].length += size

    @torch.inference_mode()
    def load(self, row: int, keys: Array, values: Array) -> None:
        """Extend a row by given keys and values, (L, P, H, D) each."""
        start, n_new = self.row(row).length, keys.shape[1]
        n_heads, d_head = self.layers[0].shape[-2:]
        assert keys.shape == values.shape == (len(self.layers), n_new, n_heads, d_head), keys.shape
        assert start + n_new <= self._n_ctx, (start, n_new)
        self.reserve([(row, n_new)])
        positions = np.arange(start, start + n_new)
        slots = block_table([self.rows[row]])[0, positions // BLOCK] * BLOCK + positions % BLOCK
        for layer, k, v in zip(self.layers, keys, values, strict=True):
            both = to_device(np.stack([k, v]), layer.device).to(layer.dtype)
            layer.flatten(1, 2).index_copy_(1, to_device(slots, layer.device), both)
        self.advance([(row, n_new)])

    def _missing(self, row: Row, size: int) -> int:
        """Free blocks that a row needs for `size` more positions."""
        return max(0, blocks_for(row.length + size) - len(row.blocks)) + self._shares_next(row)

    def _shares_next(self, row: Row) -> bool:
        """Whether the next position lies in a block that another row holds too."""
        return row.length % BLOCK > 0 and self._holders[row.blocks[row.length // BLOCK]] > 1

    def _copy_last(self, row: Row) -> None:
        """Replace the block of the next position by a copy of its own."""
        index = row.length // BLOCK
        shared, own = row.blocks[index], self._take()
        for layer in self.layers:
            layer[:, own] = layer[:, shared]
        row.blocks[index] = own
        self._give_back([shared])

    def _take(self) -> int:
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _give_back(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def _fitting_blocks(self) -> int | None:
        """Blocks by which the pool can grow. Growing holds one layer twice."""
        held = len(self._holders) * self._block_bytes
        free = {device: self.free_bytes(device) for device in self._layers_on}
        fitting = [
            int((USABLE_SHARE * n_bytes - held) // ((self._layers_on[device] + 1) * self._block_bytes))
            for device, n_bytes in free.items()
            if n_bytes is not None
        ]
        return max(0, min(fitting)) if fitting else None

    def _require_free(self, needed: int) -> None:
        """Grow the pool unless `needed` blocks are free; it at least doubles where memory allows."""
        missing = needed - len(self._free)
        if missing <= 0:
            return
        n_blocks, fitting = len(self._holders), self._fitting_blocks()
        wished = max(n_blocks, self._least)
        grown = n_blocks + max(missing, wished if fitting is None else min(wished, fitting))
        for device, n_layers in self._layers_on.items():
            n_bytes = self._block_bytes * (n_layers * (grown - n_blocks) + grown)
            tokens = BLOCK * (grown - 1)
            require_memory(
                n_bytes,
                f"a cache of {tokens} tokens on {device}",
                f"{tokens}토큰의 캐시({device})",
                self.free_bytes(device),
            )
        self.generation += 1  # first, as growing may fail between two layers
        for i, old in enumerate(self.layers):  # after such a failure some are longer already
            self.layers[i] = old.new_empty((2, grown, *old.shape[2:]))
            self.layers[i][:, :n_blocks] = old[:, :n_blocks]
        self._holders += [0] * (grown - n_blocks)
        self._free += range(grown - 1, n_blocks - 1, -1)  # the lowest is taken first


@dataclass(frozen=True, slots=True)
class Paged:
    """Where the cached positions of B rows lie, for rows that read T new positions each."""

    slots: Tensor  # (B, S) of every position up to the end of the longest row; 0 where a row has not read
    mask: Tensor  # (B, 1, T, S), True where a new position attends

    @classmethod
    def of(cls, table: Tensor, positions: Tensor) -> Paged:
        """`table`: (B, n) blocks, S = 32 n. `positions`: (B, T) of the new tokens, which count as read."""
        every = torch.arange(BLOCK * table.shape[1], device=table.device)  # (S,)
        slots = table[:, every // BLOCK] * BLOCK + every % BLOCK
        read = every <= positions[:, -1:]
        return cls(torch.where(read, slots, 0), every <= positions[:, None, :, None])


def attend_paged(q: Tensor, layer: Tensor, paged: Paged) -> Tensor:
    """Attention of (B, H, T, D) queries over the cached positions of their rows; -> (B, H, T, D).

    `layer` is a layer of the cache. This gathers 2 * B * S * H * D values, so callers bound B * S. A kernel
    that reads through the table may replace this function.
    """
    gathered = layer.flatten(1, 2).index_select(1, paged.slots.flatten())  # (2, B * S, H, D)
    keys, values = gathered.view(2, *paged.slots.shape, *layer.shape[-2:]).transpose(
        2, 3
    )  # (B, H, S, D) each
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=paged.mask)  # scores in float32 at least


def block_table(rows: Sequence[Row]) -> NDArray[np.int64]:
    """(B, n) numbers of the blocks of each row; shorter rows are filled up with the null block."""
    width = max(len(row.blocks) for row in rows)
    return np.array([row.blocks + [0] * (width - len(row.blocks)) for row in rows], np.int64)


def blocks_for(length: int) -> int:
    """Blocks that hold `length` positions."""
    return -(-length // BLOCK)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; what torch holds in reserve counts as free."""
    if device.type != "cuda":
        return available_memory()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve
