"""The fast CPU runner: the whole forward pass in C++ (native/), one call per step, without torch.

Small matrices stay on the file's pages where the file has the runner's dtype and whole tiles. Others are
converted, or copied into huge pages where there are such (reading those is up to a fifth faster), one tensor
at a time while a thread reads the next, and the pages read for it are given back.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from kogpt import memory
from kogpt.adapter import Lora, require_lora_fits
from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.native_layout import FACTORS, Inputs, Question, address
from kogpt.quantize import EMBEDDING, HEAD, Lazy, Quantized, matrices
from kogpt.runner import (
    CPU_PREFILL_TOKENS,
    Array,
    Chunk,
    cache_room,
    check_chunks,
    split_outputs,
)
from kogpt.sampling import Chosen, Wanted
from kogpt.weights import WIDTHS, Scratch

LIBRARY = Path(__file__).with_name("_native.so")
ABI = 7
MAX_THREADS = 1024
FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "int4": 4}  # native/layout.h
BYTES = WIDTHS | {"int8": 1, "int4": 17 / 32}  # per weight of a matrix; int4: a byte of scale per 32 weights
OUTPUT_BYTES = 8  # per output of a packed matrix: a float32 scale and an int32 sum, native/layout.h
BLOCK = 32  # positions of one cache block, native/layout.h
CACHE_DTYPES = ("float32", "bfloat16", "int8")
PROJECTIONS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")
DIMENSIONS = ("n_layers", "n_heads", "d_model", "d_ff", "n_vocab", "n_ctx", "rotary_dim")
VECTORS = ("ln_1.weight", "ln_1.bias", "mlp.fc_in.bias", "mlp.fc_out.bias")


class Dims(ctypes.Structure):
    """struct Dims of native/model.h."""

    _fields_ = (*((name, ctypes.c_int) for name in DIMENSIONS), ("epsilon", ctypes.c_float))


NO_ADAPTER = -1


def available() -> bool:
    """Whether the kernels were built for this machine."""
    return library() is not None


def isa() -> str:
    """The set in use: amx, avx512, avx2, dotprod, neon or plain. KOGPT_ISA forces a lesser one."""
    kernels = library()
    assert kernels is not None
    name: bytes | None = kernels.kogpt_isa()
    if name is None:
        wanted = os.environ.get("KOGPT_ISA")
        raise KoGPTError(
            f"KOGPT_ISA is {wanted!r}, an instruction set that this processor or build lacks: unset it",
            f"KOGPT_ISA 값 {wanted!r}: 이 프로세서에 없는 명령어 집합입니다. 이 변수를 지우세요",
        )
    return name.decode()


class NativeRunner:
    """A Runner for float32, bfloat16, float16, int8 and int4 weights; see runner.py for what it promises.

    cache_dtype: of keys and values; auto is float32 for float32 weights, else bfloat16. int8 has a scale for
    each position and head. threads: those that the process may use if None. Raises NotEnoughMemory if the
    model does not fit, KoGPTError if there is no such dtype or number of threads.
    """

    name = "native"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float32", "float16", "int8", "int4")
    prefill_tokens = CPU_PREFILL_TOKENS

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Stored | Quantized],
        dtype: str = "bfloat16",
        threads: int | None = None,
        cache_dtype: str = "auto",
    ) -> None:
        kernels = library()
        assert kernels is not None, "kogpt._native was not built"
        _check_dtype(dtype)
        self.config = config
        self.cache_dtype = _cache_dtype(cache_dtype, dtype)
        self.dtype = dtype
        self.isa = isa()
        usable = min(memory.usable_cpus(), MAX_THREADS)
        self.threads = _require_threads(usable if threads is None else threads)
        _require_room(config, dtype)
        self._library = kernels
        dims = Dims(*(getattr(config, name) for name in DIMENSIONS), config.layer_norm_epsilon)
        formats = FORMATS[dtype], FORMATS[self.cache_dtype]
        created = kernels.kogpt_create(ctypes.byref(dims), *formats, self.threads)
        if not created:
            raise NotEnoughMemory(
                f"the system gives no memory for this model's buffers and {self.threads} threads: "
                "close other programs, or raise the limits of this process (ulimit -u, ulimit -v)",
                f"이 모델의 버퍼와 스레드 {self.threads}개를 만들 메모리를 얻지 못했습니다. "
                "다른 프로그램을 닫거나 이 프로세스의 제한(ulimit -u, ulimit -v)을 늘려 주세요",
            )
        self._model = _Model(created)
        self._borrowed: list[NDArray[Any]] = []  # arrays whose memory the model reads
        self._allow: Callable[[], None] | None = None  # see answer_after
        # At the end of the program generators and threads may still call: then the system takes the memory.
        weakref.finalize(self, self._model.free, kernels).atexit = False
        self._load(tensors)

    @classmethod
    def weight_bytes(cls, config: ModelConfig, dtype: str) -> int:
        if dtype in WIDTHS:
            return config.n_parameters * WIDTHS[dtype]
        shapes = config.tensor_shapes()
        total = 2 * prod(shapes[EMBEDDING]) + sum(
            4 * shape[0] for shape in shapes.values() if len(shape) == 1
        )
        for n, k in matrices(config).values():  # a tied head is packed beside the embedding
            total += OUTPUT_BYTES * n + int(BYTES[dtype] * n * k)
        return total

    def answer_after(self, allow: Callable[[], None]) -> None:
        """Call this before the first answer is given; what it raises is raised instead of each answer."""
        self._allow = allow

    def open(self, adapter: int | None = None) -> int:
        assert adapter is None or self._library.kogpt_has_adapter(self._model, adapter), adapter
        handle = NO_ADAPTER if adapter is None else adapter
        return require_memory_ok(self._library.kogpt_open(self._model, handle))

    def fork(self, row: int, length: int | None = None) -> int:
        length = self.length(row) if length is None else length
        assert 0 <= length <= self.length(row), (length, self.length(row))
        return require_memory_ok(self._library.kogpt_fork(self._model, row, length))

    def close(self, row: int) -> None:
        if self._model.freed:  # by the garbage collector, before the generator whose row this is
            return
        assert self._library.kogpt_length(self._model, row) >= 0, row
        self._library.kogpt_close(self._model, row)

    def length(self, row: int) -> int:
        length: int = self._library.kogpt_length(self._model, row)
        assert length >= 0, row
        return length

    def truncate(self, row: int, length: int) -> None:
        assert 0 <= length <= self.length(row), (length, self.length(row))
        self._library.kogpt_truncate(self._model, row, length)

    def room(self) -> int | None:
        position_bytes = self._library.kogpt_block_bytes(self._model) / BLOCK
        return cache_room(position_bytes, memory.available_memory())

    def load_cache(self, row: int, keys: Array, values: Array) -> None:
        c = self.config
        length, n_new = self.length(row), keys.shape[1]
        shape = (c.n_layers, n_new, c.n_heads, c.d_head)
        assert keys.shape == values.shape == shape, (keys.shape, values.shape)
        assert length + n_new <= c.n_ctx, (length, n_new)
        self._require_cache(self._library.kogpt_cache_bytes(self._model, row, n_new), length + n_new)
        keys, values = (np.ascontiguousarray(x, np.float32) for x in (keys, values))
        require_memory_ok(
            self._library.kogpt_load_cache(self._model, row, address(keys), address(values), n_new)
        )

    def add_adapter(self, lora: Lora) -> int:
        # bfloat16 is read in half the time; its rounding is below that of weights in 16 bits or fewer.
        require_lora_fits(lora, self.config)
        dtype = "float32" if self.dtype == "float32" else "bfloat16"
        n_values = sum(update.a.size + update.b.size for update in lora.updates.values())
        memory.require_memory(int(n_values * BYTES[dtype]), "this adapter", "이 어댑터")
        factors, borrowed = [], []
        for name, update in lora.updates.items():
            _, _, layer, projection = name.split(".", 3)
            index = int(layer) * len(PROJECTIONS) + PROJECTIONS.index(projection)
            a, b = (np.ascontiguousarray(x, np.float32) for x in (update.a, update.b))
            borrowed += [a, b]
            factors.append(FACTORS.pack(index, len(a), update.scale, address(a), address(b)))
        return require_memory_ok(
            self._library.kogpt_add_adapter(self._model, FORMATS[dtype], b"".join(factors), len(factors))
        )

    def drop_adapter(self, adapter: int) -> None:
        assert self._library.kogpt_has_adapter(self._model, adapter), adapter
        assert not self._library.kogpt_uses_adapter(self._model, adapter), adapter
        self._library.kogpt_drop_adapter(self._model, adapter)

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        inputs = self._pack(chunks)
        question = Question(chunks, wanted, self.config.n_vocab)
        require_memory_ok(self._library.kogpt_draw(self._model, inputs.packed, len(chunks), question.packed))
        self._wait_until_allowed()
        return question.answers()

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        return self._run(chunks, hidden=False)

    def hidden(self, chunks: Sequence[Chunk]) -> list[Array]:
        return self._run(chunks, hidden=True)

    def _run(self, chunks: Sequence[Chunk], hidden: bool) -> list[Array]:
        inputs = self._pack(chunks)
        width = self.config.d_model if hidden else self.config.n_vocab
        out = np.empty((sum(chunk.n_outputs for chunk in chunks), width), np.float32)
        require_memory_ok(
            self._library.kogpt_forward(self._model, inputs.packed, len(chunks), hidden, out.ctypes.data)
        )
        self._wait_until_allowed()
        return split_outputs(out, chunks)

    def _wait_until_allowed(self) -> None:
        if self._allow is not None:
            self._allow()
            self._allow = None

    def _pack(self, chunks: Sequence[Chunk]) -> Inputs:
        """The chunks as native/ reads them, once they and the memory are checked."""
        check_chunks(self, chunks)
        inputs = Inputs(chunks, self.config)
        needed = self._library.kogpt_step_bytes(self._model, inputs.packed, len(chunks))
        if needed:
            self._require_cache(needed, max(self.length(c.row) + len(c.inputs) for c in chunks))
        return inputs

    def _require_cache(self, n_bytes: int, length: int) -> None:
        memory.require_memory(n_bytes, f"the cache of a text of {length} tokens", f"{length}토큰 글의 캐시")

    def _load(self, tensors: Mapping[str, Stored | Quantized]) -> None:
        for index, name in enumerate(_vector_names(self.config)):
            vector = np.ascontiguousarray(_plain(tensors[name]).to("float32"))
            require_memory_ok(self._library.kogpt_load_vector(self._model, index, vector.ctypes.data))
        self._load_projections(tensors)
        embedding = _contiguous(_plain(tensors[EMBEDDING]))
        self._library.kogpt_borrow_embedding(
            self._model, FORMATS[embedding.dtype], embedding.array.ctypes.data
        )
        self._borrowed.append(embedding.array)

    def _load_projections(self, tensors: Mapping[str, Stored | Quantized]) -> None:
        """Read one after another, while a thread converts the last one."""
        from concurrent.futures import Future, ThreadPoolExecutor

        scratches = Scratch(), Scratch()  # in turns: codes are read from it once and never again
        with ThreadPoolExecutor(1) as converter:
            last: Future[None] | None = None
            for index, name in enumerate(_projection_names(self.config, tensors)):
                scratch = scratches[index % 2]
                scratch.clear()
                tensor = tensors.passing(name, scratch) if isinstance(tensors, Lazy) else tensors[name]
                if last is not None:
                    last.result()
                last = converter.submit(self._load_projection, index, tensor)
                del tensor
            if last is not None:
                last.result()

    def _load_projection(self, index: int, tensor: Stored | Quantized) -> None:
        if isinstance(tensor, Quantized):
            self._load_codes(index, tensor)
            return
        weight = _contiguous(tensor)
        borrowed = require_memory_ok(
            self._library.kogpt_load_projection(
                self._model, index, FORMATS[weight.dtype], weight.array.ctypes.data
            )
        )
        if borrowed:
            self._borrowed.append(weight.array)

    def _load_codes(self, index: int, matrix: Quantized) -> None:
        assert matrix.dtype == self.dtype, (matrix.dtype, self.dtype)
        codes = np.ascontiguousarray(matrix.codes)
        groups = None if matrix.groups is None else np.ascontiguousarray(matrix.groups)
        addresses = (
            codes.ctypes.data,
            None if groups is None else groups.ctypes.data,
            matrix.scales.ctypes.data,
        )
        require_memory_ok(self._library.kogpt_load_codes(self._model, index, *addresses))


class _Model:
    """The C++ model as an argument of the kernels; once it was freed no call gets as far as them."""

    def __init__(self, address: int) -> None:
        self._as_parameter_ = ctypes.c_void_p(address)

    @property
    def freed(self) -> bool:
        return "_as_parameter_" not in vars(self)

    def __getattr__(self, name: str) -> NoReturn:
        if name == "_as_parameter_":
            raise RuntimeError("this runner's model was freed")
        raise AttributeError(name)

    def free(self, kernels: ctypes.CDLL) -> None:
        created = vars(self).pop("_as_parameter_", None)  # None: it was freed before
        kernels.kogpt_destroy(created)


def _require_threads(threads: int) -> int:
    if not 1 <= threads <= MAX_THREADS:
        raise KoGPTError(
            f"{threads} threads: choose from 1 to {MAX_THREADS}, as many as there are cores",
            f"스레드 {threads}개는 쓸 수 없습니다. 1에서 {MAX_THREADS} 사이에서 코어 수만큼 고르세요",
        )
    return threads


def require_memory_ok(result: int) -> int:
    """What a function of the kernels returned; NotEnoughMemory if it is their -1."""
    if result < 0:
        raise NotEnoughMemory(
            "the system gives no more memory for this model: run fewer or shorter texts at once, close other "
            "programs, or raise the limits of this process (ulimit -u, ulimit -v)",
            "이 모델에 쓸 메모리를 더 얻지 못했습니다. 더 적고 짧은 글을 한 번에 처리하거나, "
            "다른 프로그램을 닫거나, 이 프로세스의 제한(ulimit -u, ulimit -v)을 늘려 주세요",
        )
    return result


def _contiguous(tensor: Stored) -> Stored:
    """The tensor in a dtype that the kernels read, aligned and row by row; itself if it is that already."""
    if tensor.dtype == "float64":
        tensor = Stored("float32", tensor.to("float32"))
    flags = tensor.array.flags
    if flags.c_contiguous and flags.aligned:
        return tensor
    return Stored(tensor.dtype, np.require(tensor.array, requirements=("C", "A")))


def _projection_names(config: ModelConfig, tensors: Mapping[str, Any]) -> Iterator[str]:
    for layer in range(config.n_layers):
        yield from (f"transformer.h.{layer}.{name}.weight" for name in PROJECTIONS)
    yield HEAD if HEAD in tensors else EMBEDDING  # a tied head


def _vector_names(config: ModelConfig) -> Iterator[str]:
    for layer in range(config.n_layers):
        yield from (f"transformer.h.{layer}.{name}" for name in VECTORS)
    yield from ("transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.bias")


def _check_dtype(dtype: str) -> None:
    if dtype not in FORMATS:
        raise KoGPTError(
            f"dtype is {dtype!r}, must be one of {', '.join(FORMATS)} on a CPU",
            f"dtype 값 {dtype!r} (CPU에서 가능한 값: {', '.join(FORMATS)})",
        )


def cache_dtype_for(dtype: str) -> str:
    """What the cache's "auto" stands for beside weights in `dtype`."""
    return "float32" if dtype == "float32" else "bfloat16"


def _cache_dtype(cache_dtype: str, dtype: str) -> str:
    """What "auto" stands for beside weights in `dtype`; KoGPTError if the kernels know no such cache."""
    if cache_dtype == "auto":
        return cache_dtype_for(dtype)
    if cache_dtype not in CACHE_DTYPES:
        raise KoGPTError(
            f"cache dtype is {cache_dtype!r}, must be auto, {', '.join(CACHE_DTYPES)}",
            f"캐시 형식 값 {cache_dtype!r} (가능한 값: auto, {', '.join(CACHE_DTYPES)})",
        )
    return cache_dtype


def _plain(tensor: Stored | Quantized) -> Stored:
    """A tensor that is never quantised."""
    assert isinstance(tensor, Stored), tensor.shape
    return tensor


def _require_room(config: ModelConfig, dtype: str) -> None:
    """Refuse a model whose weights do not fit, before anything is allocated."""
    memory.require_memory(
        NativeRunner.weight_bytes(config, dtype), f"this model in {dtype}", f"{dtype} 형식의 이 모델"
    )


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built."""
    if not LIBRARY.exists():
        return None
    try:
        kernels = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None  # built for another system, or damaged
    if kernels.kogpt_abi() != ABI:
        return None  # left over from another version; scripts and pip build it anew
    pointer, number = ctypes.c_void_p, ctypes.c_int
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "kogpt_isa": (ctypes.c_char_p, ()),
        "kogpt_create": (pointer, (pointer, number, number, number)),
        "kogpt_destroy": (None, (pointer,)),
        "kogpt_load_projection": (number, (pointer, number, number, pointer)),
        "kogpt_load_codes": (number, (pointer, number, pointer, pointer, pointer)),
        "kogpt_quantize": (
            number,
            (*(number,) * 2, pointer, *(number,) * 2, pointer, number, *(pointer,) * 3),
        ),
        "kogpt_search": (None, (pointer, number, pointer, pointer)),
        "kogpt_int4_table": (pointer, ()),
        "kogpt_load_vector": (number, (pointer, number, pointer)),
        "kogpt_borrow_embedding": (None, (pointer, number, pointer)),
        "kogpt_open": (number, (pointer, number)),
        "kogpt_fork": (number, (pointer, number, number)),
        "kogpt_close": (None, (pointer, number)),
        "kogpt_length": (number, (pointer, number)),
        "kogpt_truncate": (None, (pointer, number, number)),
        "kogpt_block_bytes": (ctypes.c_size_t, (pointer,)),
        "kogpt_cache_bytes": (ctypes.c_size_t, (pointer, number, number)),
        "kogpt_step_bytes": (ctypes.c_size_t, (pointer, pointer, number)),
        "kogpt_load_cache": (number, (pointer, number, pointer, pointer, number)),
        "kogpt_add_adapter": (number, (pointer, number, pointer, number)),
        "kogpt_drop_adapter": (None, (pointer, number)),
        "kogpt_has_adapter": (number, (pointer, number)),
        "kogpt_uses_adapter": (number, (pointer, number)),
        "kogpt_forward": (number, (pointer, pointer, number, number, pointer)),
        "kogpt_draw": (number, (pointer, pointer, number, pointer)),
        "kogpt_sample": (number, (pointer, number, pointer, pointer, pointer)),
        "kogpt_gumbel": (None, (ctypes.c_uint64, number, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(kernels, name)
        function.restype, function.argtypes = result, arguments
    return kernels
