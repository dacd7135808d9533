"""GPT-J on torch, GPU or CPU: model.py with a cache of keys and values.

The new positions of all rows are packed into one (1, N, E) batch, so that rows of unequal length need no
padding and every weight is read once a step; only attention is split, into groups of rows that read
equally many new positions (all decoding rows are one group).
Over several devices the blocks are split into stages that run one after the other, each beside its part of
the cache: memory adds up, speed does not.
Shapes: N new positions of all rows, T those of one row, S cached positions, B rows of a group, H heads,
D head width, E model width, V vocabulary, M outputs wanted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.memory import available_memory, require_memory
from kogpt.model import GPTJ, ForwardPass
from kogpt.runner import (
    CPU_PREFILL_TOKENS,
    Array,
    Chunk,
    cache_room,
    check_chunks,
    choose_all,
    output_places,
    require_dtype,
    split_outputs,
)
from kogpt.sampling import Chosen, Wanted

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Of the 35 ms in which an H100 reads 256 tokens of 6b, 19 or more launch kernels (notes/log.md, 2026-11-26).
GPU_PREFILL_TOKENS = 1024


class TorchRunner:
    """A Runner on one torch device or several; see runner.py for what its methods promise.

    `tensors` are those of `config.tensor_shapes()`, in any dtype. `device` is cpu, cuda, cuda:N, several of
    them joined by commas (the order of the stages), or cuda:all. On the CPU tensors that already have `dtype`
    are used where they lie in the file, without a copy. NotEnoughMemory if weights or cache do not fit,
    KoGPTError if there is no such dtype or device.
    """

    name = "torch"
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32", "float64")

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Stored],
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        require_dtype(dtype, self.dtypes, self.name)
        self.config = config
        self.dtype = dtype
        devices = _devices(device)
        self.prefill_tokens = GPU_PREFILL_TOKENS if devices[0].type == "cuda" else CPU_PREFILL_TOKENS
        self._stages = [
            Stage(*both) for both in zip(devices, split_layers(config, len(devices)), strict=True)
        ]
        for place, n_parameters in _parameters(config, self._stages).items():
            n_bytes = n_parameters * DTYPES[dtype].itemsize
            require_memory(n_bytes, f"this model on {place}", f"이 모델({place})", _free_bytes(place))
        self._model = _model(config, tensors, DTYPES[dtype], self._stages)
        self._cache = Cache(config, DTYPES[dtype], self._stages)

    @classmethod
    def weight_bytes(cls, config: ModelConfig, dtype: str) -> int:
        return config.n_parameters * DTYPES[dtype].itemsize

    def open(self) -> int:
        return self._cache.open()

    def fork(self, row: int, length: int | None = None) -> int:
        return self._cache.fork(row, self.length(row) if length is None else length)

    def close(self, row: int) -> None:
        self._cache.close(row)

    def length(self, row: int) -> int:
        assert row in self._cache.lengths, row
        return self._cache.lengths[row]

    def truncate(self, row: int, length: int) -> None:
        self._cache.truncate(row, length)

    def room(self) -> int | None:
        layer_bytes = 2 * self.config.d_model * DTYPES[self.dtype].itemsize
        rooms = [
            cache_room(layer_bytes * len(stage.layers), _free_bytes(stage.device))
            for stage in self._stages
            if stage.layers
        ]
        known = [room for room in rooms if room is not None]
        return min(known, default=None)

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        return choose_all(self.forward(chunks), wanted)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        hidden = self._trunk(chunks)
        if not len(hidden):
            return split_outputs(_to_numpy(hidden.new_empty((0, self.config.n_vocab))), chunks)
        return split_outputs(_to_numpy(self._model.head(hidden)), chunks)

    @torch.inference_mode()
    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        return split_outputs(_to_numpy(self._trunk(chunks)), chunks)

    def _trunk(self, chunks: Sequence[Chunk]) -> Tensor:
        """Read the chunks; (M, E), the wanted outputs of all of them end to end."""
        check_chunks(self, chunks)
        sizes = [(chunk.row, len(chunk.inputs)) for chunk in chunks]
        self._cache.reserve(max(self._cache.lengths[row] + size for row, size in sizes))
        # All before the first kernel is launched: a copy to a device waits for the work queued there.
        readings = [CachedPass(self._cache, sizes, stage.device) for stage in self._stages]
        x = self._embed(chunks)
        for stage, reading in zip(self._stages, readings, strict=True):
            x = self._model.blocks(x.to(stage.device), reading.positions, reading, stage.layers)
        x = self._model.norm(x)
        self._cache.count(sizes)
        return x[0, torch.from_numpy(output_places(chunks)).to(x.device)]

    def _embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """(1, N, E): the embeddings of all ids by one look-up; soft prompts are written over theirs."""
        ids = [c.inputs if c.inputs.ndim == 1 else np.zeros(len(c.inputs), np.int64) for c in chunks]
        device = self._stages[0].device
        x = self._model.embed(torch.from_numpy(np.concatenate(ids)).to(device)[None])
        start = 0
        for chunk in chunks:
            if chunk.inputs.ndim == 2:
                x[0, start : start + len(chunk.inputs)] = torch.tensor(chunk.inputs, device=device)
            start += len(chunk.inputs)
        return x


@dataclass(frozen=True, slots=True)
class Stage:
    """A device and the blocks that it holds; the first also has the embedding, the last ln_f and the head."""

    device: torch.device
    layers: range


def split_layers(config: ModelConfig, n: int) -> list[range]:
    """The layers in n runs; each border is as near as whole blocks allow to an equal share of all weights.

    The embedding counts to the first run, ln_f and head to the last: one of these may be left without blocks.
    """
    sizes = {name: prod(shape) for name, shape in _untied(config).items()}
    block = sum(size for name, size in sizes.items() if name.startswith("transformer.h.0."))
    share = sum(sizes.values()) / n
    ideals = [round((i * share - sizes["transformer.wte.weight"]) / block) for i in range(1, n)]
    borders = [0, *(min(max(ideal, 0), config.n_layers) for ideal in ideals), config.n_layers]
    return [range(start, stop) for start, stop in pairwise(borders)]


class Cache:
    """Keys and values of all rows: for each layer two tensors (slots, H, room, D).

    Slots and room double when they run out. What lies after a row's length is zero, so that rows of unequal
    length can be read together: masked positions get weight 0, and 0 x NaN of a diverged row would be NaN.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, stages: Sequence[Stage]) -> None:
        self.lengths: dict[int, int] = {}  # handle of a row, which is also its slot -> positions read
        self._n_ctx = config.n_ctx
        self._devices = [stage.device for stage in stages for _ in stage.layers]  # of each layer
        shape = (0, config.n_heads, 0, config.d_head)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for device in self._devices] for _ in range(2)
        )

    def open(self) -> int:
        slots, _, room, _ = self.keys[0].shape
        row = next(i for i in range(slots + 1) if i not in self.lengths)
        if row == slots:
            self._grow(max(1, 2 * slots), room)
        self.lengths[row] = 0
        return row

    @torch.inference_mode()
    def fork(self, row: int, length: int) -> int:
        assert 0 <= length <= self.lengths[row], (length, self.lengths[row])
        child = self.open()
        for tensor in (*self.keys, *self.values):
            tensor[child, :, :length] = tensor[row, :, :length]
        self.lengths[child] = length
        return child

    @torch.inference_mode()
    def close(self, row: int) -> None:
        assert row in self.lengths, row
        length = self.lengths.pop(row)
        for tensor in (*self.keys, *self.values):
            tensor[row, :, :length] = 0

    @torch.inference_mode()
    def truncate(self, row: int, length: int) -> None:
        assert 0 <= length <= self.lengths[row], (length, self.lengths[row])
        for tensor in (*self.keys, *self.values):
            tensor[row, :, length : self.lengths[row]] = 0
        self.lengths[row] = length

    def reserve(self, length: int) -> None:
        """Make room for rows of `length` positions."""
        slots, _, room, _ = self.keys[0].shape
        if length > room:
            self._grow(slots, min(max(length, 2 * room, 64), self._n_ctx))

    def count(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Row and number of positions read; after a pass: what an interrupted one wrote does not count."""
        for row, size in sizes:
            self.lengths[row] += size

    @torch.inference_mode()
    def _grow(self, slots: int, room: int) -> None:
        """Reallocate layer by layer, so that a device holds only one layer twice."""
        old_slots, n_heads, old_room, d_head = self.keys[0].shape
        layer_bytes = 2 * slots * n_heads * room * d_head * self.keys[0].itemsize
        for device, n_layers in Counter(self._devices).items():
            require_memory(
                layer_bytes * (n_layers + 1) - 2 * self.keys[0].nbytes * n_layers,
                f"a cache of {slots} texts of {room} tokens on {device}",
                f"{room}토큰 글 {slots}개의 캐시({device})",
                _free_bytes(device),
            )
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros((slots, n_heads, room, d_head))
                tensors[layer][:old_slots, :, :old_room] = old


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that read equally many new positions, side by side in the packed batch."""

    rows: list[int]
    size: int  # T
    packed: slice  # their B * T places in the packed batch
    n_cached: int  # S: positions of the longest row, the new ones included
    mask: Tensor | None  # (B, 1, T, S), True where a position may be looked at; None if everywhere


class CachedPass(ForwardPass):
    """One forward pass over a device's cache: where the new positions go, and who may look at what."""

    def __init__(self, cache: Cache, sizes: Sequence[tuple[int, int]], device: torch.device) -> None:
        """`sizes`: row and number of its new positions, in the order of the packed batch."""
        self._cache = cache
        self._sizes = sizes
        positions = [np.arange(cache.lengths[row], cache.lengths[row] + size) for row, size in sizes]
        rows = np.repeat([row for row, _ in sizes], [size for _, size in sizes])
        # One copy to the device for both: (2, N).
        places = torch.from_numpy(np.stack([rows, np.concatenate(positions)])).to(device)
        self._rows, self.positions = places[0], places[1]
        self._groups = list(self._grouped())

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v into the cache, then attend over all of it; (1, H, N, D) each -> (1, H, N, D)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._rows, :, self.positions] = k[0].transpose(0, 1)  # (N, H, D)
        values[self._rows, :, self.positions] = v[0].transpose(0, 1)
        found = [self._attend_group(group, q, keys, values) for group in self._groups]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def _grouped(self) -> Iterator[Group]:
        start = 0
        for size, neighbours in groupby(self._sizes, key=lambda item: item[1]):
            rows = [row for row, _ in neighbours]
            packed = slice(start, start + size * len(rows))
            n_cached = max(self._cache.lengths[row] for row in rows) + size
            yield Group(rows, size, packed, n_cached, self._mask(rows, size, packed, n_cached))
            start = packed.stop

    def _mask(self, rows: list[int], size: int, packed: slice, n_cached: int) -> Tensor | None:
        starts = {self._cache.lengths[row] for row in rows}
        if starts == {0} or (size == 1 and len(starts) == 1):
            return None  # plainly causal, or all that is cached
        positions = self.positions[packed].view(len(rows), 1, size, 1)
        return torch.arange(n_cached, device=positions.device) <= positions

    def _attend_group(self, group: Group, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(1, H, N, D) and two (slots, H, room, D) -> (1, H, B * T, D)."""
        packed = q[0, :, group.packed].view(q.shape[1], -1, group.size, q.shape[-1])  # (H, B, T, D)
        y = F.scaled_dot_product_attention(  # scores in float32 at least, whatever the dtype
            packed.transpose(0, 1),
            _rows(keys[:, :, : group.n_cached], group.rows),
            _rows(values[:, :, : group.n_cached], group.rows),
            attn_mask=group.mask,
            is_causal=group.n_cached == group.size > 1,
        )
        return y.transpose(0, 1).flatten(1, 2)[None]


def _rows(cached: Tensor, rows: list[int]) -> Tensor:
    """(slots, H, S, D) -> (B, H, S, D): a view where the slots are neighbours, else a copy."""
    first, last = rows[0], rows[-1]
    if rows == list(range(first, last + 1)):
        return cached[first : last + 1]
    return cached[rows]


def _to_numpy(x: Tensor) -> Array:
    wide: Array = x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()
    return wide


def _devices(names: str) -> list[torch.device]:
    """What `device` of TorchRunner stands for."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]  # none where torch was built without CUDA
    if names == "cuda" and gpus:
        return [torch.device("cuda")]  # torch's current one
    chosen = gpus if names == "cuda:all" and gpus else names.split(",")
    if not {"cpu", *gpus}.issuperset(chosen):
        raise KoGPTError(
            f"device is {names!r}, but torch {torch.__version__} finds {len(gpus)} GPUs: use --device cpu, "
            "or install a driver and a build of torch that fit each other",
            f"device 값 {names!r}: torch {torch.__version__}에서 찾은 GPU는 {len(gpus)}개입니다. "
            "--device cpu를 쓰거나 서로 맞는 드라이버와 torch를 설치해 주세요",
        )
    return [torch.device(name) for name in chosen]


def _model(
    config: ModelConfig, tensors: Mapping[str, Stored], dtype: torch.dtype, stages: Sequence[Stage]
) -> GPTJ:
    with torch.device("meta"):
        model = GPTJ(config)  # names and shapes only
    state = {name: _mapped(tensor).to(_place(name, stages), dtype) for name, tensor in tensors.items()}
    if config.tied_head:
        state["lm_head.weight"] = state["transformer.wte.weight"].to(stages[-1].device)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def _parameters(config: ModelConfig, stages: Sequence[Stage]) -> Counter[torch.device]:
    """How many weights and biases each device holds."""
    one_copy = stages[0].device == stages[-1].device  # of the embedding, where it is the head too
    parameters: Counter[torch.device] = Counter()
    for name, shape in (config.tensor_shapes() if one_copy else _untied(config)).items():
        parameters[_place(name, stages)] += prod(shape)
    return parameters


def _untied(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor, the weight of a tied head once more."""
    return replace(config, tied_head=False).tensor_shapes()


def _place(name: str, stages: Sequence[Stage]) -> torch.device:
    """The device of a tensor."""
    if name.startswith("transformer.wte."):
        return stages[0].device
    if name.startswith("transformer.h."):
        layer = int(name.split(".")[2])
        return next(stage.device for stage in stages if layer in stage.layers)
    return stages[-1].device


def _mapped(stored: Stored) -> Tensor:
    """A tensor on the very pages of the file; a copy only of what an old file starts at an odd address."""
    array = np.require(stored.array, requirements=["C", "A"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nothing here writes
        flat = torch.frombuffer(array, dtype=DTYPES[stored.dtype])
    return flat.view(array.shape)


def _free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; what torch holds in reserve counts as free."""
    if device.type != "cuda":
        return available_memory()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve
