"""GPT-J on torch, GPU or CPU: model.py, a paged cache (torch_cache.py) and LoRA for each row (torch_lora.py).

Rows that read one token take a static pass (torch_decoder.py), and so does a short prompt (torch_prompt.py).
What else is read is packed into one (1, N, E) batch, so rows of unequal length need no padding. Only
attention and LoRA are split there (torch_attention.py).
On several devices the layers are split into stages that run one after the other, each beside its part of
the cache: memory adds up, speed does not, and static passes are not recorded.
Shapes: N new positions of all rows, T those of one row, E model width, V vocabulary, M outputs wanted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from kogpt.adapter import Lora, require_lora_fits
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, NotEnoughMemory, localized
from kogpt.gpu_choice import choose
from kogpt.memory import REMEDIES
from kogpt.quantize import FORMATS
from kogpt.runner import (
    CPU_PREFILL_TOKENS,
    Array,
    Chunk,
    check_chunks,
    output_places,
    require_dtype,
    split_outputs,
)
from kogpt.sampling import Chosen, SampledToken, Wanted
from kogpt.torch_attention import CachedPass, Places
from kogpt.torch_cache import PagedCache
from kogpt.torch_decoder import ROWS, CudaGraphs, Decoder, Recorder, Step, is_plain
from kogpt.torch_lora import LoraStack
from kogpt.torch_pass import StaticModel, StepPlan
from kogpt.torch_prompt import Prompts
from kogpt.torch_sampling import choose_all
from kogpt.torch_transfer import to_device
from kogpt.torch_weights import Layout, Tensors, layers_to_offload, load_model, stored_bytes

# Prompt tokens of one step: the longest text of the 6B shape. At 60 % of an H100's measured matrix product
# they take 57 ms, for which other rows wait.
GPU_PREFILL_TOKENS = 2048

# Texts by which torch's other errors of memory are known: of the driver, of cuBLAS, and of the host's.
NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Answer = TypeVar("Answer")


def name_memory_errors(method: Callable[P, Answer]) -> Callable[P, Answer]:
    """The method, with NotEnoughMemory for what torch raises where memory ends."""

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            text = str(error)
            known = isinstance(error, torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY)
            if not known:
                raise
        # Raised out here, where torch's error is gone, and with it the tensors of the pass that failed.
        raise NotEnoughMemory(*_no_memory(text))

    return wrapped


class TorchRunner:
    """A Runner on one torch device or several; see runner.py for what its methods promise.

    `tensors` are those of `config.tensor_shapes()`, in any dtype, or those of a folder in int8 or int4.
    `device` is cpu, cuda, cuda:N, several of them joined by commas (the order of the stages), or cuda:all. On
    the CPU tensors that already have `dtype` are used where they lie in the file, without a copy. `offload`
    is how many layers stay in CPU memory; None: as many as one GPU has no room for.
    NotEnoughMemory if weights or cache do not fit, KoGPTError if there is no such dtype or device.
    """

    name = "torch"
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32", "float64", *FORMATS)

    @name_memory_errors
    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        dtype: str = "float32",
        device: str = "cpu",
        offload: int | None = 0,
    ) -> None:
        require_dtype(dtype, self.dtypes, self.name)
        self.config = config
        self.dtype = dtype
        devices = _devices(device)
        self.prefill_tokens = GPU_PREFILL_TOKENS if devices[0].type == "cuda" else CPU_PREFILL_TOKENS
        if offload is None:
            offload = layers_to_offload(config, dtype, devices)
        layout = Layout.of(config, dtype, devices, offload)
        layout.require_memory()
        if layout.offloaded:
            logger.warning(localized(*layout.offload_texts()))
        choice = choose(config, dtype, devices)
        self._stages = layout.stages
        self._model = load_model(layout, tensors, choice.product)
        devices_of_layers = [stage.device for stage in self._stages for _ in stage.layers]
        self._cache = PagedCache(config, layout.precision, devices_of_layers)
        self._loras = LoraStack(self._model, self._cache.free_bytes)
        model = StaticModel(self._model, self._cache, self._loras, self._stages, choice.plan)
        capture = _capture(layout)
        if capture is not None:
            self._cache.held_by_graphs = capture.held_bytes
        recorder = Recorder(capture, model.addresses)
        self._decoder = Decoder(model, self._cache, recorder)
        self._prompts = Prompts(self._model, self._cache, self._loras, recorder)

    @classmethod
    def weight_bytes(cls, config: ModelConfig, dtype: str) -> int:
        return sum(stored_bytes(config, dtype).values())

    @name_memory_errors
    def add_adapter(self, lora: Lora) -> int:
        require_lora_fits(lora, self.config)
        return self._loras.add(lora)

    def drop_adapter(self, adapter: int) -> None:
        assert adapter in self._loras.handles, adapter
        assert all(row.adapter != adapter for row in self._cache.rows.values()), adapter
        self._loras.drop(adapter)

    @name_memory_errors
    def open(self, adapter: int | None = None) -> int:
        assert adapter is None or adapter in self._loras.handles, adapter
        return self._cache.open(adapter)

    @name_memory_errors
    def fork(self, row: int, length: int | None = None) -> int:
        return self._cache.fork(row, self.length(row) if length is None else length)

    def close(self, row: int) -> None:
        self._cache.close(row)

    def length(self, row: int) -> int:
        return self._cache.row(row).length

    def truncate(self, row: int, length: int) -> None:
        self._decoder.forget(row)
        self._cache.truncate(row, length)

    @name_memory_errors
    def load_cache(self, row: int, keys: Array, values: Array) -> None:
        self._decoder.forget(row)
        self._cache.load(row, keys, values)

    def room(self) -> int | None:
        return self._cache.room()

    def use_plan(self, plan: StepPlan) -> None:
        """Compute the layers of decoding steps by other functions, such as those of gpu_steps.py."""
        self._decoder.use(plan)

    @name_memory_errors
    @torch.inference_mode()
    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        self._reserve(chunks)
        steps = [i for i, both in enumerate(zip(chunks, wanted, strict=True)) if self._is_drawn_step(*both)]
        if len(steps) > ROWS[-1]:
            steps = []  # `forward` splits them
        rest = [i for i in range(len(chunks)) if i not in set(steps)]
        wait: Callable[[], list[int]] = list
        if steps:
            draws = [wanted[i].draws[0] for i in steps]
            wait = self._decoder.draw(_step([chunks[i] for i in steps]), draws, ahead=not rest)
        answers: dict[int, Chosen] = {}
        if rest:
            some = [chunks[i] for i in rest]
            found = choose_all(
                _widened(self._logits(some)), [c.n_outputs for c in some], [wanted[i] for i in rest]
            )
            answers = dict(zip(rest, found, strict=True))
        for i, token in zip(steps, wait(), strict=True):
            drawn = SampledToken(token, math.nan, ()) if token >= 0 else None
            answers[i] = Chosen([drawn], np.empty(0), np.empty(0, np.int64))
        return [answers[i] for i in range(len(chunks))]

    @name_memory_errors
    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        self._reserve(chunks)
        return split_outputs(_to_numpy(self._logits(chunks)), chunks)

    @name_memory_errors
    @torch.inference_mode()
    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        self._reserve(chunks)
        return split_outputs(_to_numpy(self._trunk(chunks)), chunks)

    def _reserve(self, chunks: Sequence[Chunk]) -> None:
        """Make room for all that is to be read, or for nothing of it."""
        check_chunks(self, chunks)
        self._cache.reserve([(chunk.row, len(chunk.inputs)) for chunk in chunks])

    def _is_step(self, chunk: Chunk) -> bool:
        """Whether a static pass can read it: one token, after which an output is wanted."""
        return chunk.inputs.shape == (1,) and chunk.n_outputs == 1

    def _is_drawn_step(self, chunk: Chunk, want: Wanted) -> bool:
        """And draw from it."""
        draws_one = len(want.draws) == 1 and want.targets is None
        return draws_one and self._is_step(chunk) and is_plain(want.draws[0])

    def _logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Read the chunks; (M, V), the wanted outputs of all of them end to end."""
        steps = [chunk for chunk in chunks if self._is_step(chunk)]
        rest = [chunk for chunk in chunks if not self._is_step(chunk)]
        if not steps:
            return self._head(self._trunk(rest))
        found = self._decoder.logits(_step(steps))
        if not rest:
            return found
        both = torch.cat([found, self._head(self._trunk(rest))])
        starts = np.cumsum([0, *(chunk.n_outputs for chunk in (*steps, *rest))])
        first = {chunk.row: start for chunk, start in zip((*steps, *rest), starts[:-1], strict=True)}
        places = [first[chunk.row] + np.arange(chunk.n_outputs) for chunk in chunks]
        return both[to_device(np.concatenate(places), both.device)]

    def _trunk(self, chunks: Sequence[Chunk]) -> Tensor:
        """Read the chunks; (M, E), the wanted outputs of all of them end to end."""
        for chunk in chunks:
            self._decoder.forget(chunk.row)
        sizes = [(chunk.row, len(chunk.inputs)) for chunk in chunks]
        x = self._read(chunks, sizes)
        self._cache.advance(sizes)
        return x[to_device(output_places(chunks), x.device)]

    def _read(self, chunks: Sequence[Chunk], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Read the chunks; (N, E) after the last LayerNorm."""
        [first, *others] = chunks
        row = self._cache.row(first.row)
        if not others and first.inputs.ndim == 1 and self._prompts.reads(row, first.inputs):
            return self._prompts.read(row, first.inputs)
        found = [Places.of(self._cache, self._loras, sizes, stage.device) for stage in self._stages]
        x = self._embed(chunks)
        for stage, places in zip(self._stages, found, strict=True):
            run = CachedPass(self._cache, self._loras, places.slots, places.groups)
            x = self._model.blocks(x.to(stage.device), places.positions, run, stage.layers)
        return self._model.norm(x)[0]

    def _head(self, hidden: Tensor) -> Tensor:
        """(M, E) -> (M, V); M may be 0, for which some kernels are not made."""
        return self._model.head(hidden) if len(hidden) else hidden.new_empty((0, self.config.n_vocab))

    def _embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """(1, N, E): the embeddings of all ids by one look-up; soft prompts are written over theirs."""
        ids = [c.inputs if c.inputs.ndim == 1 else np.zeros(len(c.inputs), np.int64) for c in chunks]
        device = self._stages[0].device
        x = self._model.embed(to_device(np.concatenate(ids), device)[None]).to(self._cache.layers[0].dtype)
        start = 0
        for chunk in chunks:
            if chunk.inputs.ndim == 2:
                x[0, start : start + len(chunk.inputs)] = to_device(np.array(chunk.inputs), device)
            start += len(chunk.inputs)
        return x


def _capture(layout: Layout) -> CudaGraphs | None:
    """How decoding steps are recorded: only on one GPU that holds all weights, whose addresses then stay."""
    [*devices] = {stage.device for stage in layout.stages}
    is_gpu = len(devices) == 1 and devices[0].type == "cuda"
    return CudaGraphs(devices[0]) if is_gpu and not layout.offloaded else None


def _no_memory(told: str) -> tuple[str, str]:
    """English and Korean text for what torch says, as far as it says how much is missing."""
    first, free, _ = told.partition("\n")[0].partition(" is free")
    told, (remedy, remedy_ko) = first[:200] + free, REMEDIES
    return (
        f"not enough memory: {told}: close other programs, {remedy}",
        f"메모리가 부족합니다({told}). 다른 프로그램을 닫거나, {remedy_ko}",
    )


def _step(chunks: Sequence[Chunk]) -> Step:
    """Chunks of one id each."""
    return Step([chunk.row for chunk in chunks], [int(chunk.inputs[0]) for chunk in chunks])


def _widened(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _to_numpy(x: Tensor) -> Array:
    array: Array = _widened(x).cpu().numpy()
    return array


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
