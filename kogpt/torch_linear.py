"""int8 and int4 projections on torch devices, as quantize.py describes them; nothing is rounded again.

A module holds the codes of the file. Its product is given: `plain_product` in torch on any device, a kernel
on a GPU (gpu_steps.py). Both multiply whole numbers, and the scale of an output once, in float32 at least.
Shapes: N outputs, K inputs, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kogpt.model import Linear
from kogpt.quantize import GROUP, Quantized, table


class QuantizedLinear(Linear):
    """A projection with the codes of int8 or int4 in the place of its weights.

    weight: codes, int8 (N, K) or uint8 (N, ceil(K / 2)). scales: (N,) float32. groups: (N, ceil(K / 32))
    uint8 (int4), else empty. entries: quantize.table() + 128, (256, 16) uint8 (int4), else empty.
    """

    scales: Tensor
    groups: Tensor
    entries: Tensor

    def __init__(
        self, quantized: Quantized, bias: Tensor | None, device: torch.device, product: Product
    ) -> None:
        n, k = quantized.shape
        super().__init__(k, n, bias=bias is not None, device="meta")
        self.format = quantized.dtype
        self.weight = _constant(_copied(quantized.codes, device))
        if bias is not None:
            self.bias = _constant(bias.to(device))
        none = np.empty(0, np.uint8)
        is_int4 = quantized.groups is not None
        arrays: dict[str, NDArray[Any]] = {
            "scales": quantized.scales,
            "groups": none if quantized.groups is None else quantized.groups,
            "entries": (table().astype(np.int16) + 128).astype(np.uint8) if is_int4 else none,
        }
        for name, array in arrays.items():
            self.register_buffer(name, _copied(array, device))
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of x."""
        y = self._product(x.reshape(-1, self.in_features), self)
        return y.view(*x.shape[:-1], self.out_features)

    def integers(self) -> Tensor:
        """Weights before the scale of each output, (N, K) int16."""
        if self.format == "int8":
            return self.weight.short()
        codes = torch.stack((self.weight & 15, self.weight >> 4), dim=-1).flatten(1)  # (N, K), or one more
        groups = self.groups.repeat_interleave(GROUP, dim=1)[:, : codes.shape[1]]
        integers: Tensor = self.entries[groups.long(), codes.long()].short() - 128
        return integers[:, : self.in_features]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights; the table of entries is not counted."""
        return self.weight.nbytes + self.scales.nbytes + self.groups.nbytes


Product = Callable[[Tensor, QuantizedLinear], Tensor]  # (B, K) -> (B, N), bias included


def plain_product(x: Tensor, linear: QuantizedLinear) -> Tensor:
    """x W^T + bias in torch; (B, K) -> (B, N). The slow twin of the kernels."""
    precision = torch.promote_types(x.dtype, torch.float32)
    y = (x.to(precision) @ linear.integers().to(precision).T) * linear.scales
    if linear.bias is not None:
        y += linear.bias
    return y.to(x.dtype)


def _copied(array: NDArray[Any], device: torch.device) -> Tensor:
    """On the device; a copy, because a file's memory may not be written to and may go away."""
    return torch.tensor(array, device=device)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
