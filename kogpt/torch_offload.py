"""Blocks that stay in CPU memory, because a GPU has no room for them, and are copied to it at every pass.

The device has two slots, each as large as a block. While a block computes from one, the next block is copied
into the other; after the last one the first is copied for the next pass. A step takes as long as the copies,
so this is for models that would not run at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from kogpt.torch_transfer import Copies, Wait, host_buffers

SLOTS = 2
ALIGNED = 256  # bytes: where a tensor may begin in a buffer


class Slot:
    """Device memory of one block: its tensors, and which layer's values they have or will have."""

    def __init__(self, like: Sequence[Tensor], n_bytes: int, device: torch.device) -> None:
        self.buffer = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self.tensors = [
            nn.Parameter(view, requires_grad=False) if isinstance(old, nn.Parameter) else view
            for old, view in zip(like, views(self.buffer, like), strict=True)
        ]
        self.layer: int | None = None
        self.wait: Wait


class Streamed(nn.ModuleList):
    """A model's blocks. Indexing gives a block that is ready on the device for what is queued next."""

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        super().__init__(blocks)
        self._device = device
        self._copies = Copies(device)
        self._kept: dict[int, list[Tensor]] = {}  # layer -> its weights, end to end in host buffers
        self._slots: list[Slot] = []

    def keep(self, layer: int) -> None:
        """Move the weights of a block, which lie in CPU memory, into the buffers that are copied."""
        block = super().__getitem__(layer)
        tensors = [tensor for _, _, tensor in _tensors(block)]
        buffers = self._kept[layer] = host_buffers(sum(map(_aligned, tensors)), self._device)
        n_bytes = sum(map(len, buffers))
        whole = torch.empty(n_bytes, dtype=torch.uint8)
        for view, tensor in zip(views(whole, tensors), tensors, strict=True):
            view.copy_(tensor)
        for buffer, part in zip(buffers, whole.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(part)
        if not self._slots:
            self._slots = [Slot(tensors, n_bytes, self._device) for _ in range(SLOTS)]
        _bind(block, self._slots[0])

    def __getitem__(self, layer: Any) -> Any:
        block = super().__getitem__(layer)
        if layer in self._kept:
            _bind(block, self._fetch(layer))
        return block

    def _fetch(self, layer: int) -> Slot:
        """The slot with a layer; the copy of the layer after it has begun."""
        order = list(self._kept)
        following = order[(order.index(layer) + 1) % len(order)]
        held = [slot for slot in self._slots if slot.layer == layer]
        own = held[0] if held else self._slots[0]
        other = self._slots[1] if own is self._slots[0] else self._slots[0]
        self._begin(own, layer)
        own.wait()
        if following != layer:
            self._begin(other, following)
        return own

    def _begin(self, slot: Slot, layer: int) -> None:
        if slot.layer != layer:
            slot.layer = layer
            slot.wait = self._copies.begin(self._kept[layer], slot.buffer)


def views(buffer: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    """Tensors of these shapes and dtypes, one after the other in a buffer of bytes."""
    start = 0
    for tensor in like:
        yield buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _aligned(tensor)


def _aligned(tensor: Tensor) -> int:
    return -(-prod(tensor.shape) * tensor.itemsize // ALIGNED) * ALIGNED


def _tensors(block: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Module, name and tensor of everything that a block holds, in a fixed order."""
    for module in block.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield module, name, tensor


def _bind(block: nn.Module, slot: Slot) -> None:
    """Let a block compute with the tensors of a slot."""
    for (module, name, _), tensor in zip(list(_tensors(block)), slot.tensors, strict=True):
        setattr(module, name, tensor)
