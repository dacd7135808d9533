"""A model's tensors onto the devices of a torch runner: one after the other, and none of them twice.

Floats take the runner's dtype. In int8 and int4 every matrix but the embedding is a QuantizedLinear: with the
codes of a quantised folder, or with codes that are rounded here from one float matrix at a time. Vectors,
activations, keys and values are then float16 on a GPU and float32 on a CPU, which is slow in float16. The
embedding, of which a token takes one row, is float16 on a GPU and as stored on a CPU.

On several devices the layers are split into stages. Where one GPU is too small, the last layers stay in CPU
memory (torch_offload.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.memory import USABLE_SHARE, amount, require_memory
from kogpt.model import GPTJ, Attention, Linear
from kogpt.quantize import EMBEDDING, FORMATS, HEAD, Quantized, matrices, parts
from kogpt.rounding import nearest
from kogpt.torch_cache import free_bytes
from kogpt.torch_linear import Product, QuantizedLinear
from kogpt.torch_offload import SLOTS, Streamed
from kogpt.torch_transfer import is_host, placed
from kogpt.weights import SIZES, Stored

FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
BESIDE_CODES = {"cuda": torch.float16, "cpu": torch.float32}  # precision of all that is not quantised
CPU = torch.device("cpu")

Tensors = Mapping[str, Stored | Quantized]


@dataclass(frozen=True, slots=True)
class Stage:
    """A device and the blocks that it holds; the first also has the embedding, the last ln_f and the head."""

    device: torch.device
    layers: range


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a model lies, and in which format."""

    config: ModelConfig
    dtype: str
    stages: tuple[Stage, ...]
    offloaded: range  # layers that stay in CPU memory

    @classmethod
    def of(
        cls, config: ModelConfig, dtype: str, devices: Sequence[torch.device], n_offloaded: int = 0
    ) -> Layout:
        """A stage for each device; the last `n_offloaded` layers stay in CPU memory. KoGPTError."""
        _require_offload(config, devices, n_offloaded)
        runs = split_layers(config, len(devices), dtype)
        stages = tuple(Stage(*both) for both in zip(devices, runs, strict=True))
        return cls(config, dtype, stages, range(config.n_layers - n_offloaded, config.n_layers))

    @property
    def precision(self) -> torch.dtype:
        """Dtype of activations, vectors, keys and values."""
        return FLOATS.get(self.dtype) or BESIDE_CODES[self.stages[0].device.type]

    @property
    def codes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of the quantised matrices."""
        return matrices(self.config) if self.dtype in FORMATS else {}

    def device(self, name: str) -> torch.device:
        """The device of a tensor."""
        if name.startswith("transformer.wte."):
            return self.stages[0].device
        layer = layer_of(name)
        if layer is None:
            return self.stages[-1].device
        if layer in self.offloaded:
            return CPU
        return next(stage.device for stage in self.stages if layer in stage.layers)

    def require_memory(self) -> None:
        """Raise NotEnoughMemory for a device that cannot hold its part."""
        one_copy = self.stages[0].device == self.stages[-1].device  # of a tied head
        sizes = (stored_bytes if one_copy else tensor_bytes)(self.config, self.dtype)
        needed: Counter[torch.device] = Counter()
        for name, n_bytes in sizes.items():
            needed[self.device(name)] += n_bytes
        if self.offloaded:
            needed[self.stages[0].device] += SLOTS * block_bytes(self.config, self.dtype)
        for device, n_bytes in needed.items():
            require_memory(n_bytes, f"this model on {device}", f"이 모델({device})", free_bytes(device))

    def offload_texts(self) -> tuple[str, str]:
        """What offloading costs, in English and Korean."""
        n, total, device = len(self.offloaded), self.config.n_layers, self.stages[0].device
        copied = amount(n * block_bytes(self.config, self.dtype) if n > SLOTS else 0)
        return (
            f"{total - n} of {total} layers on {device}, {n} in CPU memory: each step copies {copied}",
            f"전체 {total}개 층 중 {total - n}개는 {device}에, {n}개는 CPU 메모리에 둡니다. "
            f"단계마다 {copied}를 복사합니다",
        )


def stored_bytes(config: ModelConfig, dtype: str) -> dict[str, int]:
    """Bytes of each tensor in memory; a tied head of floats is the embedding."""
    if dtype in FLOATS:
        return {name: FLOATS[dtype].itemsize * prod(shape) for name, shape in config.tensor_shapes().items()}
    sizes = {
        name: (2 if name == EMBEDDING else 4) * prod(shape) for name, shape in config.tensor_shapes().items()
    }
    for name, shape in matrices(config).items():
        sizes[name] = sum(SIZES[kind] * prod(part) for kind, part in parts(name, dtype, shape).values())
    return sizes


def tensor_bytes(config: ModelConfig, dtype: str) -> dict[str, int]:
    """As `stored_bytes`, with the weight of a tied head by itself."""
    sizes = stored_bytes(config, dtype)
    return {HEAD: sizes[EMBEDDING]} | sizes


def block_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of the weights of one layer."""
    return sum(n_bytes for name, n_bytes in stored_bytes(config, dtype).items() if layer_of(name) == 0)


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None: embedding, last LayerNorm or head."""
    return int(name.split(".")[2]) if name.startswith("transformer.h.") else None


def split_layers(config: ModelConfig, n: int, dtype: str = "float32") -> list[range]:
    """The layers in n runs; each border is as near as whole blocks allow to an equal share of all weights.

    The embedding counts to the first run, ln_f and head to the last: one of these may be left without blocks.
    """
    sizes = tensor_bytes(config, dtype)
    share, block = sum(sizes.values()) / n, block_bytes(config, dtype)
    ideals = [round((i * share - sizes[EMBEDDING]) / block) for i in range(1, n)]
    borders = [0, *(min(max(ideal, 0), config.n_layers) for ideal in ideals), config.n_layers]
    return [range(start, stop) for start, stop in pairwise(borders)]


def layers_to_offload(config: ModelConfig, dtype: str, devices: Sequence[torch.device]) -> int:
    """How many layers have to stay in CPU memory: none where the weights fit, or where that would not help.

    What is left on the device has room for the cache of one text of n_ctx tokens.
    """
    device, free = devices[0], free_bytes(devices[0])
    if len(devices) > 1 or is_host(device) or free is None:
        return 0
    whole, block = sum(stored_bytes(config, dtype).values()), block_bytes(config, dtype)
    usable = USABLE_SHARE * free
    if whole <= usable:
        return 0
    width = Layout.of(config, dtype, devices).precision.itemsize
    cache = 2 * width * config.n_layers * config.d_model * config.n_ctx
    resident = int((usable - cache - (whole - config.n_layers * block)) // block) - SLOTS
    return config.n_layers - max(0, resident)


class Unfilled(TorchFunctionMode):
    """Modules begin without random weights: drawing them on the meta device imports torch's compiler, 3 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_model(layout: Layout, tensors: Tensors, product: Product) -> GPTJ:
    """The model with its weights where they belong; `product` is that of its quantised matrices."""
    with torch.device("meta"), Unfilled():
        model = GPTJ(layout.config)  # names and shapes only
    streamed = Streamed(model.transformer.h, layout.stages[0].device) if layout.offloaded else None
    if streamed is not None:
        model.transformer.h = streamed
    for layer, names in groupby(_names(layout), layer_of):
        for name in names:
            if name in layout.codes:
                _load_codes(model, name, layout, tensors, product)
            else:
                _load_floats(model, name, layout, tensors)
        if layer is None:
            continue
        if layer in layout.offloaded and streamed is not None:
            streamed.keep(layer)
        elif not layout.codes and not is_host(layout.stages[0].device):
            block: Any = model.transformer.h[layer]
            join_weights(block.attn)
    if layout.config.tied_head and not layout.codes:
        head = model.transformer.wte.weight.to(layout.device(HEAD))
        model.lm_head.weight = _constant(head)
    return model


def join_weights(attn: Attention) -> None:
    """Move q, k and v into one matrix, so that one product computes them; each keeps its name and place."""
    linears = (attn.q_proj, attn.k_proj, attn.v_proj)
    parts = torch.cat([linear.weight.detach() for linear in linears]).chunk(len(linears))
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = _constant(part)


def multiply_all(linears: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
    """linear(x) of each, by one product where their weights are joined."""
    joined = joined_weight(linears)
    return (
        [linear(x) for linear in linears] if joined is None else F.linear(x, joined).chunk(len(linears), -1)
    )


def joined_weight(linears: Sequence[Linear]) -> Tensor | None:
    """The weights of n linears, (N, K) each, as one (n N, K) where they lie so in memory; else None."""
    if any(type(linear) is not Linear for linear in linears):
        return None
    first = linears[0].weight
    # The storage itself and not its address: fake tensors have none.
    places = [(linear.weight.untyped_storage()._cdata, linear.weight.storage_offset()) for linear in linears]
    storage, start = places[0]
    if places != [(storage, start + i * first.numel()) for i in range(len(linears))]:
        return None
    n, k = first.shape
    return first.as_strided((len(linears) * n, k), (k, 1))


def _names(layout: Layout) -> Iterator[str]:
    """Tensors to load, block by block; the bias of a quantised matrix comes with the matrix."""
    codes = layout.codes
    for name in dict.fromkeys((*layout.config.tensor_shapes(), *codes)):
        if not name.endswith(".bias") or f"{name.removesuffix('.bias')}.weight" not in codes:
            yield name


def _load_floats(model: GPTJ, name: str, layout: Layout, tensors: Tensors) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    device = layout.device(name)
    as_stored = name == EMBEDDING and layout.codes and is_host(device)
    tensor = _placed(tensors[name], device, None if as_stored else layout.precision)
    assert tensor.shape == getattr(module, leaf).shape, (name, tensor.shape)
    setattr(module, leaf, _constant(tensor))


def _load_codes(model: GPTJ, name: str, layout: Layout, tensors: Tensors, product: Product) -> None:
    path, device = name.removesuffix(".weight"), layout.device(name)
    matrix = tensors[name if name in tensors else EMBEDDING]  # a tied head
    if isinstance(matrix, Stored):
        matrix = nearest(matrix, layout.dtype)
    assert (matrix.dtype, matrix.shape) == (layout.dtype, layout.codes[name]), (name, matrix.shape)
    bias = f"{path}.bias"
    has_bias = bias in layout.config.tensor_shapes()
    vector = _placed(tensors[bias], device, layout.precision) if has_bias else None
    model.set_submodule(path, QuantizedLinear(matrix, vector, device, product))


def _placed(stored: Stored | Quantized, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    assert isinstance(stored, Stored)
    return placed(stored.array, device, dtype)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _require_offload(config: ModelConfig, devices: Sequence[torch.device], n_offloaded: int) -> None:
    if n_offloaded > config.n_layers:
        raise KoGPTError(
            f"--offload {n_offloaded}: the model has {config.n_layers} layers, name that many at most",
            f"--offload {n_offloaded}: 이 모델의 층은 {config.n_layers}개입니다. 그 이하로 지정하세요",
        )
    if n_offloaded and len(devices) > 1:
        raise KoGPTError(
            f"--offload {n_offloaded} works beside one GPU, not {len(devices)}: name one by --device cuda:N",
            f"--offload {n_offloaded}: GPU 하나에서만 쓸 수 있습니다 (지정한 장치 {len(devices)}개). "
            "--device cuda:N으로 하나를 고르세요",
        )
