"""Frozen matrices of a model that is tuned: held in any format, made float for one product at a time.

torch keeps what it multiplied by for the backward pass: under autocast a bfloat16 copy of every matrix. Here
the backward pass makes the floats again, so a base in int8 or int4 never lies in memory as floats.
Shapes: N outputs and K inputs of a matrix, G groups of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kogpt.checkpoint import Checkpoint
from kogpt.errors import ConfigError
from kogpt.model import GPTJ, Linear
from kogpt.quantize import CODEBOOK, FORMATS, GROUP, Quantized
from kogpt.rounding import nearest

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BASE_DTYPES = (*FLOATS, *FORMATS)
UNPACKED = {"cpu": 2**18, "cuda": 2**24}  # weights of int4 that are unpacked at a time


class Room:
    """Memory in which one matrix after the other becomes floats.

    Allocated anew for each product, such blocks leave holes in malloc's heap that grow from step to step.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def matrix(self, like: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Room for (N, K) on the device of `like`; what was there before is overwritten."""
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._memory.device != like.device or len(self._memory) < n_bytes:
            self._memory = like.new_empty(n_bytes, dtype=torch.uint8)
        return self._memory[:n_bytes].view(dtype).view(shape)


class FrozenLinear(nn.Module):
    """x W^T + bias, of which nothing learns; W is float32 or bfloat16, the bias float32."""

    def __init__(self, linear: Linear, room: Room, dtype: torch.dtype = torch.float32) -> None:
        """linear: lends shapes, device and names; its values are not copied. room: shared by a model."""
        super().__init__()
        self.room = room
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._hold(linear, dtype)

    def _hold(self, linear: Linear, dtype: torch.dtype) -> None:
        weight = torch.empty_like(linear.weight, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        multiply = cast(Any, _FrozenProduct.apply)
        y: Tensor = multiply(x, self, dtype)
        return y if self.bias is None else y + self.bias.to(dtype)

    def unscaled(self, dtype: torch.dtype) -> Tensor:
        """(N, K) in `dtype`, valid until the next matrix: the weights, but for the factor of each output."""
        return self.weight if self.weight.dtype == dtype else self._converted(self.weight, dtype)

    def _converted(self, held: Tensor, dtype: torch.dtype) -> Tensor:
        return self.room.matrix(held, (self.out_features, self.in_features), dtype).copy_(held)

    def factors(self) -> Tensor | None:
        """(N,) factors of the outputs; None: 1."""
        return None


class QuantizedLinear(FrozenLinear):
    """W in int8 or int4, as quantize.py describes them."""

    codes: Tensor  # (N, K) int8, or (N, ceil(K / 2)) uint8
    groups: Tensor  # (N, G) uint8; int4
    scales: Tensor  # (N,) float32

    def __init__(self, linear: Linear, room: Room, kind: str) -> None:
        self.kind = kind
        super().__init__(linear, room)

    def _hold(self, linear: Linear, dtype: torch.dtype) -> None:
        """Buffers, which no checkpoint of a run holds."""
        n, k, like = self.out_features, self.in_features, linear.weight
        if self.kind == "int8":
            held = {"codes": like.new_empty((n, k), dtype=torch.int8)}
        else:
            held = {"codes": like.new_empty((n, -(-k // 2)), dtype=torch.uint8)}
            held["groups"] = like.new_empty((n, -(-k // GROUP)), dtype=torch.uint8)
        held["scales"] = like.new_empty(n, dtype=torch.float32)
        for name, tensor in held.items():
            self.register_buffer(name, tensor.detach(), persistent=False)

    def load(self, matrix: Quantized) -> None:
        """Take a matrix of this shape and format."""
        assert (matrix.dtype, matrix.shape) == (self.kind, (self.out_features, self.in_features))
        for name, tensor in self.named_buffers():
            tensor.copy_(torch.tensor(getattr(matrix, name)))

    def unscaled(self, dtype: torch.dtype) -> Tensor:
        """(N, K) integers from -127 to 127, which every dtype holds exactly; valid until the next matrix."""
        if self.kind == "int8":
            return self._converted(self.codes, dtype)
        found = self.room.matrix(self.codes, (self.out_features, self.in_features), dtype)
        rows = max(1, UNPACKED[self.codes.device.type] // self.in_features)
        for start in range(0, self.out_features, rows):
            part = slice(start, start + rows)
            found[part] = unpack_int4(self.codes[part], self.groups[part])[:, : self.in_features]
        return found

    def factors(self) -> Tensor:
        return self.scales


class _FrozenProduct(torch.autograd.Function):
    """x W^T in `dtype`; of the input nothing is kept, W is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FrozenLinear, dtype: torch.dtype) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        y = F.linear(x.to(dtype), matrix.unscaled(dtype))
        factors = matrix.factors()
        return y if factors is None else y.mul_(factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        factors = ctx.matrix.factors()
        if factors is not None:
            grad = (grad * factors).to(grad.dtype)
        return (grad @ ctx.matrix.unscaled(grad.dtype)).to(ctx.dtype), None, None


def unpack_int4(codes: Tensor, groups: Tensor) -> Tensor:
    """(N, K / 2) codes and (N, G) group scales -> (N, 32 G) float32: the integers of quantize.table()."""
    book = torch.tensor(CODEBOOK, dtype=torch.float32, device=codes.device)
    byte = torch.arange(256, device=codes.device)
    pairs = torch.stack((book[byte & 15], book[byte >> 4]), dim=1)  # (256, 2): both codes of a byte
    values = F.embedding(codes.int(), pairs).flatten(1)
    values = F.pad(values, (0, groups.shape[1] * GROUP - values.shape[1])).view(*groups.shape, GROUP)
    sizes = (groups & 127).float()[..., None]
    signs = 1.0 - 2.0 * (groups >= 128).float()[..., None]
    return ((values * sizes / 127).round_() * signs).flatten(1)


def freeze(model: GPTJ, dtype: str) -> None:
    """Freeze a model on the meta device; its matrices are to be held in `dtype`, of BASE_DTYPES.

    Embedding and head are bfloat16 where the blocks are not float32, vectors stay float32.
    """
    model.requires_grad_(False)
    room = Room()
    for parent in [module for block in model.transformer.h for module in block.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                frozen = QuantizedLinear(child, room, dtype) if dtype in FORMATS else None
                setattr(parent, name, frozen or FrozenLinear(child, room, FLOATS[dtype]))
    if dtype != "float32":
        model.transformer.wte.to(torch.bfloat16)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.bfloat16), requires_grad=False)
        model.tie()


def base_dtype(wanted: str, stored: Checkpoint, product: torch.dtype) -> str:
    """The format of a frozen base; "auto": as stored if quantised, else that of products.

    ConfigError for an unknown name, and where quantised weights would be rounded again.
    """
    if wanted not in ("auto", *BASE_DTYPES):
        raise ConfigError(
            f"base dtype {wanted!r} is unknown: choose one of auto, {', '.join(BASE_DTYPES)}",
            f"알 수 없는 기반 모델 형식입니다: {wanted!r}. auto, {', '.join(BASE_DTYPES)} 중에서 고르세요",
        )
    if wanted == "auto":
        return stored.quantization or str(product).removeprefix("torch.")
    if stored.quantization is not None and wanted in FORMATS and wanted != stored.quantization:
        raise ConfigError(
            f"the model is stored in {stored.quantization} and cannot become {wanted}, which would round it "
            "twice: use --base-dtype auto, a float format, or the model that it was exported from",
            f"모델이 {stored.quantization} 형식으로 저장되어 있어 {wanted} 형식으로 다시 양자화하지 "
            "않습니다. --base-dtype auto나 실수 형식을 쓰거나, 내보내기 전의 원래 모델을 쓰세요",
        )
    return wanted


def fill_quantized(model: GPTJ, stored: Checkpoint) -> None:
    """Set every quantised matrix: as stored, or rounded to nearest."""
    floats = stored.floats()
    for name, module in _quantized(model.named_modules()):
        tensor = stored.tensors[f"{name}.weight"]
        matrix = tensor if isinstance(tensor, Quantized) else nearest(floats[f"{name}.weight"], module.kind)
        module.load(matrix)


def _quantized(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, QuantizedLinear]]:
    return ((name, module) for name, module in modules if isinstance(module, QuantizedLinear))
