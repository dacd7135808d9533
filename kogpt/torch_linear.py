"""int8 and int4 projections on torch devices, as quantize.py describes them; nothing is rounded again.

A module holds the codes of the file, on the CPU in the file's own memory. Its product is given:
`plain_product` in torch on any device, a kernel on a GPU (gpu_steps.py). Both multiply whole numbers, and the
scale of an output once, in float32 at least.
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
from kogpt.torch_transfer import placed

# Weights that plain_product unpacks at a time: beside the codes a matrix never lies in memory as floats.
UNPACKED = {"cpu": 2**20, "cuda": 2**24}


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
        self.weight = _constant(placed(quantized.codes, device))
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
            self.register_buffer(name, placed(array, device))
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of x."""
        y = self._product(x.reshape(-1, self.in_features), self)
        return y.view(*x.shape[:-1], self.out_features)

    def integers(self, rows: slice = slice(None)) -> Tensor:
        """Weights before the scale of each output, (N, K) int16; rows: of these outputs only."""
        held = self.weight[rows]
        if self.format == "int8":
            return held.short()
        codes = torch.stack((held & 15, held >> 4), dim=-1).flatten(1)  # (N, K), or one more
        groups = self.groups[rows].repeat_interleave(GROUP, dim=1)[:, : codes.shape[1]]
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
    wide = x.to(precision)
    n_outputs = max(1, UNPACKED[x.device.type] // linear.in_features)
    pieces = [slice(i, i + n_outputs) for i in range(0, linear.out_features, n_outputs)]
    y = torch.cat([wide @ linear.integers(piece).to(precision).T for piece in pieces], dim=1) * linear.scales
    if linear.bias is not None:
        y += linear.bias
    return y.to(x.dtype)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
