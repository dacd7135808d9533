"""LoRAs side by side on torch devices: every row of a pass has its own (arXiv 2106.09685).

The factors of all adapters lie stacked, one pair of tensors for each matrix, so rows with different
adapters share two batched products. Place 0 of the stack is "no adapter": its factors are zeros.
Shapes: A adapters, r rank of the widest of them, B rows, T new positions of a row, K inputs and N outputs of
a matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

from kogpt.adapter import Lora
from kogpt.memory import require_memory
from kogpt.model import GPTJ, Linear
from kogpt.torch_transfer import to_device

Factors = tuple[Tensor, Tensor]  # (A, r, K) and (A, N, r); the second includes the scale

RANKS = 8  # ranks are filled up with zeros to a multiple of this


class LoraStack:
    """The adapters that rows may be opened with. The adapter of handle i lies in place i + 1."""

    def __init__(self, model: GPTJ, free_bytes: Callable[[torch.device], int | None]) -> None:
        """free_bytes: what can still be allocated on a device; None where nobody knows."""
        self.handles: set[int] = set()
        self.generation = 0  # how often factors were replaced: recorded passes hold their addresses
        self._free_bytes = free_bytes
        self._dtype = model.transformer.ln_f.weight.dtype  # of activations: a matrix may hold codes
        self._linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
        self._factors: dict[Linear, Factors] = {}  # of the matrices that some adapter changes

    @torch.inference_mode()
    def add(self, lora: Lora) -> int:
        """Take a LoRA that fits the model; its handle. NotEnoughMemory, and nothing has changed."""
        handle = next(i for i in count() if i not in self.handles)
        rank = max((len(update.a) for update in lora.updates.values()), default=1)
        self._grow(lora, handle + 2, -(-rank // RANKS) * RANKS)
        for name, update in lora.updates.items():
            a, b = self._factors[self._linears[name]]
            a[handle + 1, : len(update.a)] = torch.tensor(update.a)
            b[handle + 1, :, : len(update.a)] = float(update.scale) * torch.tensor(
                update.b, dtype=torch.float64
            )
        self.handles.add(handle)
        return handle

    @torch.inference_mode()
    def drop(self, handle: int) -> None:
        """Forget a LoRA."""
        self.handles.remove(handle)
        for a, b in self._factors.values():
            a[handle + 1], b[handle + 1] = 0, 0

    def places(self, adapters: Sequence[int | None], device: torch.device) -> Tensor | None:
        """Places in the stack of the adapters of B rows, (B,) on the device; None if no row has one."""
        if all(handle is None for handle in adapters):
            return None
        places = [0 if handle is None else handle + 1 for handle in adapters]
        return to_device(np.array(places), device)

    def update(self, linear: Linear, x: Tensor, places: Tensor) -> Tensor | None:
        """What the adapters at (B,) places add to linear(x); (B, T, K) -> (B, T, N), None: nothing."""
        if linear not in self._factors:
            return None
        # One product for each row, whatever its neighbours' adapters are: its bits do not depend on them.
        a, b = (factor[places] for factor in self._factors[linear])
        return torch.bmm(torch.bmm(x, a.mT), b.mT)

    def _grow(self, lora: Lora, n_places: int, rank: int) -> None:
        """Make room for an adapter in the last of these places; tensors that have it stay as they are."""
        grown: dict[Linear, tuple[int, int]] = {}  # (A, r) of those that have another
        for linear in [*self._factors, *(self._linears[name] for name in lora.updates)]:
            held = self._factors[linear][0].shape[:2] if linear in self._factors else (0, 0)
            shape = max(n_places, held[0]), max(rank, held[1])
            if shape != held:
                grown[linear] = shape
        self._require_memory(grown)
        self.generation += bool(grown)  # first, as growing may fail between two matrices
        for linear, (places, r) in grown.items():
            none = linear.weight.new_zeros((0, 0, 0), dtype=self._dtype)
            a, b = self._factors.get(linear, (none, none))
            a = _enlarged(a, (places, r, linear.in_features))
            self._factors[linear] = a, _enlarged(b, (places, linear.out_features, r))

    def _require_memory(self, grown: Mapping[Linear, tuple[int, int]]) -> None:
        """Raise NotEnoughMemory where factors of these shapes (A, r) do not fit in place of those held."""
        needed: Counter[torch.device] = Counter()
        twice: Counter[torch.device] = Counter()  # the largest pair that is held until its values are copied
        for linear, (places, r) in grown.items():
            device, held = linear.weight.device, sum(x.nbytes for x in self._factors.get(linear, ()))
            n_values = places * r * (linear.in_features + linear.out_features)
            needed[device] += n_values * self._dtype.itemsize - held
            twice[device] = max(twice[device], held)
        for device, n_bytes in (needed + twice).items():
            free = self._free_bytes(device)
            require_memory(n_bytes, f"an adapter on {device}", f"어댑터({device})", free)


def _enlarged(factors: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The factors in the corner of a tensor of zeros."""
    enlarged = factors.new_zeros(shape)
    enlarged[tuple(map(slice, factors.shape))] = factors
    return enlarged
